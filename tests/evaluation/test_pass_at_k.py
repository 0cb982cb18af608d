"""pass@k: the estimator against counting and against its own definition, and scores with planted answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any, Literal

import pytest
from pydantic import PrivateAttr, ValidationError

from llmkit.data.shapes import RowError
from llmkit.errors import DataError, RecipeError
from llmkit.evaluation import _generation
from llmkit.evaluation.pass_at_k import PassAtK, pass_at_k
from llmkit.rewards.base import Reward
from llmkit.rewards.exact_match import ExactMatch


class Listening(Reward):
    """Remember what it is given; all is worth its column."""

    type: Literal["listening"] = "listening"
    _heard: list[tuple[str, str]] = PrivateAttr(default_factory=list)

    def check_row(self, row: Mapping[str, Any]) -> None:
        if "worth" not in row:
            raise RowError("no column 'worth'")

    def scores(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        self._heard += [(row["prompt"], completion) for completion, row in zip(completions, rows, strict=True)]
        return [float(row["worth"]) for row in rows]


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_the_estimator_counts_draws(n):
    for passing in range(n + 1):
        answers = [i < passing for i in range(n)]
        for k in range(1, n + 1):
            draws = list(combinations(answers, k))
            assert pass_at_k(n, passing, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


@pytest.mark.parametrize(("p", "k"), [(0.1, 1), (0.1, 3), (0.5, 4), (0.9, 2)])
def test_the_estimator_has_no_bias(p, k):
    """Over all outcomes of n answers of which each passes with chance p, its mean is the chance itself."""
    n = 5
    chances = [comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(chance * pass_at_k(n, c, k) for c, chance in enumerate(chances))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    plain = sum(chance * (1 - (1 - c / n) ** k) for c, chance in enumerate(chances))
    assert (plain == pytest.approx(mean, abs=1e-6)) == (k == 1), "the plain formula has one"


@pytest.fixture
def sampling(subject, monkeypatch):
    """Return a maker of Subjects with rewards, whose answers to each prompt are given, and what was asked for."""
    asked: list[dict[str, Any]] = []

    def make(answers, rows, *rewards):
        def fake(_model, _tokenizer, prompts, **settings):
            asked.append({"prompts": prompts, **settings})
            return [answer for own in answers for answer in own]

        monkeypatch.setattr(_generation, "generate", fake)
        found = subject(rows)
        found.rewards = rewards or (ExactMatch(type="exact_match"),)
        return found

    make.asked = asked
    return make


ROWS = [{"prompt": "one?", "answer": "1"}, {"prompt": "two?", "answer": "2"}, {"prompt": "three?", "answer": "3"}]


def test_score_by_hand(sampling, tokenizer):
    person = sampling([["1", "x", "x", "x"], ["2", "2", "2", "2"], ["x", "y", "z", "2"]], ROWS)
    told: list[int] = []
    person.on_done = told.append
    score = PassAtK(type="pass_at_k", n=4, k=[1, 2], max_new_tokens=9).score(person)
    assert score.per_row == {"pass@1": (0.25, 1.0, 0.0), "pass@2": (0.5, 1.0, 0.0)}
    assert score.metrics == {"pass@1": pytest.approx(1.25 / 3), "pass@2": pytest.approx(0.5)}
    assert score.rows == 3
    assert [sample.answer for sample in score.samples] == ["1", "2", "x"]
    (asked,) = sampling.asked
    assert asked["prompts"] == [tokenizer(row["prompt"])["input_ids"] for row in ROWS for _ in range(4)]
    assert (asked["temperature"], asked["seed"], asked["max_new_tokens"]) == (0.8, 7, 9)
    asked["on_done"](8)
    assert told == [2], "rows, not answers"


@pytest.mark.parametrize(("threshold", "expected"), [(1.0, 1.0), (0.9, 1.0), (1.1, 0.0)])
def test_the_threshold_is_of_the_weighted_sum(sampling, threshold, expected):
    rewards = [Listening(label=str(i), weight=weight) for i, weight in enumerate((0.7, 0.2, 0.1))]
    assert 0.7 + 0.2 + 0.1 < 1, "rounding keeps the sum below its threshold"
    person = sampling([["a", "b"]], [{"prompt": "x", "worth": 1}], *rewards)
    score = PassAtK(type="pass_at_k", n=2, threshold=threshold).score(person)
    assert score.metrics == {"pass@1": expected}


def test_answers_of_a_real_model_meet_their_own_row_and_differ(subject):
    reward = Listening()
    person = subject([{"prompt": text, "worth": 0} for text in ("the capital", "yes")])
    person.rewards = (reward,)
    score = PassAtK(type="pass_at_k", n=4, temperature=1.0, max_new_tokens=6).score(person)
    assert [prompt for prompt, _ in reward._heard] == ["the capital"] * 4 + ["yes"] * 4
    assert len({answer for _, answer in reward._heard}) > 4
    assert [sample.answer for sample in score.samples] == [reward._heard[0][1], reward._heard[4][1]]
    assert score.metrics == {"pass@1": 0.0}


def test_rows_that_can_not_be_rewarded(sampling, monkeypatch):
    person = sampling([], [{"prompt": "a", "worth": 1}, {"prompt": "b"}], Listening())
    monkeypatch.setattr(_generation, "generate", lambda *_, **__: pytest.fail("generated"))
    with pytest.raises(DataError, match="eval.jsonl:2: no column 'worth'"):
        PassAtK(type="pass_at_k").score(person)


def test_a_recipe_without_rewards_is_refused(subject):
    assert PassAtK.needs_rewards
    with pytest.raises(RecipeError, match="it has none"):
        PassAtK(type="pass_at_k").score(subject(ROWS))


@pytest.mark.parametrize("wrong", [{"k": [6]}, {"k": []}, {"k": [0]}, {"k": [1, 9], "n": 8}, {"temperature": 0.0}])
def test_fields_are_checked(wrong):
    with pytest.raises(ValidationError):
        PassAtK(type="pass_at_k", **wrong)
