"""Gates are decided by the end of the interval that is against them, and say why."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.errors import RecipeError
from llmkit.evaluation.base import Score
from llmkit.evaluation.statistics.comparing import Compared, Interval, compare
from llmkit.evaluation.statistics.gating import Decided, decide, require_known
from llmkit.recipe.gates import parse_gate


def compared(metric: str = "m", **values: Any) -> Compared:
    """Return a metric of 0.80 (0.75 to 0.85) before and 0.90 (0.86 to 0.94) now: a change of 0.10 (0.05 to 0.15)."""
    found: dict[str, Any] = {
        "rows": 200,
        "base": 0.8,
        "tuned": 0.9,
        "base_interval": Interval(0.75, 0.85),
        "tuned_interval": Interval(0.86, 0.94),
        "change": 0.1,
        "change_interval": Interval(0.05, 0.15),
        "test": "exact McNemar",
        "p": 0.01,
        "adjusted": 0.02,
        "verdict": "better",
        "fixed": 30,
        "broken": 10,
    }
    return Compared(metric, **(found | values))


def decided(text: str, *metrics: Compared) -> Decided:
    [found] = decide([parse_gate(text)], metrics or [compared()])
    assert found.gate.text == text
    assert found.said.startswith(f"{text}: {'held' if found.held else 'missed'}")
    return found


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("m >= 0.86", True),  # the low end itself
        ("m > 0.86", False),
        ("m >= 0.87", False),  # below the value, above the low end
        ("m > 0.85", True),
        ("m <= 0.94", True),  # the high end itself
        ("m < 0.94", False),
        ("m <= 0.93", False),
        ("m < 0.95", True),
        ("m >= base", True),
        ("m >= base + 0.05", True),
        ("m >= base + 0.06", False),
        ("m >= base - 0.01", True),
        ("m <= base + 0.15", True),
        ("m <= base + 0.12", False),
        ("m <= base", False),
    ],
)
def test_the_end_that_is_against_it_decides(text: str, held: bool) -> None:
    assert decided(text).held is held


def test_a_value_within_the_bound_is_not_enough_and_that_is_said() -> None:
    said = decided("m >= 0.88").said
    assert "it is 0.9 on 200 rows, 95% interval 0.86 to 0.94; the rows are too few to be sure" in said
    assert "too few" not in decided("m >= 0.91").said
    assert "the change is 0.1 on 200 rows, 95% interval 0.05 to 0.15" in decided("m >= base").said


def test_without_an_interval_the_value_decides_and_that_is_said() -> None:
    bare = compared(tuned_interval=None, change_interval=None)
    assert decided("m >= 0.9", bare).held
    assert not decided("m >= 0.91", bare).held
    assert decided("m >= base + 0.1", bare).held
    assert "counts by itself: there is no interval" in decided("m >= 0.9", bare).said


def test_values_that_are_no_numbers_hold_nothing() -> None:
    nan = compared(tuned=float("nan"), tuned_interval=None)
    assert not decided("m >= 0", nan).held
    assert not decided("m <= 0", nan).held


def test_what_base_lacks_can_not_be_compared_with_it() -> None:
    new = compared(base=None, base_interval=None, change=None, change_interval=None)
    assert decided("m >= 0.86", new).held
    assert decided("m >= base", new).said == "m >= base: missed, because the base model has no m"
    gone = compared(tuned=None, tuned_interval=None, change=None, change_interval=None)
    assert "the tuned model has no m" in decided("m >= 0", gone).said


def test_of_several_evaluations_each_must_keep_the_bound() -> None:
    good, bad = compared(), compared(rows=50, tuned=0.5, tuned_interval=Interval(0.4, 0.6))
    assert decided("m >= 0.5", good, good).held
    for order in ((good, bad), (bad, good)):
        found = decided("m >= 0.5", *order)
        assert not found.held
        assert "0.5 on 50 rows" in found.said


def test_an_unknown_metric_is_told_with_those_that_there_are() -> None:
    with pytest.raises(RecipeError) as caught:
        decide([parse_gate("exact_mach >= 0.9")], [compared("exact_match"), compared("loss")])
    assert "no evaluation of the recipe gives such a metric (did you mean 'exact_match'?)" in str(caught.value)
    assert "The metrics are exact_match, loss." in str(caught.value)
    with pytest.raises(RecipeError, match="Add the evaluation"):
        require_known([parse_gate("m >= 1")], [])
    require_known([parse_gate("m >= 1")], ["m", "n"])


def test_decided_in_order_on_real_scores() -> None:
    def right(count: int) -> Score:
        return Score({"acc": count / 100}, 100, per_row={"acc": (1,) * count + (0,) * (100 - count)})

    [rows] = compare([right(80)], [right(90)], [frozenset()])
    gates = [parse_gate(text) for text in ("acc >= 0.9", "acc >= 0.8", "acc >= base", "acc <= base")]
    assert [d.held for d in decide(gates, rows)] == [False, True, True, False]
    assert decide([], rows) == []
