from __future__ import annotations

import math
import sys

import pytest
import sacrebleu

from llmkit.errors import SetupError
from llmkit.evaluation._metrics import bleu
from llmkit.evaluation.bleu import Bleu

ANSWERS = ["the cat sat on the mat", "there is a big dog in the garden today"]
REFERENCES = ["the cat sat on a mat", "there is a dog in the garden"]


def test_by_hand():
    # 6 tokens, reference of 6: matched 1- to 4-grams 5/6, 3/5, 2/4, 1/3 ("the cat sat on"); no brevity penalty.
    expected = 100 * math.prod([5 / 6, 3 / 5, 2 / 4, 1 / 3]) ** (1 / 4)
    assert bleu(ANSWERS[:1], REFERENCES[:1])["bleu"] == pytest.approx(expected)


def test_short_answer_by_hand_is_penalised_for_brevity():
    # All n-grams match; 5 tokens against 6: exp(1 - 6/5).
    assert bleu(["the cat sat on a"], REFERENCES[:1])["bleu"] == pytest.approx(100 * math.exp(1 - 6 / 5))


def test_equals_sacrebleu_and_score(told):
    expected = sacrebleu.corpus_bleu(ANSWERS, [REFERENCES]).score
    assert bleu(ANSWERS, REFERENCES) == {"bleu": expected}
    assert Bleu(type="bleu").score(told(ANSWERS, REFERENCES)).metrics == {"bleu": expected}


def test_missing_package_is_told_before_anything_is_generated(subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr("llmkit.evaluation._generation.generate", lambda *_, **__: pytest.fail("generated"))
    with pytest.raises(SetupError, match="pip install sacrebleu"):
        Bleu(type="bleu").score(subject([{"prompt": "a", "completion": "b"}]))
