from __future__ import annotations

from typing import Any

import pytest

from llmkit.planning.hardware import CATALOGUE
from llmkit.planning.planner import plan
from llmkit.recipe.recipe import Recipe

STRATEGY, PACKING = "training.train_sampling_strategy", "training.packing"


def recipe(method: str = "sft", source: dict[str, Any] | None = None, **training: Any) -> Recipe:
    rewards = [{"type": "exact_match"}] if method in ("grpo", "rloo") else []
    return Recipe.model_validate(
        {
            "model": {"name": "a/model"},
            "data": {"train": [{"path": "rows.jsonl", **(source or {})}]},
            "method": {"type": method},
            "rewards": rewards,
            "training": training,
        }
    )


def decided(the_recipe: Recipe, hardware: str = "cpu") -> tuple[Any, Any]:
    the_plan = plan(the_recipe, CATALOGUE[hardware], None)
    return the_plan.get(STRATEGY), the_plan.get(PACKING)


@pytest.mark.parametrize("hardware", ["cpu", "h100-80gb", "m2"])
def test_batches_hold_rows_of_like_length_on_any_hardware(hardware: str) -> None:
    assert decided(recipe(), hardware) == ("group_by_length", False)


@pytest.mark.parametrize("method", ["dpo", "orpo", "simpo", "reward"])
def test_pairs_are_grouped_and_never_packed(method: str) -> None:
    assert decided(recipe(method)) == ("group_by_length", None)


@pytest.mark.parametrize("method", ["kto", "grpo", "rloo"])
def test_methods_whose_order_or_length_is_not_free(method: str) -> None:
    assert decided(recipe(method)) == (None, None)


def test_a_stream_has_no_order_to_choose() -> None:
    assert decided(recipe(source={"streaming": True}, max_steps=3)) == (None, None)


def test_packed_rows_fill_their_sequences_already() -> None:
    assert decided(recipe(packing=True)) == (None, None), "the recipe's own packing, and no order"
    assert decided(recipe(padding_free=True)) == (None, False)


def test_what_the_recipe_says_counts() -> None:
    assert decided(recipe(train_sampling_strategy="random")) == (None, False)
