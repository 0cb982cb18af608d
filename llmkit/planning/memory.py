"""Estimates of the memory that a run takes: weights, gradients, optimizer, reference model, activations."""

from __future__ import annotations

import math
from types import MappingProxyType

from llmkit.planning.case import Case
from llmkit.planning.hardware import GIB
from llmkit.planning.precision import bf16, dtype, fp16
from llmkit.planning.reference import Reference, reference

WEIGHT_BYTES = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})
_ADAPTER_SHARE = 0.02
"""Adapter weights per base weight: rank 16 on all linear layers of small and large models makes 0.5 to 4%."""

# A row of these is a pair: two sequences that go through the model side by side.
SAMPLERS = frozenset({"GRPOConfig", "RLOOConfig"})
"""TRL configs of the methods that sample completions while they train."""

_COMPLETION_LENGTH = 512
"""`max_completion_length` of GRPOConfig and RLOOConfig (TRL 1.16)."""

_PAIRED = frozenset({"DPOConfig", "ORPOConfig", "CPOConfig", "RewardConfig"})

USABLE = 0.85
"""Share of the memory that a plan fills: the rest is fragmentation, kernels' workspace and other programs."""


def state_bytes(case: Case) -> int | None:
    """Estimate the bytes per device of weights, gradients and Adam's two moments; None for a model of unknown size.

    With P parameters of b bytes each: full fine-tuning P x 4b (16 bytes in float32), and P x b more for a reference
    model; with an adapter P x b, where a quantized weight takes its bits and half a bit for its scales, and 16 bytes
    for each of 0.02 P adapter weights. Activations come on top (`activation_bytes`).
    """
    if case.size is None:
        return None
    quantization = case.recipe.quantization
    weight = (quantization.bits + 0.5) / 8 if quantization else WEIGHT_BYTES[case.value(dtype)]
    if not case.full:
        per_parameter = weight + _ADAPTER_SHARE * 16
    else:
        per_parameter = weight * (5 if reference(case) is Reference.COPY else 4)
    return round(case.size.parameters * per_parameter)


_AUTOCAST_BYTES, _PLAIN_BYTES = 60, 92
"""Kept for the backward pass per token, layer and unit of hidden size, with autocast to 16 bits and without.

Measured on layers of Llama and Qwen2 with fused attention: 47 to 77 with autocast, 65 to 127 without (an adapter in
float32 on a 16-bit base copies its inputs). Qwen's wide MLPs make the upper ends, but its models have fewer layers or
smaller ones than `_shape` guesses: the product is what has to be right."""


def _shape(parameters: int) -> tuple[float, float]:
    """Guess hidden size and layers from P = 12 x layers x hidden^2: hidden = 128 x layers, but at least 28 layers."""
    layers = max(28, (parameters / (12 * 128**2)) ** (1 / 3))
    return math.sqrt(parameters / (12 * layers)), layers


def _longest(case: Case) -> int:
    """Guess the tokens of the longest sequence: of samplers, a prompt of 512 and the longest answer."""
    if case.config in SAMPLERS:
        return 512 + int(case.given.get("training.max_completion_length") or _COMPLETION_LENGTH)
    return int(case.given.get("training.max_length") or 1024)


def activation_bytes(case: Case, batch: int, *, checkpointed: bool) -> int:
    """Estimate the bytes per device that `batch` full rows keep for the backward pass; 0 for a model of unknown size.

    Every layer keeps what it computes for each token (`_AUTOCAST_BYTES`), or with checkpointing only its input (in the
    data type of the weights), and one layer at a time the rest. A chunked loss is assumed: no logits, as in TRL's SFT.
    """
    if case.size is None:
        return 0
    hidden, layers = _shape(case.size.parameters)
    layer = hidden * (_AUTOCAST_BYTES if case.value(bf16) or case.value(fp16) else _PLAIN_BYTES)
    kept = hidden * WEIGHT_BYTES[case.value(dtype)]
    tokens = batch * (2 if case.config in _PAIRED else 1) * _longest(case)
    return round(tokens * (layer + kept * layers if checkpointed else layer * layers))


def fits(case: Case, batch: int, *, checkpointed: bool) -> bool:
    """Whether the state and the activations of `batch` full rows fit into the usable share of the memory."""
    state = state_bytes(case)
    needed = (state or 0) + activation_bytes(case, batch, checkpointed=checkpointed)
    return state is not None and needed <= USABLE * case.hardware.memory_bytes


def share_text(case: Case) -> str:
    """Say how much of the memory the state takes."""
    state = state_bytes(case)
    if state is None:
        return "the size of the model is unknown"
    memory = case.hardware.memory_bytes
    where = "RAM" if case.hardware.kind != "cuda" else "each GPU"
    return (
        f"weights, gradients and optimizer take about {state / GIB:.1f} GiB, {state / memory:.0%} of the "
        f"{memory / GIB:.0f} GiB of {where}" + (" (this does not fit)" if state > memory else "")
    )
