"""Counting a model without its weights, on torch's meta device, where tensors have shapes and no memory."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import SetupError
from llmkit.model.heads import CLASSIFIER
from llmkit.model.kept import look
from llmkit.model.sources import ModelSource, locate
from llmkit.planning.case import Trace
from llmkit.planning.footprint import Footprint, Kept
from llmkit.planning.hardware import CATALOGUE
from llmkit.planning.known import known_config
from llmkit.planning.plan import Plan
from llmkit.planning.planner import plan
from llmkit.recipe.places import cache_folder, file_hash

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from llmkit.recipe.recipe import Recipe

_MASKED = ("sdpa", "eager")
"""Attention kernels that batches of rows of different lengths give a mask; the others take the rows' boundaries."""

_UNMASKED = "llmkit_unmasked"
"""Name under which transformers' fused attention without any mask is registered."""


def trace(recipe: Recipe, dtype: str, autocast: str | None, attention: str) -> Footprint | None:
    """Count the model of `recipe` with its adapter, in weights of `dtype`, computing in `autocast` where that is set.

    Nothing is downloaded, and no weights are read. The result is kept in llmkit's cache, by all it depends on. None
    where the model's config is neither on this machine nor known, and for checkpoints that are quantized already.
    """
    found = find_config(recipe)
    if found is None:
        return None
    settings = plan(recipe, CATALOGUE["cpu"], None)  # what the adapter is built with does not depend on the machine
    place = cache_folder() / "footprints" / f"{_digest(recipe, settings, found, (dtype, autocast, attention))}.json"
    if place.is_file():
        return Footprint.from_dict(json.loads(place.read_text(encoding="utf-8")))
    try:
        config = found.load(recipe)
    except (OSError, ValueError):
        return None  # loading says what is missing, or that it is code
    if getattr(config, "quantization_config", None) is not None or not _has_class(config, recipe):
        return None
    with warnings.catch_warnings():
        # The libraries' notices to each other; what concerns the user comes when the model is loaded.
        warnings.simplefilter("ignore")
        footprint = _count(recipe, settings, config, found.adapter, dtype, autocast, attention)
    _write(json.dumps(footprint.to_dict()), place)
    return footprint


def tracer(recipe: Recipe) -> Trace:
    """Return `trace` for `recipe`, as a `Case` takes it; each of its answers is looked for once."""
    return cache(partial(trace, recipe))


def _has_class(config: PreTrainedConfig, recipe: Recipe) -> bool:
    """Whether there is a class for what the method trains: transformers' own, or one that comes with the model."""
    import transformers

    name = recipe.method.model_class
    remote = getattr(config, "auto_map", None) or {}
    return type(config) in getattr(transformers, name)._model_mapping or name in remote


# --- The config ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A config that is on this machine: a folder, a GGUF file, or the arguments of a widely used model."""

    folder: Path | None = None
    gguf: Path | None = None
    known: Mapping[str, Any] | None = None
    adapter: Path | None = None

    def identity(self) -> str:
        """Return a text that changes with the config."""
        if self.folder is not None:
            return file_hash(self.folder / "config.json")
        if self.gguf is not None:
            stat = self.gguf.stat()
            return f"{self.gguf} {stat.st_size} {stat.st_mtime_ns}"
        return json.dumps(self.known, sort_keys=True)

    def load(self, recipe: Recipe) -> PreTrainedConfig:
        """Return the config."""
        from transformers import AutoConfig

        if self.known is not None:
            # Published in 16 bits, all of them.
            return AutoConfig.for_model(**{"dtype": "bfloat16", **self.known})
        if self.gguf is not None:
            place, file = self.gguf.parent, self.gguf.name
            return AutoConfig.from_pretrained(place, gguf_file=file, trust_remote_code=False)
        return AutoConfig.from_pretrained(self.folder, trust_remote_code=recipe.model.trust_remote_code)


def find_config(recipe: Recipe) -> _Found | None:
    try:
        source = locate(recipe.model, recipe.folder)
    except SetupError:
        return None  # loading says what is missing; until then the plan has the model's name to go by
    if source.kind == "folder":
        return _Found(folder=Path(source.path), adapter=source.adapter)
    if source.kind == "gguf":
        return _of_gguf(Path(source.path), source)
    return _of_hub(source, recipe.model.revision)


def _of_gguf(file: Path, source: ModelSource) -> _Found:
    stat = file.stat()
    copy = _converted_place(file, (stat.st_size, stat.st_mtime_ns))
    if (copy / "config.json").is_file():
        return _Found(folder=copy, adapter=source.adapter)
    return _Found(gguf=file, adapter=source.adapter)


@cache
def _converted_place(file: Path, state: tuple[int, int]) -> Path:
    """Return the place of a GGUF file's copy; its content is hashed once for each `state` (size and time)."""
    from llmkit.model.loading import converted_place

    return converted_place(file)


def _of_hub(source: ModelSource, revision: str | None) -> _Found | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(source.path, "config.json", revision=revision)
    except HFValidationError:
        return None  # no name that a hub model can have: loading says so
    if isinstance(file, str):
        return _Found(folder=Path(file).parent, adapter=source.adapter)
    known = known_config(source.path)
    return _Found(known=known, adapter=source.adapter) if known is not None else None


def _digest(recipe: Recipe, settings: Plan, found: _Found, arguments: tuple[str, str | None, str]) -> str:
    depends = {
        "config": found.identity(),
        "adapter": recipe.adapter.model_dump(mode="json") if recipe.adapter else None,
        "planned": settings.section("adapter"),
        "continued": file_hash(found.adapter / "adapter_config.json") if found.adapter else None,
        "quantization": recipe.quantization.model_dump(mode="json") if recipe.quantization else None,
        "class": recipe.method.model_class,
        "arguments": arguments,
        "versions": [version(package) for package in ("torch", "transformers", "peft", "bitsandbytes")],
        "code": [file_hash(Path(__file__).with_name(name)) for name in ("footprint.py", "kept.py")],
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _write(text: str, place: Path) -> None:
    """Write whole, then move to its place."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".counting-") as scratch:
        made = Path(scratch) / place.name
        made.write_text(text, encoding="utf-8")
        os.replace(made, place)


# --- The elements ----------------------------------------------------------------------------------------------------


def _count(
    recipe: Recipe,
    settings: Plan,
    config: PreTrainedConfig,
    adapter: Path | None,
    dtype: str,
    autocast: str | None,
    attention: str,
) -> Footprint:
    import torch

    text = config.get_text_config()
    stored = _stored(text)  # building the model writes its own data type there
    # The shape-only kernel of experts takes bfloat16 alone (torch 2.13): others are looked at in it, and scaled.
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    looked, computing, scale = (
        (dtype, autocast, 1) if not experts else ("bfloat16", None, _width(autocast or dtype) / 2)
    )
    with torch.device("meta"):
        model = _build(recipe, config, getattr(torch, looked), attention)
        packed = _pack(model, recipe, settings) if recipe.quantization else []
        whole = _adapt(model, recipe, settings, adapter)
    _hold_as_trained(whole, recipe, dtype)
    weights = {id(p): p for p in whole.parameters()}.values()  # tied ones are one object
    trained = [p for p in weights if p.requires_grad]
    counted = sum(p.numel() for p in trained)
    footprint = Footprint(
        frozen=sum(p.numel() for p in weights) - counted,
        trained=counted,
        packed=sum(packed),
        unpacked=max(packed, default=0),
        largest=max(p.numel() for p in weights),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=0 if recipe.method.model_class == CLASSIFIER else text.vocab_size,
        cache=_cache_elements(text),
        layer=Kept(0.0),
        ends=Kept(0.0),
        trained_bytes=_width(dtype) if recipe.adapter is None else max(p.element_size() for p in trained),
        stored_bytes=stored,
        plain_head=_plain_head(model, text),
    )
    layer, ends = look(model, text, getattr(torch, computing) if computing else None)
    return replace(footprint, layer=layer.times(scale), ends=ends.times(scale))


def _width(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _build(recipe: Recipe, config: PreTrainedConfig, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    import transformers

    kinds: Any = getattr(transformers, recipe.method.model_class)._model_mapping
    if attention == "sdpa" and type(config) in kinds and not kinds[type(config)]._supports_sdpa:
        attention = "eager"
    if attention not in _MASKED:
        _register_unmasked()
        attention = _UNMASKED
    if recipe.method.model_class == CLASSIFIER:
        config.num_labels = 1
    model: PreTrainedModel = getattr(transformers, recipe.method.model_class).from_config(
        config, dtype=dtype, attn_implementation=attention, trust_remote_code=recipe.model.trust_remote_code
    )
    return model.train()


def _register_unmasked() -> None:
    """Give transformers a kernel as flash attention is: fused, with the rows' boundaries instead of a mask."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(_UNMASKED, sdpa_attention_forward)
    AttentionMaskInterface.register(_UNMASKED, lambda *args, **kwargs: None)


def _pack(model: PreTrainedModel, recipe: Recipe, settings: Plan) -> list[int]:
    """Return the elements of each weight that bitsandbytes packs, and let 8-bit layers keep what theirs keep."""
    from torch import nn
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    assert recipe.quantization is not None
    chosen = recipe.quantization.build(settings)
    skipped = HfQuantizer.get_modules_to_not_convert(model, chosen.llm_int8_skip_modules, model._keep_in_fp32_modules)
    layers = [
        module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, skipped)
    ]
    if recipe.quantization.bits == 8:
        for module in layers:
            module.__class__ = _keeping_linear()
    return [module.weight.numel() for module in layers]


def _keeping_linear() -> type[nn.Linear]:
    """Return the class of a frozen linear layer that keeps its input, as bitsandbytes' MatMul8bitLt does (0.50.2).

    MatMul4Bit keeps the weight alone, as a frozen `nn.Linear` does.
    """
    import torch
    from torch import nn

    class KeepsInput(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            ctx.save_for_backward(inputs)
            return nn.functional.linear(inputs, weight.to(inputs.dtype), bias)

    class KeepingLinear(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = KeepsInput.apply(inputs, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return output

    return KeepingLinear


def _adapt(model: nn.Module, recipe: Recipe, settings: Plan, adapter: Path | None) -> nn.Module:
    """Put the recipe's adapter, or the one that it continues from, over `model`."""
    if recipe.adapter is None:
        return model
    from peft import PeftConfig, get_peft_model

    config = PeftConfig.from_pretrained(str(adapter)) if adapter else recipe.adapter.build(settings)
    config.inference_mode = False
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # others start from the weights or from data, and have the same shapes
    whole: nn.Module = get_peft_model(model, config)
    return whole


def _hold_as_trained(whole: nn.Module, recipe: Recipe, dtype: str) -> None:
    """Give an adapter over a quantized base the data type that TRL and `keep_adapter_precision` leave it in."""
    import torch

    if recipe.quantization is None or dtype != "bfloat16":
        return
    for name, parameter in whole.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)


def _plain_head(model: PreTrainedModel, text: PreTrainedConfig) -> bool:
    """Whether nothing but the product with a matrix makes the logits, as far as config and modules tell."""
    from torch import nn

    head = model.get_output_embeddings()
    capped = getattr(text, "final_logit_softcapping", None) is not None
    scaled = any(getattr(text, name, 1.0) != 1.0 for name in ("logit_scale", "logits_scaling"))
    return type(head) is nn.Linear and not capped and not scaled


def _stored(text: PreTrainedConfig) -> int:
    """Return the bytes of a weight in the model's files; what names no data type is in float32."""
    import torch

    named = getattr(text, "dtype", None)
    found = getattr(torch, named.removeprefix("torch.")) if isinstance(named, str) else named
    size: int = 4 if found is None else found.itemsize
    return size


def _cache_elements(text: PreTrainedConfig) -> int:
    """Return the elements of keys and values per token, over all layers."""
    heads: int = getattr(text, "num_attention_heads", 0)
    if not heads:
        return 0  # a state that does not grow
    size: int = getattr(text, "head_dim", None) or text.hidden_size // heads
    cached: int = 2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * size
    return cached
