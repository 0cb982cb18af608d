"""What becomes of long rows, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.fitting import fitted
from llmkit.data.splits import Row
from llmkit.errors import DataError

LONG = Row("a:1", {}, {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, 4, 5]})


def test_a_row_that_fits_is_left_alone() -> None:
    assert fitted(LONG, 5, "drop") == fitted(LONG, None, "error") == [LONG]


def test_a_long_row_is_cut_into_pieces() -> None:
    first, second = fitted(LONG, 3, "split")
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert first.tokens == {"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}
    # Nothing stands before the first token of a piece that it could be predicted from.
    assert second.tokens == {"input_ids": [4, 5], "labels": [-100, 5]}
    assert (first.part, second.part, first.where) == (0, 1, "a:1")


def test_pieces_without_a_trained_token_are_left_out() -> None:
    (only,) = fitted(LONG, 2, "split")
    assert isinstance(only, Row)
    assert only.tokens == {"input_ids": [3, 4], "labels": [-100, 4]}
    assert only.truncated  # a single piece that is left is no split row
    assert fitted(LONG, 1, "split") == "no trained token is left"


def test_error_names_the_row_and_the_choices() -> None:
    with pytest.raises(DataError, match="a:1: the row has 5 tokens") as caught:
        fitted(LONG, 3, "error")
    assert "split" in str(caught.value.remedy)


def test_drop_and_truncate() -> None:
    assert fitted(LONG, 4, "drop") == "longer than 4 tokens"
    (cut,) = fitted(LONG, 4, "truncate")
    assert isinstance(cut, Row)
    assert cut.tokens == {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}
    assert cut.truncated
    assert fitted(LONG, 2, "truncate") == "no trained token is left"


@given(count=st.integers(1, 60), length=st.integers(2, 20))
def test_pieces_hold_every_token_once(count: int, length: int) -> None:
    ids = list(range(1, count + 1))
    pieces = fitted(Row("a:1", {}, {"input_ids": ids, "labels": ids}), length, "split")
    whole = [ids[start : start + length] for start in range(0, count, length)]
    if count > length and len(whole[-1]) == 1:
        whole.pop()  # a single token has nothing to be predicted from
    assert [row.input_ids for row in pieces if isinstance(row, Row)] == whole
