"""Reward: the recipe's rewards as an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pytest

from llmkit.errors import DataError, RecipeError, RunError
from llmkit.evaluation._generation import answers
from llmkit.evaluation.reward import Reward
from llmkit.rewards.base import Reward as Scoring
from llmkit.rewards.exact_match import ExactMatch
from llmkit.rewards.length import Length


class Planted(Scoring):
    """Fail."""

    type: Literal["planted"] = "planted"

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        raise KeyError("nothing")


def test_the_mean_of_the_weighted_sum_and_of_each_part(told):
    subject = told(["four", "one two three", "5"], ["four", "x", "5"])
    for row, answer in zip(subject.rows, ["four", "x", "5"], strict=True):
        row.example["answer"] = answer
    subject.rewards = (
        ExactMatch(type="exact_match", weight=2.0),
        Length(type="length", label="brief", max=1, over=4, weight=0.5),
    )
    score = Reward(type="reward").score(subject)
    # exact_match 1, 0, 1; brief 0, -2/4, 0; total 2, -0.25, 2
    assert score.per_row == {
        "reward": (2.0, -0.25, 2.0),
        "reward/exact_match": (1.0, 0.0, 1.0),
        "reward/brief": (0.0, -0.5, 0.0),
    }
    assert score.metrics == {
        "reward": pytest.approx(3.75 / 3),
        "reward/exact_match": pytest.approx(2 / 3),
        "reward/brief": pytest.approx(-0.5 / 3),
    }
    assert score.rows == 3
    assert [sample.answer for sample in score.samples] == ["four", "one two three", "5"]


def test_one_reward_has_no_parts(told):
    subject = told(["a"], ["a"])
    subject.rewards = (ExactMatch(type="exact_match", column="completion"),)
    assert Reward(type="reward").score(subject).metrics == {"reward": 1.0}


def test_each_answer_of_a_model_meets_its_own_row(subject):
    texts = ("the capital", "yes", "what is two", "no")
    examples = [{"prompt": text, "answer": "?"} for text in texts]
    own = answers(subject(examples), max_new_tokens=5, limit=None, batch_size=4)
    assert len({sample.answer for sample in own}) == 4
    for example, sample in zip(examples, own, strict=True):
        example["answer"] = sample.answer
    examples[1]["answer"] = "something else"
    asked = subject(examples)
    asked.rewards = (ExactMatch(type="exact_match"),)
    score = Reward(type="reward", max_new_tokens=5, batch_size=3).score(asked)
    assert score.per_row == {"reward": (1.0, 0.0, 1.0, 1.0)}
    limited = Reward(type="reward", max_new_tokens=5, limit=2).score(asked)
    assert (limited.metrics, limited.rows, len(limited.samples)) == ({"reward": 0.5}, 2, 2)


def test_sampled_answers_depend_on_the_runs_seed_only(subject):
    def sampled(seed):
        asked = subject([{"prompt": "the capital"}, {"prompt": "yes"}])
        asked.seed = seed
        asked.rewards = (Length(type="length", max=5, over=5),)
        return Reward(type="reward", temperature=1.0, max_new_tokens=8).score(asked).samples

    assert sampled(7) == sampled(7)
    assert sampled(7) != sampled(8)


def test_a_recipe_without_rewards_is_refused(subject):
    with pytest.raises(RecipeError, match="it has none"):
        Reward(type="reward").score(subject([{"prompt": "a"}]))


def test_no_rows(subject):
    asked = subject([])
    asked.rewards = (ExactMatch(type="exact_match"),)
    assert Reward(type="reward").requires_rows()
    with pytest.raises(DataError, match="evaluation `reward` has no held-out rows"):
        Reward(type="reward").score(asked)


def test_a_reward_that_fails_names_its_row(told):
    subject = told(["a", "b"], ["a", "b"])
    subject.rewards = (Planted(),)
    with pytest.raises(RunError, match="eval.jsonl:1: reward `planted` raised KeyError"):
        Reward(type="reward").score(subject)
