"""Which rows are held out, which are left out, and which are drawn: on arrays, by whole rows.

The pieces of a split row are entries of their own, and one row wherever rows are chosen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmkit.data.mixing import drawn
from llmkit.data.store import Rows


@dataclass(frozen=True)
class Whole:
    """Where the entries of each row stand; all fields are arrays."""

    starts: Any
    ends: Any
    row: Any
    """The number of the row that each entry belongs to."""

    @classmethod
    def of(cls, rows: Rows) -> Whole:
        """Look at the entries of `rows`."""
        first = rows.fact("part") == 0
        starts = np.flatnonzero(first)
        return cls(starts, np.append(starts[1:], len(rows))[: len(starts)], np.cumsum(first) - 1)

    def entries(self, numbers: Any) -> Any:
        """Return the indices of all entries of the rows with these numbers, as an array."""
        starts, lengths = self.starts[numbers], self.ends[numbers] - self.starts[numbers]
        before = np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.repeat(starts, lengths) + np.arange(lengths.sum()) - before


def held_out(rows: Rows, count: int, seed: int) -> Any:
    """Return for each entry whether its row is among the `count` that `seed` holds out, as an array."""
    whole = Whole.of(rows)
    chosen = np.zeros(len(whole.starts), bool)
    chosen[random.Random(seed).sample(range(len(chosen)), count)] = True
    return chosen[whole.row]


def overlapping(rows: Rows, others: Rows) -> Any:
    """Return for each entry whether its row reads the same as one of `others`, in any piece, as an array."""
    if not len(rows):
        return np.zeros(0, bool)
    row = Whole.of(rows).row
    return (np.bincount(row, weights=np.isin(rows.digests, others.digests)) > 0)[row]


def mixed(rows: Rows, counts: Sequence[int], seed: int) -> tuple[Any, list[Any]]:
    """Return the entries that an epoch goes through, and for each source those that are left, as arrays.

    `counts[i]` is how many rows are drawn from source i.
    """
    whole = Whole.of(rows)
    of_row = rows.sources[whole.starts]
    taken, left = [], []
    for index, count in enumerate(counts):
        mine = np.flatnonzero(of_row == index)
        some = mine[drawn(len(mine), count, seed + index)]
        taken.append(whole.entries(some))
        left.append(whole.entries(np.setdiff1d(mine, some)))
    return np.concatenate(taken), left
