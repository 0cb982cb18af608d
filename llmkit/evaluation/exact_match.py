"""Exact match: the share of answers that are their reference, letter for letter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llmkit.evaluation import _metrics
from llmkit.evaluation._generation import Generated


class ExactMatch(Generated):
    """Compare greedy answers with the references, white space at either end aside."""

    type: Literal["exact_match"]
    """Share of answers equal to their reference."""

    def measure(self, predictions: Sequence[str], references: Sequence[str], folder: Path) -> dict[str, float]:
        """Return `exact_match`, 0..1."""
        return _metrics.exact_match(predictions, references)
