"""What the data room hands to the rooms after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmkit.data.shapes import Shape


@dataclass(frozen=True)
class Row:
    """One example: where it came from, what it says (TRL-shaped) and its tokens.

    `input_ids` and `labels` have the same length; a label is the token itself where it is trained and -100 elsewhere.
    Both are empty for shapes that the method's trainer tokenizes itself.
    """

    where: str
    example: dict[str, Any]
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    source: str = ""
    """Name of the row's account in the ledger."""
    truncated: bool = False
    """Whether tokens beyond `training.max_length` were cut off."""

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
