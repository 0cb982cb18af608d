"""`llmkit sample`: what it prints, what it writes, and the code it ends with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LENGTH = "rewards=[{type: length, unit: characters, target: 4, tolerance: 40}]"


@pytest.fixture
def grpo(grpo_file: Callable[..., Path], tokenizer: Any) -> Path:
    """A GRPO recipe on the tiny model over 6 sums."""
    rows = [{"prompt": f"what is {i} plus {i}?", "answer": str(2 * i)} for i in range(6)]
    halves = [i for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([i])]
    return grpo_file("grpo", rows, max_completion_length=6, generation_kwargs={"suppress_tokens": halves})


def _cells(table: str) -> dict[str, str]:
    """Return the second cell of a printed table's lines by the first; the first of equal ones."""
    found: dict[str, str] = {}
    for line in table.splitlines():
        if "│" in line:
            first, second = (cell.strip() for cell in line.split("│")[1:-1])
            found.setdefault(first, second)
    return found


def test_pairs_are_written_and_the_next_command_trains_on_them(
    llmkit: Callable[..., Any], grpo: Path, tmp_path: Path
) -> None:
    said = llmkit("sample", grpo, "-n", "4", "--keep", "pairs", "--truncated", "--set", LENGTH)
    assert said.code == 0
    out = tmp_path / "grpo-pairs.jsonl"
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    assert rows
    assert all(row["margin"] > 0 and row["chosen"] != row["rejected"] for row in rows)
    cells = _cells(said.out)
    assert cells["prompts"] == "6 read, 6 answered"
    assert cells["kept"] == f"{len(rows)} ({len(rows) / 6:.0%})"
    assert cells["said twice"].endswith(" of 24 answers")
    assert cells["speed"].endswith(" tokens)")
    assert "pass@1" not in cells, "nobody says what passes"
    assert f"written: {out.name}\n" in said.out
    assert f"llmkit run RECIPE --set 'data.train=[{{path: {out}, format: preference}}]'" in said.out
    lines = said.out.partition("next:    a recipe with these lines\n")[2].partition("or, with")[0]
    (tmp_path / "next.yaml").write_text("\n".join(line.strip() for line in lines.splitlines()), encoding="utf-8")
    checked = llmkit("validate", tmp_path / "next.yaml")
    assert (checked.code, checked.err) == (0, "")
    assert "valid (dpo + lora on " in checked.out


def test_nothing_good_is_said_with_the_reason(llmkit: Callable[..., Any], grpo: Path) -> None:
    said = llmkit("sample", grpo, "--samples", "2", "--prompts", "2", "--out", "deep/rows.jsonl")
    assert said.code == 0
    cells = _cells(said.out)
    assert cells["kept"] == "0 (0%)"
    assert cells["dropped"].startswith("2 (") or cells["dropped"].startswith("1 (")
    assert cells["pass@1"] == "0.0% (an answer passes at 1: golden answers)"
    assert "Nothing was kept, and deep/rows.jsonl is empty." in said.out
    assert "llmkit run" not in said.out


def test_going_on_takes_the_same_settings(llmkit: Callable[..., Any], grpo: Path) -> None:
    assert llmkit("sample", grpo, "-n", "2", "--prompts", "2", "--out", "rows.jsonl").code == 0
    again = llmkit("sample", grpo, "-n", "2", "--prompts", "2", "--out", "rows.jsonl")
    assert again.code == 0
    assert "rows.jsonl: 2 of 2 prompts are there already" in again.err
    other = llmkit("sample", grpo, "-n", "2", "--prompts", "2", "--temperature", "0.5", "--out", "rows.jsonl")
    assert (other.code, other.out) == (2, "")
    assert "rows.jsonl was begun with other settings: temperature was 1.0 and is 0.5" in other.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--keep", "worst"), "--keep must be one of best, pairs, all, not 'worst'"),
        (("--margin", "-1"), "Invalid value for '--margin'"),
        (("-n", "0"), "Invalid value for '-n' / '--samples'"),
        (("--out", "rows.csv"), "--out rows.csv must end with .jsonl"),
        (("--set", LENGTH), "--threshold X"),
    ],
)
def test_a_wrong_wish_ends_with_2(
    llmkit: Callable[..., Any], grpo: Path, arguments: tuple[str, ...], said: str
) -> None:
    found = llmkit("sample", grpo, *arguments)
    assert (found.code, found.out) == (2, "")
    assert said in found.err


def test_a_method_without_rewards_is_refused(llmkit: Callable[..., Any], recipe_file: Path) -> None:
    said = llmkit("sample", recipe_file)
    assert (said.code, said.out) == (2, "")
    assert "method 'sft' learns from its rows alone" in said.err
