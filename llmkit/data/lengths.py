"""What can be said of rows by their lengths alone: a histogram, quantiles, the padding of batches. Arrays, no rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Lengths = Any
"""A numpy array of whole numbers, one for each row."""

MEGABATCHES = 50
"""transformers sorts by length within this many batches (`get_length_grouped_indices`)."""

BULK = 0.95
"""Share of the rows that a histogram's even bins hold at least; the few longer rows share one bin."""


@dataclass(frozen=True)
class Bin:
    """`count` rows of `low` to `high` tokens, both included."""

    low: int
    high: int
    count: int


def histogram(lengths: Lengths, most: int = 12) -> list[Bin]:
    """Return bins of one round width (1, 2 or 5 times a power of ten), about `most` of them; a long tail is one bin.

    The first bin begins at the shortest row and the last one ends at the longest, whatever the width.
    """
    if not len(lengths):
        return []
    low, high = int(lengths.min()), int(lengths.max())
    bulk = int(np.quantile(lengths, BULK, method="inverted_cdf"))
    width = _round_width((bulk - low + 1) / most)
    start = low // width * width
    # Bins that the tail would not fill are not worth a bin of its own.
    end = high if high < bulk + 2 * width else bulk
    edges = [*range(start, end + 1, width), end // width * width + width]
    if high >= edges[-1]:
        edges.append(high + 1)
    counts, _ = np.histogram(lengths, bins=edges)
    bins = zip(edges, edges[1:], counts, strict=False)
    return [Bin(max(a, low), min(b - 1, high), int(n)) for a, b, n in bins]


def _round_width(least: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that is not below `least`."""
    width, factors = 1, (2, 2.5, 2)
    for step in range(60):
        if width >= least:
            break
        width = int(width * factors[step % 3])
    return width


QUANTILES = {"least": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "99%": 0.99, "most": 1.0}


def quantiles(values: Lengths) -> dict[str, int]:
    """Return values of the array itself: the least, the one that 10% of the rows don't exceed, ..., the most."""
    if not len(values):
        return {}
    found = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    return {name: int(value) for name, value in zip(QUANTILES, found, strict=True)}


def padding(lengths: Lengths, totals: Lengths, batch_size: int, sequences: int = 1) -> float:
    """Return the share of padding among all tokens computed, from 0 to 1, for batches of consecutive rows.

    A row has `sequences` sequences (2: a pair). `lengths` are tokens of the longest one, to which the batch's longest
    row pads all of them; `totals` are tokens of all of them.
    """
    if not len(lengths):
        return 0.0
    starts = np.arange(0, len(lengths), batch_size)
    longest = np.maximum.reduceat(lengths, starts).astype(np.int64)
    sizes = np.diff([*starts, len(lengths)])
    computed = int((longest * sizes).sum()) * sequences
    return 1 - int(totals.sum(dtype=np.int64)) / computed if computed else 0.0


def grouped(lengths: Lengths, batch_size: int) -> Any:
    """Return the order of shuffled rows as `train_sampling_strategy: group_by_length` has it, as indices."""
    size = batch_size * max(1, min(len(lengths) // (batch_size * 4), MEGABATCHES))
    group = np.arange(len(lengths)) // size
    return np.lexsort((-lengths.astype(np.int64), group))
