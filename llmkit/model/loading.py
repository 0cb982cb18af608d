"""Weights and tokenizer in, on the device, in the data type and quantization that the recipe and the plan say."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from llmkit.data.hub import require_hub
from llmkit.errors import RecipeError, SetupError
from llmkit.model.heads import (
    CLASSIFIER,
    check_one_label,
    check_whole,
    fresh_head,
    gives_scores,
    hold_head_in_float32,
    is_classifier,
)
from llmkit.model.sources import ModelSource, locate
from llmkit.planning.plan import Plan
from llmkit.recipe import fields
from llmkit.recipe.places import cache_folder, file_hash

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from llmkit.recipe.recipe import Model, Recipe


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """Load the tokenizer, with the recipe's chat template and end token where it sets them.

    Raises SetupError if the hub can't be reached, or the recipe's template file or end token does not exist.
    """
    from transformers import AutoTokenizer

    model = recipe.model
    source = locate(model, recipe.folder)
    path = str(source.adapter) if source.adapter and _has_tokenizer(source.adapter) else loadable(source)
    stay_silent()
    with _explained(model, source):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=_revision(source, model), trust_remote_code=model.trust_remote_code
        )
    _check_template_names(tokenizer)
    if model.chat_template:
        tokenizer.chat_template = _template(recipe.folder / Path(model.chat_template).expanduser())
    if model.eos_token:
        if model.eos_token not in tokenizer.get_vocab():
            raise SetupError(f"`model.eos_token`: {model.eos_token!r} is not a token of this tokenizer")
        tokenizer.eos_token = model.eos_token
    if tokenizer.eos_token_id is None:
        raise SetupError("the tokenizer has no end token", remedy="Name one in `model.eos_token`.")
    if tokenizer.pad_token_id is None:
        # Padding is masked by position and never by its id, so sharing the end token's id costs nothing.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    recipe: Recipe, plan: Plan, tokenizer: PreTrainedTokenizerBase, *, adapter: Path | None = None
) -> PreTrainedModel:
    """Load the base weights (quantized if the recipe says so) and an adapter over them.

    The adapter is `adapter`, or else the one that the recipe continues from, if any.

    Raises SetupError if the hub can't be reached or the machine can't hold or run what was asked for.
    """
    quantization = recipe.quantization
    model = load_base(
        recipe,
        dtype=str(recipe.model.dtype or plan["model.dtype"]),
        attn_implementation=str(recipe.model.attn_implementation or plan["model.attn_implementation"]),
        quantization_config=quantization.build(plan) if quantization else None,
        device=str(plan["hardware.device"]),
    )
    agree_on_ends(model, tokenizer)
    adapter = adapter or locate(recipe.model, recipe.folder).adapter
    if adapter is not None:
        from peft import PeftModel

        _check_adapter_kind(adapter, recipe)
        return PeftModel.from_pretrained(model, adapter, is_trainable=True)
    return model


def load_base(
    recipe: Recipe,
    *,
    dtype: str,
    attn_implementation: str = "sdpa",
    quantization_config: Any = None,
    device: str = "cpu",
) -> PreTrainedModel:
    """Load the base model of `recipe` without an adapter; quantized weights go straight to `device`.

    A reward model is a sequence classifier with one label. The head that a language model lacks for it is random, and
    the same for the same `training.seed`. Raises SetupError if the weights are not those of the model that the method
    trains, RecipeError if the recipe would quantize the head.
    """
    import torch
    import transformers

    source = locate(recipe.model, recipe.folder)
    auto_class = getattr(transformers, recipe.method.model_class)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "attn_implementation": attn_implementation}
    scores = recipe.method.model_class == CLASSIFIER
    if scores:
        options["num_labels"] = 1
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
        options["device_map"] = {"": _local_device(device)}
    if not recipe.model.allow_pickle:
        options["use_safetensors"] = True
    quiet_bitsandbytes()
    stay_silent()
    with _explained(recipe.model, source):
        path = loadable(source)
        where = {"revision": _revision(source, recipe.model), "trust_remote_code": recipe.model.trust_remote_code}
        config = transformers.AutoConfig.from_pretrained(path, **where).to_dict()
        _refuse_named_pickle(config, recipe.model)
        _check_kind(config, recipe)
        fresh = scores and not is_classifier(config)
        with fresh_head(_seed(recipe)) if fresh else nullcontext():
            model, report = auto_class.from_pretrained(path, output_loading_info=True, **where, **options)
    missing = {name for name in report["missing_keys"] if not (fresh and name.startswith("score."))}
    check_whole(missing, f"`model.name`: {recipe.model.name}")
    keep_4bit_weights_in_place(model)
    if scores:
        _check_head(model)
        hold_head_in_float32(model)
    return model


def on_device(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Move a model to the planned device; quantized weights are there already and can't be moved."""
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        return model
    return model.to(str(plan["hardware.device"]))


def keep_4bit_weights_in_place(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in eval mode on avx512_bf16 CPUs.

    Its packed layout has no backward and is never unpacked by `.train()`: after one evaluation the gradients would be
    wrong without an error. (bitsandbytes 0.50.2, `Linear4bit.forward`)
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quiet_bitsandbytes() -> None:
    """Hold back bitsandbytes' notices: int8 says for each matrix product of each step that it casts its input."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def stay_silent() -> None:
    """Keep the libraries from calls that no recipe asks for.

    These are usage statistics (TRL sends some for every trainer, huggingface_hub with every download), and the request
    to a public service that pickled weights be converted. (TRL 1.16, transformers 5.23, huggingface_hub 2.4)
    """
    from huggingface_hub import constants

    # The environment variable of this name is read when the library is imported, which others may have done before.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"


def load_stop_ids(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the token ids that end a generated answer: the tokenizer's end token and the generation config's."""
    from transformers import GenerationConfig

    source = locate(recipe.model, recipe.folder)
    try:
        config = GenerationConfig.from_pretrained(loadable(source), revision=_revision(source, recipe.model))
    except OSError:
        # Optional file: without it generation stops on the tokenizer's end token alone.
        return stop_ids(tokenizer, None)
    return stop_ids(tokenizer, config)


def stop_ids(tokenizer: PreTrainedTokenizerBase, config: GenerationConfig | None) -> frozenset[int]:
    """Return the end tokens of `tokenizer` and of a generation config together."""
    ends = config.eos_token_id if config is not None else None
    found = {tokenizer.eos_token_id} | (set(ends) if isinstance(ends, list) else {ends})
    return frozenset(i for i in found if isinstance(i, int))


def loadable(source: ModelSource) -> str:
    """Return what `from_pretrained` takes for `source`: GGUF files are converted once into the cache."""
    return str(_converted(Path(source.path))) if source.kind == "gguf" else source.path


def will_convert(recipe: Recipe) -> bool:
    """Whether loading the model of `recipe` first converts a GGUF file, which takes a minute and is done once."""
    source = locate(recipe.model, recipe.folder)
    return source.kind == "gguf" and not (converted_place(Path(source.path)) / "config.json").is_file()


def converted_place(gguf: Path) -> Path:
    """Return where the safetensors copy of a GGUF file belongs: named by its content, it can't go stale."""
    return cache_folder() / "models" / f"{gguf.stem}-{file_hash(gguf)[:16]}"


def _converted(gguf: Path) -> Path:
    """Return the safetensors folder made from a GGUF file, converting it if that has not been done."""
    target = converted_place(gguf)
    if not (target / "config.json").is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as scratch:
            copy = Path(scratch) / "model"
            _convert(gguf, copy)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(copy, target)
    return target


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # transformers draws a bar here that it gives no way to switch off; the caller has said what takes so long.
    with redirect_stderr(io.StringIO()):
        # Packed GGUF weights can be neither trained nor saved; float32 keeps every dequantized value exactly.
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,  # unset, transformers would ask on the terminal
        )
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.save_pretrained(target)


def _local_device(device: str) -> str | int:
    # One process drives one GPU: accelerate and torchrun number them by LOCAL_RANK.
    return int(os.environ.get("LOCAL_RANK", "0")) if device == "cuda" else device


def _revision(source: ModelSource, model: Model) -> str:
    return model.revision or "main" if source.kind == "hub" else "main"


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()


def _template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SetupError(f"`model.chat_template`: {path} can't be read: {error.strerror}") from error


def _check_template_names(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise SetupError for a template whose name is no plain one: it is the name of a file when the model is saved."""
    names = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else ()
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", str(name)):
            raise SetupError(
                f"`model.name`: the tokenizer has a chat template called {name!r}, which can't be the name of a file",
                remedy="Give the one that is meant as a Jinja file: model: {chat_template: template.jinja}.",
            )


def _refuse_named_pickle(config: Mapping[str, Any], model: Model) -> None:
    """Raise SetupError for a config that names pickled weights: transformers takes those, whatever else is there."""
    named = config.get("transformers_weights")
    if (
        named
        and not str(named).endswith((".safetensors", ".safetensors.index.json"))
        and named not in model.allow_pickle
    ):
        raise SetupError(
            f"`model.name`: the config of {model.name} names pickled weights ({named}), and loading those can run code",
            remedy=f"Use a safetensors copy, or, if you trust the file: model: {{allow_pickle: [{named}]}}",
        )


def _seed(recipe: Recipe) -> int:
    return int(recipe.training.kwargs().get("seed", fields.describe(recipe.method.config)["seed"].default))


def _check_kind(config: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise SetupError for a classifier where a language model is trained, and for one that gives no single score."""
    if not is_classifier(config):
        return
    name, method = recipe.model.name, recipe.method
    if method.model_class != CLASSIFIER:
        raise SetupError(
            f"`model.name`: {name} is a sequence classifier (a reward model), and method {method.type!r} trains a "
            "language model",
            remedy="Start from a language model, e.g. the one that the classifier was made from.",
        )
    check_one_label(config, f"`model.name`: {name}")


def _check_head(model: PreTrainedModel) -> None:
    """Raise RecipeError where the head, which is trained as a whole, was quantized with the other layers."""
    import torch

    head = getattr(model, "score", None)
    if isinstance(head, torch.nn.Linear) and type(head) is not torch.nn.Linear:
        raise RecipeError(
            "`quantization.llm_int8_skip_modules` replaces the list that keeps the score head whole, and a quantized "
            "head can't be trained",
            remedy="Add `score` to the list.",
        )


def _check_adapter_kind(adapter: Path, recipe: Recipe) -> None:
    """Raise SetupError for a language model's adapter over a classifier, and the other way round."""
    found = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("task_type")
    wanted = "SEQ_CLS" if recipe.method.model_class == CLASSIFIER else "CAUSAL_LM"
    if found in ("SEQ_CLS", "CAUSAL_LM") and found != wanted:
        raise SetupError(
            f"{adapter} is an adapter for {found}, and method {recipe.method.type!r} trains one for {wanted}",
            remedy="Merge it first (`export: [{type: merged}]`) and start from the merged model."
            if found == "CAUSAL_LM"
            else "Start from a language model.",
        )


def agree_on_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make generation stop on the tokenizer's end token too; a saved model carries this along.

    A classifier generates nothing, but finds the last token of a padded row by the pad token.
    """
    if gives_scores(model):
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        return
    config = model.generation_config
    if config is None:
        return
    ends = sorted(stop_ids(tokenizer, config))
    config.eos_token_id = ends[0] if len(ends) == 1 else ends
    config.pad_token_id = tokenizer.pad_token_id


@contextmanager
def _explained(model: Model, source: ModelSource) -> Iterator[None]:
    """Turn transformers' errors for a model that is unreachable, unknown, unusable or code into a SetupError."""
    if source.kind == "hub" and not _is_cached(model, source):
        require_hub(f"the model {source.path}")
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise _brings_code(model, source) from error
        raise _unusable(source, error) from error
    except UnpicklingError as error:
        raise SetupError(
            f"`model.name`: a pickled file of {source.path} holds something else than numbers: loading it could run "
            "code, so it was not loaded",
            remedy="Use a safetensors copy.",
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise  # the machine's own trouble, such as a full disk
        if source.kind != "hub":
            raise _unusable(source, error) from error
        raise _not_on_the_hub(model, str(error).splitlines()[0]) from error


def _is_cached(model: Model, source: ModelSource) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(source.path, "config.json", revision=model.revision), str)


def _unusable(source: ModelSource, error: Exception) -> SetupError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return SetupError(f"`model.name`: {source.path} can't be loaded: {first}")


def _brings_code(model: Model, source: ModelSource) -> SetupError:
    adapter = f" (the base that the adapter {source.adapter} names)" if source.adapter else ""
    return SetupError(
        f"`model.name`: {source.path}{adapter} can only be loaded by Python code that comes with it, which was not run",
        remedy="Read that code. If you trust it, name the model itself and allow it: "
        f"model: {{name: {source.path}, trust_remote_code: true}}",
    )


def _not_on_the_hub(model: Model, reason: str) -> SetupError:
    from huggingface_hub import constants

    offline = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the hub gave none"
    revision = f" at revision {model.revision!r}" if model.revision else ""
    return SetupError(
        f"`model.name`: {model.name!r}{revision} is not in the local cache, and {offline}",
        remedy=(
            f"It would be kept in {constants.HF_HUB_CACHE}. Check the name, log in for a gated model "
            f"(`hf auth login`), or point `model.name` to a local folder.\n({reason})"
        ),
    )
