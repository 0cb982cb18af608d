"""The memory that a run takes, phase by phase: one account for CPUs and GPUs, with and without a look at the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llmkit.planning.accumulation import batches_per_step
from llmkit.planning.case import Case
from llmkit.planning.footprint import Footprint, Kept
from llmkit.planning.hardware import GIB
from llmkit.planning.logits import logit_bytes, sampling_bytes, scoring_bytes
from llmkit.planning.precision import attention as kernel
from llmkit.planning.precision import bf16, dtype, fp16
from llmkit.planning.reference import Reference, reference
from llmkit.planning.sharding import Sharding

WEIGHT_BYTES = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})

SAMPLERS = frozenset({"GRPOConfig", "RLOOConfig"})
"""TRL configs of the methods that sample completions while they train."""

# A row of these is a pair: two sequences that go through the model side by side.
_PAIRED = frozenset({"DPOConfig", "ORPOConfig", "CPOConfig", "RewardConfig"})

_PROMPT = 512
"""Tokens that a prompt is taken to have where nothing bounds it."""

_COMPLETION_LENGTH = 512
"""`max_completion_length` of GRPOConfig and RLOOConfig (TRL 1.16)."""

USABLE = 0.85
"""Share of the memory that a plan fills: the rest is fragmentation, kernels' workspace and other programs."""

PROCESS = 600 * 2**20
"""Resident bytes of a training process on a CPU before it loads the model: the interpreter, torch, transformers, peft,
TRL, bitsandbytes and datasets with tokenized rows. Measured by `benchmarks/memory.py` (546 to 593 MiB, of which 150 MiB
are pages of library files). On a GPU this is in the host's memory, and the device's own context is left to `USABLE`."""

HOLES = 0.2
"""Free bytes between what is kept for the backward pass, as a share of it, on a CPU: blocks that were freed while the
layers were computed, and that fit nothing that came after.

Measured with `mallinfo2` at the LM head of SmolLM2-135M: 0.17 to 0.3 with full training, LoRA, nf4 and DPO, where
glibc's caches of small chunks are off (`benchmarks/memory.py`); 0.3 to 0.75 with them."""

_MAPPED = 2**25
"""Bytes from which on glibc maps a block by itself, and gives it back at once, whatever it has learnt of other blocks
(`DEFAULT_MMAP_THRESHOLD_MAX`, malloc(3)); smaller ones come from the heap, which keeps them."""

READ_TOKENS, ANSWERED_ROWS, ANSWERS_ROOM = 2048, 64, 2**29
"""Batches of evaluations whose size is left open: tokens that are scored at once, prompts that are answered at once,
and least bytes of their keys and values (`llmkit.model.batches`, `llmkit.model.decoding`)."""

PARTS = (
    "process",
    "weights",
    "quantized_weights",
    "adapter",
    "gradients",
    "optimizer",
    "reference",
    "activations",
    "logits",
    "kv_cache",
    "workspace",
)
"""What `Estimate.parts` names."""


@dataclass(frozen=True)
class Estimate:
    """The memory that a run takes, in bytes per device (on a CPU: of the process)."""

    parts: Mapping[str, int]
    """Bytes by name, for all of `PARTS`; what a run does not have is 0. Not all are held at the same time."""

    peaks: Mapping[str, int]
    """Most bytes held at once in each phase of the run: `load`, `train`, `sample`, `evaluate`, `save`."""

    exact: frozenset[str]
    """Names of the parts that are counted in the model's own structure; the others are estimates."""

    @property
    def peak(self) -> int:
        """Most bytes held at once in the whole run."""
        return max(self.peaks.values())


def footprint(case: Case) -> Footprint | None:
    """Return what the model of `case` counts, guessed from its size where it can't be looked at."""
    computing = "bfloat16" if case.value(bf16) else "float16" if case.value(fp16) else None
    traced = case.trace(case.value(dtype), computing, case.value(kernel)) if case.trace else None
    return traced or _guess(case)


def longest(case: Case) -> int:
    """Return the tokens of the longest sequence: for samplers, of a prompt and the longest answer."""
    if case.config in SAMPLERS:
        return _PROMPT + _answer(case)
    return int(case.given.get("training.max_length") or 1024)


def _answer(case: Case) -> int:
    return int(case.given.get("training.max_completion_length") or _COMPLETION_LENGTH)


def estimate(
    case: Case, batch: int, *, checkpointed: bool, sharding: Sharding | None = None, length: int | None = None
) -> Estimate | None:
    """Estimate the memory of a run with `batch` full rows of `length` tokens (default: the longest that there can be).

    None for a model of which neither the structure nor the size is known.
    """
    model = footprint(case)
    if model is None:
        return None
    account = _Account(case, model, batch, length or longest(case), checkpointed, sharding or Sharding("ddp", 1))
    parts = account.parts()
    exact = {"weights", "adapter", "gradients", "optimizer", "reference"} if model.exact else set()
    if model.exact and model.packed:
        exact.add("quantized_weights")
    counted = frozenset(name for name in exact if name not in ("optimizer",) or _moments(case) is not None)
    return Estimate(MappingProxyType(parts), MappingProxyType(account.peaks(parts)), counted)


# --- The states ------------------------------------------------------------------------------------------------------


_STATES = MappingProxyType(
    {
        "adamw_torch": 2.0,
        "adamw_torch_fused": 2.0,
        "ademamix": 3.0,
        "adagrad": 1.0,
        "lion_32bit": 1.0,
        "rmsprop": 1.0,
        "sgd": 0.0,
        "paged_adamw_32bit": 2.0,
        "paged_lion_32bit": 1.0,
    }
)
"""Copies of each trained weight, in its data type, that an optimizer keeps (torch 2.13, bitsandbytes 0.50.2)."""

_SMALL_STATES = MappingProxyType(
    {"adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "lion_8bit": 1, "paged_lion_8bit": 1}
)
"""Copies of one byte per trained weight; a scale of 4 bytes for each 256 of them comes on top."""


def _moments(case: Case) -> float | None:
    return _STATES.get(str(case.given.get("training.optim", "adamw_torch_fused")))


def _optimizer_bytes(case: Case, trained: int, width: int, hidden: int) -> float:
    """Return the bytes of the optimizer's states; those that are not known are taken to be Adam's.

    Adafactor keeps a row and a column of float32 per matrix, for which square ones of the hidden size are assumed.
    """
    optim = str(case.given.get("training.optim", "adamw_torch_fused"))
    if optim == "adafactor":
        return 2 * 4 * trained / hidden
    if optim in _SMALL_STATES:
        return _SMALL_STATES[optim] * trained * (1 + 4 / 256)
    copies = _moments(case)
    return trained * width * (2.0 if copies is None else copies)


def _packed_bytes(case: Case, model: Footprint) -> float:
    """Return the bytes of packed weights with their scales, as bitsandbytes has them (0.50.2).

    4 bits: a scale for each 64 weights, 4 bytes, or with double quantization 1 byte and 4 bytes for each 256 scales.
    8 bits: 4 bytes per row, for which rows of the hidden size are assumed.
    """
    quantization = case.recipe.quantization
    if quantization is None:
        return 0.0
    if quantization.bits == 8:
        return model.packed * (1 + 4 / model.hidden)
    double = case.given.get("quantization.bnb_4bit_use_double_quant", True)
    return model.packed * (0.5 + (1 + 4 / 256 if double else 4) / 64)


@dataclass(frozen=True)
class _Account:
    """Adds up one case."""

    case: Case
    model: Footprint
    batch: int
    length: int
    checkpointed: bool
    sharding: Sharding

    @property
    def width(self) -> int:
        """Bytes of a weight that is not quantized."""
        return WEIGHT_BYTES[self.case.value(dtype)]

    @property
    def rows(self) -> int:
        """Sequences that go through the model at once."""
        return self.batch * (2 if self.case.config in _PAIRED else 1)

    @property
    def on_cpu(self) -> bool:
        return self.case.hardware.kind == "cpu"

    def parts(self) -> dict[str, int]:
        case, model, how = self.case, self.model, self.sharding
        trained = model.trained * model.trained_bytes
        whole = (model.frozen - model.packed) * self.width
        bits = case.recipe.quantization.bits if case.recipe.quantization else 0
        storage = str(case.given.get("quantization.bnb_4bit_quant_storage", "uint8"))
        found = {
            "process": PROCESS if self.on_cpu else 0,
            "weights": (trained if case.full else whole) / how.weights,
            "quantized_weights": _packed_bytes(case, model) / how.quantized(bits=bits, storage=storage),
            "adapter": 0 if case.full else trained / how.weights,
            "gradients": trained / how.gradients,
            "optimizer": _optimizer_bytes(case, model.trained, model.trained_bytes, model.hidden) / how.optimizer,
            "reference": model.elements * self.width / how.weights if reference(case) is Reference.COPY else 0,
            "activations": self._activations(),
            "logits": logit_bytes(case, model, self._scored(), self._computing()),
            "kv_cache": self._kv_cache(),
            "workspace": self._workspace(),
        }
        return {name: round(found[name]) for name in PARTS}

    def _computing(self) -> int:
        return 2 if self.case.value(bf16) or self.case.value(fp16) else self.width

    def _scored(self) -> int:
        """Positions that the LM head scores: at most all that something follows, of samplers those of the answers."""
        following = _answer(self.case) if self.case.config in SAMPLERS else self.length - 1
        return self.rows * max(1, min(following, self.length - 1))

    def _activations(self) -> float:
        if not self.checkpointed:
            return self.model.kept(self.rows, self.length)
        inputs = self.rows * self.length * self.model.hidden * self.width * self.model.layers
        return inputs + self.model.ends.bytes(self.rows, self.length) + self._layer()

    def _layer(self) -> float:
        """Bytes of one layer while it is computed: what is kept of it bounds what its gradients take, too."""
        return self.model.layer.bytes(self.rows, self.length)

    def _completions(self) -> int:
        """Completions that are sampled at once."""
        given, devices = self.case.given, self.case.hardware.count
        if given.get("training.generation_batch_size"):
            return max(1, int(given["training.generation_batch_size"]) // devices)
        return self.batch * int(given.get("training.steps_per_generation") or batches_per_step(self.case, self.batch))

    def _kv_cache(self) -> float:
        if self.case.config not in SAMPLERS:
            return 0.0
        return self._completions() * self.length * self.model.cache * self.width * (1 + 1 / self.model.layers)

    def _workspace(self) -> float:
        """Return the bytes of buffers: unpacked weights, gathered or sent ones, temporaries, holes in the heap."""
        model, case = self.model, self.case
        unpacked = model.unpacked * self._computing() if model.packed else 0
        # The file that packed weights were read from stays mapped as long as one of its other weights is used.
        mapped = model.packed * self.width if self.on_cpu and model.stored_bytes == self.width else 0
        foreach = case.given.get("training.optim") == "adamw_torch" and not self.on_cpu
        temporaries = model.trained * model.trained_bytes / self.sharding.optimizer if foreach else 0
        buffers = self.sharding.buffers(
            elements=model.elements,
            unit=max(model.largest, model.elements // model.layers),
            trained=model.trained,
            width=self.width,
            gradient_width=model.trained_bytes,
        )
        holes = HOLES * self._activations() if self.on_cpu else 0.0
        return unpacked + mapped + temporaries + buffers + holes

    def peaks(self, parts: Mapping[str, int]) -> dict[str, int]:
        weights = parts["process"] + sum(parts[name] for name in ("weights", "quantized_weights", "adapter"))
        held = weights + parts["optimizer"] + parts["reference"]
        found = {
            "load": weights + parts["reference"] + self._loading(),
            "train": held + self._training(parts),
            "sample": held + self._sampling(parts) if self.case.config in SAMPLERS else 0,
            "evaluate": held + self._evaluating(),
            "save": held + self._saving(),
        }
        return {name: round(value) for name, value in found.items()}

    def _training(self, parts: Mapping[str, int]) -> float:
        """Return the most bytes above the states: at the LM head, in the first layer's backward pass, or at its end.

        Gradients of earlier batches are there from the start; those of the batch itself come as its activations go.
        """
        kept = parts["activations"] - (self._layer() if self.checkpointed else 0.0)
        above = max(parts["logits"], self._layer() if self._recomputes() else 0.0, self._embeddings_gradient())
        if batches_per_step(self.case, self.batch) > 1:
            return kept + above + parts["gradients"] + parts["workspace"]
        return max(kept + above, parts["gradients"]) + parts["workspace"]

    def _embeddings_gradient(self) -> float:
        """Return the bytes of the last gradient on a CPU: that of the embeddings, which may be the head's as well.

        The heap keeps what the activations were in, so large blocks, which glibc maps one by one, come on top: both
        gradients of the one matrix, and their sum.
        """
        size = self.model.largest * self.model.trained_bytes
        return 3.0 * size if self.on_cpu and self.case.full and size >= _MAPPED else 0.0

    def _recomputes(self) -> bool:
        # Without the logits of a whole batch, the gradients of a layer are the largest thing beside what is kept.
        return self.checkpointed or not self.on_cpu

    def _loading(self) -> float:
        """Return the bytes that loading takes for a while: on a CPU the file, whose pages are mapped."""
        model = self.model
        if not self.on_cpu:
            return model.unpacked * self.width if model.packed else 0.0
        copied = model.packed or model.stored_bytes != self.width
        return model.frozen * model.stored_bytes if copied and not self.case.full else 0.0

    def _sampling(self, parts: Mapping[str, int]) -> float:
        rows = self._completions()
        prompt = max(1, self.length - _answer(self.case))
        return parts["kv_cache"] + max(sampling_bytes(self.model, rows), self.model.layer.bytes(rows, prompt))

    def _evaluating(self) -> float:
        """Return the bytes of the recipe's evaluations: of a batch that is scored, or of one that is answered."""
        return max((self._evaluation(one) for one in self.case.recipe.evaluation), default=0.0)

    def _evaluation(self, evaluation: Any) -> float:
        model, rows = self.model, getattr(evaluation, "batch_size", None)
        new = getattr(evaluation, "max_new_tokens", None)
        if new is None:
            tokens = rows * self.length if rows else max(READ_TOKENS, self.length)
            return max(scoring_bytes(model, tokens), model.layer.bytes(1, self.length) * tokens / self.length)
        cache = (rows or ANSWERED_ROWS) * (_PROMPT + int(new)) * model.cache * self.width
        if rows is None:
            cache = min(cache, max(ANSWERS_ROOM, model.frozen * self.width // 8))
        answered = rows or ANSWERED_ROWS
        return cache + max(sampling_bytes(model, answered), model.layer.bytes(answered, _PROMPT))

    def _saving(self) -> float:
        """Return the bytes of exports: merging loads the base again, in float32 in the host's memory."""
        merges = any(export.type == "merged" for export in self.case.recipe.export)
        return 4.0 * self.model.frozen if merges and self.on_cpu else 0.0


# --- Without a look at the model -------------------------------------------------------------------------------------


_ADAPTER_SHARE = 0.02
"""Adapter weights per base weight: rank 16 on all linear layers of small and large models makes 0.5 to 4%."""

_AUTOCAST_BYTES, _PLAIN_BYTES = 60, 92
"""Kept for the backward pass per token, layer and unit of hidden size, with autocast to 16 bits and without.

Measured on layers of Llama and Qwen2 with fused attention: 47 to 77 with autocast, 65 to 127 without (an adapter in
float32 on a 16-bit base copies its inputs). Qwen's wide MLPs make the upper ends, but its models have fewer layers or
smaller ones than `_shape` guesses: the product is what has to be right."""


def _shape(parameters: int) -> tuple[float, float]:
    """Guess hidden size and layers from P = 12 x layers x hidden^2: hidden = 128 x layers, but at least 28 layers."""
    layers = max(28, (parameters / (12 * 128**2)) ** (1 / 3))
    return math.sqrt(parameters / (12 * layers)), layers


def _guess(case: Case) -> Footprint | None:
    """Guess the footprint of a model from its size; without its vocabulary, of which the size says nothing."""
    if case.size is None:
        return None
    parameters = case.size.parameters
    wide, deep = _shape(parameters)
    layers, hidden = round(deep), max(1, round(wide))
    per_token = (_AUTOCAST_BYTES if case.value(bf16) or case.value(fp16) else _PLAIN_BYTES) * wide
    adapter = round(_ADAPTER_SHARE * parameters)
    width = WEIGHT_BYTES[case.value(dtype)]
    return Footprint(
        frozen=0 if case.full else parameters,
        trained=parameters if case.full else adapter,
        packed=parameters if case.recipe.quantization else 0,
        unpacked=4 * hidden**2,
        largest=4 * hidden**2,
        layers=layers,
        hidden=hidden,
        vocabulary=0,
        # Keys and values are a quarter as wide in most models of today.
        cache=layers * hidden // 2,
        # What counts is the product with the layers, which are no whole number here.
        layer=Kept(per_token * deep / layers),
        ends=Kept(0.0),
        trained_bytes=width if case.full else 4,
        stored_bytes=width,
        exact=False,
    )


# --- What the decisions ask ------------------------------------------------------------------------------------------


def fits(case: Case, batch: int, *, checkpointed: bool) -> bool:
    """Whether a run with `batch` full rows fits into the usable share of the memory."""
    found = estimate(case, batch, checkpointed=checkpointed, sharding=Sharding("ddp", case.hardware.count))
    return found is not None and found.peak <= USABLE * case.hardware.memory_bytes


def state_bytes(case: Case) -> int | None:
    """Return the bytes of what a run holds all the time: weights, gradients, optimizer states, the reference."""
    found = estimate(case, 1, checkpointed=True)
    if found is None:
        return None
    states = ("weights", "quantized_weights", "adapter", "gradients", "optimizer", "reference")
    return sum(found.parts[name] for name in states)


def share_text(case: Case) -> str:
    """Say how much of the memory the states take."""
    state = state_bytes(case)
    if state is None:
        return "the size of the model is unknown"
    memory = case.hardware.memory_bytes
    where = "RAM" if case.hardware.kind != "cuda" else "each GPU"
    return (
        f"weights, gradients and optimizer take about {state / GIB:.1f} GiB, {state / memory:.0%} of the "
        f"{memory / GIB:.0f} GiB of {where}" + (" (this does not fit)" if state > memory else "")
    )
