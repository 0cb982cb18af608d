"""One converted example -> a Row of tokens that a method can learn from, or the reason why none can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmkit.data import answers, masks
from llmkit.data.masks import Tokens
from llmkit.data.shapes import Shape
from llmkit.data.splits import Row
from llmkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenize = Callable[["PreTrainedTokenizerBase", Mapping[str, Any], frozenset[int]], Tokens]

BY_SHAPE: dict[Shape, Tokenize] = {
    Shape.CONVERSATION: masks.conversation,
    Shape.PROMPT_COMPLETION: masks.completion,
    Shape.TEXT: masks.text,
    Shape.PREFERENCE: answers.preference,
    Shape.UNPAIRED: answers.unpaired,
    Shape.PROMPT: answers.prompt,
}


def tokenize(
    tokenizer: PreTrainedTokenizerBase, shape: Shape, example: Mapping[str, Any], stops: frozenset[int]
) -> Tokens:
    """Return the tokens of one example under the names of TRL's columns (see `Row.tokens`).

    `stops` are the token ids that end a generated answer. Raises RowError for a row that can't be tokenized rightly
    (UnlearnableError for one that teaches nothing), and SetupError where no row could be.
    """
    return BY_SHAPE[shape](tokenizer, example, stops)


def check_start(row: Row, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DataError for a row that begins with two start tokens."""
    bos = tokenizer.bos_token_id
    if bos is not None and any(sequence[:2] == [bos, bos] for sequence in row.sequences):
        raise DataError(
            f"the rendered row begins with {tokenizer.bos_token!r} twice",
            where=row.where,
            remedy="The text or the chat template adds a start token that the tokenizer adds as well.",
        )


def fitted(row: Row, max_length: int | None, overflow: str) -> Row | str:
    """Return the row with no sequence longer than `max_length` tokens, or the reason why it is dropped.

    Raises DataError for a longer one where `overflow` is `error`.
    """
    if max_length is not None and row.longest > max_length:
        if overflow == "error":
            raise DataError(
                f"the row has {row.longest} tokens, more than `training.max_length` {max_length}",
                where=row.where,
                remedy="Raise training.max_length, or choose data.overflow: drop or truncate.",
            )
        if overflow == "drop":
            return f"longer than {max_length} tokens"
        row = row.cut(max_length)
    if row.labels and not row.trained_tokens:
        return "no trained token is left"
    if row.truncated and (row.longest > (max_length or 0) or not all(row.answers)):
        return f"the prompt alone fills {max_length} tokens"
    if len(row.answers) == 2 and row.answers[0] == row.answers[1]:
        return "the answers are equal once cut"
    return row
