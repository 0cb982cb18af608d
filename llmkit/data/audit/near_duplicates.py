"""Rows that are almost the same: MinHash finds the candidates, their words decide.

A row is the set of its runs of three words. Runs that many rows share (an instruction, a form) tell nothing and are
left out, and a row of which too little is left is not judged. Candidates have a band of their MinHash signature in
common (Broder 1997; Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, ch. 3); two rows are near where the
Jaccard similarity of the sets is at least `data.audit.similarity`, computed from the sets themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llmkit.data.audit.columns import Array
from llmkit.data.audit.findings import PLACES, Finding, counted, from_share, noteworthy
from llmkit.data.audit.repeats import COMMON, FEW
from llmkit.data.audit.words import Sample, Texts, distinct, mixed, runs
from llmkit.recipe.recipe import Audit

RUN = 3
"""Words in a run."""

JUDGED = 8
"""Distinct runs that a row must have to be judged."""

BANDS, DEPTH = 16, 4
"""Values of a signature: rows of similarity s share a band with probability 1 - (1 - s^4)^16, 0.9998 at 0.8."""

COMPARED = 5
"""Members of a band's bucket, the first ones, that each other member is compared with."""

SEED = 42
ROWS, BITS = np.uint64(20), np.uint64(44)
"""Bits of a row's number and of a run's hash, which are sorted as one."""


@dataclass(frozen=True)
class Sets:
    """The telling runs of each row: row i has runs[offsets[i]:offsets[i + 1]], rising."""

    runs: Array
    offsets: Array

    def similarity(self, one: int, other: int) -> float:
        """Return the Jaccard similarity of two rows."""
        a, b = (self.runs[self.offsets[i] : self.offsets[i + 1]] for i in (one, other))
        common = len(np.intersect1d(a, b, assume_unique=True))
        return common / (len(a) + len(b) - common)


def sets_of(values: Array, offsets: Array) -> Sets:
    """Return the runs of each row's words, without those that many rows share; of at most 2^20 rows."""
    hashes, starts = runs(values, offsets, RUN)
    owners = np.repeat(np.arange(len(offsets) - 1, dtype=np.uint64), np.diff(offsets))[starts]
    by_run, _ = distinct((hashes >> ROWS << ROWS) | owners)
    _, counts = distinct(by_run >> ROWS)
    telling = np.repeat(counts, counts) <= max(FEW, COMMON * (len(offsets) - 1))
    kept = by_run[telling]
    by_row = np.sort((kept << BITS) | (kept >> ROWS))
    sizes = np.bincount((by_row >> BITS).astype(np.int64), minlength=len(offsets) - 1)
    return Sets(by_row & ((np.uint64(1) << BITS) - np.uint64(1)), np.concatenate([[0], np.cumsum(sizes)]))


def near_pairs(sets: Sets, similarity: float) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows, the later one first, whose similarity is at least `similarity`; each later row once."""
    from rensa import RMinHash

    judged = np.flatnonzero(np.diff(sets.offsets) >= JUDGED)
    if len(judged) < 2:
        return
    # The library takes rows that follow each other: those that are not judged are taken along.
    signatures = RMinHash.digest_matrix_from_flat_token_hashes(mixed(sets.runs), sets.offsets, BANDS * DEPTH, SEED)
    found: set[int] = set()
    for later, earlier in _candidates(np.array(signatures.to_rows(), np.uint64)[judged]):
        one, other = int(judged[later]), int(judged[earlier])
        if one not in found and sets.similarity(one, other) >= similarity:
            found.add(one)
            yield one, other


def _candidates(signatures: Array) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows that share a band, later before earlier, by rising later row."""
    pairs = []
    places = np.arange(len(signatures))
    for band in range(BANDS):
        key = np.zeros(len(signatures), np.uint64)
        for column in range(band * DEPTH, (band + 1) * DEPTH):
            key = mixed(key + signatures[:, column] + np.uint64(1))
        order = np.argsort(key, kind="stable")
        new = np.concatenate([[True], key[order][1:] != key[order][:-1]])
        start = np.maximum.accumulate(np.where(new, places, 0))
        for nth in range(COMPARED):
            later = np.flatnonzero(start + nth < places)
            pairs.append((order[later] << 32) | order[start[later] + nth])
    for pair in distinct(np.concatenate(pairs))[0].tolist():
        yield pair >> 32, pair & 0xFFFFFFFF


def near_findings(
    train: Sample, held_out: Sample, train_texts: Texts, held_out_texts: Texts, limits: Audit
) -> Iterator[Finding]:
    """Find training rows near another one, and held-out rows near a training row; exact repeats are left out."""
    border = len(train)
    offsets = train_texts.joined(border)
    after = held_out_texts.joined(len(held_out))[1:] + offsets[-1]
    values = np.concatenate([train_texts.values, held_out_texts.values])
    within, across = [], []
    for later, earlier in near_pairs(sets_of(values, np.concatenate([offsets, after])), limits.similarity):
        if later < border:
            within.append((later, earlier))
        elif earlier < border:
            across.append((later - border, earlier))
    yield from _near(train, within, limits)
    yield from _overlap(train, held_out, across, limits)


def _near(train: Sample, pairs: list[tuple[int, int]], limits: Audit) -> Iterator[Finding]:
    if noteworthy(len(pairs), len(train)):
        later, earlier = pairs[0]
        yield Finding(
            "near_duplicates",
            from_share(limits, "near_duplicates", len(pairs), len(train)),
            f"{counted(len(pairs), len(train), 'different training rows')}{train.note} are almost the same as another "
            f"one, e.g. {train.where(later)} and {train.where(earlier)}",
            len(pairs),
            len(train),
            tuple(train.where(later) for later, _ in pairs[:PLACES]),
            "Keep one of each: repeated rows are learnt by heart.",
        )


def _overlap(train: Sample, held_out: Sample, pairs: list[tuple[int, int]], limits: Audit) -> Iterator[Finding]:
    if noteworthy(len(pairs), len(held_out)):
        later, earlier = pairs[0]
        yield Finding(
            "overlap",
            from_share(limits, "overlap", len(pairs), len(held_out)),
            f"{counted(len(pairs), len(held_out), 'held-out rows')}{held_out.note} are almost the same as a training "
            f"row{train.note}, e.g. {held_out.where(later)} and {train.where(earlier)}: scores on them say little",
            len(pairs),
            len(held_out),
            tuple(held_out.where(later) for later, _ in pairs[:PLACES]),
            "Take them out of one of the two.",
        )
