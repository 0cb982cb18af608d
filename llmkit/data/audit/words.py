"""The texts of some rows, their words as numbers, and runs of words as hashes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from llmkit.data.audit.columns import Array, examples, spread
from llmkit.data.store import Rows

# Scripts without spaces: each character counts as a word. Signs that carry meaning (+, -, %, =) count as words too,
# since "2 + 3" and "2 - 3" are different questions; punctuation does not.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[^\W{_SPACELESS}]+|[{_SPACELESS}]|[^\w\s.,;:!?'\"`()\[\]“”‘’、。，？！：；]")

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = np.uint64(0x9E3779B97F4A7C15)

Turn = tuple[str, str]
"""Role and text."""


@dataclass(frozen=True)
class Sample:
    """Some rows of a split, none of which says the same as another, with their examples."""

    rows: Rows
    positions: Array
    """Positions in `rows`, rising: int64[looked at]."""
    examples: list[dict[str, Any]]
    distinct: int
    """Rows of the split that say something different."""

    @classmethod
    def of(cls, rows: Rows, most: int) -> Sample:
        """Return at most `most` rows, evenly spread over those that differ from each other.

        The pieces of a split row have one example, so it is looked at once.
        """
        heads = np.flatnonzero(rows.fact("part") == 0)
        _, first = np.unique(rows.digests[heads], return_index=True)
        distinct = heads[np.sort(first)]
        positions = distinct[spread(len(distinct), most)]
        read = dict(examples(rows, positions))
        return cls(rows, positions, [read[place] for place in positions.tolist()], len(distinct))

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def note(self) -> str:
        """Say that not all rows were looked at, where that is so."""
        return "" if len(self) == self.distinct else f" (looked at: {len(self):,} of {self.distinct:,})"

    def where(self, index: int) -> str:
        """Return the place of one of these rows."""
        return self.rows[int(self.positions[index])].where


@dataclass(frozen=True)
class Texts:
    """Texts as numbers: text i has words values[offsets[i]:offsets[i + 1]] and belongs to row owners[i], rising."""

    values: Array
    offsets: Array
    owners: Array

    @property
    def lengths(self) -> Array:
        """Words of each text: int64[texts]."""
        return np.diff(self.offsets)

    def runs(self, length: int) -> tuple[Array, Array]:
        """Return the hashes of all runs of `length` words within one text, and the text of each."""
        hashes, starts = runs(self.values, self.offsets, length)
        return hashes, np.repeat(np.arange(len(self.owners)), self.lengths)[starts]

    def joined(self, rows: int) -> Array:
        """Return the offsets of `values` by row, where all texts of a row are taken as one: int64[rows + 1]."""
        return self.offsets[np.searchsorted(self.owners, np.arange(rows + 1))]


class Vocabulary(dict[str, int]):
    """Gives each word a number, the same wherever it stands."""

    def __missing__(self, word: str) -> int:
        self[word] = len(self)
        return self[word]

    def texts(self, rows: Iterable[Sequence[str]]) -> Texts:
        """Return the texts of some rows in numbers."""
        lists, owners = [], []
        for index, texts in enumerate(rows):
            for text in texts:
                lists.append([self[word] for word in words(text)])
                owners.append(index)
        offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        values = np.fromiter(chain.from_iterable(lists), np.int64, offsets[-1])
        return Texts(values, offsets, np.array(owners, np.int64))


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def turns(example: Mapping[str, Any]) -> Iterator[Turn]:
    """Yield role and text of what the model reads and writes; strings have the role `user` or `assistant`.

    Columns that only rewards read (`answer` of a prompt) are left out.
    """
    roles = {"messages": "user", "prompt": "user", "text": "assistant"}
    answers = dict.fromkeys(("completion", "chosen", "rejected"), "assistant")
    for name, role in (roles | answers).items():
        value = example.get(name)
        if isinstance(value, str):
            yield role, value
        elif isinstance(value, Sequence):
            yield from ((message["role"], message.get("content") or "") for message in value)


def said(example: Mapping[str, Any]) -> list[str]:
    """Return the texts of a row but for its system prompt, which rows share by design."""
    return [text for role, text in turns(example) if role != "system"]


def question_and_answer(example: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the last thing asked and the (better) answer to it; None for a row that has none."""
    told = list(turns({name: value for name, value in example.items() if name != "rejected"}))
    answer = next((i for i in reversed(range(len(told))) if told[i][0] == "assistant" and told[i][1].strip()), None)
    if answer is None or "text" in example:
        return None
    asked = next((text for role, text in reversed(told[:answer]) if role == "user"), "")
    return asked, told[answer][1]


def mixed(values: Array) -> Array:
    """Return uint64 values with their bits well spread (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))


def runs(values: Array, offsets: Array, length: int) -> tuple[Array, Array]:
    """Return the hashes of all runs of `length` values that lie within one row, and where each begins.

    `values` is int64[n], row i has values[offsets[i]:offsets[i + 1]]; both results have one element for each run.
    """
    if len(values) < length:
        return np.array([], np.uint64), np.array([], np.int64)
    count = len(values) - length + 1
    spots = mixed(values.astype(np.uint64) + np.uint64(1))
    hashes = np.zeros(count, np.uint64)
    for shift in range(length):
        hashes = hashes * _STEP + spots[shift : shift + count]
    ends = np.repeat(offsets[1:], np.diff(offsets))
    starts = np.flatnonzero(np.arange(count) + length <= ends[:count])
    return mixed(hashes[starts]), starts


def fingerprints(values: Array, offsets: Array) -> Array:
    """Return a hash of each row's values, in their order: uint64[rows]; all empty rows have the same."""
    places = np.arange(len(values)) - np.repeat(offsets[:-1], np.diff(offsets))
    spots = mixed(values.astype(np.uint64) * _STEP + mixed(places.astype(np.uint64) + np.uint64(1)))
    # Sums over rows as differences of a running sum, which wraps around without harm.
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(spots, dtype=np.uint64)])
    return mixed(running[offsets[1:]] - running[offsets[:-1]] + np.diff(offsets).astype(np.uint64))


def distinct(values: Array) -> tuple[Array, Array]:
    """Return the distinct values, rising, and how often each stands there (numpy.unique hashes, which takes longer)."""
    rising = np.sort(values)
    new = np.flatnonzero(np.concatenate([[True], rising[1:] != rising[:-1]])) if len(rising) else np.array([], np.int64)
    return rising[new], np.diff(np.append(new, len(rising)))
