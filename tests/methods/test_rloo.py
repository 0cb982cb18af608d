"""RLOO on a tiny model: it learns, says when there is nothing to learn, and stops where GRPO stops."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from llmkit.errors import RecipeError, RunError
from llmkit.recipe.recipe import Recipe
from llmkit.rewards.exact_match import ExactMatch
from llmkit.runs.prepare import Prepared, prepare
from llmkit.runs.progress import Narrator

Maker = Callable[..., Recipe]
QUICK = ("training.save_strategy=no", "training.bf16=false")


@pytest.fixture
def rl(recipe: Maker, rows_file: Path) -> Maker:
    """Return a maker of RLOO recipes on 24 questions: groups of 4, 2 prompts per step, answers of at most 6 tokens."""
    rows = [{"prompt": [{"role": "user", "content": f"what is {i}?"}], "answer": str(i)} for i in range(24)]
    rows_file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return lambda *overrides: recipe(
        "data.train.0.format=prompt",
        "method.type=rloo",
        "rewards=[{type: exact_match}]",
        "training.num_generations=4",
        "training.per_device_train_batch_size=8",
        "training.max_completion_length=6",
        *overrides,
    )


def letters(self: Any, completion: str, row: Any) -> float:
    return sum(character.isalpha() for character in completion) / 10


def started(recipe: Recipe, **kwargs: Any) -> tuple[Prepared, io.StringIO]:
    said = io.StringIO()
    return prepare(recipe, narrator=Narrator(Console(file=said, width=1000)), **kwargs), said


def logs(prepared: Prepared) -> list[dict[str, Any]]:
    return [entry for entry in prepared.trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("adapter", ["adapter=null", "adapter.r=4"], ids=["full", "lora"])
def test_a_reward_of_nothing_changes_nothing_and_is_called_out(
    rl: Maker, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    monkeypatch.setattr(ExactMatch, "score", lambda *_: 0.0)
    prepared, said = started(rl(adapter, "training.beta=0", "training.max_steps=5", *QUICK))
    before = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    prepared.trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in prepared.model.state_dict().items())
    assert said.getvalue().count("3 steps in a row without any signal") == 1


def test_the_reward_rises(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExactMatch, "score", letters)
    kept: list[dict[str, Any]] = []
    settings = ("training.max_steps=20", "training.learning_rate=1e-2", "training.lr_scheduler_type=constant")
    prepared, _ = started(rl("adapter=null", "training.beta=0.01", *settings, *QUICK), keep_samples=kept.extend)
    prepared.trainer.train()
    entries = logs(prepared)
    rewards = [entry["reward"] for entry in entries]
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])
    assert len(kept) == 80
    assert all(entry["time/generate"] > 0 for entry in entries)


def test_two_and_two_steps_are_four(rl: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ExactMatch, "score", letters)
    settings = ("training.max_steps=4", "training.save_steps=2", "training.bf16=false")
    straight, _ = started(rl(*settings), output_dir=tmp_path / "run")
    straight.trainer.train()
    resumed, _ = started(rl(*settings), output_dir=tmp_path / "run")
    resumed.trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for key in ("reward", "loss", "kl", "entropy"):
        assert [entry[key] for entry in logs(resumed)] == [entry[key] for entry in logs(straight)]


@pytest.mark.parametrize("adapter", ["adapter=null", "adapter.r=4", "quantization.type=nf4"])
def test_the_run_stops_beyond_its_bound_on_the_divergence(
    rl: Maker, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    """Its `beta` is 0.05 unless it is set: the reference is there."""
    monkeypatch.setattr(ExactMatch, "score", letters)
    settings = ("training.learning_rate=0.05", "training.max_steps=20", *QUICK)
    prepared, _ = started(rl(adapter, "method={type: rloo, max_kl: 0.05}", *settings))
    assert (prepared.trainer.ref_model is None) == (adapter != "adapter=null")
    with pytest.raises(RunError, match=r"beyond `method.max_kl: 0.05`"):
        prepared.trainer.train()
    assert logs(prepared)[0]["kl"] == pytest.approx(0, abs=1e-5)


def test_a_reward_that_raises_names_its_row(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, _ = started(rl("training.max_steps=1", *QUICK))
    monkeypatch.setattr(ExactMatch, "score", lambda *_: 1 / 0)
    with pytest.raises(RunError, match="reward `exact_match` raised ZeroDivisionError") as caught:
        prepared.trainer.train()
    assert caught.value.where.startswith("rows.jsonl:")


def test_groups_must_come_out_whole(rl: Maker) -> None:
    recipe = rl("training.per_device_train_batch_size=6")
    with pytest.raises(RecipeError, match="6 completions per batch x 1 gradient_accumulation_steps = 6"):
        recipe.method.check_recipe(recipe)
    recipe = rl("training.beta=0", "method.max_kl=0.1")
    with pytest.raises(RecipeError, match="not computed with beta 0"):
        recipe.method.check_recipe(recipe)
