"""Decisions on batches and on recomputing activations, by what fits into memory."""

from __future__ import annotations

import math
from itertools import count
from types import MappingProxyType

from llmkit.planning.case import Case
from llmkit.planning.hardware import GIB
from llmkit.planning.memory import activation_bytes, fits, share_text
from llmkit.planning.plan import Decision

_BATCH = "training.per_device_train_batch_size"
_STEPS = "training.gradient_accumulation_steps"


def checkpointing(case: Case) -> Decision:
    """Decide on recomputing activations in the backward pass instead of keeping them."""
    key, batch = "training.gradient_checkpointing", case.given.get(_BATCH, 4)
    needed = not fits(case, batch, checkpointed=False) if case.size else case.hardware.kind != "cpu"
    activations = activation_bytes(case, batch, checkpointed=False) / GIB
    plural = "s" if batch != 1 else ""
    rows = f", activations of {batch} row{plural} up to {activations:.1f} GiB" if case.size else ""
    effect = "recomputing activations saves memory" if needed else "recomputing activations would cost 30% of the time"
    return Decision(key, needed, f"{share_text(case)}{rows}: {effect}")


def checkpointing_kwargs(case: Case) -> Decision | None:
    """Decide on the kind of recomputation."""
    if not case.value(checkpointing):
        return None
    reason = 'DDP with LoRA and reentrant checkpointing fails with "mark variable ready only once"'
    return Decision("training.gradient_checkpointing_kwargs", {"use_reentrant": False}, reason)


# GRPO and RLOO count completions, and refuse a global batch that splits the group of one prompt (TRL's defaults).
_GROUPS = MappingProxyType({"GRPOConfig": 8, "RLOOConfig": 2})


def _group(case: Case) -> int:
    """Completions per prompt, 1 for methods that sample none."""
    return int(case.given.get("training.num_generations") or _GROUPS.get(case.config, 1))


def _target(case: Case) -> int:
    """Sequences per optimizer step: enough for a steady gradient, few enough for many steps on small data.

    A group without any signal teaches nothing, so sampling methods take four prompts per step at least.
    """
    sequences = 8 if case.hardware.kind == "cpu" else 16
    return max(sequences, 4 * _group(case)) if _group(case) > 1 else sequences


# Tokens from which a CPU's matrix products run at full speed: 512 a thread, measured with SmolLM2-135M on two.
_CPU_TOKENS = 1024


def _packing(case: Case) -> bool:
    return bool(case.given.get("training.packing"))


def _filled(case: Case) -> str:
    """Say what a sequence is where rows are packed."""
    length = int(case.given.get("training.max_length") or 1024)
    return f"; each is a sequence filled with rows, up to {length:,} tokens" if _packing(case) else ""


def _enough(case: Case) -> int:
    """Return the batch from which on a larger one gains nothing."""
    if case.hardware.kind != "cpu" or not _packing(case):
        return 8
    length = int(case.given.get("training.max_length") or 1024)
    return next((n for n in (1, 2, 4) if n * length >= _CPU_TOKENS), 8)


def _largest_batch(case: Case) -> int:
    enough = _enough(case)
    if case.size is None:
        return enough if case.hardware.kind == "cpu" else 2
    checkpointed = bool(case.value(checkpointing))
    return next((n for n in (8, 4, 2) if n <= enough and fits(case, n, checkpointed=checkpointed)), 1)


def _batch_reason(case: Case, largest: int) -> str:
    return f"{_bound(case, largest)}{_filled(case)}"


def _bound(case: Case, largest: int) -> str:
    if case.hardware.kind == "cpu" and largest == _enough(case):
        return "a CPU gains nothing from more"
    if case.size is None:
        return share_text(case)
    fitting = fits(case, largest, checkpointed=bool(case.value(checkpointing)))
    effect = "the largest batch of 8, 4, 2, 1 that fits" if fitting else "even one full row may not fit"
    return f"{share_text(case)}; {effect}"


def _whole_groups(case: Case, least: int, unit: int) -> int:
    """Return the smallest n >= `least` for which n x `unit` sequences hold whole groups of completions."""
    return next(n for n in count(least) if n * unit % _group(case) == 0)


def batch_size(case: Case) -> Decision:
    """Decide on the rows (for sampling methods: completions) that go through the model at once."""
    # KTO estimates its KL term from mismatched pairs within a batch, and refuses a batch of one.
    least = 2 if case.config == "KTOConfig" else 1
    largest, devices = max(_largest_batch(case), least), case.hardware.count
    reason = _batch_reason(case, largest)
    if _STEPS not in case.given:
        return Decision(_BATCH, largest, reason)
    steps = case.given[_STEPS]
    size = min(largest, math.ceil(_target(case) / (steps * devices)))
    size = _whole_groups(case, max(size, least), steps * devices)
    return Decision(_BATCH, size, f"{size} x {steps} accumulated x {devices} devices; {reason}")


def accumulation_steps(case: Case) -> Decision:
    """Decide on the batches per optimizer step."""
    size, devices = case.value(batch_size), case.hardware.count
    steps = _whole_groups(case, math.ceil(_target(case) / (size * devices)), size * devices)
    total = size * devices * steps
    reason = f"{size} per device x {devices} device{'s' if devices > 1 else ''} x {steps} = {total} sequences per step"
    if _packing(case):
        reason += ", each filled with rows"
    return Decision(_STEPS, steps, reason)
