"""How many sequences an optimizer step takes, and in how many batches they come."""

from __future__ import annotations

import math
from itertools import count
from types import MappingProxyType

from llmkit.planning.case import Case

STEPS = "training.gradient_accumulation_steps"

# GRPO and RLOO count completions, and refuse a global batch that splits the group of one prompt (TRL's defaults).
_GROUPS = MappingProxyType({"GRPOConfig": 8, "RLOOConfig": 2})


def group(case: Case) -> int:
    """Return the completions per prompt, 1 for methods that sample none."""
    return int(case.given.get("training.num_generations") or _GROUPS.get(case.config, 1))


def target(case: Case) -> int:
    """Return the sequences per optimizer step: enough for a steady gradient, few enough for many steps on small data.

    A group without any signal teaches nothing, so sampling methods take four prompts per step at least.
    """
    sequences = 8 if case.hardware.kind == "cpu" else 16
    return max(sequences, 4 * group(case)) if group(case) > 1 else sequences


def whole_groups(case: Case, least: int, unit: int) -> int:
    """Return the smallest n >= `least` for which n x `unit` sequences hold whole groups of completions."""
    return next(n for n in count(least) if n * unit % group(case) == 0)


def batches_per_step(case: Case, batch: int) -> int:
    """Return the batches of `batch` sequences per optimizer step: the recipe's number, or else enough for `target`."""
    given = case.given.get(STEPS)
    if given is not None:
        return int(given)
    sequences = batch * case.hardware.count
    return whole_groups(case, math.ceil(target(case) / sequences), sequences)
