"""What no hardware can do: refused before anything is planned, and without importing the planner."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from llmkit.errors import RecipeError

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe

_RANGES = MappingProxyType(
    {
        "per_device_train_batch_size": (1, 2**31),
        "per_device_eval_batch_size": (1, 2**31),
        "gradient_accumulation_steps": (1, 2**31),
        "generation_batch_size": (1, 2**31),
        "steps_per_generation": (1, 2**31),
        "num_generations": (1, 2**31),
        "num_generations_eval": (1, 2**31),
        "seed": (0, 2**32 - 1),  # NumPy's
        "data_seed": (0, 2**32 - 1),
    }
)
"""The least and the most that a training field may be, where the libraries would find out much later."""


def check(recipe: Recipe) -> None:
    """Raise RecipeError for what no hardware can do: sections that exclude each other, batches of nothing."""
    if recipe.quantization and not recipe.adapter:
        bits = recipe.quantization.bits
        raise RecipeError(
            f"{bits}-bit quantization together with full training: quantized weights can't be trained",
            where=recipe.origin(("quantization",)),
            remedy="Add `adapter: {type: lora}` or remove `quantization`.",
        )
    training = recipe.training.kwargs()
    if training.get("bf16") and training.get("fp16"):
        raise RecipeError(
            "`training.bf16` and `training.fp16` are both true",
            where=recipe.origin(("training", "fp16")),
            remedy="Remove one of them.",
        )
    for key, (least, most) in _RANGES.items():
        value = training.get(key)
        if value is not None and not least <= value <= most:
            bounds = f"at least {least}" if value < least else f"at most {most}"
            raise RecipeError(f"`training.{key}` must be {bounds}, not {value}", where=recipe.origin(("training", key)))
    rank = recipe.adapter.kwargs().get("r", 1) if recipe.adapter else 1
    if rank < 1:
        raise RecipeError(f"`adapter.r` must be at least 1, not {rank}", where=recipe.origin(("adapter", "r")))
