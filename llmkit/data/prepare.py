"""Sources -> audited, tokenized splits. What can't be right stops here, before anything is trained."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llmkit.data.ledger import Account, Ledger
from llmkit.data.shapes import RowError, Shape, UnlearnableError
from llmkit.data.sources import check_source, common_shape, read_examples
from llmkit.data.splits import Row, Splits
from llmkit.data.tokens import check_start, fitted, tokenize
from llmkit.errors import DataError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.recipe.recipe import Recipe, Source

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
    _check_verdicts(train, ledger)
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
        for where, example in read_examples(source, self.recipe.folder, account.drop):
            row = self._row(where, example, account_name(source))
            if isinstance(row, str):
                account.drop(row)
            else:
                account.keep(row)
                kept.append(row)
        return kept

    def _row(self, where: str, example: dict[str, Any], source: str) -> Row | str:
        """Return the tokenized row, or the reason why it is dropped."""
        try:
            tokens = tokenize(self.tokenizer, self.shape, example, self.stops)
        except UnlearnableError as reason:
            return str(reason)
        except RowError as error:
            raise DataError(str(error), where=where) from error
        row = Row(where, example, tokens, source)
        check_start(row, self.tokenizer)
        return fitted(row, self.max_length, self.recipe.data.overflow)


def _hold_out(rows: list[Row], share: float, seed: int, ledger: Ledger) -> tuple[list[Row], list[Row]]:
    """Split off a share of the rows, at least one, chosen by `seed`."""
    count = max(1, round(len(rows) * share))
    if count >= len(rows):
        raise DataError(f"`data.eval: {share:g}` leaves nothing to train on: there are only {len(rows)} usable rows")
    chosen = set(random.Random(seed).sample(range(len(rows)), count))
    held_out = [row for index, row in enumerate(rows) if index in chosen]
    account = ledger.eval.setdefault("held out of the training rows", Account())
    for row in held_out:
        account.keep(row)
        ledger.train[row.source].give_up(row, HELD_OUT)
    return [row for index, row in enumerate(rows) if index not in chosen], held_out


def _without_overlap(train: list[Row], held_out: list[Row], ledger: Ledger) -> list[Row]:
    """Drop training rows that are also held out: a score on rows that were trained on says nothing.

    Rows are the same if the model reads the same, whatever other columns they have.
    """
    seen = {_content(row) for row in held_out}
    kept = []
    for row in train:
        if _content(row) in seen:
            ledger.train[row.source].give_up(row, OVERLAP)
        else:
            kept.append(row)
    return kept


def _content(row: Row) -> str:
    return json.dumps(row.sequences)


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


def _check_verdicts(train: list[Row], ledger: Ledger) -> None:
    """Raise DataError if unpaired feedback calls all training rows good, or all bad: there is nothing to tell apart."""
    verdicts = {row.verdict for row in train}
    if len(verdicts) == 1 and None not in verdicts:
        (only,) = verdicts
        raise DataError(
            f"all {len(train)} training rows are {only}, and unpaired feedback (KTO) needs both good and bad ones",
            where=", ".join(ledger.train),
            remedy="Add rows with the other `label`, or use more of the source (`max_rows`).",
        )
