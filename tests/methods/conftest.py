"""Jobs for the preference methods: tiny models in float32, rows whose tokens are written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmkit.data.shapes import Shape
from llmkit.data.splits import Row, Splits

if TYPE_CHECKING:
    from llmkit.methods.base import Job
    from llmkit.recipe.recipe import Recipe

FLOAT32 = ("model.dtype=float32", "training.bf16=false", "training.gradient_checkpointing=false")
PLAIN = ("training.lr_scheduler_type=constant", "training.save_strategy=no", "training.max_grad_norm=0")


def pair(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> Row:
    """Return a tokenized preference."""
    tokens = {"prompt_ids": list(prompt), "chosen_ids": list(chosen), "rejected_ids": list(rejected)}
    return Row("by hand", {"prompt": "p", "chosen": "c", "rejected": "r"}, tokens)


def answer(prompt: Sequence[int], completion: Sequence[int], *, good: bool) -> Row:
    """Return tokenized feedback on one answer."""
    tokens = {"prompt_ids": list(prompt), "completion_ids": list(completion)}
    return Row("by hand", {"prompt": "p", "completion": "c", "label": good}, tokens)


# Answers of different lengths: whatever forgets a mask or divides by the wrong length shows.
PAIRS = (
    pair([7, 8, 9], [20, 21, 22, 2], [30, 2]),
    pair([5, 11], [23, 2], [31, 32, 33, 34, 2]),
    pair([12, 13, 14, 15], [24, 25, 2], [35, 36, 2]),
    pair([6], [26, 27, 28, 29, 2], [37, 38, 2]),
)
ANSWERS = (
    answer([7, 8, 9], [20, 21, 22, 2], good=True),
    answer([5, 11], [31, 32, 33, 34, 2], good=False),
    answer([12, 13, 14, 15], [24, 25, 2], good=True),
    answer([6], [37, 2], good=False),
)


@pytest.fixture
def pairs() -> tuple[Row, ...]:
    """Four preferences."""
    return PAIRS


@pytest.fixture
def answers() -> tuple[Row, ...]:
    """Four answers, good and bad in turn."""
    return ANSWERS


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a cache of its own, and return its folder; other tests leave theirs behind."""
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make_job(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Job]:
    """Return a maker of Jobs: `make_job("dpo", "adapter=null", train=pairs)`; everything is in float32."""
    from llmkit.methods.base import Job
    from llmkit.model.loading import load_model, load_tokenizer
    from llmkit.runs.checks import is_adapter
    from llmkit.runs.prepare import plan

    def make(method: str, *overrides: str, train: Sequence[Row], held_out: Sequence[Row] = (), **extra: Any) -> Job:
        shape = Shape.UNPAIRED if method == "kto" else Shape.PREFERENCE
        source = (f"data.train.0.format={shape}", f"method.type={method}")
        the_recipe = recipe(*source, *FLOAT32, *PLAIN, *overrides)
        the_recipe.method.check_recipe(the_recipe)
        the_plan = plan(the_recipe)
        tokenizer = load_tokenizer(the_recipe)
        return Job(
            recipe=the_recipe,
            plan=the_plan,
            model=load_model(the_recipe, the_plan, tokenizer),
            tokenizer=tokenizer,
            splits=Splits(shape, tuple(train), tuple(held_out)),
            output_dir=tmp_path / "out",
            adapted=is_adapter(the_recipe),
            **extra,
        )

    return make
