"""Training rows that are read while training goes on, for sets larger than memory or disk.

They come in one order for a recipe and its seed: a buffer is filled from the sources, and each row that leaves it is
chosen at random. A run that is resumed reads up to where it was, so that the same rows follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.ledger import Account, Ledger
from llmkit.data.reading import Reader, account_name, too_many_broken
from llmkit.data.splits import Row
from llmkit.data.store import WEIGHTS, Listed, Rows, digests
from llmkit.errors import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset

    from llmkit.recipe.recipe import Recipe, Source

HEAD = 1000
"""Rows of the stream that are audited before training, in all."""
OVERLAP = "also among the held-out rows"


@dataclass
class Stream:
    """The training rows of a recipe, read as they are needed; `ledger` grows while they are read for the first time."""

    recipe: Recipe
    reader: Reader
    held_out: Rows
    ledger: Ledger
    seed: int
    weighted: bool = False
    """Whether any of the first rows has loss weights; no later row may have them if none of these has."""
    _seen: set[int] = field(default_factory=set)
    """Indices of the sources that were read to their end."""

    def head(self) -> Rows:
        """Return the first rows, for the audit; raises DataError where a source has none that can be used."""
        share = max(1, HEAD // len(self.recipe.data.train))
        heads = [Listed(self._head(source, share)) for source in self.recipe.data.train]
        self.weighted = any(WEIGHTS in row.tokens for head in heads for row in head.rows)
        return Rows(heads)

    def _head(self, source: Source, count: int) -> list[Row]:
        account = Account()
        batches = self.reader.batches(source, account, batch=100)
        rows = list(islice(chain.from_iterable(batches), count))
        account.keep(Rows([Listed(rows)]))
        if error := too_many_broken(account, source, self.recipe.data.broken):
            self.reader.refuse(error)
        if not rows:
            raise DataError(f"none of the {account.read} rows can be used: {account.sentence()}", where=source.path)
        return rows

    def dataset(self) -> IterableDataset:
        """Return the tokens as an endless-by-epochs data set of datasets' own kind, mixed and shuffled."""
        from datasets import Features, IterableDataset, List, Value, interleave_datasets

        sources, ids = self.recipe.data.train, List(Value("int32"))
        weights_too = {WEIGHTS: List(Value("float32"))} if self.weighted else {}
        features = Features({"input_ids": ids, "labels": ids, **weights_too})
        parts = [
            IterableDataset.from_generator(self._tokens, features=features, gen_kwargs={"index": index})
            for index in range(len(sources))
        ]
        weights = [source.weight or 1.0 for source in sources]
        shares = [weight / sum(weights) for weight in weights]
        mixed = parts[0] if len(parts) == 1 else interleave_datasets(parts, probabilities=shares, seed=self.seed)
        return mixed.shuffle(seed=self.seed, buffer_size=self.recipe.data.shuffle_buffer)

    def _tokens(self, index: int) -> Iterator[dict[str, list[Any]]]:
        source = self.recipe.data.train[index]
        account = Account() if index in self._seen else self.ledger.train[account_name(source)]
        held_out = set(self.held_out.digests.tolist())
        for rows in self.reader.batches(source, account, batch=100):
            kept = Rows([Listed(rows)])
            account.keep(kept)
            overlap = np.isin(digests(rows), list(held_out)) if held_out else np.zeros(len(rows), bool)
            account.give_up(kept.take(overlap), OVERLAP)
            for row in kept.take(~overlap):
                yield self._columns(row)
        if error := too_many_broken(account, source, self.recipe.data.broken):
            raise error
        self._seen.add(index)

    def _columns(self, row: Row) -> dict[str, list[Any]]:
        if WEIGHTS in row.tokens and not self.weighted:
            raise DataError(
                "the row has a `weight`, and none of the stream's first rows has",
                where=row.where,
                remedy="Give one of the first rows a `weight`, so that training counts them from the start.",
            )
        return {WEIGHTS: [1.0] * len(row.labels), **row.tokens} if self.weighted else row.tokens


def _silent(text: str) -> None:
    pass


def open_stream(recipe: Recipe, reader: Reader, held_out: Rows, ledger: Ledger, seed: int) -> Stream:
    """Return the stream of the training sources; their accounts in `ledger` start empty."""
    reader.narrate = _silent  # `datasets` pickles what reads the rows, and a console can't be
    for source in recipe.data.train:
        ledger.train[account_name(source)] = Account()
    return Stream(recipe, reader, held_out, ledger, seed)
