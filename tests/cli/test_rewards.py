"""`llmkit reward`, `llmkit preflight` and `llmkit run --watch`: what they print, and the code they end with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from llmkit.runs.report import print_result
from llmkit.runs.runner import RunResult

TRICKED = "def length(completion, row):\n    return min(len(completion) / 1000, 1.0)\n"


@pytest.fixture
def grpo(grpo_file: Callable[..., Path], tmp_path: Path) -> Path:
    """A GRPO recipe on the tiny model over 12 sums."""
    rows = [{"prompt": f"what is {i} plus {i}?", "answer": str(2 * i)} for i in range(12)]
    (tmp_path / "mine.py").write_text(TRICKED, encoding="utf-8")
    return grpo_file("grpo", rows, max_completion_length=256)


def _cells(table: str) -> dict[str, list[str]]:
    """Return the cells of a printed table's lines by the first."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]
    return {cells[0]: cells[1:] for cells in lines}


# --- reward ----------------------------------------------------------------------------------------------------------


def test_an_honest_reward_ends_with_0(llmkit: Callable[..., Any], grpo: Path) -> None:
    said = llmkit("reward", grpo, "--rows", "6")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("6 rows; golden answers: told by exact_match\n")
    cells = _cells(said.out)
    assert cells["golden"] == ["1", "1", "1", "0", "100%"]
    assert cells["copied prompt"] == ["0", "0", "0", "0", "0%"]
    assert said.out.endswith("Nothing here can be had for nothing, and golden answers earn it.\n")
    assert "total" not in said.out, "one reward is its own total"


def test_a_reward_that_can_be_tricked_ends_with_3(llmkit: Callable[..., Any], grpo: Path) -> None:
    said = llmkit("reward", grpo, "--set", "rewards=[{type: python, function: 'mine.py:length', label: mine}]")
    assert said.code == 3
    assert "error: `mine` gives its full reward" in said.out
    assert "very long filler (1)" in said.out
    assert "the rows' own answers" in said.out


def test_a_part_that_can_be_tricked_is_a_warning(llmkit: Callable[..., Any], grpo: Path) -> None:
    parts = "rewards=[{type: exact_match}, {type: python, function: 'mine.py:length', label: mine, weight: 0.1}]"
    said = llmkit("reward", grpo, "--set", parts)
    assert said.code == 0
    assert "warning: `mine` gives its full reward" in said.out
    assert "\ntotal (" in said.out


def test_a_golden_template_is_taken(llmkit: Callable[..., Any], grpo: Path) -> None:
    said = llmkit("reward", grpo, "--golden", "it is $answer")
    assert said.code == 3
    assert "gives 0 to all probes and golden answers" in said.out
    said = llmkit("reward", grpo, "--golden", "it is $anser")
    assert (said.code, said.out) == (2, "")
    assert "did you mean 'answer'" in said.err


def test_a_reward_that_raises_ends_with_1_and_the_row(llmkit: Callable[..., Any], grpo: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def length(completion, row):\n    return completion / 2\n", encoding="utf-8")
    said = llmkit("reward", grpo, "--set", "rewards=[{type: python, function: 'mine.py:length', label: mine}]")
    assert said.code == 1
    assert "error: sums.jsonl:1: reward `mine` raised TypeError" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("command", ["reward", "preflight"])
def test_a_method_without_rewards_is_refused(llmkit: Callable[..., Any], recipe_file: Path, command: str) -> None:
    said = llmkit(command, recipe_file)
    assert (said.code, said.out) == (2, "")
    assert "method 'sft' learns from its rows alone: there is no reward to try" in said.err


# --- preflight -------------------------------------------------------------------------------------------------------


def test_preflight_prints_its_figures_and_keeps_them(llmkit: Callable[..., Any], grpo: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    few = ("--prompts", "3", "--samples", "4", "--set", "training.max_completion_length=6")
    said = llmkit("preflight", grpo, *few, "--out", out)
    assert said.code == 0
    cells = _cells(said.out)
    written = json.loads(out.read_text(encoding="utf-8"))
    assert cells["mean reward"] == [f"{written['reward']:.3g}"]
    assert [name for name in cells if name.startswith("pass@")] == ["pass@1", "pass@2", "pass@4"]
    assert cells["cut off"] == [f"{written['clipped']:.0%} at 6 tokens"]
    assert cells["seconds per step"][0].endswith("; 8 completions)")
    assert cells["whole run"][0].startswith("2 steps, ")
    assert all(line in said.out.replace("\n", " ") for line in written["advice"])
    assert len(written["answers"]) == 12
    again = llmkit("preflight", grpo, *few, "--out", out)
    assert again.code == 2
    assert "found.json exists already, and is not overwritten" in again.err


def test_preflight_needs_two_answers_to_compare(llmkit: Callable[..., Any], grpo: Path) -> None:
    said = llmkit("preflight", grpo, "--samples", "1")
    assert said.code == 2
    assert "Usage: " in said.err


# --- after a run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answers", "verb"), [(True, "chat"), (False, "eval")])
def test_the_next_command_is_one_that_the_model_can_do(
    answers: bool, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = RunResult(tmp_path, [], [], [], [], [], [], answers=answers)
    print_result(result, Console(width=1000))
    assert f"llmkit {verb} {tmp_path}" in capsys.readouterr().out


# --- watching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watched", [True, False])
def test_watch_is_handed_to_the_run(
    llmkit: Callable[..., Any], grpo: Path, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    seen = []

    def run(recipe: Any, **options: Any) -> Any:
        seen.append(options["watch"])
        return SimpleNamespace(gates=[])

    monkeypatch.setattr("llmkit.runs.runner.run", run)
    monkeypatch.setattr("llmkit.runs.report.print_result", lambda result, console: None)
    assert llmkit("run", grpo, *(["--watch"] if watched else [])).code == 0
    assert seen == [watched]
