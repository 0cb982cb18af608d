"""Gates decided: whether the scores of a run keep the recipe's bounds, with their uncertainty."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmkit.errors import RecipeError, did_you_mean
from llmkit.recipe.gates import Gate

if TYPE_CHECKING:
    from llmkit.evaluation.statistics.comparing import Compared, Interval

_KEEPS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Decided:
    """A gate, whether it held, and why in one sentence."""

    gate: Gate
    held: bool
    said: str


def decide(gates: Sequence[Gate], compared: Sequence[Compared]) -> list[Decided]:
    """Decide each gate by the end of the 95% interval that is against it; by the value where there is no interval.

    That is the low end for >= and >, the high end for <= and <, of the tuned model's score or, for a relative gate, of
    the change. Where several evaluations give the metric, each must keep the bound, and the first that does not is
    told. Raises RecipeError for a metric that none gives.
    """
    require_known(gates, [one.metric for one in compared])
    return [_decide(gate, [one for one in compared if one.metric == gate.metric]) for gate in gates]


def require_known(gates: Sequence[Gate], metrics: Iterable[str]) -> None:
    """Raise RecipeError for the first gate whose metric is not among `metrics`."""
    known = sorted(set(metrics))
    for gate in gates:
        if gate.metric not in known:
            raise RecipeError(
                f"the gate {gate.text!r} is about {gate.metric!r}, and no evaluation of the recipe gives such a "
                f"metric{did_you_mean(gate.metric, known)}",
                remedy=f"The metrics are {', '.join(known)}." if known else "Add the evaluation that gives it.",
            )


def _decide(gate: Gate, compared: Sequence[Compared]) -> Decided:
    each = [_decide_one(gate, one) for one in compared]
    return next((decided for decided in each if not decided.held), each[0])


def _decide_one(gate: Gate, one: Compared) -> Decided:
    value, interval = (one.change, one.change_interval) if gate.relative else (one.tuned, one.tuned_interval)
    if value is None:
        model = "base" if one.base is None else "tuned"
        return Decided(gate, False, f"{gate.text}: missed, because the {model} model has no {gate.metric}")
    keeps = _KEEPS[gate.op]
    counts = value if interval is None else interval.low if gate.op in (">=", ">") else interval.high
    held = keeps(counts, gate.bound)
    found = f"{'the change is' if gate.relative else 'it is'} {value:.4g} on {one.rows} rows, {_interval(interval)}"
    # The case that surprises: what the table shows is within the bound, and the gate is missed all the same.
    unsure = "; the rows are too few to be sure" if not held and keeps(value, gate.bound) else ""
    return Decided(gate, held, f"{gate.text}: {'held' if held else 'missed'}, {found}{unsure}")


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "which counts by itself: there is no interval"
    return f"95% interval {interval.low:.4g} to {interval.high:.4g}"
