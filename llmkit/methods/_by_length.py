"""Batches of rows of like length, by lengths that are read from Arrow at once.

transformers' own sampler would make a Python object of each row of the data set first, and knows single sequences only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler
from trl import RewardTrainer

if TYPE_CHECKING:
    # What the mixin is mixed into.
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

GROUP = 50
"""Batches that rows are drawn into before they are sorted, as in transformers' sampler."""

SIDES = (
    ("input_ids",),
    ("prompt_ids", "chosen_ids"),
    ("prompt_ids", "rejected_ids"),
    ("chosen_input_ids",),
    ("rejected_input_ids",),
)
"""Columns of tokens that make one sequence, as the trainers name them."""


class ByLength(Sampler[int]):
    """Rows in an order in which each `batch_size` of them, one optimizer step, are of like length.

    Rows are drawn at random into groups of 50 batches, sorted within each, and the batches come in random order: that
    of transformers' sampler falls in length within each group, and with fewer than 200 batches it makes groups so small
    that little is saved (64 rows in batches of 8: 1.35 tokens computed per real one instead of 1.08). As there, the
    batch with the longest row comes first: memory that runs out does so at once. The order depends on the seed and the
    epoch alone: the run's random state is restored only after a resumed run has taken its first batches.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        self.batch_size, self.lengths, self.seed = batch_size, lengths, seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch; accelerate's loader says which one it is."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng((self.seed, self._epoch))
        rows, group = draw.permutation(len(self.lengths)).tolist(), GROUP * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(rows), group):
            ordered = sorted(rows[start : start + group], key=self._length, reverse=True)
            batches += [ordered[at : at + self.batch_size] for at in range(0, len(ordered), self.batch_size)]
        # A short batch can only be the last: elsewhere it would shift the borders of all others.
        full = len(rows) // self.batch_size
        order = draw.permutation(full).tolist()
        if order:
            first = max(order, key=lambda i: self._length(batches[i][0]))
            order.remove(first)
            order.insert(0, first)
        for i in (*order, *range(full, len(batches))):
            yield from batches[i]

    def _length(self, row: int) -> int:
        return self.lengths[row]


class GroupsByLength(_Trainer):
    """Mixin over a trainer of tokenized rows: `train_sampling_strategy: group_by_length` takes no time to set up."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(rows, Dataset):
            return super()._get_train_sampler(train_dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return ByLength(size, longest(rows).tolist(), self._order_seed())

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(eval_dataset, Dataset):
            return super()._get_eval_sampler(eval_dataset)
        return ByLength(self.args.eval_batch_size, longest(eval_dataset).tolist(), self._order_seed())

    def _order_seed(self) -> int:
        return int(self.args.seed if self.args.data_seed is None else self.args.data_seed)


class GroupedRewardTrainer(GroupsByLength, RewardTrainer):
    """TRL's RewardTrainer, with that sampler."""


def longest(rows: Dataset) -> np.ndarray[Any, Any]:
    """Return the tokens of each row's longest sequence, shape (rows,)."""
    # A reward model's pairs have the prompt within both answers, and no column for it.
    sides = [[name for name in side if name in rows.column_names] for side in SIDES]
    whole = [side for side in sides if side not in ([], ["prompt_ids"])]
    found: np.ndarray[Any, Any] = np.max(
        [np.sum([column_lengths(rows, name) for name in side], axis=0) for side in whole], axis=0
    )
    return found


def column_lengths(rows: Dataset, column: str) -> np.ndarray[Any, Any]:
    """Return the length of each list of a column, read as Arrow arrays: no row becomes a Python list."""
    from pyarrow import compute

    batches = rows.select_columns(column).with_format("arrow").iter(batch_size=10_000)
    found = [compute.list_value_length(batch[column]).to_numpy() for batch in batches]
    return np.concatenate(found).astype(np.int64) if found else np.array([], np.int64)
