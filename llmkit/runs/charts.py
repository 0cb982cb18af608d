"""Curves, histograms and intervals as coordinates of SVG: pure functions of numbers, which a template draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WIDTH, HEIGHT = 480, 210
"""Size of a chart, in units of its view box."""

LEFT, RIGHT, TOP, BOTTOM = 58, 466, 14, 182
"""Where the area of a chart ends, in those units: labels stand outside of it."""

MOST = 360
"""Points of a drawn line; of more values, each point is the mean of as many neighbours."""

CALM = 60
"""Values up to which a line is drawn as it is; of more, the line is smoothed over the values, which are faint."""

SMOOTHED = 30
"""A smoothed point is a mean over about one part in so many of the line."""

FAR = 5.0
"""How many times the spread of a line's values one lies outside of it that does not stretch the axis."""

LARGEST, SMALLEST = 1e300, 1e-290
"""A larger value is not drawn, and values less apart are the same: an axis could not be divided."""

INTERVAL_WIDTH, INTERVAL_HEIGHT = 200, 20
"""Size of the picture of one change and its interval, in units of its view box."""

BARS = 168
"""Height of the highest bar of a histogram, in those units."""

# --- numbers ---------------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 4) -> str:
    """Return a value with about so many digits: `0.8125`, `12,346`, `2e-5`."""
    size = abs(value)
    if not math.isfinite(value) or size == 0:
        return "0" if size == 0 else f"{value:g}"
    if 1e-3 <= size < 1e7:
        decimals = max(0, digits - 1 - math.floor(math.log10(size)))
        return f"{value:,.{decimals}f}" if size >= 1000 else f"{value:.{digits}g}"
    mantissa, sign, exponent = f"{value:.{digits - 1}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if sign else mantissa


def numbers(values: Sequence[float]) -> list[str]:
    """Return values with as many digits as tell them apart."""
    found = ([number(value, digits) for value in values] for digits in range(4, 17))
    return next((texts for texts in found if len(set(texts)) == len(texts)), [number(value) for value in values])


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in units of the view box."""

    at: float
    label: str


def steps_between(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round values (1, 2 or 5 times a power of ten) from at most `low` to at least `high`."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    width = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
    digits = max(0, -math.floor(math.log10(width)))
    return [round(index * width, digits) for index in range(first, last + 1)]


# --- curves ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Logged:
    """One figure that a run has logged, in the order of its steps."""

    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Line:
    """A figure to draw: of which run (counted from 0), and whether it was measured on held-out rows."""

    logged: Logged
    run: int = 0
    evaluated: bool = False
    smooth: bool = True
    """Whether many values are smoothed: those of a schedule are as they are."""


@dataclass(frozen=True)
class Stroke:
    """A drawn line: `points` as SVG takes them."""

    run: int
    evaluated: bool
    points: str
    faint: str
    """The values behind a smoothed line; empty where the line is the values."""
    band: str
    """Outline of the lowest and the highest of the values that each point stands for; empty where it is one."""
    dots: tuple[tuple[float, float], ...]
    """Where a value stands that a line alone would not show: each of a few."""


@dataclass(frozen=True)
class Figures:
    """What is said of one line in words."""

    run: int
    evaluated: bool
    first: float
    last: float
    lowest: float
    lowest_step: int
    highest: float
    highest_step: int
    steps: tuple[int, int]
    missing: int
    """Values that are no finite number, which are not drawn."""
    cut: int
    """Values that lie beyond the axis."""


@dataclass(frozen=True)
class Chart:
    """Lines of one kind on common axes."""

    title: str
    strokes: tuple[Stroke, ...]
    figures: tuple[Figures, ...]
    xs: tuple[Tick, ...]
    ys: tuple[Tick, ...]


@dataclass(frozen=True)
class _Scale:
    """Maps values to the chart's area."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, step: float) -> float:
        share = (step - self.x0) / (self.x1 - self.x0) if self.x1 > self.x0 else 0.5
        return round(LEFT + share * (RIGHT - LEFT), 1)

    def y(self, value: float) -> float:
        share = (value - self.y0) / (self.y1 - self.y0)
        return round(BOTTOM - share * (BOTTOM - TOP), 1)

    def points(self, steps: Iterable[float], values: Iterable[float]) -> str:
        return " ".join(f"{self.x(s):g},{self.y(v):g}" for s, v in zip(steps, values, strict=True))


def chart(title: str, lines: Sequence[Line]) -> Chart | None:
    """Return the chart of `lines`; None where none has a finite value."""
    finite = [(line, *_finite(line.logged)) for line in lines]
    drawn = [(line, steps, values) for line, steps, values in finite if len(values)]
    if not drawn:
        return None
    low, high = _reach([values for _, _, values in drawn])
    ys = steps_between(low, high)
    first = min(int(steps[0]) for _, steps, _ in drawn)
    last = max(int(steps[-1]) for _, steps, _ in drawn)
    scale = _Scale(first, last, ys[0], ys[-1])
    strokes, figures = [], []
    for line, steps, values in drawn:
        strokes.append(_stroke(line, steps, values, scale))
        figures.append(_figures(line, steps, values, scale))
    return Chart(
        title=title,
        strokes=tuple(strokes),
        figures=tuple(figures),
        xs=tuple(Tick(scale.x(step), f"{step:,}") for step in _x_steps(first, last)),
        ys=tuple(Tick(scale.y(value), label) for value, label in zip(ys, numbers(ys), strict=True)),
    )


def _x_steps(first: int, last: int) -> list[int]:
    """Return the steps to label: round ones between the first and the last."""
    if first == last:
        return [first]
    found = [round(step) for step in steps_between(first, last) if step == round(step) and first <= step <= last]
    return found if len(found) > 1 else [first, last]


def _finite(logged: Logged) -> tuple[Any, Any]:
    steps, values = np.asarray(logged.steps, dtype=np.int64), np.asarray(logged.values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        kept = np.abs(values) < LARGEST
    return steps[kept], values[kept]


def _reach(lines: Sequence[Any]) -> tuple[float, float]:
    """Return the lowest and the highest value that the axis shows: all of them, but for a few far from the others."""
    lows, highs = [], []
    for values in lines:
        inner = values
        if len(values) >= 20:
            lower, upper = np.quantile(values, [0.01, 0.99])
            room = FAR * (upper - lower)
            inner = values[(values >= lower - room) & (values <= upper + room)]
        lows.append(float(inner.min()))
        highs.append(float(inner.max()))
    low, high = min(lows), max(highs)
    if 0 < low < 0.4 * high:
        low = 0.0  # a height says more when it is seen from the ground
    if high - low <= max(1e-9 * max(abs(low), abs(high)), SMALLEST):
        pad = 0.1 * abs(high) if abs(high) > SMALLEST else 1.0
        return low - pad, high + pad
    return low, high


def _stroke(line: Line, steps: Any, values: Any, scale: _Scale) -> Stroke:
    # A value far beyond the axis stands at its end, and draws no neighbours along.
    values = np.clip(values, scale.y0, scale.y1)
    at, mean, lowest, highest = gathered(steps, values)
    many = line.smooth and len(mean) > CALM
    shown = smoothed(mean, max(1, len(mean) // SMOOTHED // 2)) if many else mean
    bundled = len(mean) < len(values)
    band = ""
    if bundled:
        edges = [*zip(at, highest, strict=True), *zip(at[::-1], lowest[::-1], strict=True)]
        band = scale.points(*zip(*edges, strict=True))
    few = len(values) <= (CALM if line.evaluated else 2)
    return Stroke(
        run=line.run,
        evaluated=line.evaluated,
        points=scale.points(at, shown),
        faint=scale.points(at, mean) if many and not bundled else "",
        band=band,
        dots=tuple((scale.x(s), scale.y(v)) for s, v in zip(steps, values, strict=True)) if few else (),
    )


def gathered(steps: Any, values: Any, most: int = MOST) -> tuple[Any, Any, Any, Any]:
    """Return at most `most` points: mean step, and mean, lowest and highest value of as many neighbours each."""
    count = len(values)
    starts = np.arange(0, count, math.ceil(count / most))
    sizes = np.diff([*starts, count])
    return (
        np.add.reduceat(steps, starts) / sizes,
        # Divided first: the sum of large values may be infinite.
        np.add.reduceat(values / np.repeat(sizes, sizes), starts),
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )


def smoothed(values: Any, reach: int) -> Any:
    """Return the mean of each value and its `reach` neighbours on either side.

    Near an end there are fewer of them, and on both sides alike: a line that falls there is not lifted.
    """
    last = len(values) - 1
    sides = [min(reach, index, last - index) for index in range(last + 1)]
    return np.array([values[i - side : i + side + 1].mean() for i, side in enumerate(sides)])


def _figures(line: Line, steps: Any, values: Any, scale: _Scale) -> Figures:
    lowest, highest = int(values.argmin()), int(values.argmax())
    return Figures(
        run=line.run,
        evaluated=line.evaluated,
        first=float(values[0]),
        last=float(values[-1]),
        lowest=float(values[lowest]),
        lowest_step=int(steps[lowest]),
        highest=float(values[highest]),
        highest_step=int(steps[highest]),
        steps=(int(steps[0]), int(steps[-1])),
        missing=len(line.logged.values) - len(values),
        cut=int(((values < scale.y0) | (values > scale.y1)).sum()),
    )


# --- intervals -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whiskers:
    """A bar from no change to the change, and the interval around its end; x in units of the view box."""

    zero: float
    x: float
    width: float
    end: float
    low: float | None
    high: float | None


def whiskers(changes: Sequence[tuple[float, float, float] | float]) -> list[Whiskers]:
    """Return the pictures of changes, each alone or as (change, low, high), on one scale; zero is on all of them."""
    reach = [value for change in changes for value in (change if isinstance(change, tuple) else (change,))]
    low, high = min([0.0, *reach]), max([0.0, *reach])
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return round(INTERVAL_WIDTH * (value - low) / (high - low), 1)

    found = []
    for change in changes:
        end, lower, upper = change if isinstance(change, tuple) else (change, None, None)
        left, right = sorted((x(0.0), x(end)))
        ends = (None, None) if lower is None or upper is None else (x(lower), x(upper))
        found.append(Whiskers(x(0.0), left, round(right - left, 1), x(end), *ends))
    return found


# --- histograms ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram, in units of the view box, and what it says."""

    x: float
    y: float
    width: float
    height: float
    label: str
    count: str
    words: str

    @property
    def middle(self) -> float:
        """Where its label is centred."""
        return round(self.x + self.width / 2, 1)


def bars(bins: Sequence[tuple[int, int, int]]) -> list[Bar]:
    """Return the bars of (lowest, highest, count), both ends included; every second has a label where there are many.

    The last label is that of its end: the longest there is.
    """
    most = max((count for *_, count in bins), default=0) or 1
    step = WIDTH / max(len(bins), 1)
    found = []
    for index, (low, high, count) in enumerate(bins):
        # A few rows beside thousands are a line, and not nothing.
        height = max(round(BARS * count / most, 1), 1.5) if count else 0.0
        last = index == len(bins) - 1
        near_last = len(bins) > 6 and index == len(bins) - 2
        label = f"{high if last else low:,}" if last or (not near_last and (len(bins) <= 6 or index % 2 == 0)) else ""
        found.append(
            Bar(
                x=round((index + 0.08) * step, 1),
                y=round(BOTTOM - height, 1),
                width=round(0.84 * step, 1),
                height=height,
                label=label,
                count=f"{count:,}" if count else "",
                words=f"{count:,} row{'s' if count != 1 else ''} of {low:,} to {high:,} tokens",
            )
        )
    return found
