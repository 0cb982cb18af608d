from __future__ import annotations

import pytest

from llmkit.evaluation._metrics import accuracy
from llmkit.evaluation.accuracy import Accuracy


@pytest.mark.parametrize(
    ("answer", "label", "expected"),
    [
        ("POSITIVE", "positive", 1.0),
        ("negative\nbecause", "Negative", 1.0),
        ("\n positive ", "positive", 1.0),
        ("positive.", "positive", 0.0),
        ("", "positive", 0.0),
    ],
)
def test_first_line_is_the_label(answer, label, expected):
    assert accuracy(answer, label) == expected


def test_score(told):
    score = Accuracy(type="accuracy").score(told(["Yes\nsir", "no"], ["yes", "yes"]))
    assert (score.metrics, score.rows) == ({"accuracy": 0.5}, 2)
    assert score.per_row == {"accuracy": (1.0, 0.0)}
