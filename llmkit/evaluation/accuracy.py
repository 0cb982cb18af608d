"""Accuracy: answers read as labels."""

from __future__ import annotations

from typing import Literal

from llmkit.data.splits import Row
from llmkit.evaluation import _metrics
from llmkit.evaluation._generation import Generated
from llmkit.evaluation.base import Part


class Accuracy(Generated):
    """Compare the first line of greedy answers with that of the references, case and outer white space aside."""

    type: Literal["accuracy"]
    """Share of answers whose first line is the reference label."""

    def measure(self, answer: str, reference: str, row: Row) -> dict[str, Part]:
        """Return the row's `accuracy`, 0..1."""
        return {"accuracy": _metrics.accuracy(answer, reference)}
