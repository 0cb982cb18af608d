from __future__ import annotations

import sys

import pytest
from rouge_score.rouge_scorer import RougeScorer

from llmkit.errors import SetupError
from llmkit.evaluation._metrics import rouge
from llmkit.evaluation.rouge import Rouge

ANSWERS = ["the cat sat on the mat", "dogs running"]
REFERENCES = ["the cat on the mat sat", "the dog runs"]


def test_by_hand():
    # Words: all 6 shared. Pairs: the-cat, on-the, the-mat of 5 and 5. Longest common subsequence: the cat on the mat.
    scores = rouge(ANSWERS[0], REFERENCES[0])
    assert scores == {"rouge1": 1.0, "rouge2": pytest.approx(3 / 5), "rougeL": pytest.approx(5 / 6)}
    assert rouge(ANSWERS[1], REFERENCES[1])["rouge1"] == 0.0, "words are not stemmed"


def test_score_is_the_mean_of_rouge_score(told):
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    answers, references = [*ANSWERS, "a b c"], [*REFERENCES, "c b a d"]
    singles = [scorer.score(r, a) for a, r in zip(answers, references, strict=True)]
    expected = {name: pytest.approx(sum(s[name].fmeasure for s in singles) / 3) for name in singles[0]}
    assert Rouge(type="rouge").score(told(answers, references)).metrics == expected


def test_missing_package(subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(SetupError, match="pip install rouge-score"):
        Rouge(type="rouge").score(subject([{"prompt": "a", "completion": "b"}]))
