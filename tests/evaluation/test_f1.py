from __future__ import annotations

import pytest

from llmkit.evaluation._metrics import f1
from llmkit.evaluation.f1 import F1


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("in Paris, France", "Paris", 2 * (1 / 3) * 1 / (1 / 3 + 1)),  # precision 1/3, recall 1
        ("b b c", "b c c d", 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),  # shared as bags: b, c
        ("London", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("the", "a", 1.0),  # nothing is left of either
        ("theatre", "theater", 0.0),  # articles only as whole words
    ],
)
def test_token_overlap_by_hand(prediction, reference, expected):
    assert f1(prediction, reference) == pytest.approx(expected)


def test_score_is_the_mean(told):
    assert F1(type="f1").score(told(["in Paris, France", "x"], ["Paris", "x"])).metrics == {"f1": pytest.approx(0.75)}
