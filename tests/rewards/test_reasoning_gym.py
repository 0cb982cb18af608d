"""Reasoning Gym: the package's own scores, on answers of every kind; what is not safe or not whole is refused."""

from __future__ import annotations

import doctest
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.shapes import RowError
from llmkit.rewards import reasoning_gym
from llmkit.rewards.reasoning_gym import EVALUATING, ReasoningGym

rg = pytest.importorskip("reasoning_gym")

TASKS = [
    "chain_sum",
    "letter_counting",
    "spell_backward",
    "number_sorting",
    "basic_arithmetic",
    "gcd",
    "word_sorting",
    "leg_counting",
    "simple_equations",
]
RAISING = ["prime_factorization", "boxnet", "coin_flip", "game_of_life"]
GARBAGE = ["", " ", "x", "42", "1/0", "[1, 2", "[1]", "{}", "None", "nan", "1e999", "\ud800", "true", "[[1],[2]]", "\0"]


@cache
def row(task: str, seed: int = 1) -> dict[str, Any]:
    entry = rg.create_dataset(task, size=1, seed=seed)[0]
    return {"prompt": entry["question"], "answer": entry["answer"], "task": task, "entry": entry}


def test_the_example() -> None:
    assert doctest.testmod(reasoning_gym).failed == 0


@pytest.mark.parametrize("task", TASKS)
def test_the_rows_own_answer_has_the_full_reward(task: str) -> None:
    reward = ReasoningGym(type="reasoning_gym")
    made = row(task)
    reward.check_row(made)
    assert reward.score(reward.golden(made) or "", made) == 1.0
    assert reward.score(f"<think>hm</think>\n<answer>\n{made['answer']}\n</answer>", made) == 1.0
    assert reward.score(f" {made['answer']}\n", made) == 1.0


@pytest.mark.parametrize("task", [*TASKS, *RAISING])
@pytest.mark.parametrize("answer", GARBAGE)
def test_garbage_has_a_finite_score(task: str, answer: str) -> None:
    value = ReasoningGym(type="reasoning_gym").score(answer, row(task))
    assert type(value) is float
    assert math.isfinite(value)
    assert value < 1.0 or answer == row(task)["answer"]


def test_what_a_scorer_can_not_read_scores_zero() -> None:
    made = row("prime_factorization")
    with pytest.raises(ValueError, match="invalid literal"):
        reasoning_gym.scorer("prime_factorization")(answer="two threes", entry=made["entry"])
    assert ReasoningGym(type="reasoning_gym").score("two threes", made) == 0.0


@pytest.mark.parametrize("answer", ["nan", " N a N ", "-nan", "nani", "1 + nani", "(nan)"])
def test_no_number_is_not_the_right_number(answer: str) -> None:
    made = row("complex_arithmetic")
    reward = ReasoningGym(type="reasoning_gym")
    assert reward.score(f"<answer>{answer}</answer>", made) == 0.0
    assert reward.score(made["answer"], made) == 1.0


def test_no_finite_score_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasoning_gym, "scorer", lambda task: lambda answer, entry: math.nan)
    assert ReasoningGym(type="reasoning_gym").score("1", {"task": "gcd", "entry": {}}) == 0.0


def test_partial_credit_and_exact() -> None:
    made = row("chain_sum")
    text = f"It is {made['answer']}"
    # The package's own rule: the share of the text that is the answer.
    expected = len(made["answer"]) / len(text)
    assert ReasoningGym(type="reasoning_gym").score(text, made) == pytest.approx(expected)
    exact = ReasoningGym(type="reasoning_gym", exact=True)
    assert exact.score(text, made) == 0.0
    assert exact.score(made["answer"], made) == 1.0


@pytest.mark.parametrize("bad", [{}, {"task": "chain_sum"}, {"task": 1, "entry": {}}, {"task": "gcd", "entry": "x"}])
def test_rows_made_elsewhere_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(RowError, match="no columns 'task' and 'entry'"):
        ReasoningGym(type="reasoning_gym").check_row(bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"task": "chain_sums", "entry": {"answer": "1"}}, "'chain_sums' not registered"),
        ({"task": "composite", "entry": {"answer": "1"}}, "AssertionError"),
        (
            {"task": "prime_factorization", "entry": {"answer": "two", "metadata": {}}},
            "can't score the row's own answer",
        ),
    ],
)
def test_rows_that_can_not_be_scored_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        ReasoningGym(type="reasoning_gym").check_row(bad)


def test_an_entry_that_was_changed_is_refused() -> None:
    made = row("rearc")
    reward = ReasoningGym(type="reasoning_gym")
    reward.check_row(made)
    metadata = made["entry"]["metadata"]
    as_lists = {**metadata, "output": [list(line) for line in metadata["output"]]}
    with pytest.raises(RowError, match="own answer scores 0.05 in 'rearc'"):
        reward.check_row({**made, "entry": {**made["entry"], "metadata": as_lists}})


@pytest.mark.parametrize("task", EVALUATING)
def test_tasks_that_run_the_answer_as_code_are_refused(task: str) -> None:
    with pytest.raises(RowError, match=f"'{task}' runs the model's answer as Python code"):
        ReasoningGym(type="reasoning_gym").check_row({"task": task, "entry": {"answer": "1"}})


def test_a_task_that_accepts_any_answer_is_refused() -> None:
    made = row("game_of_life_halting")
    assert reasoning_gym.scorer("game_of_life_halting")(answer="perhaps", entry=made["entry"]) == 1.0
    with pytest.raises(RowError, match="gives any answer its full score"):
        ReasoningGym(type="reasoning_gym").check_row(made)


def test_no_other_scorer_of_the_package_runs_the_answer() -> None:
    found = set()
    for file in Path(rg.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if re.search(r"(?<![\w.])(?:sp\.|sympy\.)?(?:eval|exec|parse_expr|sympify|S)\(answer\b", text):
            found |= set(re.findall(r'^DATASET_NAME = "(\w+)"$', text, re.MULTILINE))
    assert found == set(EVALUATING)
