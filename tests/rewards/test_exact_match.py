"""Exact match: all or nothing."""

from __future__ import annotations

import pytest

from llmkit.data.shapes import RowError
from llmkit.rewards.exact_match import ExactMatch


@pytest.mark.parametrize(
    ("completion", "expected"), [("5", 1.0), (" 5\n", 1.0), ("five", 0.0), ("", 0.0), ("5 5", 0.0)]
)
def test_only_the_answer_itself_counts(completion: str, expected: float) -> None:
    assert ExactMatch(type="exact_match").score(completion, {"answer": 5}) == expected


def test_the_golden_answer_has_the_full_reward() -> None:
    reward = ExactMatch(type="exact_match", column="target")
    assert reward.score(reward.golden({"target": "yes"}) or "", {"target": "yes"}) == 1.0


def test_a_row_without_the_answer_is_refused() -> None:
    with pytest.raises(RowError, match="no column 'answer'"):
        ExactMatch(type="exact_match").check_row({"prompt": "?"})
