"""Rows of the recipe's own benchmarks among the training rows: scores on them would measure memory.

A benchmark is what the recipe scores with: held-out sources, files of prompts that an evaluation names, and the
sources in `data.audit.benchmarks`. Its texts are cut into runs of `data.audit.ngram` words (13, as for GPT-3: Brown et
al. 2020, appendix C); a shorter text is one run, and one of fewer than 8 words is left out, as there. Runs that many
rows share, on either side, are instructions. A text is found where most of its runs stand in training rows: a single
one is too often a turn of phrase. (PaLM, Chowdhery et al. 2022, section 8, has the same share, of shorter runs.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.data.audit.columns import Array
from llmkit.data.audit.findings import PLACES, Finding, counted, from_share
from llmkit.data.audit.repeats import COMMON, FEW
from llmkit.data.audit.words import Sample, Texts, Vocabulary, distinct, turns
from llmkit.data.sources import read_rows
from llmkit.recipe.recipe import Recipe, Source

LEAST = 8
"""Words of the shortest text that is looked for."""

COVERED = 0.7
"""Share of a text's runs that must stand in training rows."""


@dataclass(frozen=True)
class Benchmark:
    """Rows to look for."""

    name: str
    rows: int
    where: Callable[[int], str]
    """Says the place of a row."""
    texts: Texts


def benchmarks(recipe: Recipe, held_out: Sample, vocabulary: Vocabulary) -> list[Benchmark]:
    """Read what the recipe scores with.

    Raises what reading a source raises, where a benchmark is missing or broken.
    """
    found = []
    if isinstance(recipe.data.eval, tuple) and len(held_out):
        texts = vocabulary.texts(map(_asked, held_out.examples))
        found.append(Benchmark("the held-out rows", len(held_out), held_out.where, texts))
    for source in (*_prompt_files(recipe), *recipe.evaluated, *recipe.data.audit.benchmarks):
        rows = list(read_rows(source, recipe.folder))
        texts = vocabulary.texts(list(strings(row)) for _, row in rows)
        found.append(Benchmark(source.path, len(rows), [where for where, _ in rows].__getitem__, texts))
    return found


def _prompt_files(recipe: Recipe) -> list[Source]:
    """Return the files of prompts that evaluations name, each once: those that read one have the field `prompts`."""
    named = (getattr(evaluation, "prompts", None) for evaluation in recipe.evaluation)
    paths = dict.fromkeys(str(Path(path).expanduser()) for path in named if isinstance(path, str))
    return [Source(path=path) for path in paths]


def _asked(example: Mapping[str, Any]) -> list[str]:
    """Return what a held-out row asks: short answers are alike in rows that are not."""
    return [text for role, text in turns(example) if role == "user" or "text" in example]


def strings(value: Any) -> Iterator[str]:
    """Yield all strings in a row of any layout but for system prompts, which rows share by design."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if value.get("role", value.get("from")) != "system":
            yield from (found for key, inner in value.items() if key != "system" for found in strings(inner))
    elif isinstance(value, Sequence):
        yield from (found for inner in value for found in strings(inner))


def contamination(train: Sample, texts: Texts, found: Iterable[Benchmark], recipe: Recipe) -> Iterator[Finding]:
    """Say which benchmarks stand in the training rows, whose `texts` have the numbers of the same vocabulary."""
    held = {
        length: _first_rows(texts, length, len(train))
        for length in sorted({length for one in found for length in _lengths(one, recipe.data.audit.ngram).tolist()})
        if length >= LEAST
    }
    for one in found:
        matches = _matches(one, held, recipe.data.audit.ngram)
        if matches:
            owner, index = next(iter(matches.items()))
            yield Finding(
                "contamination",
                from_share(recipe.data.audit, "contamination", len(matches), one.rows, few=0),
                f"{one.name}: {counted(len(matches), one.rows)} stand in training rows{train.note}, e.g. "
                f"{one.where(owner)} in {train.where(index)}: scores on them would measure memory",
                len(matches),
                one.rows,
                tuple(train.where(index) for index in list(dict.fromkeys(matches.values()))[:PLACES]),
                "Take these rows out of the training rows, or score with other ones.",
            )


def _lengths(one: Benchmark, ngram: int) -> Array:
    """Return the length of the runs by which each text is looked for: int64[texts]."""
    return np.minimum(one.texts.lengths, ngram)


def _first_rows(texts: Texts, length: int, rows: int) -> tuple[Array, Array]:
    """Return the runs of `length` words of the training rows, rising, and the first row of each; -1 if too many."""
    hashes, of_text = texts.runs(length)
    owners = texts.owners[of_text]
    order = np.argsort(hashes, kind="stable")
    rising, counts = distinct(hashes)
    starts = np.cumsum(counts) - counts
    # A run that many rows have is an instruction. (One that a row repeats counts each time, which is rare.)
    return rising, np.where(counts > max(FEW, COMMON * rows), -1, owners[order[starts]])


def _matches(one: Benchmark, held: Mapping[int, tuple[Array, Array]], ngram: int) -> dict[int, int]:
    """Return the rows of a benchmark that are found, each with a training row that it stands in."""
    lengths = _lengths(one, ngram)
    found: dict[int, int] = {}
    for length, (rising, first) in held.items():
        hashes, of_text = one.texts.runs(length)
        mine = lengths[of_text] == length
        hashes, of_text = hashes[mine], of_text[mine]
        if not len(hashes) or not len(rising):
            continue
        telling = ~np.isin(hashes, _shared(hashes, one.texts.owners[of_text], one.rows))
        spots = np.minimum(np.searchsorted(rising, hashes), len(rising) - 1)
        place = np.where(telling & (rising[spots] == hashes), first[spots], -1)
        telling &= ~((rising[spots] == hashes) & (first[spots] < 0))
        hits = np.bincount(of_text[place >= 0], minlength=len(lengths))
        wanted = np.bincount(of_text[telling], minlength=len(lengths))
        first_hit = np.full(len(lengths), -1)
        first_hit[of_text[place >= 0][::-1]] = place[place >= 0][::-1]
        for text in np.flatnonzero((hits > 0) & (hits >= COVERED * wanted)).tolist():
            found.setdefault(int(one.texts.owners[text]), int(first_hit[text]))
    return dict(sorted(found.items()))


def _shared(hashes: Array, owners: Array, rows: int) -> Array:
    """Return the runs that many rows of a benchmark share: its instructions."""
    pairs = np.unique(np.stack([hashes, owners.astype(np.uint64)], axis=1), axis=0)
    values, counts = distinct(pairs[:, 0])
    return values[counts > max(FEW, COMMON * rows)]
