"""The error classes: what they print, and the exit code they end a command with."""

from __future__ import annotations

import inspect

import pytest

from llmkit import errors
from llmkit.errors import DataError, LlmkitError, RecipeError, RunError, SetupError, did_you_mean


@pytest.mark.parametrize(
    ("error", "code"), [(RecipeError, 2), (DataError, 2), (SetupError, 2), (RunError, 1), (LlmkitError, 1)]
)
def test_exit_codes(error: type[LlmkitError], code: int) -> None:
    assert error("x").exit_code == code


def test_all_errors_have_one_base() -> None:
    found = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Exception)]
    assert len(found) >= 5
    assert all(issubclass(c, LlmkitError) for c in found)


@pytest.mark.parametrize(
    ("where", "remedy", "text"),
    [
        (None, None, "it broke"),
        ("a.yaml:3", None, "a.yaml:3: it broke"),
        (None, "Mend it.", "it broke\nMend it."),
        ("a.yaml:3", "Mend it.", "a.yaml:3: it broke\nMend it."),
    ],
)
def test_the_text_is_place_what_and_remedy(where: str | None, remedy: str | None, text: str) -> None:
    error = RecipeError("it broke", where=where, remedy=remedy)
    assert str(error) == text
    assert (error.what, error.where, error.remedy) == ("it broke", where, remedy)


@pytest.mark.parametrize(
    ("word", "choices", "hint"),
    [
        ("learning_rte", ["learning_rate", "seed"], " (did you mean 'learning_rate'?)"),
        ("zzz", ["learning_rate", "seed"], ""),
        ("seed", [], ""),
        ("nf5", ("nf4", "fp4", "int8"), " (did you mean 'nf4'?)"),
    ],
)
def test_did_you_mean_the_closest_or_nothing(word: str, choices: list[str], hint: str) -> None:
    assert did_you_mean(word, choices) == hint
    assert did_you_mean(word, iter(choices)) == hint
