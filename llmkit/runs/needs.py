"""What a run needs of the machine: memory as it is planned, and disk for all that it keeps."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmkit.errors import SetupError
from llmkit.model.footprint import tracer
from llmkit.planning.case import Case
from llmkit.planning.edits import Planned, room
from llmkit.planning.memory import WEIGHT_BYTES, footprint
from llmkit.runs.checks import planned

if TYPE_CHECKING:
    from llmkit.planning.plan import Plan
    from llmkit.recipe.recipe import Recipe

BESIDE = 100_000_000
"""Bytes on disk for what is no weights: rows, metrics, logs, tokenizers."""


@dataclass(frozen=True)
class Needs:
    """What a run takes, in bytes; None for a model of unknown size."""

    memory: int | None
    usable: int
    """Bytes of memory that a plan may fill."""
    disk: int | None
    """Checkpoints, the trained model and its exports."""

    @property
    def fits(self) -> bool | None:
        """Whether the run fits in memory; None where it can't be told."""
        return None if self.memory is None else self.memory <= self.usable


def needs(recipe: Recipe, the_plan: Plan) -> Needs:
    """Return what a run takes of memory, and of disk for all that it keeps."""
    case = Case(recipe, the_plan.hardware, the_plan.size, tracer(recipe))
    found, model = Planned(case).estimate(), footprint(case)
    if found is None or model is None:
        return Needs(None, room(case), None)
    trained = found.parts["weights" if recipe.adapter is None else "adapter"]
    kept = _checkpoints(recipe, the_plan) * (trained + found.parts["optimizer"])
    dtype = str(recipe.model.dtype or the_plan["model.dtype"])
    exported = 0
    for export in recipe.export:
        width = WEIGHT_BYTES[getattr(export, "dtype", None) or dtype]
        exported += trained if export.type == "adapter" else model.elements * width
    return Needs(found.peak, room(case), kept + trained + exported)


def _checkpoints(recipe: Recipe, the_plan: Plan) -> int:
    """Return how many checkpoints there are at most at a time: those that are kept, and one that is being written."""
    if planned(recipe, the_plan, "save_strategy") == "no":
        return 1  # a signal or a limit has one written
    keep, steps = recipe.checkpoints.keep, int(planned(recipe, the_plan, "max_steps") or 0)
    return keep.last + keep.best + 1 + (max(0, steps) // keep.every if keep.every else 0)


def require_space(path: Path, what: Needs, *, there: int = 0) -> None:
    """Raise SetupError if the disk of `path` has no room for what a run keeps, of which `there` bytes are written."""
    needed, free = max(0, (what.disk or 0) - there) + BESIDE, shutil.disk_usage(path).free
    if free < needed:
        raise SetupError(
            f"the run needs about {needed / 1e9:.1f} GB on the disk of {path}, and {free / 1e9:.1f} GB are free",
            remedy="Free some space, or choose another disk with --out FOLDER.",
        )
