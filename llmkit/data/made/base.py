"""What the made data sets share: seeded choices, and splits that no row is in twice."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from llmkit.errors import DataError, did_you_mean

SPLITS = ("train", "test")
_TEST_SHARE = 5  # every fifth row, by the checksum of its text

T = TypeVar("T")


def distinct(
    make: Callable[[random.Random], tuple[str, T]], *, name: str, split: str, sizes: dict[str, int], seed: int
) -> Iterator[T]:
    """Yield the first `sizes[split]` values that `make` gives for different texts of `split`, always the same ones.

    `make` returns a text and the value for it; the text alone decides on the split. Raises DataError if there is no
    such split.
    """
    if split not in SPLITS:
        raise DataError(
            f"no split {split!r}{did_you_mean(split, SPLITS)}",
            where=f"made:{name}",
            remedy=f"Splits: {', '.join(SPLITS)}.",
        )
    return _distinct(make, split, sizes[split], random.Random(seed))


def _distinct(make: Callable[[random.Random], tuple[str, T]], split: str, size: int, rng: random.Random) -> Iterator[T]:
    seen: set[str] = set()
    while len(seen) < size:
        text, value = make(rng)
        if text not in seen and _split_of(text) == split:
            seen.add(text)
            yield value


def _split_of(text: str) -> str:
    # A checksum, because Python's own hash of a string changes from run to run.
    return "train" if zlib.crc32(text.encode()) % _TEST_SHARE else "test"


def pick(rng: random.Random, choices: Sequence[T]) -> T:
    """Return one of `choices`, the same for the same state of `rng` in every version of Python."""
    # Only `random()` is promised to give the same numbers in every Python version.
    return choices[int(rng.random() * len(choices))]
