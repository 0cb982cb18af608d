"""What the data room hands to the rooms after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmkit.data.shapes import Shape


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

    @property
    def input_ids(self) -> list[int]:
        """The whole sequence; empty for shapes that are no single one."""
        return self.tokens.get("input_ids", [])

    @property
    def labels(self) -> list[int]:
        """The trained tokens at their places, -100 elsewhere; as long as `input_ids`."""
        return self.tokens.get("labels", [])

    @property
    def trained_tokens(self) -> int:
        """Number of tokens that carry loss."""
        return sum(label != -100 for label in self.labels)


@dataclass(frozen=True)
class Splits:
    """The rows that are learnt from and those held out, with their common shape."""

    shape: Shape
    train: tuple[Row, ...]
    eval: tuple[Row, ...]
