"""What is refused before anything is loaded, of methods, rewards and evaluations that don't go together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.errors import RecipeError
from llmkit.recipe.recipe import Recipe
from llmkit.runs.checks import check

Maker = Callable[..., Recipe]
EXACT = "rewards=[{type: exact_match}]"
GROUPS = "training.num_generations=4"
GRPO = ("data.train.0.format=prompt", "method.type=grpo", GROUPS)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (GRPO, "method 'grpo' learns from rewards, and the recipe has none"),
        ((EXACT,), "method 'sft' learns from its rows alone"),
        ((*GRPO, "rewards=[{type: exact_match}, {type: exact_match}]"), "two rewards are called 'exact_match'"),
        (("evaluation=[{type: reward}]",), "evaluation reward scores with rewards, and the recipe has none"),
        (
            ("data.train.0.format=preference", "method.type=reward", "evaluation=[{type: perplexity}]"),
            "evaluation `perplexity` can't measure what method 'reward' trains",
        ),
        (("training.max_length=0",), "`training.max_length` is 0 tokens, and a row needs two"),
        (("data.eval=null", "training.eval_strategy=steps"), "`training.eval_strategy` needs held-out rows"),
        (
            (*GRPO, EXACT, "training.sync_ref_model=true"),
            "`training.sync_ref_model`: there is no second model to move",
        ),
        (
            (*GRPO, EXACT, "training.beta=0.04", "adapter.init_lora_weights=pissa"),
            "`adapter.init_lora_weights: pissa` rewrites the base weights",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(recipe: Maker, overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check(recipe(*overrides))
    assert sentence in str(caught.value)


def test_tools_are_not_there_in_evaluations(recipe: Maker, tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text(
        'def look(name: str) -> str:\n    """Look.\n\n    Args:\n        name: What.\n    """\n    return name\n',
        encoding="utf-8",
    )
    method = "method={type: grpo, tools: ['tools.py:look']}"
    with pytest.raises(RecipeError, match="evaluation reward asks the model without the tools"):
        check(recipe("data.train.0.format=prompt", method, EXACT, GROUPS, "evaluation=[{type: reward}]"))


def test_rewards_are_for_evaluations_too(recipe: Maker) -> None:
    check(recipe("data.train.0.format=messages", EXACT, "evaluation=[{type: reward}]"))
