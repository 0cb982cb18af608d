"""What every adapter is: a Spec that builds its PEFT config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkit.recipe.spec import LibrarySpec, Variant

if TYPE_CHECKING:
    from peft import PeftConfig

    from llmkit.planning.plan import Plan


class Adapter(Variant, LibrarySpec):
    """Base of the adapters; keys are those of the PEFT config named by `table`."""

    def build(self, plan: Plan) -> PeftConfig:
        """Build the PEFT config: the planner's values, then the recipe's over them."""
        raise NotImplementedError
