"""Which rows share a sequence, so that little of a batch is padding: decided by the rows' lengths alone.

Best-fit decreasing, in the order that TRL's `pack_dataset` has it: rows from the longest to the shortest, each into the
sequence where the least room is left. TRL packs blocks of 1,000 rows and writes their tokens anew; here the whole set
is packed by its lengths, and the tokens stay where they are.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from llmkit.data.lengths import padding
from llmkit.errors import DataError


@dataclass(frozen=True)
class Packed:
    """What packing did to a set of rows; lengths in tokens."""

    rows: int
    sequences: int
    tokens: int
    capacity: int
    """The longest that a sequence may be: `training.max_length`."""
    padding: float
    """Share of a batch that is padding, at the batch size of the run."""
    unpacked_padding: float
    """The same share if the batches held as many rows as now, each in a line of its own."""

    def sentence(self) -> str:
        """Say what was packed, and what it saves."""
        return (
            f"packed {self.rows:,} rows into {self.sequences:,} sequences of at most {self.capacity:,} tokens: "
            f"{self.padding:.1%} padding instead of {self.unpacked_padding:.1%}"
        )


@dataclass(frozen=True, eq=False)
class Packing:
    """Rows put together into sequences. A row stands in exactly one of them, whole."""

    row_lengths: np.ndarray[Any, Any]
    """Tokens of each row."""
    capacity: int
    order: np.ndarray[Any, Any]
    """Indices of the rows, those of one sequence side by side."""
    starts: np.ndarray[Any, Any]
    """Where each sequence begins in `order`; ends with the number of rows."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, index: int) -> list[int]:
        """Return the indices of the rows of the sequence at `index`, in their order within it."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        found: list[int] = self.order[self.starts[index] : self.starts[index + 1]].tolist()
        return found

    @cached_property
    def lengths(self) -> np.ndarray[Any, Any]:
        """Tokens of each sequence."""
        total = np.concatenate([[0], np.cumsum(self.row_lengths[self.order])])
        return np.diff(total[self.starts])

    def account(self, batch_size: int) -> Packed:
        """Return what this packing did, for batches of `batch_size` sequences."""
        rows, sequences = len(self.row_lengths), len(self)
        per_batch = max(1, round(batch_size * rows / sequences)) if sequences else 1
        return Packed(
            rows=rows,
            sequences=sequences,
            tokens=int(self.row_lengths.sum()),
            capacity=self.capacity,
            padding=shuffled_padding(self.lengths, batch_size),
            unpacked_padding=shuffled_padding(self.row_lengths, per_batch),
        )


def pack(lengths: Sequence[int] | np.ndarray[Any, Any], capacity: int) -> Packing:
    """Put rows of `lengths` tokens together into sequences of at most `capacity` tokens (best-fit decreasing).

    Equal lengths give equal sequences. Raises DataError for a row that no sequence can hold. The method: Ding et al.
    2024, Fewer Truncations Improve Language Modeling (arXiv:2404.10830).
    """
    row_lengths = np.asarray(lengths, np.int64)
    if len(row_lengths) and not 1 <= row_lengths.min() <= row_lengths.max() <= capacity:
        wrong = next(int(length) for length in row_lengths if not 1 <= length <= capacity)
        raise DataError(f"a row has {wrong:,} tokens, and a packed sequence holds 1 to {capacity:,}")
    by_length = np.argsort(-row_lengths, kind="stable")
    spaces: list[int] = []  # room left, each figure once, sorted
    having: defaultdict[int, deque[int]] = defaultdict(deque)  # the sequences that have it, oldest first
    chosen = np.empty(len(row_lengths), np.int64)
    count = 0
    for place, length in enumerate(row_lengths[by_length].tolist()):
        at = bisect_left(spaces, length)
        if at == len(spaces):
            space, sequence, count = capacity, count, count + 1
        else:
            space = spaces[at]
            sequence = having[space].popleft()
            if not having[space]:
                del spaces[at]
        chosen[place] = sequence
        if left := space - length:
            if not having[left]:
                insort(spaces, left)
            having[left].append(sequence)
    together = np.argsort(chosen, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(chosen, minlength=count))])
    return Packing(row_lengths, capacity, by_length[together], starts)


def shuffled_padding(lengths: Sequence[int] | np.ndarray[Any, Any], batch_size: int) -> float:
    """Return the share of padding where sequences of `lengths` are drawn in batches, shuffled as the trainer does."""
    shuffled = np.asarray(lengths, np.int64)[np.random.default_rng(0).permutation(len(lengths))]
    return padding(shuffled, shuffled, batch_size)
