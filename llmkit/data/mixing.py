"""How many rows of each source an epoch goes through, and which; the same recipe and seed give the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Data


def counts(data: Data, rows: Sequence[int]) -> list[int]:
    """Return how often rows are drawn from each training source, which has `rows[i]` of them.

    Without weights or a temperature, all rows are used, each `repeat` times. Otherwise the sources' shares are as
    asked, and the mix is as large as it can be without using a row more than `repeat` times.
    """
    most = [count * source.repeat for count, source in zip(rows, data.train, strict=True)]
    if data.temperature is not None:
        wanted = np.power(np.array(rows, np.float64), 1 / data.temperature)
    elif data.train[0].weight is not None:
        wanted = np.array([source.weight for source in data.train], np.float64)
    else:
        return most
    if not all(rows):
        return [0] * len(rows)
    share = wanted / wanted.sum()
    total = min(count / part for count, part in zip(most, share, strict=True))
    return [min(count, max(1, round(total * part))) for count, part in zip(most, share, strict=True)]


def drawn(rows: int, count: int, seed: int) -> Any:
    """Return the indices of `count` draws from `rows` rows, sorted, as an array.

    No row is drawn once more before every row was drawn as often.
    """
    if not rows:
        return np.array([], np.int64)
    whole, rest = divmod(count, rows)
    some = np.random.default_rng(seed).permutation(rows)[:rest]
    return np.sort(np.concatenate([np.tile(np.arange(rows), whole), some]))
