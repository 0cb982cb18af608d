"""Coordinates of charts: by hand, by what must hold of any numbers, and with spikes, gaps and NaN planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.runs.charts import (
    BARS,
    BOTTOM,
    INTERVAL_WIDTH,
    LEFT,
    MOST,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Line,
    Logged,
    bars,
    chart,
    gathered,
    number,
    numbers,
    smoothed,
    steps_between,
    whiskers,
)

VALUES = st.floats(-1e9, 1e9, allow_subnormal=False)


def points(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


def drawn(*values: list[float], **options: bool) -> Chart:
    found = chart("loss", [Line(Logged(range(1, len(v) + 1), v), i, **options) for i, v in enumerate(values)])
    assert found is not None
    return found


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.8125, "0.8125"),
        (12345.6, "12,346"),
        (2e-5, "2e-5"),
        (-1.5e-7, "-1.5e-7"),
        (0.00012345, "0.000123"),
        (3.21e12, "3.21e12"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_numbers_on_an_axis_can_be_told_apart() -> None:
    assert numbers([0, 0.5, 1]) == ["0", "0.5", "1"]
    assert numbers([1e8, 1.0001e8]) == ["1e8", "1.0001e8"]
    assert numbers([1000, 1000.25]) == ["1,000.0", "1,000.2"]


def test_round_values_of_an_axis() -> None:
    assert steps_between(0, 10) == [0, 5, 10]
    assert steps_between(0.3, 2.1) == [0, 0.5, 1, 1.5, 2, 2.5]
    assert steps_between(0, 2e-5) == [0, 5e-6, 1e-5, 1.5e-5, 2e-5]
    assert steps_between(-0.1, 0.3) == [-0.1, 0, 0.1, 0.2, 0.3]


@given(VALUES, VALUES)
def test_an_axis_covers_its_values_with_a_few_labels(a: float, b: float) -> None:
    low, high = sorted((a, b))
    if high - low <= 1e-6 * max(abs(low), abs(high), 1e-6):
        return
    found = steps_between(low, high)
    room = 1e-6 * (high - low)
    assert found[0] <= low + room
    assert found[-1] >= high - room
    assert 2 <= len(found) <= 7
    assert len(set(numbers(found))) == len(found)


# --- curves ----------------------------------------------------------------------------------------------------------


def test_a_line_by_hand() -> None:
    found = drawn([0.0, 10.0, 5.0])
    [stroke] = found.strokes
    middle = (LEFT + RIGHT) / 2
    assert points(stroke.points) == [(LEFT, BOTTOM), (middle, TOP), (RIGHT, (TOP + BOTTOM) / 2)]
    assert stroke.faint == stroke.band == ""
    assert [(tick.at, tick.label) for tick in found.ys] == [(BOTTOM, "0"), (98.0, "5"), (TOP, "10")]
    assert [tick.label for tick in found.xs] == ["1", "2", "3"]


def test_two_runs_share_the_axes() -> None:
    found = drawn([1.0, 1.0], [10.0, 2.0, 2.0, 2.0])
    one, two = (points(stroke.points) for stroke in found.strokes)
    assert one[-1][0] < two[-1][0] == RIGHT
    assert two[0][1] < one[0][1]
    assert [stroke.run for stroke in found.strokes] == [0, 1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=80))
def test_whatever_is_logged_stays_within_the_area(values: list[float]) -> None:
    found = chart("loss", [Line(Logged(range(len(values)), values), evaluated=True)])
    if found is None:
        assert not any(abs(value) < 1e300 for value in values)
        return
    for stroke in found.strokes:
        for x, y in (*points(stroke.points), *stroke.dots):
            assert LEFT <= x <= RIGHT
            assert TOP <= y <= BOTTOM
    assert found.figures[0].missing == sum(not abs(value) < 1e300 for value in values)


def test_a_step_alone_is_a_dot() -> None:
    found = drawn([3.0])
    assert found.strokes[0].dots == (((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2),)
    assert [tick.label for tick in found.xs] == ["1"]


def test_what_is_measured_now_and_then_has_a_dot_for_each_value() -> None:
    found = drawn([3.0, 2.0, 1.0], evaluated=True)
    assert [(x, y) for x, y in found.strokes[0].dots] == points(found.strokes[0].points)
    assert drawn([3.0, 2.0, 1.0]).strokes[0].dots == ()


def test_nothing_finite_is_no_chart() -> None:
    assert chart("loss", []) is None
    assert chart("loss", [Line(Logged([1, 2], [math.nan, math.inf]))]) is None


def test_a_hundred_thousand_steps_are_few_points_and_no_spike_is_lost() -> None:
    values = np.full(100_000, 1.0)
    values[70_123] = 1.5
    found = drawn([*values, 1.1])
    [stroke] = found.strokes
    assert len(points(stroke.points)) <= MOST
    assert len(stroke.points) + len(stroke.band) < 20_000
    highest = min(points(stroke.band), key=lambda point: point[1])
    assert highest[0] == pytest.approx(LEFT + 0.70123 * (RIGHT - LEFT), abs=2)


def test_one_far_value_does_not_flatten_the_others() -> None:
    values = [1.0 + 0.01 * (i % 7) for i in range(500)]
    values[250] = 1e6
    found = drawn(values)
    assert float(found.ys[-1].label) < 2
    assert found.figures[0].cut == 1
    assert found.figures[0].highest == 1e6
    assert found.figures[0].highest_step == 251
    # The beginning of a run is no such value: a loss falls from where it begins.
    falling = [2.0 + 8.0 * math.exp(-i / 20) for i in range(500)]
    assert drawn(falling).figures[0].cut == 0


def test_smoothing_keeps_straight_lines_and_their_ends() -> None:
    line = np.linspace(5.0, -3.0, 200)
    assert smoothed(line, 9) == pytest.approx(line)
    noisy = line + np.random.default_rng(0).normal(0, 0.3, 200)
    calm = smoothed(noisy, 9)
    assert np.abs(calm - line)[20:-20].mean() < 0.4 * np.abs(noisy - line)[20:-20].mean()
    assert calm[0] == noisy[0]


def test_gathered_points_are_means_between_the_extremes() -> None:
    steps, values = np.arange(1000), np.random.default_rng(1).normal(size=1000)
    at, mean, low, high = gathered(steps, values, 10)
    assert at == pytest.approx(np.arange(10) * 100 + 49.5)
    assert mean == pytest.approx(values.reshape(10, 100).mean(axis=1))
    assert low == pytest.approx(values.reshape(10, 100).min(axis=1))
    assert high == pytest.approx(values.reshape(10, 100).max(axis=1))
    # As many in each: a band has the same reason to be wide everywhere.
    assert len(gathered(steps, values, 360)[0]) == 334


def test_the_figures_of_a_line() -> None:
    [figures] = drawn([3.0, math.nan, 0.5, 2.0]).figures
    assert (figures.first, figures.last, figures.lowest, figures.lowest_step) == (3.0, 2.0, 0.5, 3)
    assert (figures.highest_step, figures.steps, figures.missing) == (1, (1, 4), 1)


# --- intervals and histograms ----------------------------------------------------------------------------------------


def test_whiskers_share_one_scale_with_zero_on_it() -> None:
    up, down, bare = whiskers([(0.2, 0.1, 0.3), (-0.1, -0.4, 0.2), 0.1])
    assert up.zero == down.zero == bare.zero
    assert up.low is not None
    assert up.high is not None
    assert up.zero == up.x < up.low < up.end < up.high < INTERVAL_WIDTH
    assert up.end == pytest.approx(up.x + up.width, abs=0.1)
    # -0.1 reaches as far to the left of zero as 0.1 to the right.
    assert down.zero - down.end == pytest.approx(bare.end - bare.zero, abs=0.11)
    assert down.x == down.end
    assert bare.low is bare.high is None


def test_no_change_has_a_picture() -> None:
    [found] = whiskers([0.0])
    assert found.width == 0
    assert 0 < found.zero < INTERVAL_WIDTH


def test_bars_are_as_high_as_their_counts() -> None:
    found = bars([(1, 9, 50), (10, 19, 100), (20, 29, 0), (30, 400, 1)])
    assert [bar.height for bar in found] == [BARS / 2, BARS, 0, 1.7]
    assert all(bar.y + bar.height == pytest.approx(BOTTOM) for bar in found)
    assert found[-1].x + found[-1].width <= WIDTH
    assert [bar.label for bar in found] == ["1", "10", "20", "400"]
    assert found[-1].words == "1 row of 30 to 400 tokens"
    assert [bar.count for bar in found] == ["50", "100", "", "1"]


def test_many_bars_have_every_second_label() -> None:
    labels = [bar.label for bar in bars([(i * 10, i * 10 + 9, 1) for i in range(12)])]
    assert labels == ["0", "", "20", "", "40", "", "60", "", "80", "", "", "119"]
    assert bars([]) == []
