"""The one way in which rewards are called: what they return is checked, and a failure names its row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy
import pytest
from pydantic import ValidationError

from llmkit.data.splits import Row
from llmkit.errors import RecipeError, RunError
from llmkit.rewards.base import Reward, ScoreError, check_names, score_part, total
from llmkit.rewards.exact_match import ExactMatch

ROWS = [Row(where=f"r.jsonl:{i}", example={"answer": str(i)}) for i in (1, 2, 3)]


class Planted(Reward):
    """Return what stands in `returns`, one after the other; raise what is an exception."""

    type: Literal["planted"] = "planted"
    returns: dict[str, Any]

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        value = self.returns[completion]
        if isinstance(value, Exception):
            raise value
        return value


class Short(Reward):
    """Forget the last completion."""

    type: Literal["short"] = "short"

    def scores(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        return [0.0] * (len(completions) - 1)


class AllOrNone(Reward):
    """Fail only where several completions come at once."""

    type: Literal["all_or_none"] = "all_or_none"

    def scores(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        if len(completions) > 1:
            raise ValueError("too many at once")
        return [1.0]


def test_scores_come_in_order_and_as_floats() -> None:
    reward = Planted(returns={"a": 1, "b": -2.5, "c": 0})
    values = score_part(reward, ["c", "a", "b"], ROWS)
    assert values == [0.0, 1.0, -2.5]
    assert [type(value) for value in values] == [float] * 3
    assert score_part(reward, [], []) == []


def test_each_completion_meets_its_own_row() -> None:
    assert score_part(ExactMatch(type="exact_match"), ["1", "3", "3"], ROWS) == [1.0, 0.0, 1.0]


def test_an_exception_names_row_completion_and_reward() -> None:
    reward = Planted(label="mine", returns={"a": 1.0, "b": KeyError("unit")})
    with pytest.raises(RunError) as caught:
        score_part(reward, ["a", "b", "a"], ROWS)
    assert caught.value.where == "r.jsonl:2"
    assert "`mine` raised KeyError: 'unit'" in str(caught.value)
    assert "'b'" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_exception_of_several_completions_together_names_the_rows() -> None:
    with pytest.raises(RunError, match="r.jsonl:1 and 2 more: reward `all_or_none` raised ValueError: too many"):
        score_part(AllOrNone(), ["a", "b", "c"], ROWS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), None, "1.0", 10**400, [1.0]])
def test_what_is_no_finite_number_names_its_row(value: Any) -> None:
    with pytest.raises(RunError, match="r.jsonl:3: reward `planted` returned .*, which is no finite number"):
        score_part(Planted(returns={"a": 0.5, "bad": value}), ["a", "a", "bad"], ROWS)


def test_numbers_of_numpy_are_numbers() -> None:
    values = score_part(Planted(returns={"a": numpy.float32(0.5), "b": numpy.int64(3)}), ["a", "b"], ROWS[:2])
    assert values == [0.5, 3.0]
    assert [type(value) for value in values] == [float] * 2
    with pytest.raises(RunError, match="which is no finite number"):
        score_part(Planted(returns={"a": numpy.float32("nan")}), ["a"], ROWS[:1])


@pytest.mark.parametrize("value", [True, numpy.bool_(False)])
def test_true_and_false_are_refused_with_what_to_write(value: Any) -> None:
    with pytest.raises(RunError, match=r"`planted` returned .*(True|False)_?: write `float\(\.\.\.\)`"):
        score_part(Planted(returns={"a": value}), ["a"], ROWS[:1])


def test_a_reward_tells_which_completion_it_can_not_score() -> None:
    class Telling(Short):
        def scores(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
            raise ScoreError("the sky fell", 1, remedy="Prop it up.")

    with pytest.raises(RunError) as caught:
        score_part(Telling(), ["a", "b", "c"], ROWS)
    assert str(caught.value) == "r.jsonl:2: reward `short`: the sky fell\nThe completion: 'b'\nProp it up."


def test_a_wrong_number_of_values_is_refused() -> None:
    with pytest.raises(RunError, match="`short` returned 2 values for 3 completions"):
        score_part(Short(), ["a", "b", "c"], ROWS)


def test_a_long_completion_is_cut_in_the_error() -> None:
    text = "x" * 5000
    with pytest.raises(RunError) as caught:
        score_part(Planted(returns={text: None}), [text], ROWS[:1])
    assert "x" * 200 in str(caught.value)
    assert "x" * 201 not in str(caught.value)


def test_the_total_is_the_weighted_sum() -> None:
    rewards = [Planted(weight=2.0, returns={}), Planted(weight=-0.5, label="penalty", returns={})]
    # 2 * 1 - 0.5 * 4 = 0 and 2 * 0.25 - 0.5 * 0 = 0.5
    assert total(rewards, [[1.0, 0.25], [4.0, 0.0]]) == [0.0, 0.5]
    with pytest.raises(ValueError, match="zip"):
        total(rewards, [[1.0], [4.0, 0.0]])


def test_two_rewards_of_one_name_are_refused() -> None:
    one, other = Planted(returns={}), Planted(label="other", returns={})
    check_names([one, other])
    with pytest.raises(RecipeError, match="two rewards are called 'planted'"):
        check_names([one, other, Planted(label="planted", returns={})])


def test_a_weight_is_finite() -> None:
    with pytest.raises(ValidationError, match="finite"):
        Planted(weight=float("inf"), returns={})
