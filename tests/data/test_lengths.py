"""Histogram, quantiles and padding, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.lengths import Bin, grouped, histogram, padding, quantiles


def test_bins_have_a_round_width_and_end_where_the_rows_do() -> None:
    assert histogram(np.array([3, 12, 12, 19, 27]), most=3) == [Bin(3, 9, 1), Bin(10, 19, 3), Bin(20, 27, 1)]
    assert histogram(np.array([7, 7])) == [Bin(7, 7, 2)]
    assert histogram(np.array([], int)) == []


def test_a_long_tail_is_one_bin() -> None:
    lengths = np.array([*range(1, 100), 5000])
    *bulk, tail = histogram(lengths)
    assert tail == Bin(100, 5000, 1)
    assert [b.high - b.low for b in bulk[1:]] == [9] * 9


@given(lengths=st.lists(st.integers(1, 100_000), min_size=1), most=st.integers(1, 20))
def test_every_row_is_in_exactly_one_bin(lengths: list[int], most: int) -> None:
    bins = histogram(np.array(lengths), most)
    assert sum(b.count for b in bins) == len(lengths)
    for bin_ in bins:
        assert bin_.count == sum(bin_.low <= length <= bin_.high for length in lengths)
    assert len(bins) <= most + 3


def test_quantiles_are_values_of_the_rows() -> None:
    found = quantiles(np.array([10, 20, 30, 40, 1000]))
    assert found == {"least": 10, "10%": 10, "median": 30, "90%": 1000, "99%": 1000, "most": 1000}
    assert quantiles(np.array([], int)) == {}


def test_padding_goes_up_to_the_longest_of_each_batch() -> None:
    lengths = np.array([1, 3, 2, 2, 5])
    # Batches of 2: 3 + 3, 2 + 2, 5 = 15 computed, 13 real.
    assert padding(lengths, lengths, 2) == pytest.approx(2 / 15)
    assert padding(lengths, lengths, 1) == 0.0
    assert padding(np.array([], int), np.array([], int), 4) == 0.0


def test_both_sequences_of_a_pair_are_padded() -> None:
    # Pairs of 4 + 3 and 2 + 2 tokens in one batch: four sequences of 4, 11 of 16 tokens are real.
    assert padding(np.array([4, 2]), np.array([7, 4]), 2, sequences=2) == pytest.approx(5 / 16)


def test_padding_of_many_long_rows_does_not_overflow() -> None:
    lengths = np.full(3_000_000, 2000, np.int32)
    assert padding(lengths, lengths, 8) == 0.0


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 4), (10, 4), (40, 2), (1000, 4)])
def test_groups_are_those_of_transformers(rows: int, batch_size: int) -> None:
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    lengths = np.random.default_rng(0).integers(1, 500, rows)
    shuffle = torch.randperm(rows, generator=torch.Generator().manual_seed(3)).numpy()
    theirs = get_length_grouped_indices(lengths.tolist(), batch_size, generator=torch.Generator().manual_seed(3))
    ours = lengths[shuffle][grouped(lengths[shuffle], batch_size)]
    # They put the longest row of all first, in exchange for the first.
    other = lengths[theirs]
    assert sorted(ours) == sorted(other)
    assert (ours != other).sum() <= 2
