"""Batches of rows of like length, by lengths that are read from Arrow at once.

transformers' own sampler would make a Python object of each row of the data set first, and knows single sequences only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import RewardTrainer

if TYPE_CHECKING:
    # What the mixin is mixed into.
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

SIDES = (
    ("input_ids",),
    ("prompt_ids", "chosen_ids"),
    ("prompt_ids", "rejected_ids"),
    ("chosen_input_ids",),
    ("rejected_input_ids",),
)
"""Columns of tokens that make one sequence, as the trainers name them."""


class ByEpoch(LengthGroupedSampler):
    """transformers' sampler, with an order that depends on the seed and the epoch alone.

    Its own draws from the run's random state, which a resumed run restores only after the first batches are taken: it
    would go on in another order, with some rows twice and some never.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator().manual_seed(seed))
        self._seed = seed

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch; accelerate's loader says which one it is."""
        self.generator.manual_seed(self._seed + epoch)


class GroupsByLength(_Trainer):
    """Mixin over a trainer of tokenized rows: `train_sampling_strategy: group_by_length` takes no time to set up."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(rows, Dataset):
            return super()._get_train_sampler(train_dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return ByEpoch(size, longest(rows).tolist(), self._order_seed())

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(eval_dataset, Dataset):
            return super()._get_eval_sampler(eval_dataset)
        return ByEpoch(self.args.eval_batch_size, longest(eval_dataset).tolist(), self._order_seed())

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
