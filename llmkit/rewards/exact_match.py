"""Exact match: 1 where the completion is the row's answer, letter for letter.

>>> ExactMatch(type="exact_match").score(" 5 ", {"answer": "5"})
1.0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from llmkit.data.shapes import RowError
from llmkit.rewards.base import Reward


class ExactMatch(Reward):
    """Compare with a column of the row, white space at either end aside."""

    type: Literal["exact_match"]
    """1 for the very answer, else 0."""

    column: str = "answer"
    """Column of the row that holds the answer."""

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise RowError if the row has no answer."""
        if row.get(self.column) is None:
            raise RowError(f"no column {self.column!r}, which reward `{self.name}` compares with")

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return 1.0 or 0.0."""
        return float(completion.strip() == str(row[self.column]).strip())

    def golden(self, row: Mapping[str, Any]) -> str | None:
        """Return the answer itself."""
        return str(row[self.column])
