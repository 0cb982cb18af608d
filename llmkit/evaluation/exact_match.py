"""Exact match: the share of answers that are their reference, letter for letter."""

from __future__ import annotations

from typing import Literal

from llmkit.data.splits import Row
from llmkit.evaluation import _metrics
from llmkit.evaluation._generation import Generated
from llmkit.evaluation.base import Part


class ExactMatch(Generated):
    """Compare greedy answers with the references, white space at either end aside."""

    type: Literal["exact_match"]
    """Share of answers equal to their reference."""

    def measure(self, answer: str, reference: str, row: Row) -> dict[str, Part]:
        """Return the row's `exact_match`, 0..1."""
        return {"exact_match": _metrics.exact_match(answer, reference)}
