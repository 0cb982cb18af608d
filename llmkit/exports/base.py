"""What every export is: a Spec that writes the trained model in one form and checks what it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from llmkit.data.splits import Splits
from llmkit.recipe.spec import Variant

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmkit.planning.plan import Plan
    from llmkit.recipe.recipe import Recipe


@dataclass(frozen=True)
class Trained:
    """A trained model and what it was trained with."""

    recipe: Recipe
    plan: Plan
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    splits: Splits
    folder: Path
    """Where the trained model or adapter is saved."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and what its check measured."""

    type: str
    path: Path
    checks: dict[str, float]


class Export(Variant):
    """Base of the exports; the file name is the `type`."""

    needs_adapter: ClassVar[bool] = False
    """Whether there is nothing to export without an adapter."""

    def export(self, trained: Trained, folder: Path) -> Exported:
        """Write to `folder` (new, empty) and check it; raises RunError if the copy computes something else."""
        raise NotImplementedError
