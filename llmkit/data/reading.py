"""One source at a time: read, converted, tokenized, fitted; kept in a file, with an account of every row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data import cache
from llmkit.data.fitting import check_start, fitted
from llmkit.data.ledger import Account
from llmkit.data.parallel import mapped
from llmkit.data.reasoning import ruled
from llmkit.data.shapes import LeftOutError, RowError, Shape, UnlearnableError
from llmkit.data.sources import read_examples
from llmkit.data.splits import Row
from llmkit.data.store import Listed, Rows, Shard, Stored, Writer, packed_batch
from llmkit.data.tokens import Rules, tokenize
from llmkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.recipe.recipe import Recipe, Source

Found = list[tuple[str, dict[str, Any] | RowError]]
"""Examples, or the reasons why there are none, each after its place."""

BATCH = 500
"""Rows that are tokenized and written at a time."""
SURELY_BROKEN = 10
"""Reading stops early where the share of broken rows is so many times what is allowed, and they are 100 at least."""


def account_name(source: Source) -> str:
    """Return the name that a source's rows are accounted under."""
    return f"{source.path}:{source.split}" if source.split else source.path


class Reader:
    """Turns sources into tokenized rows and keeps their accounts."""

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        stops: frozenset[int],
        shape: Shape,
        max_length: int | None,
        narrate: Callable[[str], None],
        refuse: Callable[[DataError], None],
    ) -> None:
        self.data, self.folder, self.shape, self.narrate = recipe.data, recipe.folder, shape, narrate
        self.tokenizer, self.stops, self.max_length, self.refuse = tokenizer, stops, max_length, refuse
        self.rules = Rules(train_on=recipe.data.train_on, reasoning=recipe.data.reasoning)

    def rows(self, sources: Iterable[Source], accounts: dict[str, Account]) -> Rows:
        """Return the kept rows of `sources`, one shard each, and add to their accounts."""
        shards = []
        for source in sources:
            shard, account = self._shard(source)
            account.keep(Rows([shard]))
            if error := too_many_broken(account, source, self.data.broken):
                self.refuse(error)
            accounts.setdefault(account_name(source), Account()).add(account)
            shards.append(shard)
        return Rows(shards)

    def _shard(self, source: Source) -> tuple[Shard, Account]:
        account = Account()
        if self.shape is Shape.PROMPT:
            # Rewards get the row itself, with its tuples and missing keys, which no file would give back.
            return Listed(row for batch in self.batches(source, account) for row in batch), account
        name = cache.key(
            source,
            self.folder,
            self.tokenizer,
            shape=self.shape,
            stops=sorted(self.stops),
            max_length=self.max_length,
            overflow=self.data.overflow,
            rules=repr(self.rules),
            broken=self.data.broken,
        )
        path, noted = cache.prepared(name, lambda path: self._write(source, path))
        return Stored(path, account_name(source)), Account.from_cache(noted)

    def _write(self, source: Source, path: Path) -> Mapping[str, Any]:
        import pyarrow as arrow

        arrow.array([0])  # imports pandas: once, and not in each process
        account, writer, seen = Account(), Writer(path), 0
        for read, batch, lost in mapped(partial(self._packed, source), self._found(source, BATCH)):
            writer.write(batch)
            account.add(lost)
            seen += read
            self._stop_early(account, source, seen)
            if seen % (50 * BATCH) == 0:
                self.narrate(f"{source.path}: {seen:,} rows prepared")
        writer.close()
        return account.to_cache()

    def _packed(self, source: Source, found: Found) -> tuple[int, bytes, Account]:
        """Return the size of a batch, the rows that training can use as Arrow's bytes, and an account of the rest."""
        account = Account()
        rows = list(self._kept(source, found, account))
        try:
            return len(found), packed_batch(rows), account
        except (TypeError, ValueError):
            return len(found), packed_batch([row for row in rows if not _unwritable(row, account)]), account

    def batches(self, source: Source, account: Account, batch: int = BATCH) -> Iterator[list[Row]]:
        """Yield the kept rows, by `batch` rows that were read; those that are not kept are counted."""
        seen = 0
        for found in self._found(source, batch):
            seen += len(found)
            yield list(self._kept(source, found, account))
            self._stop_early(account, source, seen)

    def _found(self, source: Source, batch: int) -> Iterator[Found]:
        """Yield batches of examples, or the reasons why there are none, each after its place."""
        examples = read_examples(source, self.folder)
        while found := list(islice(examples, batch)):
            yield found

    def _stop_early(self, account: Account, source: Source, seen: int) -> None:
        if len(account.broken) > max(100, SURELY_BROKEN * self.data.broken * seen):
            raise _broken(account, source, self.data.broken, seen)

    def _kept(self, source: Source, found: Found, account: Account) -> Iterator[Row]:
        """Yield the rows of a batch that training can use; count the others."""
        ruled_ = [(where, self._ruled(example)) for where, example in found]
        good = [example for _, example in ruled_ if not isinstance(example, RowError)]
        tokenized = iter(tokenize(self.tokenizer, self.shape, good, self.stops, self.rules))
        name = account_name(source)
        for where, example in ruled_:
            tokens = example if isinstance(example, RowError) else next(tokenized)
            if isinstance(example, RowError) or isinstance(tokens, RowError):
                _leave_out(account, where, tokens)
                continue
            row = Row(where, example, tokens, name)
            check_start(row, self.tokenizer)
            rows = fitted(row, self.max_length, self.data.overflow)
            if isinstance(rows, str):
                account.drop(rows, where)
            else:
                yield from rows

    def _ruled(self, example: dict[str, Any] | RowError) -> dict[str, Any] | RowError:
        """Return the example with the reasoning that the recipe keeps: scores and pages then show what is trained."""
        if self.shape is not Shape.CONVERSATION or isinstance(example, RowError):
            return example
        try:
            return example | {"messages": list(ruled(example["messages"], self.rules.reasoning))}
        except RowError as error:
            return error


def _leave_out(account: Account, where: str, error: Any) -> None:
    if isinstance(error, UnlearnableError):
        account.drop(str(error), where, chosen=isinstance(error, LeftOutError))
    else:
        account.quarantine(where, str(error))


def _unwritable(row: Row, account: Account) -> bool:
    """Count a row as broken whose example is no JSON in UTF-8, such as a date out of a parquet file."""
    try:
        json.dumps(row.example, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        if row.part == 0:
            account.quarantine(row.where, f"holds what JSON can't: {error}")
        return True
    return False


def too_many_broken(account: Account, source: Source, allowed: float) -> DataError | None:
    """Return the error for a source of which more than the `allowed` share of the rows read is broken."""
    too_many = len(account.broken) > allowed * account.read
    return _broken(account, source, allowed, account.read) if too_many else None


def _broken(account: Account, source: Source, allowed: float, read: int) -> DataError:
    count, first = len(account.broken), account.broken[0]
    others = [f"{broken.where}: {broken.reason}" for broken in account.broken[1:4]]
    more = f" ({count} of the {read} rows read are broken)" if count > 1 else ""
    mend = f"Mend the rows or {source.python}" if source.python else "Mend the rows"
    return DataError(
        "\n".join([f"{first.reason}{more}", *others]),
        where=first.where,
        remedy=f"{mend}, or raise `data.broken`, the share of rows that may be left out (now {allowed:g}).",
    )
