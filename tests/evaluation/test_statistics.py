"""What the intervals cover and what the tests find, on score sets with known effects.

Closed forms are enumerated: every outcome with its probability, no chance in it. What is resampled is simulated, with
fewer resamples than users get, on sets drawn with fixed seeds.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest
from scipy import stats

from llmkit.evaluation.base import Score
from llmkit.evaluation.statistics import comparing as statistics
from llmkit.evaluation.statistics.aggregates import AGGREGATES, Array
from llmkit.evaluation.statistics.comparing import (
    Compared,
    Interval,
    Z,
    compare,
    holm,
    interval_of,
    mcnemar,
    randomization,
    regressions,
    share_interval,
    tango,
)
from tests.evaluation.test_aggregates import noisy, parts_of, sentences

SETS = 600
"""Score sets drawn for a share that is simulated: its standard error is 0.009 at 0.95."""


def score(parts: Any, aggregate: str = "mean", metric: str = "m") -> Score:
    """Return the Score of rows with these parts, (n,) or (n, k)."""
    values = np.asarray(parts, dtype=np.float64)
    found = AGGREGATES[aggregate](values.reshape(len(values), -1).sum(axis=0), len(values))
    per_row = tuple(values.tolist()) if values.ndim == 1 else tuple(map(tuple, values.tolist()))
    return Score({metric: float(found)}, len(values), per_row={metric: per_row}, aggregate={metric: aggregate})


def one(base: Score, tuned: Score, lower: frozenset[str] = frozenset()) -> Compared:
    [[found]] = compare([base], [tuned], [lower])
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer draws, where thousands of score sets are looked at."""
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    monkeypatch.setattr(statistics, "SWAPS", 399)


# --- intervals cover


def wilson(right: int, rows: int) -> Interval:
    found = stats.binomtest(right, rows).proportion_ci(method="wilson")
    return Interval(pytest.approx(found.low, abs=1e-12), pytest.approx(found.high, abs=1e-12))


@cache
def shares(rows: int) -> list[Interval | None]:
    return [share_interval(np.array([1.0] * right + [0.0] * (rows - right))) for right in range(rows + 1)]


def test_interval_of_right_or_wrong_is_wilsons_as_scipy_has_it() -> None:
    for rows in (1, 2, 7, 40):
        assert shares(rows) == [wilson(right, rows) for right in range(rows + 1)]


@pytest.mark.parametrize("rows", [30, 100, 400])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_interval_of_a_share_covers_by_enumeration(share: float, rows: int) -> None:
    covers = np.array([found is not None and found.low <= share <= found.high for found in shares(rows)])
    assert 0.93 <= stats.binom.pmf(np.arange(rows + 1), rows, share)[covers].sum() <= 0.97


def change_covered(rows: int, fixed: float, broken: float) -> float:
    """Return the exact coverage of the interval of a change where rows are fixed and broken with these shares."""
    gained, lost = (each.ravel() for each in np.mgrid[: rows + 1, : rows + 1])
    possible = gained + lost <= rows
    outcomes = np.stack([gained, lost, rows - gained - lost], axis=-1)[possible]
    likely = stats.multinomial.pmf(outcomes, rows, [fixed, broken, 1 - fixed - broken])
    outcomes, likely = outcomes[likely > 1e-10], likely[likely > 1e-10]
    low, high = tango(outcomes[:, 0], outcomes[:, 1], rows)
    return float(likely[(low <= fixed - broken) & (fixed - broken <= high)].sum())


@pytest.mark.parametrize("rows", [30, 100, 400])
@pytest.mark.parametrize(("fixed", "broken"), [(0.25, 0.25), (0.2, 0.1), (0.16, 0.16), (0.3, 0.1), (0.1, 0.1)])
def test_interval_of_a_paired_change_covers_by_enumeration(fixed: float, broken: float, rows: int) -> None:
    assert 0.93 <= change_covered(rows, fixed, broken) <= 0.97


@pytest.mark.parametrize("rows", [10, 30, 100, 400])
@pytest.mark.parametrize(("fixed", "broken"), [(0.02, 0.02), (0.05, 0.0), (0.01, 0.0)])
def test_interval_of_a_change_in_few_rows_covers_too_much_rather_than_too_little(
    fixed: float, broken: float, rows: int
) -> None:
    assert change_covered(rows, fixed, broken) >= 0.93


Draw = Callable[[np.random.Generator, int], Array]


def tokens_and_loss(random: np.random.Generator, rows: int) -> Array:
    """Return nats and tokens of each row: 2 nats per token, lengths that differ by an order of magnitude."""
    tokens = np.ceil(random.lognormal(3, 0.7, rows))
    return np.column_stack([tokens * random.gamma(4, 0.5, rows), tokens])


def word_overlap(random: np.random.Generator, rows: int) -> Array:
    """Return values as F1 has them: many exactly 1, some exactly 0, others between; their mean is 0.75."""
    kind = random.random(rows)
    return np.where(kind < 0.6, 1.0, np.where(kind < 0.75, 0.0, random.beta(3, 2, rows)))


KNOWN: dict[str, tuple[Draw, str, float]] = {
    "normal": (lambda random, rows: random.normal(3, 2, rows), "mean", 3.0),
    "skewed": (lambda random, rows: random.lognormal(0, 0.5, rows), "mean", math.exp(0.125)),
    "f1": (word_overlap, "mean", 0.75),
    "loss": (tokens_and_loss, "ratio", 2.0),
    "perplexity": (tokens_and_loss, "exp_ratio", math.exp(2)),
}


@pytest.mark.parametrize("rows", [30, 100])
@pytest.mark.parametrize("kind", ["normal", "skewed", "f1", "loss"])  # a perplexity's is that of its loss
@pytest.mark.usefixtures("quick")
def test_bootstrap_covers_a_known_score(kind: str, rows: int) -> None:
    draw, aggregate, known = KNOWN[kind]
    random = np.random.default_rng(rows)
    found = [interval_of(score(draw(random, rows), aggregate), "m") for _ in range(SETS)]
    assert 0.93 <= np.mean([each is not None and each.low <= known <= each.high for each in found]) <= 0.97


def better_by(factor: float, spread: float) -> Callable[[np.random.Generator, Array], Array]:
    """Return what multiplies the first part of each row by a random factor with this mean."""

    def tune(random: np.random.Generator, base: Array) -> Array:
        factors = factor * random.lognormal(-(spread**2) / 2, spread, len(base))
        return base * factors if base.ndim == 1 else np.column_stack([base[:, 0] * factors, base[:, 1]])

    return tune


@pytest.mark.parametrize("kind", ["skewed", "loss", "perplexity"])
@pytest.mark.usefixtures("quick")
def test_bootstrap_covers_a_known_change_on_the_same_rows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SWAPS", 9)  # the tests are not looked at
    draw, aggregate, known = KNOWN[kind]
    after = known**0.9 if aggregate == "exp_ratio" else 0.9 * known
    random, tune = np.random.default_rng(7), better_by(0.9, 0.2)
    covered = widths = 0.0
    for _ in range(SETS):
        base = draw(random, 50)
        found = one(score(base, aggregate), score(tune(random, base), aggregate))
        assert found.change_interval is not None
        assert found.base_interval is not None
        covered += found.change_interval.low <= after - known <= found.change_interval.high
        widths += (found.change_interval.high - found.change_interval.low) < (
            found.base_interval.high - found.base_interval.low
        )
    assert 0.93 <= covered / SETS <= 0.97
    assert widths / SETS > 0.9  # what pairs of rows are for: two intervals side by side would see nothing


# --- tests find what is there, and nothing where nothing is


def right(random: np.random.Generator, chances: Array) -> Array:
    return (random.random(len(chances)) < chances).astype(float)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("rows", [30, 100])
def test_no_effect_is_called_better_in_at_most_5_percent(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 20)  # the intervals are not looked at
    random, tune, sets = np.random.default_rng(rows), better_by(1.0, 0.2), 300
    called = {"better": 0, "worse": 0, "p": 0}
    for _ in range(sets):
        chances, base, hard = random.beta(2, 2, rows), tokens_and_loss(random, rows), random.normal(0, 1, rows)
        pairs = [
            (score(right(random, chances)), score(right(random, chances))),
            # Noise on both sides: base and tuned are then equally good, and not only equal in the mean.
            (score(tune(random, base), "ratio"), score(tune(random, base), "ratio")),
            (score(hard + random.normal(0, 1, rows)), score(hard + random.normal(0, 1, rows))),
        ]
        found = [each for [each] in compare([b for b, _ in pairs], [t for _, t in pairs], [frozenset()] * 3)]
        for verdict in ("better", "worse"):
            called[verdict] += any(each.verdict == verdict for each in found)
        called["p"] += sum(each.p is not None and each.p < 0.05 for each in found)
    assert called["better"] / sets <= 0.05
    assert (called["better"] + called["worse"]) / sets <= 0.07  # 5%, and twice the standard error
    assert 0.02 <= called["p"] / (3 * sets) <= 0.06  # without the correction; McNemar's exact test keeps below 5%


def test_a_share_is_found_better_as_often_as_the_exact_test_can() -> None:
    rows, fixed, broken, sets = 100, 0.2, 0.06, 300
    gained, lost = (each.ravel() for each in np.mgrid[: rows + 1, : rows + 1])
    outcomes = np.stack([gained, lost, rows - gained - lost], axis=-1)[gained + lost <= rows]
    likely = stats.multinomial.pmf(outcomes, rows, [fixed, broken, 1 - fixed - broken])
    seen = 2 * stats.binom.cdf(outcomes[:, 1], outcomes[:, 0] + outcomes[:, 1], 0.5) < 0.05  # more fixed than broken
    power = likely[seen].sum()
    assert 0.6 < power < 0.9  # neither always nor never, or what follows says nothing
    random = np.random.default_rng(0)
    found = 0
    for _ in range(sets):
        kind = random.random(rows)
        base = np.where(kind < fixed, 0, np.where(kind < fixed + broken, 1, random.integers(0, 2, rows)))
        tuned = np.where(kind < fixed, 1, np.where(kind < fixed + broken, 0, base))
        found += one(score(base), score(tuned)).verdict == "better"
    assert found / sets == pytest.approx(power, abs=0.06)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("effect", "verdict"), [(0.4, "better"), (-0.4, "worse")])
def test_a_change_of_the_mean_is_found_as_often_as_by_the_t_test(
    effect: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    rows, sets = 50, 500
    distance, limit = abs(effect) * math.sqrt(rows), stats.t.ppf(0.975, rows - 1)
    power = float(stats.nct.sf(limit, rows - 1, distance))  # of the paired t-test, Cohen 1988
    random = np.random.default_rng(1)
    found = 0
    for _ in range(sets):
        base = random.normal(0, 3, rows)
        found += one(score(base), score(base + random.normal(effect, 1, rows))).verdict == verdict
    assert found / sets == pytest.approx(power, abs=0.05)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("share", "least"), [(1.0, 0.95), (0.3, 0.95), (0.15, 0.85), (0.05, 0.92)])
def test_verdict_and_interval_of_a_change_rarely_disagree(share: float, least: float) -> None:
    random, rows, sets, better, only_verdict, only_interval = np.random.default_rng(2), 60, 150, 0, 0, 0
    for _ in range(sets):
        base = random.normal(0, 3, rows)
        tuned = base + random.normal(min(0.35 / share, 4), 1, rows) * (random.random(rows) < share)
        found = one(score(base), score(tuned))
        assert found.change_interval is not None
        better += found.verdict == "better"
        only_verdict += found.verdict == "better" and found.change_interval.low <= 0
        only_interval += found.verdict != "better" and found.change_interval.low > 0
    assert 0.05 < better / sets < 0.995
    assert only_interval / sets <= 0.05
    assert 1 - (only_verdict + only_interval) / sets >= least


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(8, 1) == mcnemar(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 2**5)


def test_few_rows_are_swapped_in_every_way() -> None:
    base, tuned = np.array([[1.0], [2.0], [3.0], [3.0]]), np.array([[2.0], [4.0], [6.0], [3.0]])
    # Differences 1, 2, 3 and 0. Of the 8 signs of 1, 2, 3, only all + and all - sum to 6 or more.
    assert randomization(base, tuned, AGGREGATES["mean"]) == ("exact randomization", 0.25)
    assert randomization(base, base, AGGREGATES["mean"]) == ("exact randomization", 1.0)


@pytest.mark.parametrize(("rows", "close"), [(11, 1e-12), (14, 0.015)], ids=["every swap", "drawn swaps"])
def test_randomization_of_a_mean_is_that_of_scipy(rows: int, close: float) -> None:
    random = np.random.default_rng(3)
    base = random.normal(size=rows)
    tuned = base + random.normal(0.2, 0.8, rows)
    expected = stats.permutation_test(
        (base, tuned),
        lambda a, b, axis: np.mean(b, axis) - np.mean(a, axis),
        permutation_type="samples",
        n_resamples=np.inf,
    ).pvalue
    assert 0.02 < expected < 0.5
    found = randomization(base[:, None], tuned[:, None], AGGREGATES["mean"])[1]
    assert found == pytest.approx(expected, abs=close)


@pytest.mark.parametrize(("name", "metric"), [("bleu", BLEU()), ("chrf", CHRF())])
def test_randomization_of_a_corpus_metric_is_that_of_sacrebleu(name: str, metric: Any) -> None:
    references = sentences(1, 60, shortest=4)
    base, tuned = noisy(references, 0.30), noisy(references[::-1], 0.27)[::-1]
    _, scores = PairedTest([("base", base), ("tuned", tuned)], {name: metric}, [references], n_samples=1_000)()
    [theirs] = [results for system, results in scores.items() if system != "System"]
    ours = one(*(score(parts_of(metric, answers, references), name) for answers in (base, tuned)))
    assert ours.base == pytest.approx(theirs[0].score, abs=1e-9)
    assert ours.tuned == pytest.approx(theirs[1].score, abs=1e-9)
    assert ours.test == "approximate randomization"
    assert ours.p == pytest.approx(theirs[1].p_value, abs=0.05)
    assert ours.base_interval is not None
    assert ours.base_interval.low < theirs[0].score < ours.base_interval.high


def test_equal_changes_count_as_equal_whatever_the_order_of_their_sums() -> None:
    tenths = np.array([-5, 4, 4, -7, 2, 6, 5, -1])
    sums = [abs(np.dot(tenths, signs)) for signs in itertools.product((-1, 1), repeat=len(tenths))]
    expected = float(np.mean(np.array(sums) >= abs(tenths.sum())))
    # In floats 0.1 + 0.2 is more than 0.3: compared as they are, only 0.582 of these, and not 0.617, are as large.
    base = np.full((len(tenths), 1), 0.7)
    found = randomization(base, base + tenths[:, None] / 10, AGGREGATES["mean"])
    assert found == ("exact randomization", expected)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


# --- what is compared


def bits(text: str) -> Score:
    return score([int(bit) for bit in text], metric="exact_match")


def test_the_correction_goes_over_all_metrics_of_all_evaluations() -> None:
    weak = (bits("0" * 8 + "1" * 20), bits("1" * 8 + "1" * 20))  # p = 2/2^8 = 0.0078
    [[alone]] = compare(*([each] for each in weak), [frozenset()])
    assert alone.adjusted == alone.p == pytest.approx(2 / 2**8)
    assert alone.verdict == "better"
    others = [(score(np.eye(30)[i], metric=f"m{i}"), score(np.eye(30)[i + 1], metric=f"m{i}")) for i in range(6)]
    pairs = [weak, *others]
    found = compare([b for b, _ in pairs], [t for _, t in pairs], [frozenset()] * 7)
    assert found[0][0].p == alone.p
    assert found[0][0].adjusted == pytest.approx(7 * 2 / 2**8)
    assert found[0][0].verdict == "no difference seen"
    assert {each.adjusted for [each] in found[1:]} == {1.0}


def test_metrics_of_the_same_parts_are_one_hypothesis() -> None:
    random = np.random.default_rng(0)
    base = tokens_and_loss(random, 40)
    tuned = better_by(0.9, 0.1)(random, base)

    def both(parts: Array) -> Score:
        loss, perplexity = score(parts, "ratio", "loss"), score(parts, "exp_ratio", "perplexity")
        return Score(
            loss.metrics | perplexity.metrics,
            40,
            per_row=loss.per_row | perplexity.per_row,
            aggregate=loss.aggregate | perplexity.aggregate,
        )

    lower = frozenset({"loss", "perplexity"})
    [[loss, perplexity]] = compare([both(base)], [both(tuned)], [lower])
    assert loss.adjusted == loss.p == perplexity.p == perplexity.adjusted
    assert loss.p is not None
    assert loss.p < 0.01
    assert loss.verdict == perplexity.verdict == "better"
    for model in ("base_interval", "tuned_interval"):
        narrow, wide = getattr(loss, model), getattr(perplexity, model)
        assert (wide.low, wide.high) == pytest.approx((math.exp(narrow.low), math.exp(narrow.high)))
    # The same metric of the same rows in two evaluations is one, too.
    [[first], [second]] = compare([bits("0" * 9)] * 2, [bits("1" * 9)] * 2, [frozenset()] * 2)
    assert first.adjusted == first.p == second.adjusted


def test_the_direction_is_the_metrics() -> None:
    up, down = bits("0" * 30), bits("1" * 30)
    assert one(up, down).verdict == "better"
    assert one(down, up).verdict == "worse"
    assert one(up, down, frozenset({"exact_match"})).verdict == "worse"
    assert one(down, up, frozenset({"exact_match"})).verdict == "better"
    assert one(up, down, frozenset({"another"})).verdict == "better"


def test_rows_fixed_and_broken_are_counted_and_listed() -> None:
    base, tuned = bits("0011010"), bits("0101011")
    found = one(base, tuned)
    assert (found.fixed, found.broken, found.rows) == (2, 1, 7)
    assert found.change == pytest.approx(1 / 7)
    assert regressions(base, tuned) == {"exact_match": [2]}
    assert regressions(tuned, base) == {"exact_match": [1, 6]}
    assert regressions(score([0.5, 1]), score([0, 1])) == {}


def test_a_change_interval_without_0_is_what_mcnemar_says_without_its_correction() -> None:
    fixed, broken = (each.ravel() for each in np.mgrid[:40, :40])
    low, high = tango(fixed, broken, 100)
    seen = (fixed - broken) ** 2 > Z**2 * (fixed + broken)
    assert (((low > 0) | (high < 0)) == seen).all()
    assert (low <= (fixed - broken) / 100).all()
    assert (high >= (fixed - broken) / 100).all()


def test_change_interval_by_hand_and_its_mirror() -> None:
    # Nothing differs: the score equation leaves change = z^2 / (rows + z^2).
    end = Z**2 / (50 + Z**2)
    assert tuple(map(float, tango(0, 0, 50))) == pytest.approx((-end, end))
    low, high = (float(each) for each in tango(12, 5, 80))
    assert tuple(map(float, tango(5, 12, 80))) == pytest.approx((-high, -low))
    # All rows are fixed: no more than that is possible, and the other end is Wilson's of one model.
    low, high = (float(each) for each in tango(30, 0, 30))
    assert high == 1
    assert 0.7 < low < 0.95


# --- the edges


def test_a_metric_without_values_by_row_is_not_tested() -> None:
    found = one(Score({"m": 0.5}, 10), Score({"m": 0.75}, 10))
    assert (found.change, found.verdict) == (0.25, "not tested")
    assert [found.base_interval, found.tuned_interval, found.change_interval, found.p, found.adjusted] == [None] * 5
    assert interval_of(Score({"m": 0.5}, 10), "m") is None
    assert interval_of(Score({"m": 0.5}, 10), "other") is None


def test_a_metric_that_only_one_model_has_is_not_tested() -> None:
    first, second = score([1, 0, 1], metric="a"), score([1, 1, 1], metric="b")
    [[a, b]] = compare([first], [second], [frozenset()])
    assert (a.metric, a.base, a.tuned, a.change, a.verdict) == ("a", pytest.approx(2 / 3), None, None, "not tested")
    assert (b.metric, b.base, b.tuned, b.change, b.verdict) == ("b", None, 1.0, None, "not tested")
    assert a.base_interval == wilson(2, 3)
    assert b.tuned_interval == wilson(3, 3)
    assert a.tuned_interval is b.base_interval is None


def test_other_rows_are_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="m: the base was scored on 3 rows, and the tuned model on 2"):
        compare([score([1, 0, 1])], [score([1, 0])], [frozenset()])
    with pytest.raises(ValueError, match=r"m: .*mean.*ratio"):
        compare([score([1, 0, 1])], [score([[1, 1], [0, 1], [1, 1]], "ratio")], [frozenset()])


@pytest.mark.parametrize("rows", [0, 1, 2, 4])
def test_hardly_any_rows(rows: int) -> None:
    values = [0.5, 0.25, 0.75, 0.1][:rows]
    base = Score({"m": 0.5}, rows, per_row={"m": tuple(values)})
    tuned = Score({"m": 0.6}, rows, per_row={"m": tuple(value + 0.1 for value in values)})
    found = one(base, tuned)
    assert found.base_interval is found.tuned_interval is found.change_interval is None
    assert found.verdict == ("no difference seen" if rows else "not tested")
    assert found.p == (2 / 2**rows if rows else None)


def test_one_row_right_or_wrong_says_next_to_nothing() -> None:
    found = one(bits("0"), bits("1"))
    assert found.tuned_interval == Interval(pytest.approx(1 / (1 + Z**2)), 1.0)
    assert found.change_interval is not None
    assert found.change_interval.low < 0
    assert (found.p, found.verdict) == (1.0, "no difference seen")


@pytest.mark.parametrize("value", [0.7, 3.0, -2.0])
def test_rows_that_are_all_equal_have_no_width(value: float) -> None:
    same = score([value] * 20)
    found = one(same, same)
    for interval, expected in ((found.base_interval, value), (found.change_interval, 0)):
        assert interval is not None
        assert (interval.low, interval.high) == pytest.approx((expected, expected))
    assert (found.p, found.verdict) == (1.0, "no difference seen")


def test_rows_that_all_gain_the_same_are_better() -> None:
    base = np.arange(20) / 7
    found = one(score(base), score(base + 0.25))
    assert found.change_interval is not None
    assert (found.change_interval.low, found.change_interval.high) == pytest.approx((0.25, 0.25))
    assert (found.p, found.verdict) == (1e-4, "better")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_parts_that_are_not_finite_are_not_tested(bad: float) -> None:
    good = score([0.5] * 9 + [0.6])
    broken = Score({"m": bad}, 10, per_row={"m": (0.5,) * 9 + (bad,)})
    for found in (one(good, broken), one(broken, good)):
        assert (found.verdict, found.change, found.change_interval) == ("not tested", None, None)
    assert interval_of(broken, "m") is None


def test_a_perplexity_that_overflows_has_no_interval_and_its_loss_is_tested() -> None:
    random = np.random.default_rng(0)
    parts = tokens_and_loss(random, 30)
    huge = parts * [1e3, 1]
    assert one(score(parts, "exp_ratio"), score(huge, "exp_ratio")).verdict == "not tested"
    assert interval_of(score(huge, "exp_ratio"), "m") is None
    assert one(score(parts, "ratio"), score(huge, "ratio"), frozenset({"m"})).verdict == "worse"


def test_intervals_stay_within_what_the_metric_can_be() -> None:
    near_top = interval_of(score([1.0] * 28 + [0.9, 0.0]), "m")
    assert near_top is not None
    assert 0.7 < near_top.low < 0.93 < near_top.high <= 1
    skewed = interval_of(score([0.001] * 20 + [9.0]), "m")
    assert skewed is not None
    assert skewed.low >= 0
    margins = interval_of(score([-0.5, 0.25, 0.3, -0.1, 0.0, 0.1, -0.2]), "m")
    assert margins is not None
    assert margins.low < 0 < margins.high


@pytest.mark.parametrize("gained", [1, 2, 3, 4])
def test_few_rows_that_gain_are_no_difference_and_the_interval_has_0_in_it(gained: int) -> None:
    base = np.linspace(0.1, 0.9, 200)
    tuned = base.copy()
    tuned[:gained] += 0.05
    found = one(score(base), score(tuned))
    assert found.verdict == "no difference seen"
    assert found.change_interval is not None
    assert found.change_interval.low < 0 < found.change_interval.high < 0.01


def test_only_one_side_right_or_wrong_has_wilsons_interval_there() -> None:
    found = one(score([0.5, 0.2, 1, 0, 0.3, 0.8]), score([1, 0, 1, 1, 1, 0]))
    assert found.tuned_interval == wilson(4, 6)
    assert found.fixed is found.broken is None
    assert found.test == "exact randomization"


def test_the_same_scores_give_the_same_and_json_can_hold_it() -> None:
    random = np.random.default_rng(0)
    base, tuned = score(random.random(30)), score(random.random(30))
    assert one(base, tuned) == one(base, tuned)
    held = json.loads(json.dumps([asdict(one(base, tuned)), asdict(one(bits("01"), bits("11")))], allow_nan=False))
    assert held[0]["base_interval"].keys() == {"low", "high"}
    assert held[1] | {"metric": "exact_match", "fixed": 1, "broken": 0, "p": 1.0} == held[1]


def test_mmlu_takes_seconds() -> None:
    random, rows = np.random.default_rng(0), 14_000
    resampled = [score(tokens_and_loss(random, rows), "ratio") for _ in range(2)]
    shares = [score(right(random, np.full(rows, 0.6))) for _ in range(2)]
    before = time.process_time()
    one(*resampled)
    between = time.process_time()
    one(*shares)
    assert between - before < 8
    assert time.process_time() - between < 0.5
