"""ROUGE, by rouge_score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llmkit.evaluation import _metrics
from llmkit.evaluation._generation import Generated


class Rouge(Generated):
    """Compare greedy answers with the references by ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004)."""

    type: Literal["rouge"]
    """Mean ROUGE F-measures against the references."""

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError where the package is missing."""
        _metrics.require_installed("rouge_score.rouge_scorer", "rouge-score", "rouge")

    def measure(self, predictions: Sequence[str], references: Sequence[str], folder: Path) -> dict[str, float]:
        """Return `rouge1`, `rouge2` and `rougeL`, 0..1; raises SetupError without rouge-score."""
        return _metrics.rouge(predictions, references)
