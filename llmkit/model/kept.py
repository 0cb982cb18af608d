"""What a model keeps for the backward pass, by running it forward where tensors have shapes and no memory.

FakeTensorMode knows the device and the data type of each tensor besides its shape, so autocast, fused attention and
PEFT do what they do with memory. Two layers of each kind are run; the second one counts, because the first makes what
all layers share.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from llmkit.planning.footprint import Kept

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

_LENGTH = 64
"""Tokens of the shorter sequence that is looked at; the cost per token and per pair follows from it and twice it."""


class _Layers(NamedTuple):
    """The list of a model's layers, and one of each kind with how many there are of it."""

    parent: nn.Module
    name: str
    kinds: list[tuple[int, int]]
    """Index of the first layer of the kind, and number of layers of the kind."""


def look(model: PreTrainedModel, text: PreTrainedConfig, autocast: torch.dtype | None) -> tuple[Kept, Kept]:
    """Run `model` forward without memory; return what a layer keeps (the mean), and what is kept besides."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    layers = find_layers(model.base_model, text)
    total = text.num_hidden_layers
    counts = [1] if layers is None else [count for _, count in layers.kinds]
    if layers is not None:
        _shorten(layers, text)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _to_fake_memory(model)
        seen = {
            (rows, length): _kept(model, layers, rows, length, autocast)
            for rows in (1, 2)
            for length in (_LENGTH, 2 * _LENGTH)
        }
    whole = _fit({shape: float(found.total) for shape, found in seen.items()})
    if layers is None:
        return Kept(whole.token / total, whole.pair / total, whole.once / total), Kept(0.0)
    each = [_fit({shape: float(found.layers[i]) for shape, found in seen.items()}) for i in range(len(counts))]
    mean = Kept(*(_mean(counts, [getattr(kind, name) for kind in each]) for name in ("token", "pair", "once")))
    # Each kind was run twice.
    rest = {name: getattr(whole, name) - 2 * sum(getattr(k, name) for k in each) for name in ("token", "pair", "once")}
    return mean, Kept(**{name: max(0.0, value) for name, value in rest.items()})


def _mean(counts: list[int], values: list[float]) -> float:
    return sum(count * value for count, value in zip(counts, values, strict=True)) / sum(counts)


def _fit(found: Mapping[tuple[int, int], float]) -> Kept:
    """Solve bytes = once + rows x length x (token + length x pair) for what is known at 1 and 2 rows, two lengths."""
    length = _LENGTH
    short, long = (found[2, n] - found[1, n] for n in (length, 2 * length))  # what a row more costs
    pair = (long - 2 * short) / (2 * length**2)
    token = short / length - length * pair
    return Kept(token, pair, max(0.0, found[1, length] - short))


def find_layers(base: nn.Module, text: PreTrainedConfig) -> _Layers | None:
    from torch import nn

    for module in base.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == text.num_hidden_layers:
                signatures = [signature(layer, text, index) for index, layer in enumerate(child)]
                counts = Counter(signatures)
                return _Layers(module, name, [(signatures.index(kind), n) for kind, n in counts.items()])
    return None


def signature(layer: nn.Module, text: PreTrainedConfig, index: int) -> tuple[Any, ...]:
    kinds = getattr(text, "layer_types", None)
    shapes = tuple((name, tuple(p.shape), p.requires_grad) for name, p in layer.named_parameters())
    return type(layer), kinds[index] if kinds else None, shapes


def _shorten(layers: _Layers, text: PreTrainedConfig) -> None:
    """Leave two layers of each kind in the model: copies of the first one."""
    from torch import nn

    chosen = [index for index, _ in layers.kinds for _ in range(2)]
    whole = getattr(layers.parent, layers.name)
    # Copies, because autocast casts the weights of one layer once, however often it is run.
    setattr(layers.parent, layers.name, nn.ModuleList(copy.deepcopy(whole[index]) for index in chosen))
    kinds = getattr(text, "layer_types", None)
    text.num_hidden_layers = len(chosen)
    if kinds:
        text.layer_types = [kinds[index] for index in chosen]


def _to_fake_memory(model: nn.Module) -> None:
    """Put parameters, buffers and other tensors of `model` from the meta device onto a CPU, within FakeTensorMode."""
    import torch

    made: dict[int, Any] = {}

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            new = torch.empty_like(tensor, device="cpu")
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(new, tensor.requires_grad) if is_parameter else new
        found: torch.Tensor = made[id(tensor)]
        return found

    for module in model.modules():
        for holder in (module._parameters, module._buffers, vars(module)):
            for name, tensor in list(holder.items()):
                if isinstance(tensor, torch.Tensor):
                    holder[name] = moved(tensor)  # type: ignore[assignment]


class _Seen(NamedTuple):
    """Bytes that a forward pass kept."""

    total: int
    layers: list[int]
    """Bytes of the second layer of each kind."""


def _kept(
    model: PreTrainedModel, layers: _Layers | None, rows: int, length: int, autocast: torch.dtype | None
) -> _Seen:
    """Run the model below its head on `rows` sequences, and count what autograd keeps besides parameters."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    storages: dict[int, Any] = {}
    sizes: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            storages[storage._cdata] = storage  # held, so that no other gets its address
        return tensor

    def mark(*_: Any) -> None:
        sizes.append(sum(storage.nbytes() for storage in storages.values()))

    kept_layers = [] if layers is None else list(getattr(layers.parent, layers.name))
    hooks = [
        hook
        for layer in kept_layers
        for hook in (layer.register_forward_pre_hook(mark), layer.register_forward_hook(mark))
    ]
    ids, mask = (torch.ones(rows, length, dtype=torch.long) for _ in range(2))
    computing = torch.autocast("cpu", dtype=autocast) if autocast else nullcontext()
    with saved_tensors_hooks(note, lambda tensor: tensor), computing:
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    mark()
    # Before and after the first and the second layer of each kind: four marks.
    return _Seen(sizes[-1], [sizes[start + 3] - sizes[start + 2] for start in range(0, len(sizes) - 1, 4)])
