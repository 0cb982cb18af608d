"""A small model with random weights that stands for a large one, so that a whole run can be rehearsed on it.

Tokenizer, vocabulary, special tokens, generation settings, kinds of layers and the names of all modules are those of
the real model; the layers are fewer and narrower. Its weights are not read.
"""

from __future__ import annotations

import copy
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import SetupError
from llmkit.model.footprint import find_config
from llmkit.model.heads import CLASSIFIER, is_classifier
from llmkit.model.kept import find_layers, signature
from llmkit.model.loading import load_tokenizer, loadable, will_convert
from llmkit.model.sources import TOKENIZER_FILES, ModelSource, locate

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from llmkit.recipe.recipe import Recipe

HEADS, HEAD = 4, 16
"""Attention heads of the small model, and the size of one; 64 together, which is a block of 4-bit quantization."""

EACH = 2
"""Layers of each kind."""

EXPERTS, CHOSEN = 4, 2
"""Experts of a layer, and how many of them a token goes through."""

LARGEST = 200_000_000
"""Parameters of a model that still passes for a small one, where its layers can't be made narrower."""


@dataclass(frozen=True)
class Shrunk:
    """The small model on disk."""

    folder: Path
    """What `model.name` is to be; an adapter folder where training continues from an adapter."""

    layers: int
    real_layers: int
    parameters: int
    quantized: bool
    """Whether the real weights are quantized in their files already, which those of the small model are not."""

    def sentence(self) -> str:
        """Say what was made."""
        said = f"{self.layers} of {self.real_layers} layers, {self.parameters / 1e6:.1f} M random weights"
        return f"{said}; that the real ones are quantized in their files is not rehearsed" if self.quantized else said


def shrink(recipe: Recipe, folder: Path) -> Shrunk:
    """Write a small model for `recipe`, with its tokenizer, below `folder`.

    Raises SetupError where tokenizer or config can't be had, or no small model of the architecture can be made.
    """
    source = locate(recipe.model, recipe.folder)
    tokenizer = _tokenizer(recipe, source)
    config = _config(recipe, source)
    quantized = getattr(config, "quantization_config", None) is not None
    if quantized:
        del config.quantization_config
    model, real_layers = _small(recipe, config)
    base = folder / "base"
    model.to(_dtype(config)).save_pretrained(base)
    _write_generation_config(recipe, source, base)
    tokenizer.save_pretrained(base)
    count = sum(parameter.numel() for parameter in model.parameters())
    layers = int(model.config.get_text_config().num_hidden_layers)
    place = base if source.adapter is None else _with_adapter(model, source.adapter, base, folder / "adapter")
    return Shrunk(place, layers, real_layers, count, quantized)


# --- What the real model says ----------------------------------------------------------------------------------------


def _tokenizer(recipe: Recipe, source: ModelSource) -> PreTrainedTokenizerBase:
    """Return the run's tokenizer; a GGUF file is not converted for it."""
    if not will_convert(recipe):
        return load_tokenizer(recipe)
    from transformers import AutoTokenizer

    file = Path(source.path)
    # Unset, transformers would ask on the terminal about code in the file's folder; a conversion never runs it.
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)


def _config(recipe: Recipe, source: ModelSource) -> PreTrainedConfig:
    found = find_config(recipe)
    if found is not None and found.known is None:
        return found.load(recipe)
    from transformers import AutoConfig

    # A hub model of which not all is in the cache: its tokenizer has been fetched just now.
    model = recipe.model
    return AutoConfig.from_pretrained(
        source.path, revision=model.revision or "main", trust_remote_code=model.trust_remote_code
    )


def _dtype(config: PreTrainedConfig) -> Any:
    """Return the data type of the real weights; what names none is in float32."""
    import torch

    named = getattr(config, "dtype", None)
    found = getattr(torch, named.removeprefix("torch.")) if isinstance(named, str) else named
    return found or torch.float32


def _write_generation_config(recipe: Recipe, source: ModelSource, base: Path) -> None:
    """Copy the real generation settings as they are; transformers checks them when a trained model is saved."""
    from transformers import GenerationConfig

    if will_convert(recipe):
        return
    revision = recipe.model.revision or "main" if source.kind == "hub" else "main"
    try:
        config = GenerationConfig.from_pretrained(loadable(source), revision=revision)
    except OSError:
        return  # an optional file
    (base / "generation_config.json").write_text(config.to_json_string(), encoding="utf-8")


# --- The small one ---------------------------------------------------------------------------------------------------


def _small(recipe: Recipe, config: PreTrainedConfig) -> tuple[PreTrainedModel, int]:
    """Return the small model, and how many layers the real one has; the first way of making it that works counts."""
    import torch

    auto_class = CLASSIFIER if is_classifier(config.to_dict()) else "AutoModelForCausalLM"
    text = config.get_text_config()
    with torch.device("meta"):
        real = _build(recipe, copy.deepcopy(config), auto_class)
    layers = text.num_hidden_layers if _names_layers(recipe) else _enough_layers(real, text)
    problem: object = "its modules would have other names"
    for sizes, share in _ways(text, _rank(recipe)):
        try:
            model = _tried(recipe, _changed(config, sizes, share, layers), auto_class)
        except Exception as error:  # noqa: BLE001 - sizes that an architecture can't have may fail in any way
            problem = error
            continue
        if _modules(model) == _modules(real):
            return model, int(text.num_hidden_layers)
    raise SetupError(f"no small model of {recipe.model.name} ({config.model_type}) can be made: {problem}")


def _build(recipe: Recipe, config: PreTrainedConfig, auto_class: str) -> PreTrainedModel:
    import torch
    import transformers

    trusted = recipe.model.trust_remote_code
    return getattr(transformers, auto_class).from_config(config, dtype=torch.float32, trust_remote_code=trusted)


def _tried(recipe: Recipe, config: PreTrainedConfig, auto_class: str) -> PreTrainedModel:
    """Return a model of `config` with random weights that has computed something; the same for the same config."""
    import torch

    with torch.device("meta"):
        count = sum(p.numel() for p in _build(recipe, copy.deepcopy(config), auto_class).parameters())
    if count > LARGEST:
        raise SetupError(f"it would have {count / 1e6:,.0f} M parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _build(recipe, config, auto_class).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(8)[None] % config.get_text_config().vocab_size).logits
    if not bool(logits.isfinite().all()):
        raise SetupError("it computes what is no finite number")
    return model


def _modules(model: nn.Module) -> set[tuple[str, str]]:
    """Return names and classes of all modules, whatever the number of layers and experts."""
    return {(re.sub(r"\.\d+(?=\.|$)", ".*", name), type(m).__name__) for name, m in model.named_modules()}


def _enough_layers(real: PreTrainedModel, text: PreTrainedConfig) -> int:
    """Return how many of the first layers hold `EACH` of each kind: in their own order, since some follow a rhythm."""
    found = find_layers(real.base_model, text)
    if found is None:
        return int(text.num_hidden_layers)
    kinds = [signature(layer, text, i) for i, layer in enumerate(getattr(found.parent, found.name))]
    missing = Counter({kind: min(EACH, count) for kind, count in Counter(kinds).items()})
    for index, kind in enumerate(kinds):
        missing[kind] -= 1
        if all(count <= 0 for count in missing.values()):
            return index + 1
    return len(kinds)


def _names_layers(recipe: Recipe) -> bool:
    """Whether the adapter names layers by their numbers: then all of them have to be there."""
    given = recipe.adapter.kwargs() if recipe.adapter is not None else {}
    if any(given.get(key) is not None for key in ("layers_to_transform", "layers_pattern", "layer_replication")):
        return True
    keys = ("target_modules", "modules_to_save", "exclude_modules", "target_parameters", "rank_pattern")
    return any(re.search(r"\d", str(given.get(key, ""))) for key in keys)


def _rank(recipe: Recipe) -> int:
    """Return the rank of the adapter's updates: some ways of starting them need matrices that are not smaller."""
    return int(recipe.adapter.kwargs().get("r", 8)) if recipe.adapter is not None else 0


def _ways(text: PreTrainedConfig, rank: int) -> Iterator[tuple[Mapping[str, Any], tuple[int, int]]]:
    """Yield sizes to give a model, the boldest first, each with the size of a head (new, real).

    Heads whose size the config names keep it, as kernels and positions depend on it; else they shrink too; at last
    all widths stay as they are.
    """
    real_heads = getattr(text, "num_attention_heads", None) or 0
    groups = getattr(text, "num_key_value_heads", None) or real_heads
    heads = min(real_heads, HEADS)
    fewer = heads if groups == real_heads else min(groups, max(1, heads // 2))
    head = HEAD
    while fewer and fewer * head < rank:
        head *= 2
    hidden = min(text.hidden_size, HEADS * head)
    sizes = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": fewer,
        **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size"), 2 * hidden),
        **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), hidden),
        **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), EXPERTS),
        "num_experts_per_tok": CHOSEN,
        **dict.fromkeys(("n_group", "topk_group"), 1),
        # Weights of the usual size would make every answer of so narrow a model all but the same.
        "initializer_range": hidden**-0.5,
        **_state_sizes(text, hidden),
    }
    named = getattr(text, "head_dim", None)
    real = named or (text.hidden_size // real_heads if real_heads else 1)
    derived = hidden // heads if heads else 1
    if named:
        yield sizes, (1, 1)
    yield {**sizes, "head_dim": derived} if named else sizes, (derived, real)
    yield {}, (1, 1)


def _state_sizes(text: PreTrainedConfig, hidden: int) -> dict[str, int]:
    """Return the sizes of state-space layers whose heads have to add up to a multiple of the hidden size."""
    found: dict[str, int] = {}
    for prefix, size in (("", "head_dim"), ("mamba_", "mamba_d_head")):
        heads = "num_heads" if not prefix else "mamba_n_heads"
        one, factor = getattr(text, size, None), getattr(text, f"{prefix}expand", None)
        if isinstance(one, int) and isinstance(factor, int) and hasattr(text, heads):
            found |= {heads: max(1, factor * hidden // one), f"{prefix}n_groups": 1}
    return found


def _changed(
    config: PreTrainedConfig, sizes: Mapping[str, Any], share: tuple[int, int], layers: int
) -> PreTrainedConfig:
    """Return the config with `sizes` where it has them and they are smaller, and with its first `layers` layers."""
    text = config.get_text_config()
    values: dict[str, Any] = config.to_dict()
    inner = next((name for name, value in vars(config).items() if value is text), None)
    own: dict[str, Any] = values if inner is None else values[inner]
    depth = text.num_hidden_layers
    if layers < depth:
        per_layer = [name for name, value in own.items() if isinstance(value, list) and len(value) == depth]
        own |= {name: own[name][:layers] for name in per_layer}
    for name, size in {**sizes, "num_hidden_layers": layers}.items():
        key = text.attribute_map.get(name, name)
        known = own.get(key)
        if isinstance(known, int | float) and not isinstance(known, bool):
            own[key] = size if name == "initializer_range" else min(known, size)
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(own.get(name), dict):
            own[name] = _fewer_frequencies(own[name], *share)
    return type(config).from_dict(values)


def _fewer_frequencies(rope: Mapping[str, Any], new: int, real: int) -> dict[str, Any]:
    """Return position settings for heads of `new` instead of `real` elements; some list a value per frequency."""

    def fewer(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _fewer_frequencies(value, new, real)
        if not isinstance(value, list):
            return value
        if name == "mrope_section":  # a share of the frequencies for each axis
            return [count * new // real for count in value]
        return value[: len(value) * new // real]

    return {name: fewer(name, value) for name, value in rope.items()}


def _with_adapter(model: PreTrainedModel, real: Path, base: Path, folder: Path) -> Path:
    """Put an adapter of the same kind as `real` over the small model, and save it beside the tokenizer it has."""
    from peft import PeftConfig, get_peft_model

    config = PeftConfig.from_pretrained(str(real))
    config.inference_mode, config.base_model_name_or_path = False, str(base)
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # others start from weights or data that are not here
    get_peft_model(model, config).save_pretrained(folder)
    for name in (*TOKENIZER_FILES, "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja"):
        if (real / name).is_file():
            shutil.copy(real / name, folder)
    return folder
