"""What can be changed in a recipe to save memory, by kind, with what it costs in time.

Times are factors of a step's time, 1 where nothing is lost. They are rough: what they are there for is an order. Those
for CPUs were measured once, on two cores (checkpointing, 4- and 8-bit weights, optimizers, small batches); those for
GPUs are assumed, and none was measured there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llmkit.planning.batches import accumulation_steps, batch_size, checkpointing
from llmkit.planning.case import Case
from llmkit.planning.memory import SAMPLERS, longest
from llmkit.planning.precision import attention, dtype
from llmkit.planning.reference import Reference, reference
from llmkit.recipe import fields

_FULL_SPEED = 1024
"""Tokens at once from which matrix products run at full speed, roughly: on two CPU cores those of 256 tokens took 1.5
times as long per token, of 128 twice. (A GPU needs some 300: its FLOP per byte of memory, H100: 989e12 / 3.35e12.)"""

_SHORTEST = 128
"""Tokens below which no length is proposed; nor is less than a quarter of what a recipe has."""


@dataclass(frozen=True)
class Candidate:
    """A change that may save memory."""

    settings: Mapping[str, Any]
    """Values by dotted key, as `--set` takes them."""

    slower: float
    """Factor of the time of a step."""

    why: str
    """What it does, and what it changes, in a sentence for the user."""

    same: bool = True
    """Whether the same is learnt, but for rounding."""

    def __add__(self, other: Candidate) -> Candidate:
        """Return both changes at once."""
        return Candidate(
            {**self.settings, **other.settings},
            self.slower * other.slower,
            f"{self.why}; {other.why}",
            self.same and other.same,
        )


Ladder = tuple[Candidate, ...]
"""Candidates of one kind, each saving more than the one before: the first one that fits is proposed."""


def ladders_of(case: Case) -> Iterator[Ladder]:
    """Yield what may save memory, by kind; nothing that the recipe has already, or that its hardware refuses."""
    for make in _KINDS:
        ladder = tuple(make(case))
        if ladder:
            yield ladder


def _recompute(case: Case) -> Iterator[Candidate]:
    if not case.value(checkpointing):
        # The newer name of the switch counts where a recipe has it.
        name = "activation" if "training.activation_checkpointing" in case.given else "gradient"
        why = "activations are computed again in the backward pass (30% more time on a CPU)"
        yield Candidate({f"training.{name}_checkpointing": True}, 1.3, why)


def _smaller_batch(case: Case) -> Iterator[Candidate]:
    size, steps = int(case.value(batch_size)), int(case.value(accumulation_steps))
    least = 2 if case.config == "KTOConfig" else 1
    for smaller in _halves(size, least):
        if size % smaller == 0:
            settings = {
                "training.per_device_train_batch_size": smaller,
                "training.gradient_accumulation_steps": steps * size // smaller,
            }
            total = size * steps * case.hardware.count
            why = f"{smaller} at once and {steps * size // smaller} accumulated: the same {total} per step"
            yield Candidate(settings, _time_per_token(case, smaller) / _time_per_token(case, size), why)


def _time_per_token(case: Case, rows: int) -> float:
    """Return how much longer a token takes than at full speed where `rows` go through the model at once."""
    tokens = rows * longest(case)
    return max(1.0, float((_FULL_SPEED / tokens) ** 0.3))


def _halves(size: int, least: int) -> Iterator[int]:
    while size // 2 >= least:
        size //= 2
        yield size


def _shorter(case: Case) -> Iterator[Candidate]:
    known = fields.describe(case.config)
    if case.config in SAMPLERS or "max_length" not in known:
        return
    default = int(known["max_length"].default or 1024)
    # Null is no limit: the default is a shorter one.
    length = int(case.given.get("training.max_length", default) or 2 * default)
    what = {"drop": "left out", "truncate": "cut off", "split": "split", "error": "refused"}[case.recipe.data.overflow]
    for shorter in _halves(length, max(_SHORTEST, length // 4)):
        why = f"rows of more than {shorter:,} tokens are {what} (`llmkit data` counts them)"
        yield Candidate({"training.max_length": shorter}, 1.0, why, same=False)


def _shorter_answers(case: Case) -> Iterator[Candidate]:
    if case.config not in SAMPLERS:
        return
    length = int(case.given.get("training.max_completion_length") or 512)
    for shorter in _halves(length, max(_SHORTEST, length // 4)):
        why = f"answers end after {shorter} tokens, finished or not (`llmkit preflight` shows how many that cuts off)"
        yield Candidate({"training.max_completion_length": shorter}, 1.0, why, same=False)


def _fewer_answers(case: Case) -> Iterator[Candidate]:
    if case.config not in SAMPLERS:
        return
    number = int(case.given.get("training.num_generations") or fields.describe(case.config)["num_generations"].default)
    for fewer in _halves(number, 2):
        why = f"groups of {fewer} answers instead of {number}: a noisier baseline"
        yield Candidate({"training.num_generations": fewer}, 1.0, why, same=False)


def _half_weights(case: Case) -> Iterator[Candidate]:
    if case.value(dtype) == "float32" and case.hardware.bf16 and not case.given.get("training.fp16"):
        why = "weights in 16 bits"
        if case.full:
            why += ", gradients and optimizer states too: updates below 1/256 of a weight are lost"
        yield Candidate({"model.dtype": "bfloat16"}, 1.0, why, same=not case.full)


def _adapter(case: Case) -> Iterator[Candidate]:
    if case.full and case.recipe.quantization is None:
        why = "an adapter is trained beside frozen weights: neither their gradients nor their optimizer states are held"
        yield Candidate(_adapter_settings(case), 1.0, why, same=False)


def _adapter_settings(case: Case) -> dict[str, Any]:
    """Return what turns full training into LoRA: an adapter needs about ten times the learning rate."""
    rate = case.given.get("training.learning_rate")
    return {"adapter.type": "lora"} | ({"training.learning_rate": _ten_times(rate)} if rate else {})


def _ten_times(rate: float) -> float:
    return float(f"{10 * rate:.12g}")


def _quantized(case: Case, kind: str) -> Iterator[Candidate]:
    there, bits = case.recipe.quantization, {"nf4": 4, "int8": 8}[kind]
    if case.hardware.kind == "mps" or (there is not None and there.bits <= bits):
        return
    slower = _SLOWER[kind, case.hardware.kind]
    why = f"the frozen weights are held in {bits} bits"
    adapter = _adapter_settings(case) if case.full else {}
    if adapter:
        why += ", and an adapter is trained beside them"
    yield Candidate({**adapter, "quantization.type": kind}, slower, why, same=False)


_SLOWER: Mapping[tuple[str, str], float] = MappingProxyType(
    {
        # LoRA on SmolLM2-135M, forward and backward: 1.80 and 1.77 s against 1.64 in bf16.
        ("nf4", "cpu"): 1.1,
        ("int8", "cpu"): 1.1,
        # Unpacking in every pass, assumed.
        ("nf4", "cuda"): 1.4,
        ("int8", "cuda"): 1.2,
    }
)


def _nf4(case: Case) -> Iterator[Candidate]:
    return _quantized(case, "nf4")


def _int8(case: Case) -> Iterator[Candidate]:
    return _quantized(case, "int8")


def _optimizer(case: Case, name: str, why: str) -> Iterator[Candidate]:
    if case.given.get("training.optim") != name:
        yield Candidate({"training.optim": name}, _optimizer_time(case, name), why, same=False)


_NANOSECONDS: Mapping[str, float] = MappingProxyType({"adamw_bnb_8bit": 115, "adafactor": 21})
"""Time of a step on a CPU per trained weight, beyond that of the fused AdamW (3 ns): measured on one core."""

_CPU_FLOP = 100
"""FLOP per nanosecond of a training step on two CPU cores in float32."""


def _optimizer_time(case: Case, name: str) -> float:
    """Return the factor of a step's time; on GPUs nothing is lost (arXiv:2110.02861)."""
    if case.hardware.kind != "cpu":
        return 1.0
    rows = int(case.value(batch_size)) * int(case.value(accumulation_steps))
    tokens = rows * int(case.given.get("training.max_length") or 1024)
    # 6 FLOP per weight and token: 2 forward, 4 backward (`speed.py`).
    return 1 + _NANOSECONDS[name] * _CPU_FLOP / (6 * tokens)


def _adam_in_8_bits(case: Case) -> Iterator[Candidate]:
    if case.hardware.kind == "mps":
        return iter(())
    return _optimizer(case, "adamw_bnb_8bit", "Adam's moments in 8 bits instead of 32 (arXiv:2110.02861)")


def _adafactor(case: Case) -> Iterator[Candidate]:
    why = "one row and one column of moments per matrix (arXiv:1804.04235): another optimizer, another learning rate"
    return _optimizer(case, "adafactor", why)


def _reference_beforehand(case: Case) -> Iterator[Candidate]:
    if case.config in ("DPOConfig", "KTOConfig") and reference(case) is Reference.COPY:
        why = "the reference's log-probabilities are computed once and kept: no second copy of the model"
        yield Candidate({"training.precompute_ref_log_probs": True}, 1.0, why)


def _fused_attention(case: Case) -> Iterator[Candidate]:
    if case.value(attention) == "eager":
        why = "attention without the table of all pairs of tokens"
        yield Candidate({"model.attn_implementation": "sdpa"}, 1.0, why)


def _smaller_evaluations(case: Case) -> Iterator[Candidate]:
    sizes = {
        f"evaluation.{i}.batch_size": int(size)
        for i, evaluation in enumerate(case.recipe.evaluation)
        if (size := getattr(evaluation, "batch_size", None) or 1) > 1
    }
    for least in _halves(max(sizes.values(), default=1), 1):
        why = f"at most {least} rows at once where base and tuned model are scored"
        yield Candidate({key: least for key, size in sizes.items() if size > least}, 1.0, why)


_KINDS: tuple[Callable[[Case], Iterator[Candidate]], ...] = (
    _fused_attention,
    _reference_beforehand,
    _smaller_evaluations,
    _smaller_batch,
    _recompute,
    _half_weights,
    _adam_in_8_bits,
    _adafactor,
    _shorter,
    _shorter_answers,
    _fewer_answers,
    _adapter,
    _nf4,
    _int8,
)
