"""What every decision of the planner looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmkit.planning.footprint import Footprint
from llmkit.planning.hardware import Hardware
from llmkit.planning.plan import Decision
from llmkit.planning.size import ModelSize

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe

Trace = Callable[[str, str | None, str], Footprint | None]
"""Counts what a model takes: data type of its weights, that of autocast (None: none), attention kernel."""


@dataclass(frozen=True)
class Case:
    """What the decisions look at."""

    recipe: Recipe
    hardware: Hardware
    size: ModelSize | None

    trace: Trace | None = field(default=None, compare=False, repr=False)
    """Looks at the model of this very `recipe` (dtype, autocast, attention): an edited recipe needs its own."""

    @cached_property
    def given(self) -> Mapping[str, Any]:
        """The values that the recipe sets itself, by dotted key."""
        recipe = self.recipe
        model = {"dtype": recipe.model.dtype, "attn_implementation": recipe.model.attn_implementation}
        sections = {
            "model": {key: value for key, value in model.items() if value is not None},
            "training": recipe.training.kwargs(),
            "adapter": recipe.adapter.kwargs() if recipe.adapter else {},
            "quantization": recipe.quantization.kwargs() if recipe.quantization else {},
        }
        given = {f"{name}.{key}": value for name, keys in sections.items() for key, value in keys.items()}
        # transformers has two names for the same switch, and the new one counts where both are set.
        for end in ("checkpointing", "checkpointing_kwargs"):
            if given.get(f"training.activation_{end}") is not None:
                given[f"training.gradient_{end}"] = given[f"training.activation_{end}"]
        return given

    def value(self, decide: Callable[[Case], Decision]) -> Any:
        """Return what the recipe sets for the key that `decide` is about, or else what it decides."""
        decision = decide(self)
        return self.given.get(decision.key, decision.value)

    @property
    def full(self) -> bool:
        """Whether all weights are trained."""
        return self.recipe.adapter is None

    @property
    def config(self) -> str:
        """Name of the TRL config class of the method."""
        return self.recipe.method.config
