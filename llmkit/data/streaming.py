"""Training rows that are read while training goes on, for sets larger than memory or disk.

They come in one order for a recipe and its seed: each pass over a source goes through a buffer, and each row that
leaves it is chosen at random. The stream has no end, so transformers counts one epoch, and a run that is resumed skips
exactly the rows that it had read.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any, TypeVar

from llmkit.data.ledger import OVERLAP, Account, Ledger
from llmkit.data.reading import Reader, account_name, too_many_broken
from llmkit.data.splits import Row
from llmkit.data.splitting import overlapping
from llmkit.data.store import WEIGHTS, Listed, Rows
from llmkit.errors import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset

    from llmkit.recipe.recipe import Recipe

Item = TypeVar("Item")

HEAD = 1000
"""Rows of the stream that are audited before training, in all."""
READ = 100
"""Rows that are tokenized at a time."""


def shuffled(items: Iterable[Item], size: int, rng: random.Random) -> Iterator[Item]:
    """Yield `items`, each chosen among the `size` that are held."""
    buffer: list[Item] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = rng.randrange(size)
        buffer[place], item = item, buffer[place]
        yield item
    rng.shuffle(buffer)
    yield from buffer


@dataclass
class Stream:
    """The training rows of a recipe, read as they are needed; `ledger` counts each row once, however often it comes."""

    recipe: Recipe
    reader: Reader
    held_out: Rows
    ledger: Ledger
    seed: int
    weighted: bool = False
    """Whether any of the first rows has loss weights; no later row may have them if none of these has."""
    _counted: dict[int, Account] = field(default_factory=dict)
    """By source, the account of the pass that has come furthest."""

    def __post_init__(self) -> None:
        self.reader.narrate = _silent  # `datasets` pickles what reads the rows, and a console can't be
        self.ledger.streamed = True
        for source in self.recipe.data.train:
            self.ledger.train[account_name(source)] = Account()

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream:
        return self  # `datasets` copies what it mixes, and there is one ledger

    def head(self) -> tuple[dict[str, Account], Rows]:
        """Return the first rows, for the audit, and what became of those read for it, by source."""
        share = max(1, HEAD // len(self.recipe.data.train))
        accounts: dict[str, Account] = {}
        heads = []
        for source in self.recipe.data.train:
            account = accounts.setdefault(account_name(source), Account())
            batches = (self._kept(rows, account) for rows in self.reader.batches(source, account, batch=READ))
            heads.append(Listed(islice(chain.from_iterable(batches), share)))
        self.weighted = any(WEIGHTS in row.tokens for head in heads for row in head.rows)
        return accounts, Rows(heads)

    def dataset(self) -> IterableDataset:
        """Return the tokens as an endless data set of datasets' own kind, mixed and shuffled."""
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
        return parts[0] if len(parts) == 1 else interleave_datasets(parts, probabilities=shares, seed=self.seed)

    def _tokens(self, index: int) -> Iterator[dict[str, list[Any]]]:
        for number in count():
            rng = random.Random(f"{self.seed} {index} {number}")
            for row in shuffled(self._pass(index), self.recipe.data.shuffle_buffer, rng):
                yield self._columns(row)

    def _pass(self, index: int) -> Iterator[Row]:
        """Yield the rows of one source once; raises DataError if none can be used, or too many are broken."""
        source, account = self.recipe.data.train[index], Account()
        for rows in self.reader.batches(source, account, batch=READ):
            kept = self._kept(rows, account)
            self._count(index, account)
            yield from kept
        if error := too_many_broken(account, source, self.recipe.data.broken):
            raise error
        if not account.kept:
            raise DataError(f"no row is left: {account.sentence()}", where=source.path)

    def _kept(self, found: list[Row], account: Account) -> Rows:
        """Return those of some rows that are not held out as well, and count them all."""
        rows = Rows([Listed(found)])
        account.keep(rows)
        leaving = overlapping(rows, self.held_out)
        account.give_up(rows.take(leaving), OVERLAP)
        return rows.take(~leaving)

    def _count(self, index: int, account: Account) -> None:
        """Put an account into the ledger, unless its rows were counted before: by a look ahead, or another pass."""
        if index in self._counted and account.read < self._counted[index].read:
            return
        self._counted[index] = account
        name = account_name(self.recipe.data.train[index])
        total = self.ledger.train[name] = Account()
        for other, counted in self._counted.items():
            if account_name(self.recipe.data.train[other]) == name:
                total.add(counted)

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
