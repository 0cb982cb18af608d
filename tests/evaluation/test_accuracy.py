from __future__ import annotations

from llmkit.evaluation._metrics import accuracy
from llmkit.evaluation.accuracy import Accuracy


def test_first_line_is_the_label():
    # Equal: case; a second line; outer space and a leading blank line. Different: more on the line; nothing said.
    predictions = ["POSITIVE", "negative\nbecause", "\n positive ", "positive.", ""]
    references = ["positive", "Negative", "positive", "positive", "positive"]
    assert accuracy(predictions, references) == {"accuracy": 0.6}


def test_score(told):
    score = Accuracy(type="accuracy").score(told(["Yes\nsir", "no"], ["yes", "yes"]))
    assert (score.metrics, score.rows) == ({"accuracy": 0.5}, 2)
