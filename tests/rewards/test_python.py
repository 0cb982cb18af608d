"""Python: a function of the user's, checked before it is run."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from pydantic import ValidationError

from llmkit.data.splits import Row
from llmkit.errors import RecipeError, RunError, SetupError
from llmkit.rewards import python
from llmkit.rewards.base import score_part
from llmkit.rewards.python import Python

GOOD = "def score(completion: str, row: dict) -> float:\n    return len(completion) / row['length']\n"


def written(folder: Path, code: str, name: str = "score") -> Python:
    (folder / "mine.py").write_text(code, encoding="utf-8")
    return Python(type="python", function=f"mine.py:{name}")


def test_the_example() -> None:
    assert doctest.testmod(python).failed == 0


def test_the_function_is_called_with_completion_and_row(tmp_path: Path) -> None:
    reward = written(tmp_path, GOOD)
    reward.check_setup(tmp_path)
    reward.set_up(tmp_path)
    assert reward.score("four", {"length": 8}) == 0.5


def test_checking_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    reward = written(tmp_path, f"open({str(marker)!r}, 'w').close()\n{GOOD}")
    reward.check_setup(tmp_path)
    assert not marker.exists()
    reward.set_up(tmp_path)
    assert marker.exists()


@pytest.mark.parametrize(
    "signature",
    ["c, r", "c, r, k=1", "c, r=None", "c, /, r", "*both", "c, *rest", "c=0, r=0, k=0", "c, r, *, k=1", "c, r, **k"],
)
def test_signatures_that_two_arguments_fit(tmp_path: Path, signature: str) -> None:
    reward = written(tmp_path, f"def score({signature}):\n    return 1.0\n")
    reward.check_setup(tmp_path)
    reward.set_up(tmp_path)
    assert reward.score("", {}) == 1.0


@pytest.mark.parametrize("signature", ["", "c", "c, r, k", "c, *, r", "c, r, *, k", "c, r, k, *rest", "c, **r"])
def test_signatures_that_two_arguments_do_not_fit(tmp_path: Path, signature: str) -> None:
    with pytest.raises(RecipeError, match=r"mine.py:2: 'score' can't be called with(.|\n)*def score\(completion: str"):
        written(tmp_path, f"\ndef score({signature}):\n    return 1.0\n").check_setup(tmp_path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def scored(c, r):\n    return 1.0\n", "no function 'score' \\(did you mean 'scored'"),
        ("class A:\n    def score(self, c):\n        return 1.0\n", "no function 'score'"),
        ("async def score(c, r):\n    return 1.0\n", "can't be called"),
        ("\ndef score(c, r:\n", "mine.py:2: reward `python`: the file is no Python"),
        ("a = '\0'", "the file is no Python"),
    ],
)
def test_files_without_a_usable_function(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        written(tmp_path, code).check_setup(tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone.py: .*can't be read: No such file(.|\n)*recipe's folder"):
        Python(type="python", function="gone.py:score").check_setup(tmp_path)


@pytest.mark.parametrize("function", ["mine.py", "mine.py:", ":score", "mine:score", "mine.py:a-b", "mine.py:a.b"])
def test_the_spelling(function: str) -> None:
    with pytest.raises(ValidationError, match="must be FILE.py:NAME"):
        Python(type="python", function=function)


def test_an_error_while_importing(tmp_path: Path) -> None:
    reward = written(tmp_path, "import no_such_package_anywhere\n" + GOOD)
    with pytest.raises(SetupError, match="importing .*[.]py raised ModuleNotFoundError: .*no_such_package_anywhere"):
        reward.set_up(tmp_path)


def test_an_error_of_the_function_names_the_row(tmp_path: Path) -> None:
    reward = written(tmp_path, GOOD)
    reward.set_up(tmp_path)
    rows = [Row(where="r.jsonl:1", example={"length": 2}), Row(where="r.jsonl:2", example={"length": 0})]
    with pytest.raises(RunError, match="r.jsonl:2: reward `python` raised ZeroDivisionError"):
        score_part(reward, ["a", "b"], rows)


def test_the_function_can_not_change_the_row(tmp_path: Path) -> None:
    reward = written(tmp_path, "def score(c, r):\n    return float(len(r.pop('gone')))\n")
    reward.set_up(tmp_path)
    row = {"gone": "abc"}
    assert [reward.score("", row), reward.score("", row)] == [3.0, 3.0]
