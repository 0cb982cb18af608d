"""How many rows of each source an epoch goes through, and which; the same recipe and seed give the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.errors import RecipeError

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Data


def counts(data: Data, rows: Sequence[int]) -> list[int]:
    """Return how often rows are drawn from each training source, which has `rows[i]` of them.

    Without weights or a temperature, all rows are used, each `repeat` times. Otherwise the sources' shares are as
    asked, and the mix is as large as it can be without using a row more than `repeat` times. All sources must have rows
    then. Raises RecipeError for a share that is 0.
    """
    most = [count * source.repeat for count, source in zip(rows, data.train, strict=True)]
    if data.temperature is not None:
        wanted = np.log(np.array(rows, np.float64)) / data.temperature
    elif data.train[0].weight is not None:
        wanted = np.log(np.array([source.weight for source in data.train], np.float64))
    else:
        return most
    share = np.exp(wanted - wanted.max())  # in logarithms, as powers of counts may be larger than any float
    share /= share.sum()
    if not share.all():
        least = data.train[int(share.argmin())].path
        raise RecipeError(f"the share of {least} in the mix is so small that it is 0", remedy="Leave the source out.")
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
