"""chrF: by hand, and as sacrebleu has it."""

from __future__ import annotations

import sys

import pytest
import sacrebleu

from llmkit.errors import SetupError
from llmkit.evaluation._metrics import chrf
from llmkit.evaluation.chrf import Chrf
from llmkit.evaluation.statistics.aggregates import AGGREGATES

ANSWERS = ["the cat sat on the mat", "there is a big dog in the garden today", "", "a", "猫坐在垫子上"]
REFERENCES = ["the cat sat on a mat", "there is a dog in the garden", "nothing at all", "b", "猫在垫子上"]


def test_by_hand(told):
    # "ab" and "abc": characters 2 of 2 and 2 of 3, pairs 1 of 1 and 1 of 2; longer ones are on one side at most.
    assert chrf("ab", "abc")[:6] == (2.0, 3.0, 2.0, 1.0, 2.0, 1.0)
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert Chrf(type="chrf").score(told(["ab"], ["abc"])).metrics["chrf"] == pytest.approx(expected, abs=1e-9)


def test_equals_sacrebleu_over_the_corpus(told):
    score = Chrf(type="chrf").score(told(ANSWERS, REFERENCES))
    assert score.metrics["chrf"] == pytest.approx(sacrebleu.corpus_chrf(ANSWERS, [REFERENCES]).score, abs=1e-9)
    assert score.aggregate == {"chrf": "chrf"}
    assert all(len(part) == 18 for part in score.per_row["chrf"])


def test_the_mean_of_rows_is_something_else(told):
    score = Chrf(type="chrf").score(told(ANSWERS, REFERENCES))
    singles = [sacrebleu.sentence_chrf(a, [r]).score for a, r in zip(ANSWERS, REFERENCES, strict=True)]
    assert score.metrics["chrf"] != pytest.approx(sum(singles) / len(singles), abs=0.5)


def test_any_rows_have_the_score_of_their_sums(told):
    import numpy as np

    parts = np.array(Chrf(type="chrf").score(told(ANSWERS, REFERENCES)).per_row["chrf"])
    for chosen in ([0], [0, 0, 1], [1, 3, 4]):
        expected = sacrebleu.corpus_chrf([ANSWERS[i] for i in chosen], [[REFERENCES[i] for i in chosen]]).score
        found = AGGREGATES["chrf"](parts[chosen].sum(axis=0), len(chosen))
        assert float(found) == pytest.approx(expected, abs=1e-9)


def test_missing_package(subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(SetupError, match="pip install sacrebleu"):
        Chrf(type="chrf").score(subject([{"prompt": "a", "completion": "b"}]))
