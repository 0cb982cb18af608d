"""Python: a metric of the user's, checked before it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit.errors import RecipeError, RunError, SetupError
from llmkit.evaluation.base import Score
from llmkit.evaluation.python import Python
from llmkit.recipe.functions import announcements, hooks
from llmkit.runs.checks import check

LENGTHS = "def lengths(answers, rows):\n    return [len(answer) for answer in answers]\n"
ANSWERS = ["a", "abc", "ab"]


@pytest.fixture
def run(told, tmp_path):
    """Return what writes a function and scores planted answers with it."""

    def score(code: str, name: str = "lengths") -> Score:
        (tmp_path / "mine.py").write_text(code, encoding="utf-8")
        subject = told(ANSWERS, ["a", "b", "c"])
        subject.folder = tmp_path
        return Python(type="python", function=f"mine.py:{name}").score(subject)

    return score


def test_a_number_for_each_row(run):
    score = run(LENGTHS)
    assert score.metrics == {"lengths": 2.0}
    assert score.per_row == {"lengths": (1.0, 3.0, 2.0)}
    assert (score.rows, [sample.answer for sample in score.samples]) == (3, ANSWERS)


def test_several_metrics(run):
    code = (
        "def both(answers, rows):\n"
        "    right = [answer == row['completion'] for answer, row in zip(answers, rows)]\n"
        "    return {'right': right, 'minus': tuple(-len(answer) for answer in answers)}\n"
    )
    score = run(code, "both")
    assert score.metrics == {"right": pytest.approx(1 / 3), "minus": -2.0}
    assert score.per_row["right"] == (1.0, 0.0, 0.0)


def test_numbers_of_numpy(run):
    score = run("import numpy\ndef lengths(a, r):\n    return numpy.array([1, 2, 3], dtype=numpy.float32)\n")
    assert score.metrics == {"lengths": 2.0}


def test_rows_without_a_reference_will_do(subject, tmp_path, monkeypatch):
    monkeypatch.setattr("llmkit.evaluation._generation.generate", lambda *_, **__: ["yes"])
    (tmp_path / "mine.py").write_text("def tones(answers, rows):\n    return [rows[0]['tone']]\n", encoding="utf-8")
    person = subject([{"prompt": "a", "tone": 3}])
    person.folder = tmp_path
    assert Python(type="python", function="mine.py:tones").score(person).metrics == {"tones": 3.0}


def test_the_function_can_not_change_the_rows(run, told, tmp_path):
    run("def lengths(answers, rows):\n    return [len(row.pop('completion')) for row in rows]\n")
    subject = told(ANSWERS, ["a", "b", "c"])
    subject.folder = tmp_path
    spec = Python(type="python", function="mine.py:lengths")
    assert spec.score(subject).metrics == spec.score(subject).metrics == {"lengths": 1.0}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[1, 2]", "for 3 answers"),
        ("2.0", "it returned 2.0 as 'lengths' for 3 answers"),
        ("None", "it returned None"),
        ("{'a': 1.0}", "it returned 1.0 as 'a'"),
        ("{1: [1, 2, 3]}", "as 1 for 3 answers"),
        ("{}", "an empty dict"),
        ("'abc'", "'a' in 'lengths' is no finite number"),
        ("[1, None, 2]", "None in 'lengths' is no finite number"),
        ("[1, float('nan'), 2]", "nan in 'lengths' is no finite number"),
        ("[1, 10 ** 400, 2]", "is no finite number"),
        ("[1, 1j, 2]", "is no finite number"),
    ],
)
def test_other_results_are_refused(run, returned, message):
    with pytest.raises(RunError, match=f"mine.py:lengths: evaluation `python`: .*{message}"):
        run(f"def lengths(answers, rows):\n    return {returned}\n")


def test_an_error_of_the_function(run):
    with pytest.raises(RunError, match="it raised ZeroDivisionError: division by zero"):
        run("def lengths(answers, rows):\n    return [1 / 0]\n")
    with pytest.raises(SetupError, match="importing mine.py raised ModuleNotFoundError"):
        run("import no_such_package_anywhere\n" + LENGTHS)


def test_checking_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(marker)!r}, 'w').close()\n{LENGTHS}", encoding="utf-8")
    Python(type="python", function="mine.py:lengths").check_setup(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("mine.py:length", r"defines no function 'length' \(did you mean 'lengths'"),
        ("mine.py:one", r"mine.py:3: 'one' can't be called with a list of answers"),
        ("gone.py:lengths", "can't be read"),
        ("../mine.py:lengths", "outside of the recipe's folder"),
    ],
)
def test_functions_that_can_not_be_called(tmp_path: Path, function: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(LENGTHS + "def one(answers):\n    return []\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        Python(type="python", function=function).check_setup(tmp_path)


@pytest.mark.parametrize("function", ["mine.py", ":lengths", "mine:lengths"])
def test_the_spelling(function: str) -> None:
    with pytest.raises(ValidationError, match="must be FILE.py:NAME"):
        Python(type="python", function=function)


def test_the_code_is_announced(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LENGTHS, encoding="utf-8")
    loaded = recipe("evaluation=[{type: python, function: mine.py:lengths}]")
    check(loaded)
    assert [(hook.path.name, hook.name) for hook in hooks(loaded)] == [("mine.py", "lengths")]
    (said,) = announcements(loaded)
    assert "lengths of" in said
