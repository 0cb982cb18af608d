"""Converted examples -> tokens that a method can learn from, or the reason why there are none, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmkit.data import answers, masks
from llmkit.data.masks import Tokens
from llmkit.data.shapes import RowError, Shape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rules:
    """Which turns are trained, and what becomes of reasoning traces."""

    train_on: Literal["all", "last", "marked"] = "all"
    """All turns of the assistant, the last message of it, or those that their `train: true` or `weight` marks."""
    reasoning: Literal["keep", "last", "cut"] = "keep"
    """Reasoning traces are kept, kept after the last question only, or cut."""


Tokenize = Callable[
    ["PreTrainedTokenizerBase", Sequence[Mapping[str, Any]], frozenset[int], Rules], list[Tokens | RowError]
]

BY_SHAPE: dict[Shape, Tokenize] = {
    Shape.CONVERSATION: masks.conversations,
    Shape.PROMPT_COMPLETION: masks.completions,
    Shape.TEXT: masks.texts,
    Shape.PREFERENCE: answers.preferences,
    Shape.UNPAIRED: answers.unpaired,
    Shape.PROMPT: answers.prompts,
}


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    shape: Shape,
    examples: Sequence[Mapping[str, Any]],
    stops: frozenset[int],
    rules: Rules = Rules(),
) -> list[Tokens | RowError]:
    """Return the tokens of each example under the names of TRL's columns (see `Row.tokens`), or why it has none.

    Conversations in which a turn has a weight other than 0 and 1 have `loss_weights` as well: a factor for each token,
    0 where nothing is learnt. The texts of a batch are tokenized in one call, so some hundreds of examples at a time
    cost less than one by one. `stops` are the token ids that end a generated answer.

    A RowError stands for a row that can't be tokenized rightly (UnlearnableError for one that teaches nothing). Raises
    SetupError where no row could be.
    """
    return BY_SHAPE[shape](tokenizer, examples, stops, rules)
