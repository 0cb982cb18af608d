"""SimPO: learning from pairs by the average log-probability of an answer, without a reference (arXiv:2405.14734)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmkit.data.shapes import Shape
from llmkit.methods._pairs_checks import check_experimental, has_effect, refuse
from llmkit.methods.base import Job, Method

if TYPE_CHECKING:
    from trl.experimental.cpo import CPOTrainer

    from llmkit.recipe.recipe import Recipe

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}
)
"""SimPO as published: no next-token loss beside it, the paper's beta (2.0 to 2.5) and a margin of half of it.
CPOConfig's own beta 0.1 with margin 0.5 asks for a difference of 5 nats per token."""

SIMPO = ("alphapo", "simpo")
"""Losses of average log-probabilities with a target margin (TRL 1.16)."""


class Simpo(Method):
    """Simple preference optimization with TRL's CPOTrainer; full, or with an adapter and a quantized base.

    Unless `training` says otherwise, `loss_type` is simpo, `cpo_alpha` 0, `beta` 2 and `simpo_gamma` 1. `cpo_alpha`
    above 0 adds that much of the better answer's next-token loss (CPO-SimPO). The other losses of CPOTrainer (sigmoid,
    hinge, ipo, alphapo) may be chosen by `loss_type`; sigmoid, hinge and ipo are CPO and keep TRL's defaults.
    CPOTrainer comes from `trl.experimental`: TRL promises no stability for it, and llmkit's tests pin what they rely on
    for the TRL version in constraints.txt.
    """

    type: Literal["simpo"]
    """The name of this variant."""

    accepts: ClassVar[frozenset[Shape]] = frozenset({Shape.PREFERENCE})
    config: ClassVar[str] = "CPOConfig"

    def defaults(self, training: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return SimPO's values, unless the recipe chooses one of CPO's losses."""
        return DEFAULTS if training.get("loss_type", "simpo") in SIMPO else {}

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse settings that the chosen loss would ignore; raises RecipeError."""
        check_experimental(recipe)
        training = recipe.training.kwargs()
        loss = training.get("loss_type", "simpo")
        has_effect(recipe, "simpo_gamma", [loss], SIMPO)
        has_effect(recipe, "label_smoothing", [loss], ("alphapo", "sigmoid", "simpo"))
        if loss == "alphapo" and training.get("cpo_alpha"):
            refuse(
                recipe, "cpo_alpha", "alphapo sets it to 0", "Write `loss_type: simpo` with `alpha` and `cpo_alpha`."
            )
        if loss == "alphapo" and not training.get("alpha"):
            refuse(recipe, "loss_type", "alphapo with `alpha` 0 is simpo", "Set `training.alpha` to another number.")

    def build_trainer(self, job: Job) -> CPOTrainer:
        """Build the trainer on pairs that are already tokenized; evaluation rows only where the recipe asks for it."""
        from trl.experimental.cpo import CPOConfig

        from llmkit.methods._pairs_experimental import TokenizedCPOTrainer, build

        trainer: CPOTrainer = build(TokenizedCPOTrainer, CPOConfig, job)
        return trainer
