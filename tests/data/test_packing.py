"""Packing by lengths: TRL's sequences, every row once, nothing cut; and what is said of it."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.packing import pack, shuffled_padding
from llmkit.errors import DataError

LENGTHS = st.lists(st.integers(1, 32), max_size=60)


def sequences(lengths: list[int], capacity: int) -> list[list[int]]:
    packing = pack(lengths, capacity)
    return [packing.rows(index) for index in range(len(packing))]


def test_a_row_goes_where_the_least_room_is_left() -> None:
    # 7 and 6 open two sequences of 10 (3 and 4 left); 4 fits only the second, 3 fits the first, 1 opens a third.
    assert sequences([3, 7, 1, 6, 4], 10) == [[1, 0], [3, 4], [2]]


def test_of_sequences_with_equal_room_the_oldest_is_filled() -> None:
    assert sequences([2, 8, 8, 2], 10) == [[1, 0], [2, 3]]


@given(lengths=LENGTHS, capacity=st.integers(32, 80))
def test_every_row_stands_in_one_sequence_and_fits(lengths: list[int], capacity: int) -> None:
    packing = pack(lengths, capacity)
    found = [packing.rows(index) for index in range(len(packing))]
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    assert packing.lengths.tolist() == [sum(lengths[row] for row in rows) for rows in found]
    assert all(0 < length <= capacity for length in packing.lengths)


@given(lengths=LENGTHS)
def test_the_same_lengths_give_the_same_sequences(lengths: list[int]) -> None:
    assert sequences(lengths, 32) == sequences(lengths, 32)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 32), min_size=1, max_size=60))
def test_the_sequences_are_trls(lengths: list[int]) -> None:
    from datasets import Dataset, disable_progress_bars
    from trl import pack_dataset

    disable_progress_bars()
    ids = [[row] * length for row, length in enumerate(lengths)]
    theirs = pack_dataset(Dataset.from_dict({"input_ids": ids}), 32, "bfd")
    ours = [[row for row in rows for _ in range(lengths[row])] for rows in sequences(lengths, 32)]
    assert ours == theirs["input_ids"][:]


@pytest.mark.parametrize("length", [0, 11])
def test_a_row_that_no_sequence_can_hold_is_refused(length: int) -> None:
    with pytest.raises(DataError, match=f"a row has {length} tokens, and a packed sequence holds 1 to 10"):
        pack([3, length], 10)


def test_nothing_is_packed_into_nothing() -> None:
    packing = pack([], 8)
    assert len(packing) == 0
    assert packing.account(4).sentence().startswith("packed 0 rows into 0 sequences")
    with pytest.raises(IndexError):
        packing.rows(0)


def test_padding_counts_up_to_the_longest_of_each_batch() -> None:
    assert shuffled_padding([4, 4, 4, 4], 2) == 0.0
    assert shuffled_padding([1, 2, 3, 4], 4) == pytest.approx(1 - 10 / 16)
    assert shuffled_padding([1, 2, 3, 4], 1) == 0.0
    assert shuffled_padding([6, 2, 2], 3) == pytest.approx(1 - 10 / 18)
    assert shuffled_padding([], 3) == 0.0


def test_the_account_says_what_is_saved() -> None:
    account = pack([8, 2, 7, 3], 10).account(2)
    assert (account.rows, account.sequences, account.tokens, account.capacity) == (4, 2, 20, 10)
    # Both sequences are full; unpacked, the same four rows would be padded to 8 tokens each.
    assert account.padding == 0.0
    assert account.unpacked_padding == pytest.approx(1 - 20 / 32)
    assert account.sentence() == ("packed 4 rows into 2 sequences of at most 10 tokens: 0.0% padding instead of 37.5%")


def test_many_rows_are_packed_in_a_moment() -> None:
    lengths = np.random.default_rng(0).integers(1, 1025, 100_000)
    began = time.perf_counter()
    packing = pack(lengths, 1024)
    assert time.perf_counter() - began < 3
    assert packing.account(4).padding < 0.01
