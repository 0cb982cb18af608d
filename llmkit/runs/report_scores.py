"""The scores of one run or of several as the report draws them: each change with its interval, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmkit.runs.charts import Whiskers, number, whiskers
from llmkit.runs.reported import NOT_TESTED, Interval, Judged, Reported

MARKS = {"better": "▲", "worse": "▼", "no difference seen": "=", NOT_TESTED: "·"}
"""The verdicts, in the order that they are counted in, and the sign of each: colour is never the only one."""

NONE = "–"


@dataclass(frozen=True)
class Scored:
    """One metric of one run, in words and as a picture."""

    run: int
    judged: Judged
    picture: Whiskers | None
    base: str
    tuned: str
    change: str
    base_interval: str
    tuned_interval: str
    change_interval: str
    notes: str
    """Rows fixed and broken, and the p-value."""

    @property
    def mark(self) -> str:
        """The sign of the verdict."""
        return MARKS.get(self.judged.verdict, MARKS[NOT_TESTED])

    @property
    def kind(self) -> str:
        """The verdict in one word, for its colour."""
        return self.judged.verdict.split()[0]

    @property
    def words(self) -> str:
        """What the picture shows."""
        said = f"{self.judged.metric}: change {self.change}"
        return f"{said}, 95% interval {self.change_interval}" if self.change_interval else f"{said}, no interval"


@dataclass(frozen=True)
class Group:
    """One metric of one evaluation, in every run that has it."""

    evaluation: str
    metric: str
    scored: tuple[Scored, ...]


def groups(runs: Sequence[Reported]) -> list[Group]:
    """Return the metrics in the order of the evaluations; those of an evaluation that a run has twice stay apart."""
    found: dict[tuple[str, int, str], list[tuple[int, Judged]]] = {}
    for index, run in enumerate(runs):
        times: dict[str, int] = {}
        for evaluated in run.evaluations:
            own = (evaluated.evaluation.get("data") or {}).get("path")
            name = f"{evaluated.name} on {own}" if own else evaluated.name
            times[name] = times.get(name, 0) + 1
            for judged in evaluated.judged():
                found.setdefault((name, times[name], judged.metric), []).append((index, judged))
    return [
        Group(f"{evaluation} ({time})" if time > 1 else evaluation, metric, _scored(rows))
        for (evaluation, time, metric), rows in found.items()
    ]


def counts(run: Reported) -> list[tuple[str, str, str, int]]:
    """Return kind, sign, verdict and number of metrics for each verdict that a metric of the run has."""
    verdicts = [judged.verdict for evaluated in run.evaluations for judged in evaluated.judged()]
    return [(name.split()[0], mark, name, verdicts.count(name)) for name, mark in MARKS.items() if name in verdicts]


def _scored(rows: Sequence[tuple[int, Judged]]) -> tuple[Scored, ...]:
    changes = [_drawable(judged) for _, judged in rows]
    pictures = iter(whiskers([change for change in changes if change is not None]))
    return tuple(
        Scored(
            run=run,
            judged=judged,
            picture=None if change is None else next(pictures),
            base=_number(judged.base),
            tuned=_number(judged.tuned),
            change=signed(judged.change),
            base_interval=_range(judged.base_interval),
            tuned_interval=_range(judged.tuned_interval),
            change_interval=_range(judged.change_interval, sign=True),
            notes=", ".join(_notes(judged)),
        )
        for (run, judged), change in zip(rows, changes, strict=True)
    )


def _drawable(judged: Judged) -> tuple[float, float, float] | float | None:
    """Return what there is to draw: nothing of what is no finite number."""
    change, interval = judged.change, judged.change_interval
    if change is None or not math.isfinite(change):
        return None
    if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return change
    return change, interval.low, interval.high


def signed(value: float | None) -> str:
    """Return a change with its sign; a dash where there is none."""
    if value is None:
        return NONE
    return number(value) if value < 0 or value == 0 or math.isnan(value) else f"+{number(value)}"


def _number(value: float | None) -> str:
    return NONE if value is None else number(value)


def _range(interval: Interval | None, *, sign: bool = False) -> str:
    if interval is None:
        return ""
    spell = signed if sign else number
    return f"{spell(interval.low)} to {spell(interval.high)}"


def _notes(judged: Judged) -> list[str]:
    said = [] if judged.fixed is None else [f"{judged.fixed:,} fixed"]
    said += [] if judged.broken is None else [f"{judged.broken:,} broken"]
    if judged.adjusted is not None and math.isfinite(judged.adjusted):
        said.append("p < 0.001" if judged.adjusted < 0.001 else f"p = {judged.adjusted:.2g}")
    return said
