"""fp4 builds its own quantization type; its gradients are tested beside nf4's."""

from __future__ import annotations

from collections.abc import Callable

from llmkit.recipe.recipe import Recipe
from llmkit.runs.prepare import plan


def test_the_config_says_fp4_and_takes_the_planned_rest(recipe: Callable[..., Recipe]) -> None:
    the_recipe = recipe("quantization.type=fp4", "quantization.bnb_4bit_use_double_quant=false")
    assert the_recipe.quantization is not None
    config = the_recipe.quantization.build(plan(the_recipe))
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "fp4"
    assert not config.bnb_4bit_use_double_quant
