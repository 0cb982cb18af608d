"""ORPO: supervised fine-tuning and learning from pairs in one loss, without a reference (arXiv:2403.07691)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from llmkit.data.shapes import Shape
from llmkit.methods._pairs_checks import check_experimental
from llmkit.methods.base import Job, Method

if TYPE_CHECKING:
    from trl.experimental.orpo import ORPOTrainer

    from llmkit.recipe.recipe import Recipe


class Orpo(Method):
    """Odds ratio preference optimization; full, or with an adapter and a quantized base.

    The loss is the next-token loss of prompt and better answer, plus `training.beta` times the log odds ratio of both
    answers. ORPOTrainer comes from `trl.experimental`: TRL promises no stability for it, and llmkit's tests pin what
    they rely on for the TRL version in constraints.txt.
    """

    type: Literal["orpo"]
    """The name of this variant."""

    accepts: ClassVar[frozenset[Shape]] = frozenset({Shape.PREFERENCE})
    config: ClassVar[str] = "ORPOConfig"

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse fields that could do nothing; raises RecipeError."""
        check_experimental(recipe)

    def build_trainer(self, job: Job) -> ORPOTrainer:
        """Build the trainer on pairs that are already tokenized; evaluation rows only where the recipe asks for it."""
        from trl.experimental.orpo import ORPOConfig

        from llmkit.methods._pairs_experimental import TokenizedORPOTrainer, build

        trainer: ORPOTrainer = build(TokenizedORPOTrainer, ORPOConfig, job)
        return trainer
