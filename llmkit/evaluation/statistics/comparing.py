"""How sure a score is, and whether the tuned model is better: 95% intervals and paired tests over the rows.

Right or wrong (parts 0 or 1, averaged) has closed forms: Wilson's interval, Tango's of the change, McNemar's exact
test. Every other metric is resampled by rows: a studentized bootstrap, and randomization of base and tuned in each row.
Only the interval of a mean of values from 0 to 1 is Wilson's there too, with another number of rows.
What differs between runs with other seeds, or between these rows and those of another source, is not in any of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llmkit.evaluation.base import Score
from llmkit.evaluation.statistics.aggregates import AGGREGATES, Aggregate, Array

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05

Z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))

RESAMPLES = 2_000
"""Sets of rows drawn for a bootstrap."""

SWAPS = 9_999
"""Draws of a randomization test. The least p is 1e-4, which Holm's correction leaves below 0.05 up to 499 metrics."""

FEWEST_ROWS = 5
"""Of fewer rows nothing is resampled: hardly any other set of rows can be drawn from them."""

STEADY = 0.6
"""Least standard error of a resample, as a share of that of the rows (see `bootstrap`).

Where few rows change: with less, the interval of a real change often has 0 in it; with more, that of no change often
has not.
"""

FINITE = 0.99
"""Share of the resamples that must have a finite score; with fewer there is no interval."""

_AT_ONCE = 2**20
"""Random numbers drawn at once: 8 MiB."""

Verdict = Literal["better", "worse", "no difference seen", "not tested"]


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Compared:
    """One metric of base and tuned model on the same rows; `change` is tuned less base."""

    metric: str
    rows: int
    base: float | None
    tuned: float | None
    base_interval: Interval | None
    """None where the metric has no values by row, too few of them, or any that is not finite."""
    tuned_interval: Interval | None
    change: float | None
    change_interval: Interval | None
    test: str | None
    """Name of the test that gave `p`."""
    p: float | None
    """Probability of a change at least this large, in either direction, if base and tuned were equally good."""
    adjusted: float | None
    """`p` after Holm's correction for all the metrics that were tested beside it."""
    verdict: Verdict
    fixed: int | None
    """Rows wrong before and right now, where each row is right (1) or wrong (0)."""
    broken: int | None
    """Rows right before and wrong now."""


@dataclass(frozen=True)
class _Pair:
    """What each row adds to one metric in both models: finite parts of shape (n, k)."""

    base: Array
    tuned: Array
    aggregate: str

    @property
    def right_or_wrong(self) -> bool:
        return _right_or_wrong(self.base, self.aggregate) and _right_or_wrong(self.tuned, self.aggregate)

    def counts(self) -> tuple[int, int]:
        """Return how many rows were fixed and how many broken."""
        return int((self.tuned > self.base).sum()), int((self.tuned < self.base).sum())

    def hypothesis(self) -> _Hypothesis:
        """Return what makes its test: metrics of the same parts, as loss and perplexity, are one hypothesis."""
        return _on_line(self.aggregate), self.base.tobytes(), self.tuned.tobytes()


_Hypothesis = tuple[str, bytes, bytes]


def compare(base: Sequence[Score], tuned: Sequence[Score], lower: Sequence[frozenset[str]]) -> list[list[Compared]]:
    """Compare base and tuned model metric by metric, one list for each evaluation; the same scores give the same.

    `lower` are the metrics of each evaluation of which less is better. p-values are corrected over all metrics of all
    evaluations (Holm 1979). A metric that only one model has, or that has no values by row, is not tested. Raises
    ValueError where the two were not scored on the same number of rows.
    """
    found: list[list[tuple[Compared, _Hypothesis | None]]] = []
    tests: dict[_Hypothesis, tuple[str, float]] = {}
    for before, after in zip(base, tuned, strict=True):
        found.append([])
        for metric in dict.fromkeys((*before.metrics, *after.metrics)):
            pair = _pair(metric, before, after)
            hypothesis = pair.hypothesis() if pair is not None else None
            if pair is not None and hypothesis is not None and hypothesis not in tests:
                tests[hypothesis] = _test(pair)
            found[-1].append((_described(metric, before, after, pair), hypothesis))
    adjusted = dict(zip(tests, holm([p for _, p in tests.values()]), strict=True))
    return [
        [
            one if hypothesis is None else _judged(one, *tests[hypothesis], adjusted[hypothesis], less)
            for one, hypothesis in evaluation
        ]
        for evaluation, less in zip(found, lower, strict=True)
    ]


def interval_of(score: Score, metric: str) -> Interval | None:
    """Return the interval of one model's metric; None where it has no values by row, or too few (`FEWEST_ROWS`)."""
    parts = _parts(score, metric)
    if parts is None:
        return None
    aggregate = score.aggregate.get(metric, "mean")
    drawn = None if _is_share(parts, aggregate) else bootstrap(parts, [AGGREGATES[_on_line(aggregate)]])[0]
    return _on_scale(drawn, parts, aggregate)


def regressions(base: Score, tuned: Score) -> dict[str, list[int]]:
    """Return the rows that were right before and are wrong now, by metric; only metrics of right (1) or wrong (0)."""
    pairs = {metric: _pair(metric, base, tuned) for metric in base.metrics}
    return {
        metric: np.flatnonzero(pair.tuned < pair.base).tolist()
        for metric, pair in pairs.items()
        if pair is not None and pair.right_or_wrong
    }


# --- what is compared


def _parts(score: Score, metric: str) -> Array | None:
    """Return the parts of each row, of shape (n, k); None where there are none or not all of them are finite."""
    values = score.per_row.get(metric)
    if not values:
        return None
    parts = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    return parts if np.isfinite(parts).all() else None


def _pair(metric: str, before: Score, after: Score) -> _Pair | None:
    """Return the parts of both models; None where one has none, or a score that is not finite (perplexity)."""
    if metric not in before.metrics or metric not in after.metrics:
        return None
    if before.rows != after.rows:
        raise ValueError(f"{metric}: the base was scored on {before.rows} rows, and the tuned model on {after.rows}")
    base, tuned = _parts(before, metric), _parts(after, metric)
    if base is None or tuned is None or _change(before.metrics[metric], after.metrics[metric]) is None:
        return None
    ways = [score.aggregate.get(metric, "mean") for score in (before, after)]
    if base.shape != tuned.shape or ways[0] != ways[1]:
        raise ValueError(
            f"{metric}: the base has parts of shape {base.shape} ({ways[0]}), the tuned model {tuned.shape} ({ways[1]})"
        )
    return _Pair(base, tuned, ways[0])


def _change(base: float | None, tuned: float | None) -> float | None:
    if base is None or tuned is None or not math.isfinite(tuned - base):
        return None
    return tuned - base


def _is_share(parts: Array, aggregate: str) -> bool:
    """Return whether the metric is a mean of values from 0 to 1."""
    return aggregate == "mean" and bool(((parts >= 0) & (parts <= 1)).all())


def _right_or_wrong(parts: Array, aggregate: str) -> bool:
    return _is_share(parts, aggregate) and bool(np.isin(parts, (0, 1)).all())


def _on_line(aggregate: str) -> str:
    """Return the aggregate on the scale where it is resampled: a perplexity's is that of its logarithm, the loss."""
    return "ratio" if aggregate == "exp_ratio" else aggregate


def _described(metric: str, before: Score, after: Score, pair: _Pair | None) -> Compared:
    """Return everything but the test."""
    old, new = before.metrics.get(metric), after.metrics.get(metric)
    intervals = _intervals(pair) if pair else (interval_of(before, metric), interval_of(after, metric), None)
    fixed, broken = pair.counts() if pair and pair.right_or_wrong else (None, None)
    return Compared(
        metric=metric,
        rows=(before if metric in before.metrics else after).rows,
        base=old,
        tuned=new,
        base_interval=intervals[0],
        tuned_interval=intervals[1],
        change=_change(old, new),
        change_interval=intervals[2],
        test=None,
        p=None,
        adjusted=None,
        verdict="not tested",
        fixed=fixed,
        broken=broken,
    )


def _judged(one: Compared, test: str, p: float, adjusted: float, lower: frozenset[str]) -> Compared:
    verdict: Verdict = "no difference seen"
    if adjusted < SIGNIFICANCE and one.change:
        verdict = "better" if (one.change < 0) == (one.metric in lower) else "worse"
    return replace(one, test=test, p=p, adjusted=adjusted, verdict=verdict)


# --- intervals


def _intervals(pair: _Pair) -> tuple[Interval | None, Interval | None, Interval | None]:
    """Return the intervals of base, tuned and change; what is resampled is resampled together."""
    rows, width = pair.base.shape
    if pair.right_or_wrong:
        low, high = tango(*pair.counts(), rows)
        return share_interval(pair.base[:, 0]), share_interval(pair.tuned[:, 0]), Interval(float(low), float(high))
    alone, compared = AGGREGATES[_on_line(pair.aggregate)], AGGREGATES[pair.aggregate]
    drawn = bootstrap(
        np.concatenate([pair.base, pair.tuned], axis=1),
        [
            lambda sums, n: alone(sums[..., :width], n),
            lambda sums, n: alone(sums[..., width:], n),
            lambda sums, n: compared(sums[..., width:], n) - compared(sums[..., :width], n),
        ],
    )
    return (
        _on_scale(drawn[0], pair.base, pair.aggregate),
        _on_scale(drawn[1], pair.tuned, pair.aggregate),
        drawn[2],
    )


def _on_scale(interval: Interval | None, parts: Array, aggregate: str) -> Interval | None:
    """Return the interval of one model: a share's where it is one, else the resampled one on the metric's own scale."""
    if _is_share(parts, aggregate):
        return share_interval(parts[:, 0])
    if interval is None:
        return None
    least = 0.0 if (parts >= 0).all() else -math.inf
    most = 100.0 if aggregate in ("bleu", "chrf") else math.inf
    with np.errstate(over="ignore"):
        ends = np.clip([interval.low, interval.high], least, most)
        low, high = np.exp(ends) if aggregate == "exp_ratio" else ends
    return Interval(float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else None


def share_interval(values: Array) -> Interval | None:
    """Return the score interval of a mean of values from 0 to 1, of shape (n,).

    Right or wrong, it is Wilson's (1927). Values between vary less than those, so they count for more rows (Kish's
    effective number of rows, as for Wilson's interval in surveys: Dean and Pagano 2015, J. Surv. Stat. Methodol.
    3:484), and Student's t allows for the estimate of how much less. Unlike a resampled one it holds near 0 and 1,
    where few rows differ. None for fewer than FEWEST_ROWS with values between.
    """
    rows, mean, variance = len(values), float(values.mean()), float(values.var())
    if np.isin(values, (0, 1)).all():
        limit, effective = Z, float(rows)
    elif rows < FEWEST_ROWS:
        return None
    elif variance <= (1e-12 * mean) ** 2:  # all equal, but for rounding
        return Interval(mean, mean)
    else:
        limit, effective = float(stats.t.ppf(0.5 + CONFIDENCE / 2, rows - 1)), rows * mean * (1 - mean) / variance
    pull = limit**2 / effective
    middle = (mean + pull / 2) / (1 + pull)
    half = math.sqrt(pull * (mean * (1 - mean) + pull / 4)) / (1 + pull)
    return Interval(max(middle - half, 0.0), min(middle + half, 1.0))


def tango(fixed: Array | int, broken: Array | int, rows: int) -> tuple[Array, Array]:
    """Return Tango's score interval of the change of a share on the same rows (Tango 1998, Stat. Med. 17:891).

    `fixed` and `broken` may be arrays, and so are the ends then. It is to the change what Wilson's is to one share: all
    the changes that the score test does not refuse. So it leaves 0 out exactly where McNemar's test, without its
    continuity correction, sees a difference. By enumeration (10 to 400 rows) it covers closest to 95%, next to the
    intervals of Newcombe, Agresti and Min, and Bonett and Price.
    """
    gain = np.subtract(fixed, broken, dtype=np.float64)
    refused = np.stack([np.full(gain.shape, -1.0), np.full(gain.shape, 1.0)])
    inner = np.stack([gain / rows] * 2)
    for _ in range(50):  # halvings, until a double has no more digits
        change = (inner + refused) / 2
        # The likeliest share of broken rows if this were the change: the larger root of a quadratic.
        slope = (2 * rows - gain) * change - fixed - broken
        root = np.sqrt(np.maximum(slope**2 + 8 * rows * broken * change * (1 - change), 0))
        share = (root - slope) / (4 * rows)
        spread = np.sqrt(np.maximum(rows * (2 * share + change * (1 - change)), 0))
        too_far = np.abs(gain - rows * change) > Z * spread
        inner, refused = np.where(too_far, inner, change), np.where(too_far, change, refused)
    return inner[0], inner[1]


def bootstrap(parts: Array, statistics: Sequence[Aggregate]) -> list[Interval | None]:
    """Return the symmetric studentized bootstrap interval of each statistic of the rows' sums; `parts` is (n, k).

    Rows are drawn with replacement, and the distance of each resample's score from the rows' own is divided by its own
    standard error: percentiles of the scores themselves cover too little on few rows. Symmetric, it covers best (Hall
    1988, J. R. Statist. Soc. B 50:35), and three rows that gained while none lost don't prove a gain. Standard errors
    come from the influence of each row, by the jackknife: one formula for every aggregate (Efron and Tibshirani 1993,
    sections 11.5 and 12.5). None with fewer than FEWEST_ROWS, or where resamples have no finite score.

    A resample that misses the only rows that differ would have no standard error, and the interval no end. So it is
    taken as at least STEADY times that of the rows.
    """
    rows, width = parts.shape
    if rows < FEWEST_ROWS:
        return [None] * len(statistics)
    sums = parts.sum(axis=0)
    with np.errstate(all="ignore"):
        value = _of(statistics, sums, rows)
        without = _of(statistics, sums - parts, rows - 1)
        influence = (rows - 1) * (without.mean(axis=0) - without)
        error = influence.std(axis=0)
        drawn = _resampled(np.concatenate([parts, influence, influence**2], axis=1))
        shift, square = np.split(drawn[:, width:] / rows, 2, axis=1)
        errors = np.maximum(np.sqrt(np.maximum(square - shift**2, 0)), STEADY * error)
        distances = np.abs(_of(statistics, drawn[:, :width], rows) - value) / errors
    return [_around(*each) for each in zip(value, error, distances.T, strict=True)]


def _around(value: float, error: float, distances: Array) -> Interval | None:
    """Return `value` with the 95th percentile of the distances, times its error, on each side."""
    if error == 0:
        return Interval(float(value), float(value))
    finite = distances[np.isfinite(distances)]
    if len(finite) < FINITE * len(distances):
        return None
    half = float(np.quantile(finite, CONFIDENCE) * error)
    return Interval(float(value) - half, float(value) + half)


def _of(statistics: Sequence[Aggregate], sums: Array, rows: int) -> Array:
    """Return the statistics of sums (..., k), of shape (..., number of statistics)."""
    return np.stack([statistic(sums, rows) for statistic in statistics], axis=-1)


def _resampled(columns: Array) -> Array:
    """Return the sums of (n, c) columns over RESAMPLES sets of n rows, drawn with replacement: (RESAMPLES, c)."""
    rows = len(columns)
    random = np.random.default_rng(0)
    sums = []
    for count in _chunks(RESAMPLES, rows):
        chosen = random.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
        times = np.bincount(chosen.ravel(), minlength=count * rows).reshape(count, rows)
        sums.append(times.astype(np.float64) @ columns)
    return np.concatenate(sums)


def _chunks(draws: int, size: int) -> Iterator[int]:
    """Yield how many of `draws` to make at once, each of `size` numbers."""
    most = max(1, _AT_ONCE // size)
    while draws > 0:
        yield min(draws, most)
        draws -= most


# --- tests


def _test(pair: _Pair) -> tuple[str, float]:
    if pair.right_or_wrong:
        return "exact McNemar", mcnemar(*pair.counts())
    return randomization(pair.base, pair.tuned, AGGREGATES[_on_line(pair.aggregate)])


def mcnemar(fixed: int, broken: int) -> float:
    """Return the exact p of McNemar's test: of the rows that differ, each is as likely fixed as broken."""
    return float(stats.binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def randomization(base: Array, tuned: Array, aggregate: Aggregate) -> tuple[str, float]:
    """Return the name and the p of a randomization test of the change; parts are (n, k).

    If the models were equally good, which of two results in a row is whose would be chance. So they are swapped in
    each row with probability 1/2, and p is the share of swaps with a change at least as large, in either direction:
    of all swaps where they are few, otherwise (1 + hits) / (1 + SWAPS). Noreen 1989; Riezler and Maxwell 2005
    (W05-0908).
    """
    moves = (tuned - base)[(tuned != base).any(axis=1)]
    at_least_observed = _at_least_observed(base, tuned, aggregate)
    if 2 ** len(moves) <= SWAPS:
        swapped = np.arange(2 ** len(moves))[:, None] >> np.arange(len(moves)) & 1
        return "exact randomization", float(at_least_observed(swapped @ moves).mean())
    random = np.random.default_rng(0)
    hits = 0
    for count in _chunks(SWAPS, len(moves)):
        swapped = random.integers(0, 2, size=(count, len(moves)), dtype=np.int8)
        hits += int(at_least_observed(swapped.astype(np.float64) @ moves).sum())
    return "approximate randomization", (1 + hits) / (1 + SWAPS)


def _at_least_observed(base: Array, tuned: Array, aggregate: Aggregate) -> Callable[[Array], NDArray[np.bool_]]:
    """Return whether the change is at least the observed one, as a function of the parts that swaps move, (..., k)."""
    rows, before, after = len(base), base.sum(axis=0), tuned.sum(axis=0)
    old, new = aggregate(before, rows), aggregate(after, rows)
    # Sums in another order differ in their last digits, and equal changes must count as equal.
    observed = np.abs(new - old) * (1 - 1e-9) - 1e-12 * np.abs(old)

    def hits(moved: Array) -> NDArray[np.bool_]:
        # Written so that a change that is not a number counts as one.
        return ~(np.abs(aggregate(after - moved, rows) - aggregate(before + moved, rows)) < observed)

    return hits


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down procedure (Holm 1979)."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1)
    return adjusted.tolist()
