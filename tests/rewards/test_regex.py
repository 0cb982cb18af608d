"""Regex: where a pattern must match, and that none takes forever."""

from __future__ import annotations

import doctest
import time

import pytest
from pydantic import ValidationError

from llmkit.rewards import regex
from llmkit.rewards.regex import Regex


def test_the_example() -> None:
    assert doctest.testmod(regex).failed == 0


@pytest.mark.parametrize(
    ("pattern", "match", "completion", "expected"),
    [
        (r"\d+", "search", "it is 42.", 1.0),
        (r"\d+", "full", "it is 42.", 0.0),
        (r"\d+", "full", "42", 1.0),
        (r"\d+", "full", "42\n", 0.0),
        (r"yes", "search", "YES", 0.0),
        (r"(?i)yes", "search", "YES", 1.0),
        (r"a.b", "search", "a\nb", 0.0),
        (r"(?s)a.b", "search", "a\nb", 1.0),
        (r"^$", "search", "", 1.0),
    ],
)
def test_matches(pattern: str, match: str, completion: str, expected: float) -> None:
    assert Regex(type="regex", pattern=pattern, match=match).score(completion, {}) == expected


@pytest.mark.parametrize("pattern", ["(a", "[", "*", r"(?P<a>x)(?P=b)"])
def test_a_pattern_that_does_not_compile_is_refused_with_the_recipe(pattern: str) -> None:
    with pytest.raises(ValidationError, match="is no regular expression"):
        Regex(type="regex", pattern=pattern)


def test_backtracking_ends_with_a_zero_and_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regex, "SECONDS", 0.2)
    start = time.perf_counter()
    with pytest.warns(UserWarning, match="`regex`: the pattern takes more than 0.2 s"):
        assert Regex(type="regex", pattern=r"(a|aa)+$").score("a" * 5000 + "b", {}) == 0.0
    assert time.perf_counter() - start < 10
