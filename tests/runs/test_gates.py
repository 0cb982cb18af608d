"""Gates of a run: what a missed one does to exports and exit code, and what is said before anything is trained."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from llmkit.errors import RecipeError
from llmkit.runs.checks import check
from llmkit.runs.progress import Narrator
from llmkit.runs.runner import run

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe

Maker = Callable[..., "Recipe"]
SCORED = ("evaluation=[{type: perplexity}]", "data.eval=0.25", "export=[{type: adapter}]")


def test_a_missed_gate_keeps_the_model_from_being_exported(recipe: Maker, tmp_path: Path) -> None:
    text = io.StringIO()
    gates = "gates=[loss <= 1e9, loss <= base - 1000]"
    found = run(recipe(gates, *SCORED), out=tmp_path / "run", narrator=Narrator(Console(file=text, width=1000)))
    assert [gate.held for gate in found.gates] == [True, False]
    assert found.exported == []
    assert not (tmp_path / "run" / "export").exists()
    assert "a gate is missed: nothing is exported" in text.getvalue()
    kept = json.loads((tmp_path / "run" / "gates.json").read_text())
    assert [(gate["gate"]["text"], gate["held"]) for gate in kept] == [
        ("loss <= 1e9", True),
        ("loss <= base - 1000", False),
    ]
    # The gates may change: the run goes on from its end, and is exported.
    again = run(recipe("gates=[loss <= 1e9]", *SCORED), out=tmp_path / "run", resume=True)
    assert [one.type for one in again.exported] == ["adapter"]
    assert not (tmp_path / "run" / "regressions.jsonl").exists()
    # What an earlier session has exported is not listed as this one's.
    run(recipe("gates=[loss <= base - 1000]", *SCORED), out=tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "export.json").exists()


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ("gates=[reward_accuracy >= base - 0.1]", "no evaluation of the recipe gives such a metric"),
        ("gates=[loss <= 1e9, los >= 1]", "no evaluation of the recipe gives such a metric (did you mean 'loss'?)"),
        ("gates=[loss]", "can't be read"),
        ("gates=[loss >= 90%]", "percent"),
    ],
    ids=["no such base", "unknown", "no bound", "percent"],
)
def test_what_is_wrong_is_said_before_training(recipe: Maker, tmp_path: Path, gates: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        run(recipe(gates, *SCORED), out=tmp_path / "run")
    assert message in str(error.value)
    assert "gates" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_gates_need_an_evaluation(recipe: Maker) -> None:
    with pytest.raises(RecipeError, match="`gates` are about scores, and the recipe has no `evaluation`"):
        check(recipe("gates=[loss <= 1]", "evaluation=[]"))
