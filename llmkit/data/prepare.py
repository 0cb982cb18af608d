"""Sources -> tokenized splits with their ledger. What can't be right stops here, before anything is trained."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.checking import check_data, eval_sources
from llmkit.data.ledger import Account, Ledger, Share
from llmkit.data.mixing import counts, drawn
from llmkit.data.reading import Reader, account_name
from llmkit.data.splits import Splits
from llmkit.data.store import Rows
from llmkit.data.streaming import OVERLAP, open_stream
from llmkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.recipe.recipe import Recipe

HELD_OUT = "held out for evaluation"
NOT_DRAWN = "not drawn by the mix"
CHOSEN = (HELD_OUT, OVERLAP, NOT_DRAWN)
"""Reasons that are no fault of a row."""
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
        held_out = reader.rows(eval_sources(recipe), ledger.eval)
        _check_accounts(ledger.eval, held_out, refuse)
        stream = open_stream(recipe, reader, held_out, ledger, seed)
        return Splits(shape, stream.head(), held_out, stream.dataset), ledger
    train = reader.rows(recipe.data.train, ledger.train)
    _check_accounts(ledger.train, train, refuse)
    held_out = reader.rows(eval_sources(recipe), ledger.eval)
    _check_accounts(ledger.eval, held_out, refuse)
    if isinstance(recipe.data.eval, float):
        train, held_out = _hold_out(train, recipe, seed, ledger)
    train = _without_overlap(train, held_out, recipe, ledger)
    train = _mixed(train, recipe, seed, ledger)
    for accounts, rows in ((ledger.train, train), (ledger.eval, held_out)):
        _check_rows(accounts, rows)
    _check_verdicts(train, ledger)
    return Splits(shape, train, held_out), ledger


def _groups(rows: Rows) -> Any:
    """Return for each entry the number of its row, as an array: the pieces of a split row have the same."""
    return np.cumsum(rows.fact("part") == 0) - 1


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
    groups = _groups(rows)
    total = int(groups[-1]) + 1 if len(groups) else 0
    count = max(1, round(total * share))
    if count >= total:
        raise DataError(f"`data.eval: {share:g}` leaves nothing to train on: there are only {total} usable rows")
    chosen = np.zeros(total, bool)
    chosen[random.Random(seed).sample(range(total), count)] = True
    held_out = rows.take(chosen[groups])
    account = ledger.eval.setdefault("held out of the training rows", Account())
    account.keep(held_out)
    return _give_up(rows, chosen[groups], recipe, ledger, HELD_OUT), held_out


def _without_overlap(train: Rows, held_out: Rows, recipe: Recipe, ledger: Ledger) -> Rows:
    """Drop training rows that are also held out: a score on rows that were trained on says nothing.

    Rows are the same if the model reads the same, whatever other columns they have; of a split row, in all its pieces.
    """
    if not len(train):
        return train
    groups = _groups(train)
    unseen = np.bincount(groups, weights=~np.isin(train.digests, held_out.digests)) > 0
    return _give_up(train, ~unseen[groups], recipe, ledger, OVERLAP)


def _mixed(train: Rows, recipe: Recipe, seed: int, ledger: Ledger) -> Rows:
    """Draw the rows that an epoch goes through, and note the share of each source."""
    data, sources, heads = recipe.data, train.sources, np.flatnonzero(train.fact("part") == 0)
    ends = np.append(heads[1:], len(train))
    of_source = [np.flatnonzero(sources[heads] == index) for index in range(len(data.train))]
    order = []
    for index, count in enumerate(counts(data, [len(mine) for mine in of_source])):
        mine = of_source[index]
        taken = mine[drawn(len(mine), count, seed + index)]
        left = np.setdiff1d(mine, taken)
        entries = np.concatenate([np.arange(heads[g], ends[g]) for g in left]) if len(left) else np.array([], np.int64)
        ledger.train[account_name(data.train[index])].give_up(train.take(entries), NOT_DRAWN)
        order.append(_entries(heads[taken], ends[taken]))
    mixed = train.take(np.concatenate(order))
    if len(data.train) > 1 or data.train[0].repeat > 1:
        ledger.mix = _shares(mixed, recipe)
    return mixed


def _entries(starts: Any, ends: Any) -> Any:
    """Return all indices from each start up to its end, as an array."""
    lengths = ends - starts
    before = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + np.arange(lengths.sum()) - before


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
        lost = {reason: n for reason, n in account.dropped.items() if reason not in CHOSEN}
        if account.read and sum(lost.values()) > MOST_DROPPED * account.read:
            reasons = ", ".join(f"{n} {reason}" for reason, n in lost.items())
            refuse(
                DataError(
                    f"{sum(lost.values())} of {account.read} rows can't be used: {reasons}",
                    where=name,
                    remedy="Raise training.max_length, choose data.overflow: truncate, or mend the rows.",
                )
            )
    _check_rows(accounts, rows)


def _check_rows(accounts: dict[str, Account], rows: Rows) -> None:
    if accounts and not len(rows):
        raise DataError(f"no usable rows in {', '.join(accounts)}")


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
