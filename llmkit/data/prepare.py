"""Sources -> audited, tokenized splits. What can't be right stops here, before anything is trained."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmkit.data.ledger import Account, Ledger
from llmkit.data.masks import IGNORED, tokenize
from llmkit.data.shapes import RowError, Shape
from llmkit.data.sources import check_source, common_shape, read_examples
from llmkit.data.splits import Row, Splits
from llmkit.errors import DataError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.recipe.recipe import Recipe, Source

TOKENIZED = frozenset({Shape.CONVERSATION, Shape.PROMPT_COMPLETION, Shape.TEXT})
HELD_OUT = "held out for evaluation"
OVERLAP = "also among the held-out rows"
MOST_DROPPED = 0.5
"""A source that loses more than this share of its rows is a mistake and not a data set."""


def check_data(recipe: Recipe) -> Shape:
    """Check without reading a row that the sources exist and that the method can learn from their shape.

    Raises RecipeError, DataError or SetupError. Returns the common shape of the rows.
    """
    sources = [*recipe.data.train, *_eval_sources(recipe)]
    for source in sources:
        check_source(source, recipe.folder)
    shape = common_shape(sources)
    if shape not in recipe.method.accepts:
        wanted = ", ".join(sorted(recipe.method.accepts))
        raise RecipeError(
            f"method {recipe.method.type!r} learns from {wanted} rows, but format "
            f"{sources[0].format!r} gives {shape} rows"
        )
    return shape


def load_splits(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, stops: frozenset[int], *, max_length: int | None, seed: int
) -> tuple[Splits, Ledger]:
    """Read, convert, tokenize, mask and audit the rows of `recipe`.

    `max_length` is in tokens. Raises DataError with file and line for a row that can't be used, and where a split ends
    up empty or mostly dropped. The same recipe and seed give the same rows in the same order.
    """
    shape = check_data(recipe)
    ledger = Ledger()
    reader = _Reader(recipe, tokenizer, stops, shape, max_length)
    train = [row for source in recipe.data.train for row in reader.rows(source, _account(ledger.train, source))]
    _check_accounts(ledger.train, train)
    held_out: list[Row] = []
    if isinstance(recipe.data.eval, float):
        train, held_out = _hold_out(train, recipe.data.eval, seed, ledger)
    for source in _eval_sources(recipe):
        held_out += reader.rows(source, _account(ledger.eval, source))
    train = _without_overlap(train, held_out, ledger)
    for accounts, rows in ((ledger.train, train), (ledger.eval, held_out)):
        _check_accounts(accounts, rows)
    return Splits(shape, tuple(train), tuple(held_out)), ledger


def _eval_sources(recipe: Recipe) -> tuple[Source, ...]:
    return recipe.data.eval if isinstance(recipe.data.eval, tuple) else ()


def account_name(source: Source) -> str:
    """Return the name that a source's rows are accounted under."""
    return f"{source.path}:{source.split}" if source.split else source.path


def _account(accounts: dict[str, Account], source: Source) -> Account:
    return accounts.setdefault(account_name(source), Account())


class _Reader:
    """Turns the rows of a source into tokenized rows and keeps its account."""

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        stops: frozenset[int],
        shape: Shape,
        max_length: int | None,
    ) -> None:
        self.recipe, self.tokenizer, self.stops, self.shape = recipe, tokenizer, stops, shape
        self.max_length = max_length

    def rows(self, source: Source, account: Account) -> list[Row]:
        kept = []
        for where, example in read_examples(source, self.recipe.folder):
            account.read += 1
            row = self._row(where, example)
            if isinstance(row, str):
                account.dropped[row] += 1
                continue
            account.kept += 1
            account.truncated += row.truncated
            account.tokens += len(row.input_ids)
            account.trained_tokens += row.trained_tokens
            kept.append(replace(row, source=account_name(source)))
        return kept

    def _row(self, where: str, example: dict[str, Any]) -> Row | str:
        """Return the tokenized row, or the reason why it is dropped."""
        if self.shape not in TOKENIZED:
            return Row(where, example)
        try:
            ids, labels = tokenize(self.tokenizer, self.shape, example, self.stops)
        except RowError as error:
            raise DataError(str(error), where=where) from error
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise DataError(
                f"the rendered row begins with {self.tokenizer.bos_token!r} twice",
                where=where,
                remedy="The text or the chat template adds a start token that the tokenizer adds as well.",
            )
        if self.max_length is not None and len(ids) > self.max_length:
            if self.recipe.data.overflow == "error":
                raise DataError(
                    f"the row has {len(ids)} tokens, more than `training.max_length` {self.max_length}",
                    where=where,
                    remedy="Raise training.max_length, or choose data.overflow: drop or truncate.",
                )
            if self.recipe.data.overflow == "drop":
                return f"longer than {self.max_length} tokens"
        cut = self.max_length is not None and len(ids) > self.max_length
        if cut:
            ids, labels = ids[: self.max_length], labels[: self.max_length]
        if all(label == IGNORED for label in labels):
            return "no trained token is left"
        return Row(where, example, {"input_ids": ids, "labels": labels}, truncated=cut)


def _hold_out(rows: list[Row], share: float, seed: int, ledger: Ledger) -> tuple[list[Row], list[Row]]:
    """Split off a share of the rows, at least one, chosen by `seed`."""
    count = max(1, round(len(rows) * share))
    if count >= len(rows):
        raise DataError(f"`data.eval: {share:g}` leaves nothing to train on: there are only {len(rows)} usable rows")
    chosen = set(random.Random(seed).sample(range(len(rows)), count))
    held_out = [row for index, row in enumerate(rows) if index in chosen]
    account = ledger.eval.setdefault("held out of the training rows", Account())
    account.read = account.kept = count
    account.tokens = sum(len(row.input_ids) for row in held_out)
    account.trained_tokens = sum(row.trained_tokens for row in held_out)
    for row in held_out:
        _move(ledger.train, row, HELD_OUT)
    return [row for index, row in enumerate(rows) if index not in chosen], held_out


def _without_overlap(train: list[Row], held_out: list[Row], ledger: Ledger) -> list[Row]:
    """Drop training rows that are also held out: a score on rows that were trained on says nothing."""
    seen = {_content(row) for row in held_out}
    kept = []
    for row in train:
        if _content(row) in seen:
            _move(ledger.train, row, OVERLAP)
        else:
            kept.append(row)
    return kept


def _content(row: Row) -> str:
    return json.dumps(row.example, sort_keys=True, ensure_ascii=False)


def _move(accounts: dict[str, Account], row: Row, reason: str) -> None:
    """Account for a training row that was kept at first and is dropped after all."""
    account = accounts[row.source]
    account.kept -= 1
    account.truncated -= row.truncated
    account.dropped[reason] += 1
    account.tokens -= len(row.input_ids)
    account.trained_tokens -= row.trained_tokens


def _check_accounts(accounts: dict[str, Account], rows: Iterable[Row]) -> None:
    for name, account in accounts.items():
        lost = {reason: n for reason, n in account.dropped.items() if reason not in (HELD_OUT, OVERLAP)}
        if account.read and sum(lost.values()) > MOST_DROPPED * account.read:
            reasons = ", ".join(f"{n} {reason}" for reason, n in lost.items())
            raise DataError(
                f"{sum(lost.values())} of {account.read} rows can't be used: {reasons}",
                where=name,
                remedy="Raise training.max_length, choose data.overflow: truncate, or mend the rows.",
            )
    if accounts and not any(True for _ in rows):
        raise DataError(f"no usable rows in {', '.join(accounts)}")
