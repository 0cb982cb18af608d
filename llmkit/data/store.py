"""Tokenized rows: read one at a time from a memory-mapped file, counted as arrays.

A million rows as Python lists are several gigabytes. A source's rows are therefore written to one Arrow file, and read
from it when they are needed; what is counted of them (lengths, trained tokens) stands beside them as arrays.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from llmkit.data.splits import ANSWERS, Row

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

TOKENS = ("input_ids", "labels", "prompt_ids", *ANSWERS)
WEIGHTS = "loss_weights"
VERDICTS = (None, "good", "bad")
FACTS = {
    "longest": np.int32,
    "total": np.int32,
    "trained": np.int32,
    "truncated": np.bool_,
    "part": np.int32,
    "verdict": np.int8,
    "digest": np.uint64,
}
"""What is counted of a row, and its type; `verdict` is an index into VERDICTS."""

Facts = dict[str, "np.ndarray[Any, Any]"]


def digest(sequences: Iterable[list[int]]) -> int:
    """Return 64 bits of a hash of what the model reads."""
    hashed = hashlib.blake2b(digest_size=8)
    for sequence in sequences:
        hashed.update(array("i", sequence).tobytes())
        hashed.update(b"|")
    return int.from_bytes(hashed.digest())


def facts_of(row: Row) -> tuple[int, int, int, bool, int, int, int]:
    """Return what is counted of `row`, in the order of FACTS."""
    sequences = row.sequences
    lengths = [len(sequence) for sequence in sequences]
    verdict = VERDICTS.index(row.verdict)
    return max(lengths), sum(lengths), row.trained_tokens, row.truncated, row.part, verdict, digest(sequences)


def _columns(facts: Sequence[tuple[Any, ...]]) -> Facts:
    values = list(zip(*facts, strict=True)) or [()] * len(FACTS)
    return {name: np.array(column, dtype) for (name, dtype), column in zip(FACTS.items(), values, strict=True)}


class Shard(Protocol):
    """The kept rows of one source."""

    facts: Facts

    def row(self, index: int) -> Row:
        """Return the row at `index`."""


class Listed:
    """Rows in memory, their examples as they are."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self.facts = _columns([facts_of(row) for row in self.rows])

    def row(self, index: int) -> Row:
        """Return the row at `index`."""
        return self.rows[index]


class Stored:
    """Rows in an Arrow file; only those that are asked for are read."""

    def __init__(self, path: Path, source: str) -> None:
        import pyarrow as arrow

        self.path, self.source = path, source
        self.batches = arrow.ipc.open_stream(arrow.memory_map(str(path))).read_all().to_batches()
        self.starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)])
        self.facts = {name: self._fact(name, dtype) for name, dtype in FACTS.items()}
        self.weighted = any(batch[WEIGHTS].null_count < batch.num_rows for batch in self.batches)

    def _fact(self, name: str, dtype: Any) -> Any:
        parts = [batch[name].to_numpy(zero_copy_only=False) for batch in self.batches]
        return np.concatenate(parts) if parts else np.array([], dtype)

    def row(self, index: int) -> Row:
        """Return the row at `index`."""
        place = int(np.searchsorted(self.starts, index, side="right")) - 1
        values = self.batches[place].slice(index - int(self.starts[place]), 1).to_pylist()[0]
        tokens = {name: values[name] for name in (*TOKENS, WEIGHTS) if values.get(name) is not None}
        return Row(
            values["where"],
            json.loads(values["example"]),
            tokens,
            self.source,
            truncated=values["truncated"],
            part=values["part"],
        )


def packed_batch(rows: Sequence[Row]) -> bytes:
    """Return rows as an Arrow stream of one batch; all rows of a file have the same columns of tokens.

    Raises TypeError or ValueError for an example that is no JSON in UTF-8.
    """
    import pyarrow as arrow

    if not rows:
        return b""
    ids, factors = arrow.list_(arrow.int32()), arrow.list_(arrow.float32())
    columns: dict[str, Any] = {
        "where": arrow.array([row.where for row in rows], arrow.string()),
        "example": arrow.array([json.dumps(row.example, ensure_ascii=False) for row in rows], arrow.large_string()),
        WEIGHTS: arrow.array([row.tokens.get(WEIGHTS) for row in rows], factors),
    }
    for name in (name for name in rows[0].tokens if name != WEIGHTS):
        columns[name] = arrow.array([row.tokens[name] for row in rows], ids)
    columns |= {name: arrow.array(values) for name, values in _columns([facts_of(row) for row in rows]).items()}
    batch = arrow.record_batch(columns)
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return bytes(sink.getvalue())


class Writer:
    """Writes batches of rows to an Arrow file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: pyarrow.ipc.RecordBatchStreamWriter | None = None

    def write(self, batch: bytes) -> None:
        """Append what `packed_batch` has made."""
        import pyarrow as arrow

        if not batch:
            return
        with arrow.ipc.open_stream(batch) as stream:
            if self._stream is None:
                self._stream = arrow.ipc.new_stream(str(self.path), stream.schema)
            for one in stream:
                self._stream.write_batch(one)

    def close(self) -> None:
        """Finish the file; one without rows is made as well."""
        import pyarrow as arrow

        if self._stream is None:
            names = {"where": arrow.string(), "example": arrow.large_string(), WEIGHTS: arrow.list_(arrow.float32())}
            facts = {name: arrow.from_numpy_dtype(dtype) for name, dtype in FACTS.items()}
            self._stream = arrow.ipc.new_stream(str(self.path), arrow.schema(list((names | facts).items())))
        self._stream.close()


class Rows(Sequence[Row]):
    """Rows of one or several sources, in an order; a row may stand in it more than once."""

    def __init__(self, shards: Sequence[Shard], order: Any = None) -> None:
        self.shards = tuple(shards)
        self.starts = np.cumsum([0, *(len(shard.facts["digest"]) for shard in self.shards)])
        """Number of the first row of each shard, among the rows of all shards."""
        self.order = np.arange(self.starts[-1]) if order is None else np.asarray(order, np.int64)
        """Number of each row among those of all shards."""

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = int(self.order[index])
        shard = int(np.searchsorted(self.starts, place, side="right")) - 1
        return self.shards[shard].row(place - int(self.starts[shard]))

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def take(self, indices: Any) -> Rows:
        """Return the rows at `indices`, an array of numbers or of booleans."""
        return Rows(self.shards, self.order[indices])

    def fact(self, name: str) -> Any:
        """Return what FACTS names of each row, as an array."""
        if not self.shards:
            return np.array([], FACTS[name])
        return np.concatenate([shard.facts[name] for shard in self.shards])[self.order]

    @property
    def sources(self) -> Any:
        """The index of each row's source, as an array."""
        return np.searchsorted(self.starts, self.order, side="right") - 1

    @property
    def lengths(self) -> Any:
        """Tokens of each row's longest sequence, as an array."""
        return self.fact("longest")

    @property
    def totals(self) -> Any:
        """Tokens of each row's sequences, as an array."""
        return self.fact("total")

    @property
    def trained(self) -> Any:
        """Trained tokens of each row, as an array."""
        return self.fact("trained")

    @property
    def digests(self) -> Any:
        """64 bits for each row of what the model reads, as an array: rows of equal digests read the same."""
        return self.fact("digest")

    def dataset(self) -> Dataset:
        """Return the tokens as a data set, in this order; those of stored rows stay in their files.

        `loss_weights` is there only if a row has them, and None for rows that have none.
        """
        import datasets

        if not all(isinstance(shard, Stored) for shard in self.shards):
            return _in_memory(self)
        stored = [shard for shard in self.shards if isinstance(shard, Stored) and len(shard.facts["digest"])]
        found = datasets.concatenate_datasets([datasets.Dataset.from_file(str(shard.path)) for shard in stored])
        weighted = any(shard.weighted for shard in stored)
        names = [name for name in found.column_names if name in TOKENS or (name == WEIGHTS and weighted)]
        return found.select_columns(names).select(self.order)


def _in_memory(rows: Sequence[Row]) -> Dataset:
    from datasets import Dataset

    names = [name for name in TOKENS if rows and name in rows[0].tokens]
    columns: dict[str, list[Any]] = {name: [row.tokens[name] for row in rows] for name in names}
    if any(WEIGHTS in row.tokens for row in rows):
        columns[WEIGHTS] = [row.tokens.get(WEIGHTS) for row in rows]
    return Dataset.from_dict(columns)


def token_dataset(rows: Sequence[Row]) -> Dataset:
    """Return the tokens of `rows` as a data set, in their order; its columns are TRL's (see `Row.tokens`)."""
    return rows.dataset() if isinstance(rows, Rows) else _in_memory(rows)


def digests(rows: Sequence[Row]) -> Any:
    """Return 64 bits for each row of what the model reads, as an array."""
    return (rows if isinstance(rows, Rows) else Rows([Listed(rows)])).digests
