"""Token F1, as SQuAD scores short answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llmkit.evaluation import _metrics
from llmkit.evaluation._generation import Generated


class F1(Generated):
    """Measure the overlap of words between greedy answers and references (Rajpurkar et al. 2016)."""

    type: Literal["f1"]
    """Mean token overlap F1 with the reference, as in SQuAD."""

    def measure(self, predictions: Sequence[str], references: Sequence[str], folder: Path) -> dict[str, float]:
        """Return `f1`, 0..1."""
        return _metrics.f1(predictions, references)
