"""Decisions on batches and on recomputing activations, by what fits into memory."""

from __future__ import annotations

import math

from llmkit.planning.accumulation import STEPS, batches_per_step, target, whole_groups
from llmkit.planning.case import Case
from llmkit.planning.hardware import GIB
from llmkit.planning.memory import estimate, fits, footprint, share_text
from llmkit.planning.plan import Decision

_BATCH = "training.per_device_train_batch_size"


def checkpointing(case: Case) -> Decision:
    """Decide on recomputing activations in the backward pass instead of keeping them."""
    key, batch = "training.gradient_checkpointing", case.given.get(_BATCH, 4)
    whole = estimate(case, batch, checkpointed=False)
    needed = not fits(case, batch, checkpointed=False) if whole else case.hardware.kind != "cpu"
    plural = "s" if batch != 1 else ""
    kept = (whole.parts["activations"] + whole.parts["logits"]) / GIB if whole else 0.0
    rows = f", activations of {batch} row{plural} up to {kept:.1f} GiB" if whole else ""
    effect = "recomputing activations saves memory" if needed else "recomputing activations would cost 30% of the time"
    return Decision(key, needed, f"{share_text(case)}{rows}: {effect}")


def checkpointing_kwargs(case: Case) -> Decision | None:
    """Decide on the kind of recomputation."""
    if not case.value(checkpointing):
        return None
    reason = 'DDP with LoRA and reentrant checkpointing fails with "mark variable ready only once"'
    return Decision("training.gradient_checkpointing_kwargs", {"use_reentrant": False}, reason)


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
    if footprint(case) is None:
        return enough if case.hardware.kind == "cpu" else 2
    checkpointed = bool(case.value(checkpointing))
    return next((n for n in (8, 4, 2) if n <= enough and fits(case, n, checkpointed=checkpointed)), 1)


def _batch_reason(case: Case, largest: int) -> str:
    return f"{_bound(case, largest)}{_filled(case)}"


def _bound(case: Case, largest: int) -> str:
    if case.hardware.kind == "cpu" and largest == _enough(case):
        return "a CPU gains nothing from more"
    if footprint(case) is None:
        return share_text(case)
    fitting = fits(case, largest, checkpointed=bool(case.value(checkpointing)))
    effect = "the largest batch of 8, 4, 2, 1 that fits" if fitting else "even one full row may not fit"
    return f"{share_text(case)}; {effect}"


def batch_size(case: Case) -> Decision:
    """Decide on the rows (for sampling methods: completions) that go through the model at once."""
    # KTO estimates its KL term from mismatched pairs within a batch, and refuses a batch of one.
    least = 2 if case.config == "KTOConfig" else 1
    largest, devices = max(_largest_batch(case), least), case.hardware.count
    reason = _batch_reason(case, largest)
    if STEPS not in case.given:
        return Decision(_BATCH, largest, reason)
    steps = case.given[STEPS]
    size = min(largest, math.ceil(target(case) / (steps * devices)))
    size = whole_groups(case, max(size, least), steps * devices)
    return Decision(_BATCH, size, f"{size} x {steps} accumulated x {devices} devices; {reason}")


def accumulation_steps(case: Case) -> Decision:
    """Decide on the batches per optimizer step."""
    size, devices = case.value(batch_size), case.hardware.count
    steps = batches_per_step(case, size)
    total = size * devices * steps
    reason = f"{size} per device x {devices} device{'s' if devices > 1 else ''} x {steps} = {total} sequences per step"
    if _packing(case):
        reason += ", each filled with rows"
    return Decision(STEPS, steps, reason)
