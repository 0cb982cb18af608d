from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import sacrebleu

from llmkit.errors import SetupError
from llmkit.evaluation._metrics import bleu
from llmkit.evaluation.bleu import Bleu
from llmkit.evaluation.statistics.aggregates import AGGREGATES

ANSWERS = ["the cat sat on the mat", "there is a big dog in the garden today", "", "no", "the cat sat on a"]
REFERENCES = ["the cat sat on a mat", "there is a dog in the garden", "nothing at all", "yes", "the cat sat on a mat"]


def score(told, answers, references):
    return Bleu(type="bleu").score(told(answers, references)).metrics["bleu"]


def test_by_hand(told):
    # 6 tokens, reference of 6: matched 1- to 4-grams 5/6, 3/5, 2/4, 1/3 ("the cat sat on"); no brevity penalty.
    assert bleu(ANSWERS[0], REFERENCES[0]) == (5, 3, 2, 1, 6, 5, 4, 3, 6, 6)
    expected = 100 * math.prod([5 / 6, 3 / 5, 2 / 4, 1 / 3]) ** (1 / 4)
    assert score(told, ANSWERS[:1], REFERENCES[:1]) == pytest.approx(expected)


def test_short_answer_by_hand_is_penalised_for_brevity(told):
    # All n-grams match; 5 tokens against 6: exp(1 - 6/5).
    assert score(told, ANSWERS[-1:], REFERENCES[-1:]) == pytest.approx(100 * math.exp(1 - 6 / 5))


@pytest.mark.parametrize("rows", [[0, 1], [0, 1, 2, 3, 4], [3], [2], [0, 0, 1], [1, 4]])
def test_equals_sacrebleu(told, rows):
    answers, references = [ANSWERS[i] for i in rows], [REFERENCES[i] for i in rows]
    expected = sacrebleu.corpus_bleu(answers, [references]).score
    assert score(told, answers, references) == pytest.approx(expected, abs=1e-9)


def test_any_rows_have_the_score_of_their_sums(told):
    parts = np.array(Bleu(type="bleu").score(told(ANSWERS, REFERENCES)).per_row["bleu"])
    found = AGGREGATES["bleu"](parts[[1, 1, 4]].sum(axis=0), 3)
    expected = sacrebleu.corpus_bleu([ANSWERS[i] for i in (1, 1, 4)], [[REFERENCES[i] for i in (1, 1, 4)]]).score
    assert float(found) == pytest.approx(expected, abs=1e-9)


def test_missing_package_is_told_before_anything_is_generated(subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr("llmkit.evaluation._generation.generate", lambda *_, **__: pytest.fail("generated"))
    with pytest.raises(SetupError, match="pip install sacrebleu"):
        Bleu(type="bleu").score(subject([{"prompt": "a", "completion": "b"}]))
