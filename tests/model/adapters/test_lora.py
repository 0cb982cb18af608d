"""LoRA and its options reach PEFT under their own names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmkit.recipe.recipe import Recipe
from llmkit.runs.prepare import plan, prepare


@pytest.mark.parametrize(
    ("override", "attribute", "value"),
    [
        ("adapter.use_dora=true", "use_dora", True),
        ("adapter.use_rslora=true", "use_rslora", True),
        ("adapter.init_lora_weights=pissa", "init_lora_weights", "pissa"),
        ("adapter.target_modules=[q_proj]", "target_modules", {"q_proj"}),
        ("adapter.lora_dropout=0.1", "lora_dropout", 0.1),
    ],
)
def test_an_option_reaches_the_lora_config(
    recipe: Callable[..., Recipe], override: str, attribute: str, value: object
) -> None:
    the_recipe = recipe(override)
    assert the_recipe.adapter is not None
    config = the_recipe.adapter.build(plan(the_recipe))
    assert getattr(config, attribute) == value
    assert config.r == 4
    assert config.task_type == "CAUSAL_LM"


@pytest.mark.parametrize(
    "option", ["use_dora=true", "use_rslora=true", "init_lora_weights=pissa", "init_lora_weights=olora"]
)
def test_every_option_trains(recipe: Callable[..., Recipe], option: str) -> None:
    prepared = prepare(recipe(f"adapter.{option}", "training.save_strategy=no"))
    prepared.trainer.train()
    losses = [e["loss"] for e in prepared.trainer.state.log_history if "loss" in e]
    assert losses[-1] < losses[0]


def test_only_the_adapter_is_trained_in_all_linear_layers(recipe: Callable[..., Recipe]) -> None:
    prepared = prepare(recipe())
    trainable = {n for n, p in prepared.model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert len(trainable) == 2 * 7 * 2  # layers x linear modules x (A, B)
