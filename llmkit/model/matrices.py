"""The matrices of a live model, counted: those that are trained, those that are not, and the head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmkit.planning.speed import Matrices

if TYPE_CHECKING:
    import torch


def matrices_of(model: Any) -> Matrices:
    """Return what the tokens of `model` (bare, with a PEFT adapter, quantized) are multiplied with.

    Linear layers count by their shape, so that packed 4- and 8-bit weights count unpacked. Of an adapter, only the
    active one counts: not a frozen copy of it, nor an original that `modules_to_save` replaces. Experts that lie in one
    tensor count by the share that a token is sent to.
    """
    import torch

    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    in_head = set(output.modules()) if output is not None else set()
    frozen = trained = head = 0.0
    head_trained = False
    for module in _in_use(model):
        if isinstance(module, torch.nn.Embedding):
            continue
        for elements, learns in _elements(module, config):
            if module in in_head:
                head, head_trained = head + elements, head_trained or learns
            elif learns:
                trained += elements
            else:
                frozen += elements
    return Matrices(frozen, trained, head, head_trained, _attention_layers(config), _attention_width(config))


def _in_use(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the modules that the forward pass goes through: without idle adapters and replaced originals."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    unused: list[torch.nn.Module] = []
    for module in model.modules():
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)):
            held = [getattr(module, name) for name in module.adapter_layer_names]
            adapters = [pair for one in held if isinstance(one, torch.nn.ModuleDict) for pair in one.items()]
            unused += [adapter for name, adapter in adapters if name not in module.active_adapters]
        if isinstance(module, ModulesToSaveWrapper) and module.active_adapters:
            unused.append(module.original_module)
    idle = {inner for one in unused for inner in one.modules()}
    yield from (module for module in model.modules() if module not in idle)


def _elements(module: torch.nn.Module, config: Any) -> Iterator[tuple[float, bool]]:
    """Yield the elements of each matrix that `module` itself holds, and whether it is trained."""
    import torch

    if isinstance(module, torch.nn.Linear):
        # bitsandbytes' layers are Linear too; their weight is packed, their shape is not.
        yield module.in_features * module.out_features, module.weight.requires_grad
        return
    for parameter in module.parameters(recurse=False):
        if parameter.ndim == 2:  # GPT-2's Conv1D, routers
            yield parameter.numel(), parameter.requires_grad
        elif parameter.ndim == 3:  # the experts of a layer in one tensor
            used = getattr(config, "num_experts_per_tok", None) or parameter.shape[0]
            yield parameter.numel() * min(used / parameter.shape[0], 1.0), parameter.requires_grad


def _attention_layers(config: Any) -> int:
    kinds = getattr(config, "layer_types", None) or ["attention"] * config.num_hidden_layers
    return sum("attention" in kind and "linear" not in kind for kind in kinds)


def _attention_width(config: Any) -> int:
    heads = getattr(config, "num_attention_heads", 0)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return int(heads * size)
