"""Rows in chunks, their tokens as flat arrays: a check of a million rows is then a few array operations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from llmkit.data.splits import Row
from llmkit.data.store import TOKENS, Listed, Rows, Stored

CHUNK = 4096
"""Rows that are looked at together."""

Array = Any
"""A numpy array; its dtype stands in the docstrings."""


@dataclass(frozen=True)
class Column:
    """One column of token ids of a chunk: all values in one array, and where each row's begin and end."""

    values: Array
    """int64[all tokens of the chunk]"""
    offsets: Array
    """int64[rows + 1]: row i has values[offsets[i]:offsets[i + 1]]."""

    @property
    def lengths(self) -> Array:
        """Tokens of each row: int64[rows]."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> Array:
        """The row of each token: int64[tokens]."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)

    def first(self, position: int = 0) -> Array:
        """Return each row's token at `position` from its start, -1 where the row is shorter: int64[rows]."""
        return self._at(self.offsets[:-1] + position, self.lengths > position)

    def last(self, position: int = 0) -> Array:
        """Return each row's token at `position` from its end, -1 where the row is shorter: int64[rows]."""
        return self._at(self.offsets[1:] - 1 - position, self.lengths > position)

    def _at(self, places: Array, there: Array) -> Array:
        found = np.full(len(there), -1, np.int64)
        found[there] = self.values[places[there]]
        return found


@dataclass(frozen=True)
class Chunk:
    """Some rows: their positions in the split, and their tokens by column."""

    positions: Array
    columns: dict[str, Column]

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def __contains__(self, name: str) -> bool:
        return name in self.columns


def as_rows(rows: Sequence[Row]) -> Rows:
    """Return `rows` with their counts."""
    return rows if isinstance(rows, Rows) else Rows([Listed(rows)])


def once(rows: Rows) -> Rows:
    """Return `rows` without the repetitions that the mix asks for, in the order of the sources."""
    _, first = np.unique(rows.order, return_index=True)
    return rows.take(first)


def spread(count: int, most: int) -> Array:
    """Return at most `most` positions, evenly spread over `count`: int64[<= most]."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def chunks(rows: Rows) -> Iterator[Chunk]:
    """Yield all of `rows` in chunks, in no particular order."""
    for shard, inside, positions in _by_shard(rows):
        if isinstance(shard, Stored):
            yield from _stored(shard, inside, positions)
        else:
            for start in range(0, len(inside), CHUNK):
                some = [shard.row(int(i)) for i in inside[start : start + CHUNK]]
                yield Chunk(positions[start : start + CHUNK], _columns(some))


def examples(rows: Rows, positions: Array) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield position and example of the rows at `positions`; of stored rows, nothing else is read."""
    for shard, inside, found in _by_shard(rows.take(positions)):
        if isinstance(shard, Stored):
            for batch, local, places in _batches(shard, inside, found):
                texts = batch["example"].take(local).to_pylist()
                yield from zip(positions[places].tolist(), map(json.loads, texts), strict=True)
        else:
            for place, index in zip(positions[found].tolist(), inside.tolist(), strict=True):
                yield place, shard.row(index).example


def _by_shard(rows: Rows) -> Iterator[tuple[Any, Array, Array]]:
    """Yield each source's rows: the shard, the indices in it, rising, and their positions in `rows`."""
    sources = rows.sources
    for number, shard in enumerate(rows.shards):
        positions = np.flatnonzero(sources == number)
        inside = rows.order[positions] - rows.starts[number]
        rising = np.argsort(inside, kind="stable")
        if len(positions):
            yield shard, inside[rising], positions[rising]


def _batches(shard: Stored, inside: Array, positions: Array) -> Iterator[tuple[Any, Array, Array]]:
    """Yield Arrow batches of at most CHUNK rows, the indices in them that are wanted, and their positions."""
    import pyarrow as arrow

    # Read and not mapped: the pages of a mapped file would all be resident after one pass over them.
    batches = arrow.ipc.open_stream(arrow.OSFile(str(shard.path)))
    for start, batch in zip(shard.starts[:-1], batches, strict=True):
        for begin in range(0, batch.num_rows, CHUNK):
            part = batch.slice(begin, CHUNK)
            low, high = np.searchsorted(inside, [start + begin, start + begin + part.num_rows])
            if high > low:
                yield part, arrow.array(inside[low:high] - start - begin), positions[low:high]


def _stored(shard: Stored, inside: Array, positions: Array) -> Iterator[Chunk]:
    for batch, local, places in _batches(shard, inside, positions):
        columns = {}
        for name in TOKENS:
            if name in batch.schema.names:
                lists = batch[name].take(local)
                values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
                lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
                columns[name] = Column(values, np.cumsum([0, *lengths], dtype=np.int64))
        yield Chunk(places, columns)


def _columns(rows: Sequence[Row]) -> dict[str, Column]:
    found = {}
    for name in (name for name in TOKENS if name in rows[0].tokens):
        lists = [row.tokens[name] for row in rows]
        offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        found[name] = Column(np.fromiter(chain.from_iterable(lists), np.int64, offsets[-1]), offsets)
    return found
