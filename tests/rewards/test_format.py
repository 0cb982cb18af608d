"""Format: the whole form, and what its parts are worth."""

from __future__ import annotations

import doctest

import pytest
from pydantic import ValidationError

from llmkit.rewards import format as format_
from llmkit.rewards.format import Format

GOOD = "<think>a</think><answer>b</answer>"


def test_the_example() -> None:
    assert doctest.testmod(format_).failed == 0


# completion, score without partial credit, with it (an eighth for each of the four ends that is there once)
@pytest.mark.parametrize(
    ("completion", "whole", "partial"),
    [
        (GOOD, 1.0, 1.0),
        ("\n <think>\na < b\n</think>\n\n<answer>\nb\n</answer>\n", 1.0, 1.0),
        ("<answer>b</answer><think>a</think>", 0.0, 0.5),
        ("Well: " + GOOD, 0.0, 0.5),
        (GOOD + " Yes.", 0.0, 0.5),
        ("<think>a</think> so <answer>b</answer>", 0.0, 0.5),
        ("<think> </think><answer>b</answer>", 0.0, 0.5),
        ("<think>a<answer>b</answer></think>", 0.0, 0.5),
        ("<think>a</think><answer>b", 0.0, 0.375),
        ("<think>a", 0.0, 0.125),
        (GOOD * 2, 0.0, 0.0),
        ("<think>a <think> b</think><answer>b</answer>", 0.0, 0.375),
        ("<THINK>a</THINK><answer>b</answer>", 0.0, 0.25),
        ("", 0.0, 0.0),
    ],
)
def test_scores(completion: str, whole: float, partial: float) -> None:
    assert Format(type="format").score(completion, {}) == whole
    assert Format(type="format", partial=True).score(completion, {}) == partial


def test_other_tags_and_a_prefix() -> None:
    one = Format(type="format", tags=["plan"], prefix="<plan>")
    assert one.score("first this</plan>", {}) == 1.0
    assert one.score("<plan>first this</plan>", {}) == 0.0
    assert one.score(one.golden({}) or "", {}) == 1.0
    assert Format(type="format").score(Format(type="format").golden({}) or "", {}) == 1.0


@pytest.mark.parametrize("tags", [[], ["a", "a"], ["<a>"], [""], ["a b"], "think"])
def test_unusable_tags(tags: object) -> None:
    with pytest.raises(ValidationError):
        Format(type="format", tags=tags)
