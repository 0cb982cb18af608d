"""Length: two straight lines."""

from __future__ import annotations

import doctest

import pytest
from pydantic import ValidationError

from llmkit.rewards import length
from llmkit.rewards.length import Length


def test_the_example() -> None:
    assert doctest.testmod(length).failed == 0


@pytest.mark.parametrize(
    ("words", "expected"), [(10, 1.0), (9, 0.75), (12, 0.5), (14, 0.0), (6, 0.0), (50, 0.0), (0, 0)]
)
def test_a_target(words: int, expected: float) -> None:
    assert Length(type="length", target=10, tolerance=4).score("ab " * words, {}) == expected


@pytest.mark.parametrize(
    ("characters", "expected"), [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (999, -1.0)]
)
def test_a_limit_is_that_of_dapo(characters: int, expected: float) -> None:
    assert Length(type="length", unit="characters", max=80, over=20).score("x" * characters, {}) == expected


def test_no_penalty_is_a_plain_zero() -> None:
    assert str(Length(type="length", max=5, over=1).score("short", {})) == "0.0"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target": 5},
        {"max": 5},
        {"over": 5},
        {"target": 5, "tolerance": 2, "max": 5, "over": 1},
        {"target": 5, "over": 1},
    ],
)
def test_it_is_one_kind_or_the_other(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="either `target` and `tolerance`, or `max` and `over`"):
        Length(type="length", **fields)


@pytest.mark.parametrize("fields", [{"target": 5, "tolerance": 0}, {"max": -1, "over": 1}, {"max": 1, "over": 0}])
def test_no_division_by_zero(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="greater than or equal"):
        Length(type="length", **fields)
