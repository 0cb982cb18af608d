"""What the data room hands to the rooms after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmkit.data.shapes import Shape

if TYPE_CHECKING:
    from datasets import IterableDataset

ANSWERS = ("chosen_ids", "rejected_ids", "completion_ids")
"""Columns of `Row.tokens` that follow `prompt_ids`, each a sequence of its own."""


@dataclass(frozen=True)
class Row:
    """One example: where it came from, what it says (TRL-shaped) and its tokens.

    `tokens` holds lists of token ids under the names of TRL's columns: `input_ids` and `labels` (of the same length; a
    label is the token itself where it is trained and -100 elsewhere) for what SFT learns from; `prompt_ids`,
    `chosen_ids`, `rejected_ids` for a preference; `prompt_ids`, `completion_ids` for unpaired feedback; `prompt_ids`
    for a prompt.
    """

    where: str
    example: dict[str, Any]
    tokens: dict[str, list[int]] = field(default_factory=dict)
    source: str = ""
    """Name of the row's account in the ledger."""
    truncated: bool = False
    """Whether tokens beyond `training.max_length` were cut off."""
    part: int = 0
    """Number of the piece, from 0, where a long row was split."""

    @property
    def input_ids(self) -> list[int]:
        """The whole sequence; empty for shapes that are no single one."""
        return self.tokens.get("input_ids", [])

    @property
    def labels(self) -> list[int]:
        """The trained tokens at their places, -100 elsewhere; as long as `input_ids`."""
        return self.tokens.get("labels", [])

    @property
    def answers(self) -> list[list[int]]:
        """The answers to the prompt: two of a preference (the better first), one of unpaired feedback, else none."""
        return [self.tokens[name] for name in ANSWERS if name in self.tokens]

    @property
    def sequences(self) -> list[list[int]]:
        """What the model reads: the prompt with each answer; or the single sequence that there is."""
        if "input_ids" in self.tokens:
            return [self.tokens["input_ids"]]
        prompt = self.tokens.get("prompt_ids", [])
        return [prompt + answer for answer in self.answers] or [prompt]

    @property
    def longest(self) -> int:
        """Length of the longest sequence, in tokens."""
        return max(map(len, self.sequences))

    @property
    def trained_tokens(self) -> int:
        """Number of tokens that carry loss."""
        labels = self.labels
        return len(labels) - labels.count(-100) if labels else sum(map(len, self.answers))

    @property
    def verdict(self) -> str | None:
        """Whether unpaired feedback calls the answer `good` or `bad`; None for other rows."""
        if "completion_ids" not in self.tokens:
            return None
        return "good" if self.example["label"] else "bad"

    def cut(self, length: int) -> Row:
        """Return the row with no sequence longer than `length` tokens: ends are cut off, a prompt is left whole."""
        room = max(0, length - len(self.tokens.get("prompt_ids", [])))
        tokens = {name: ids if name == "prompt_ids" else ids[:room] for name, ids in self.tokens.items()}
        return replace(self, tokens=tokens, truncated=True)

    def pieces(self, length: int) -> list[Row]:
        """Return the single sequence as pieces of at most `length` tokens, without those that train nothing."""
        starts = range(0, len(self.input_ids), length)
        cuts = [{name: values[start : start + length] for name, values in self.tokens.items()} for start in starts]
        for cut in cuts[1:]:
            cut["labels"] = [-100, *cut["labels"][1:]]  # nothing stands before it that it could be predicted from
        found = [replace(self, tokens=tokens) for tokens in cuts]
        trained = [piece for piece in found if piece.trained_tokens]
        lost = len(trained) == 1
        return [replace(piece, part=number, truncated=lost) for number, piece in enumerate(trained)]


@dataclass(frozen=True)
class Splits:
    """The rows that are learnt from and those held out, with their common shape."""

    shape: Shape
    train: Sequence[Row]
    eval: Sequence[Row]
    stream: Callable[[], IterableDataset] | None = None
    """Makes the data set of tokens that training reads, for rows that are streamed; `train` holds the first of them."""
