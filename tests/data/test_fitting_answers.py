"""Which pairs, prompts and feedback are kept, cut or dropped by their tokens, by hand."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from llmkit.data.fitting import check_start, fitted
from llmkit.data.splits import Row
from llmkit.errors import DataError

NINE = list(range(9))


def pair(prompt: int, chosen: list[int], rejected: list[int]) -> Row:
    return Row("a:1", {}, {"prompt_ids": [7] * prompt, "chosen_ids": chosen, "rejected_ids": rejected})


@pytest.mark.parametrize("overflow", ["drop", "truncate", "error"])
@pytest.mark.parametrize("max_length", [None, 5])
def test_a_row_that_fits_is_left_alone(max_length: int | None, overflow: str) -> None:
    row = pair(2, [1, 2, 3], [4])
    assert fitted(row, max_length, overflow) == [row]


@pytest.mark.parametrize(
    ("row", "dropped"),
    [
        (pair(2, [1, 2, 3, 4], [5]), "longer than 5 tokens"),
        (pair(2, [5], [1, 2, 3, 4]), "longer than 5 tokens"),
        (Row("a:1", {}, {"prompt_ids": NINE}), "longer than 5 tokens"),
    ],
)
def test_the_longer_answer_decides(row: Row, dropped: str) -> None:
    assert fitted(row, 5, "drop") == dropped
    with pytest.raises(DataError, match="a:1: the row has [69] tokens, more than `training.max_length` 5"):
        fitted(row, 5, "error")


def test_answers_are_cut_at_their_end() -> None:
    (row,) = fitted(pair(2, [1, 2, 3, 4], [5]), 5, "truncate")
    assert isinstance(row, Row)
    assert row.truncated
    assert row.tokens == {"prompt_ids": [7, 7], "chosen_ids": [1, 2, 3], "rejected_ids": [5]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair(5, [1], [2]), "the prompt alone fills 5 tokens"),
        (pair(6, [1], [2]), "the prompt alone fills 5 tokens"),
        (Row("a:1", {}, {"prompt_ids": NINE}), "the prompt alone fills 5 tokens"),
        (Row("a:1", {"label": True}, {"prompt_ids": NINE, "completion_ids": [1]}), "the prompt alone fills 5 tokens"),
        (pair(3, [1, 2, 3], [1, 2, 4]), "the answers are equal once cut"),
        (pair(3, [1, 2, 3], [1, 2]), "the answers are equal once cut"),
        (Row("a:1", {}, {"input_ids": NINE, "labels": [-100] * 5 + [5, 6, 7, 8]}), "no trained token is left"),
    ],
)
def test_what_truncation_swallows_is_dropped(row: Row, reason: str) -> None:
    assert fitted(row, 5, "truncate") == reason


def test_a_prompt_has_no_trained_token_and_is_kept() -> None:
    row = Row("a:1", {}, {"prompt_ids": NINE})
    assert fitted(row, None, "drop") == [row]


@pytest.mark.parametrize(
    "tokens", [{"input_ids": [1, 1, 5], "labels": [1, 1, 5]}, {"prompt_ids": [1, 1], "completion_ids": [4]}]
)
def test_two_start_tokens_are_refused(tokenizer: PreTrainedTokenizerFast, tokens: dict[str, list[int]]) -> None:
    row = Row("a:1", {}, tokens)
    check_start(row, tokenizer)
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(1)
    with pytest.raises(DataError, match="a:1: the rendered row begins with .* twice"):
        check_start(row, tokenizer)
