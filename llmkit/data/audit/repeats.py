"""Rows that say the same as others, or the opposite: exact repeats, shared prompts, contradicting judgements."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llmkit.data.audit.columns import Array
from llmkit.data.audit.findings import Finding, counted, from_share, noteworthy, places
from llmkit.data.audit.sequences import Seen, pairs_of, prompts_of
from llmkit.data.store import VERDICTS, Rows
from llmkit.recipe.recipe import Audit

COMMON = 0.05
"""Share of the rows from which on what they have in common is an instruction and no leak."""

FEW = 20
"""Number of rows up to which nothing is that common."""


def duplicates(rows: Rows, limits: Audit) -> Iterator[Finding]:
    """Find training rows of which the model reads the same as of an earlier one."""
    _, first, inverse, counts = np.unique(rows.digests, return_index=True, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(rows)))
    if noteworthy(len(repeated), len(rows)):
        most = int(counts.argmax())
        yield Finding(
            "duplicates",
            from_share(limits, "duplicates", len(repeated), len(rows)),
            f"{counted(len(repeated), len(rows), 'training rows')} repeat an earlier one; "
            f"{rows[int(first[most])].where} stands there {int(counts[most]):,} times",
            len(repeated),
            len(rows),
            places(rows, repeated),
            "Leave the repetitions out; to weigh rows on purpose, use the source's `repeat` or `weight`.",
        )


def same_prompts(train: Seen, held_out: Seen, rows: Rows) -> Iterator[Finding]:
    """Find held-out `rows` whose prompt is trained with another answer."""
    _, trained = prompts_of(train)
    positions, prompts = prompts_of(held_out)
    values, counts = np.unique(trained, return_counts=True)
    # A prompt that a large part of the rows shares ("Write a story.") is an instruction; nothing leaks by it.
    telling = values[counts <= max(FEW, COMMON * len(trained))]
    found = np.sort(positions[np.isin(prompts, telling)])
    if noteworthy(len(found), len(positions)):
        yield Finding(
            "same_prompt",
            "warning",
            f"{counted(len(found), len(positions), 'held-out rows')} have a prompt that is trained too, with another "
            "answer: scores on them tell little about new prompts",
            len(found),
            len(positions),
            places(rows, found),
            "Hold out whole prompts: give `data.eval` sources of its own.",
        )


def contradictions(rows: Rows, seen: Seen) -> Iterator[Finding]:
    """Find answers that one row calls better, or good, and another one worse, or bad."""
    found = np.sort(np.concatenate([_opposite_pairs(seen), _opposite_verdicts(rows)]))
    if noteworthy(len(found), len(rows)):
        yield Finding(
            "contradictions",
            "warning",
            f"{counted(len(found), len(rows), 'training rows')} judge the same answers the other way than another row "
            "does",
            len(found),
            len(rows),
            places(rows, found),
            "Keep one of the judgements: together they teach nothing.",
        )


def _opposite_pairs(seen: Seen) -> Array:
    table = pairs_of(seen)
    forward, backward = (_keys(table[:, columns]) for columns in ((1, 2, 3), (1, 3, 2)))
    return table[np.isin(forward, backward), 0].astype(np.int64)


def _keys(columns: Array) -> Array:
    """Return one uint64 for each row of `columns`, which depends on their order."""
    return columns[:, 0] + columns[:, 1] * np.uint64(3) + columns[:, 2] * np.uint64(5)


def _opposite_verdicts(rows: Rows) -> Array:
    verdicts, digests = rows.fact("verdict"), rows.digests
    good, bad = (digests[verdicts == VERDICTS.index(name)] for name in ("good", "bad"))
    return np.flatnonzero(np.isin(digests, np.intersect1d(good, bad)))
