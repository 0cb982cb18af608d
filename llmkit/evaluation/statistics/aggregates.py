"""How a metric is computed from what its rows add to it: from the sums of their parts over the rows.

Whatever is resampled, swapped or left out, only the sums change. So one function for each way serves the score itself,
its bootstrap (rows drawn again) and its test (rows swapped), thousands of sums at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Aggregate = Callable[[Array, int], Array]
"""Takes sums of shape (..., k) over a number of rows; returns the metric, of shape (...,)."""


def mean(sums: Array, rows: int) -> Array:
    """Return s0 / rows."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / rows)


def ratio(sums: Array, rows: int) -> Array:
    """Return s0 / s1, e.g. nats per token; NaN where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def exp_ratio(sums: Array, rows: int) -> Array:
    """Return exp(s0 / s1), e.g. perplexity; infinite where a double can't hold it."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(ratio(sums, rows)))


def bleu(sums: Array, rows: int) -> Array:
    """Return corpus BLEU-4 (0..100) of correct[4], total[4], sys_len, ref_len, as sacrebleu does by default.

    That is smoothing `exp` (the i-th order of n-grams without a match counts as 1 / 2^i of a match) and no effective
    order. Papineni et al. 2002; Post 2018, arXiv:1804.08771.
    """
    correct, total, length, wanted = sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9]
    with np.errstate(divide="ignore", invalid="ignore"):
        matches = np.where(correct > 0, correct, 0.5 ** np.cumsum(correct == 0, axis=-1))
        brevity = np.where(length < wanted, np.exp(1 - wanted / length), 1.0)
        score = 100 * brevity * np.exp(np.log(matches / total).mean(axis=-1))
    defined = (correct > 0).any(axis=-1) & (total > 0).all(axis=-1)
    return np.where(defined, score, 0.0)


def chrf(sums: Array, rows: int) -> Array:
    """Return chrF (0..100, beta 2) of the n-grams in the answers, in the references, and in both, for each order.

    As sacrebleu does by default: precision and recall are means over the orders that both sides have; with orders of
    words after those of characters it is chrF++. Popović 2015 (W15-3049), 2017 (W17-4770).
    """
    answered, wanted, matched = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    counted = (answered > 0) & (wanted > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        orders = counted.sum(axis=-1)
        precision = np.where(counted, matched / answered, 0.0).sum(axis=-1) / orders
        recall = np.where(counted, matched / wanted, 0.0).sum(axis=-1) / orders
        score = 100 * 5 * precision * recall / (4 * precision + recall)
    return np.where(precision + recall > 0, score, 0.0)


AGGREGATES: Mapping[str, Aggregate] = {
    "mean": mean,
    "ratio": ratio,
    "exp_ratio": exp_ratio,
    "bleu": bleu,
    "chrf": chrf,
}
