"""Accuracy: answers read as labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llmkit.evaluation import _metrics
from llmkit.evaluation._generation import Generated


class Accuracy(Generated):
    """Compare the first line of greedy answers with that of the references, case and outer white space aside."""

    type: Literal["accuracy"]
    """Share of answers whose first line is the reference label."""

    def measure(self, predictions: Sequence[str], references: Sequence[str], folder: Path) -> dict[str, float]:
        """Return `accuracy`, 0..1."""
        return _metrics.accuracy(predictions, references)
