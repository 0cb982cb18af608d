"""Sources -> tokenized splits with their ledger. What can't be right stops here, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.checking import check_data, eval_sources
from llmkit.data.ledger import HELD_OUT, NOT_DRAWN, OVERLAP, Account, Ledger, Share
from llmkit.data.mixing import counts
from llmkit.data.reading import Reader, account_name
from llmkit.data.splits import Splits
from llmkit.data.splitting import held_out, mixed, overlapping
from llmkit.data.store import Rows
from llmkit.data.streaming import Stream
from llmkit.data.turns import UNTRAINED as UNTRAINED_TURNS
from llmkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.recipe.recipe import Recipe

MOST_DROPPED = 0.5
"""A source that loses more than this share of its rows is a mistake and not a data set."""


def stop(error: DataError) -> None:
    """Raise `error`."""
    raise error


def load_splits(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    stops: frozenset[int],
    *,
    max_length: int | None,
    seed: int,
    narrate: Callable[[str], None] = lambda text: None,
    refuse: Callable[[DataError], None] = stop,
) -> tuple[Splits, Ledger]:
    """Read, convert, tokenize and mask the rows of `recipe`; hold out, and mix.

    `max_length` is in tokens; `narrate` is told how far a long preparation is. `refuse` is given the error, with file
    and line, for a source with too many rows that are broken or dropped; it raises it unless the rows are only to be
    looked at. Raises DataError for a split without a usable row. The same recipe and seed give the same rows in the
    same order.
    """
    shape = check_data(recipe, read=True)
    assert shape is not None
    ledger = Ledger()
    reader = Reader(recipe, tokenizer, stops, shape, max_length, narrate, refuse)
    if recipe.data.streaming:
        return _streamed(recipe, reader, ledger, seed)
    train = reader.rows(recipe.data.train, ledger.train)
    _check_accounts(ledger.train, train, refuse)
    evaluated = reader.rows(eval_sources(recipe), ledger.eval)
    _check_accounts(ledger.eval, evaluated, refuse)
    if isinstance(recipe.data.eval, float):
        train, evaluated = _hold_out(train, recipe, seed, ledger)
    # A score on rows that were trained on says nothing.
    train = _give_up(train, overlapping(train, evaluated), recipe, ledger, OVERLAP)
    train = _mixed(train, recipe, seed, ledger)
    for accounts, rows in ((ledger.train, train), (ledger.eval, evaluated)):
        _check_rows(accounts, rows)
    _check_verdicts(train, ledger)
    return Splits(shape, train, evaluated), ledger


def _streamed(recipe: Recipe, reader: Reader, ledger: Ledger, seed: int) -> tuple[Splits, Ledger]:
    evaluated = reader.rows(eval_sources(recipe), ledger.eval)
    _check_accounts(ledger.eval, evaluated, reader.refuse)
    stream = Stream(recipe, reader, evaluated, ledger, seed)
    heads, head = stream.head()
    _check_accounts(heads, head, reader.refuse)
    return Splits(reader.shape, head, evaluated, stream.dataset), ledger


def _give_up(rows: Rows, leaving: Any, recipe: Recipe, ledger: Ledger, reason: str) -> Rows:
    """Count the entries where `leaving` is true as dropped; return the others."""
    sources = rows.sources
    for index, source in enumerate(recipe.data.train):
        ledger.train[account_name(source)].give_up(rows.take(leaving & (sources == index)), reason)
    return rows.take(~leaving)


def _hold_out(rows: Rows, recipe: Recipe, seed: int, ledger: Ledger) -> tuple[Rows, Rows]:
    """Split off a share of the rows, at least one, chosen by `seed`."""
    share = recipe.data.eval
    assert isinstance(share, float)
    total = int((rows.fact("part") == 0).sum())
    count = max(1, round(total * share))
    if count >= total:
        raise DataError(f"`data.eval: {share:g}` leaves nothing to train on: there are only {total} usable rows")
    chosen = held_out(rows, count, seed)
    account = ledger.eval.setdefault("held out of the training rows", Account())
    account.keep(rows.take(chosen))
    return _give_up(rows, chosen, recipe, ledger, HELD_OUT), rows.take(chosen)


def _mixed(train: Rows, recipe: Recipe, seed: int, ledger: Ledger) -> Rows:
    """Draw the rows that an epoch goes through, and note the share of each source."""
    data = recipe.data
    of_source = np.bincount(train.sources[train.fact("part") == 0], minlength=len(data.train)).tolist()
    for source, count in zip(data.train, of_source, strict=True):
        if not count and (source.weight is not None or data.temperature is not None):
            account = ledger.train[account_name(source)]
            raise DataError(
                f"nothing is left to mix in: {account.sentence()}",
                where=source.path,
                remedy="Leave the source out, or give it more rows.",
            )
    order, left = mixed(train, counts(data, of_source), seed)
    for source, entries in zip(data.train, left, strict=True):
        ledger.train[account_name(source)].give_up(train.take(entries), NOT_DRAWN)
    found = train.take(order)
    if len(data.train) > 1 or data.train[0].repeat > 1:
        ledger.mix = _shares(found, recipe)
    return found


def _shares(mixed: Rows, recipe: Recipe) -> dict[str, Share]:
    names = [account_name(source) for source in recipe.data.train]
    sources, tokens, trained = mixed.sources, mixed.totals, mixed.trained
    found: dict[str, Share] = {}
    for name in dict.fromkeys(names):
        mine = np.isin(sources, [index for index, other in enumerate(names) if other == name])
        rows, total = int(mine.sum()), int(tokens[mine].sum())
        shares = rows / max(1, len(mixed)), total / max(1, int(tokens.sum()))
        found[name] = Share(rows, total, int(trained[mine].sum()), *shares)
    return found


def _check_accounts(accounts: dict[str, Account], rows: Rows, refuse: Callable[[DataError], None]) -> None:
    for name, account in accounts.items():
        lost = {reason: n for reason, n in account.dropped.items() if reason not in account.chosen}
        if account.broken:
            lost["broken"] = len(account.broken)
        if account.read and sum(lost.values()) > MOST_DROPPED * account.read:
            reasons = ", ".join(f"{n} {reason}" for reason, n in lost.items())
            what = f"{sum(lost.values())} of {account.read} rows can't be used: {reasons}"
            refuse(DataError(what, where=name, remedy=_remedy(max(lost, key=lambda reason: lost[reason]))))
    _check_rows(accounts, rows)


def _remedy(reason: str) -> str:
    if reason.startswith("longer than") or reason.startswith("the prompt alone fills"):
        return "Raise training.max_length, choose another data.overflow, or use shorter rows."
    if reason == UNTRAINED_TURNS:
        return "Mark turns with `train: true` or a `weight`, or set data.train_on: all."
    return "Mend the rows, or leave them out of the file: so many are a mistake more often than a property of the data."


def _check_rows(accounts: dict[str, Account], rows: Rows) -> None:
    if accounts and not len(rows):
        fates = "; ".join(f"{name}: {account.sentence()}" for name, account in accounts.items())
        raise DataError(f"no row is left: {fates}")


def _check_verdicts(train: Rows, ledger: Ledger) -> None:
    """Raise DataError if unpaired feedback calls all training rows good, or all bad: there is nothing to tell apart."""
    verdicts = set(train.fact("verdict").tolist())
    if len(verdicts) == 1 and verdicts != {0}:
        only = train[0].verdict
        raise DataError(
            f"all {len(train)} training rows are {only}, and unpaired feedback (KTO) needs both good and bad ones",
            where=", ".join(ledger.train),
            remedy="Add rows with the other `label`, or use more of the source (`max_rows`).",
        )
