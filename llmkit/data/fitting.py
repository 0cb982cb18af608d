"""A tokenized row -> what of it fits into `training.max_length`, or the reason why it is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkit.data.splits import Row
from llmkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNTRAINED = "no trained token is left"


def check_start(row: Row, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DataError for a row that begins with two start tokens."""
    bos = tokenizer.bos_token_id
    if bos is not None and any(sequence[:2] == [bos, bos] for sequence in row.sequences):
        raise DataError(
            f"the rendered row begins with {tokenizer.bos_token!r} twice",
            where=row.where,
            remedy="The text or the chat template adds a start token that the tokenizer adds as well.",
        )


def fitted(row: Row, max_length: int | None, overflow: str) -> list[Row] | str:
    """Return the row with no sequence longer than `max_length` tokens, or the reason why it is dropped.

    The list has one row, or the pieces of a longer one where `overflow` is `split`. Raises DataError for a longer one
    where `overflow` is `error`.
    """
    if max_length is not None and row.longest > max_length:
        if overflow == "error":
            raise DataError(
                f"the row has {row.longest} tokens, more than `training.max_length` {max_length}",
                where=row.where,
                remedy="Raise training.max_length, or choose data.overflow: drop, truncate or split.",
            )
        if overflow == "drop":
            return f"longer than {max_length} tokens"
        if overflow == "split":
            return row.pieces(max_length) or UNTRAINED
        row = row.cut(max_length)
    if row.labels and not row.trained_tokens:
        return UNTRAINED
    if row.truncated and (row.longest > (max_length or 0) or not all(row.answers)):
        return f"the prompt alone fills {max_length} tokens"
    if len(row.answers) == 2 and row.answers[0] == row.answers[1]:
        return "the answers are equal once cut"
    return [row]
