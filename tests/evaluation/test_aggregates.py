"""Metrics from sums of parts: equal to the libraries on any set of rows, thousands of sums at a time."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from llmkit.evaluation.statistics.aggregates import AGGREGATES, Array

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "in", "garden", "big", "small", "today", "is", "there"]


def sentences(seed: int, rows: int, shortest: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(shortest, 9))) for _ in range(rows)]


def noisy(texts: list[str], share: float) -> list[str]:
    """Return answers to references: a share of the words is another one."""
    draw = random.Random(5)
    return [" ".join(w if draw.random() > share else draw.choice(WORDS) for w in text.split()) for text in texts]


def parts_of(metric: Any, answers: list[str], references: list[str]) -> Array:
    """Return sacrebleu's statistics of each row in the order that `Score.per_row` has them."""
    found = np.array(metric._extract_corpus_statistics(answers, [references]), dtype=np.float64)
    return found if isinstance(metric, CHRF) else np.roll(found, -2, axis=1)  # it has the lengths first


@pytest.mark.parametrize(
    ("name", "metric"),
    [("bleu", BLEU()), ("chrf", CHRF()), ("chrf", CHRF(word_order=2))],
    ids=["bleu", "chrf", "chrf++"],
)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0], ids=["equal", "noisy", "other"])
def test_equals_sacrebleu_on_any_set_of_rows(name: str, metric: Any, share: float) -> None:
    references = sentences(1, 40, shortest=1)
    answers = noisy(references, share)
    answers[0] = ""
    parts = parts_of(metric, answers, references)
    draw = random.Random(2)
    sets = [draw.choices(range(40), k=k) for k in (1, 1, 1, 2, 2, 3, 5, 10, 40, 40)] + [[0], [0, 0]]
    for chosen in sets:
        expected = metric.corpus_score([answers[i] for i in chosen], [[references[i] for i in chosen]]).score
        assert AGGREGATES[name](parts[chosen].sum(axis=0), len(chosen)) == pytest.approx(expected, abs=1e-9)


def test_bleu_of_missing_orders_of_ngrams() -> None:
    references = ["the cat sat on the mat", "a b", "x y z w v"]
    answers = ["the dog sat on a mat", "a b", "x q z r v"]  # no 4-gram matches, too short for one, no bigram matches
    parts = parts_of(BLEU(), answers, references)
    for chosen in ([0], [1], [2], [0, 1], [0, 2], [0, 1, 2]):
        expected = BLEU().corpus_score([answers[i] for i in chosen], [[references[i] for i in chosen]]).score
        assert AGGREGATES["bleu"](parts[chosen].sum(axis=0), len(chosen)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", AGGREGATES)
def test_many_sums_at_a_time_are_each_on_its_own(name: str) -> None:
    width = {"mean": 1, "ratio": 2, "exp_ratio": 2, "bleu": 10, "chrf": 18}[name]
    sums = np.random.default_rng(0).integers(1, 9, size=(4, 3, width)).astype(np.float64)
    together = AGGREGATES[name](sums, 7)
    assert together.shape == (4, 3)
    for i in range(4):
        for j in range(3):
            assert together[i, j] == AGGREGATES[name](sums[i, j], 7)


def test_by_hand() -> None:
    assert AGGREGATES["mean"](np.array([3.0]), 4) == 0.75
    assert AGGREGATES["ratio"](np.array([3.0, 12.0]), 4) == 0.25
    assert AGGREGATES["exp_ratio"](np.array([24.0, 12.0]), 4) == pytest.approx(math.e**2)
    assert AGGREGATES["exp_ratio"](np.array([1e4, 2.0]), 4) == math.inf
    assert np.isnan(AGGREGATES["ratio"](np.array([0.0, 0.0]), 4))
