"""ROUGE, by rouge_score."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from llmkit.data.splits import Row
from llmkit.evaluation import _metrics
from llmkit.evaluation._generation import Generated
from llmkit.evaluation.base import Part


class Rouge(Generated):
    """Compare greedy answers with the references by ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004)."""

    type: Literal["rouge"]
    """Mean ROUGE F-measures against the references."""

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError where the package is missing, and what is raised for its own rows."""
        super().check_setup(folder)
        _metrics.require_installed("rouge_score.rouge_scorer", "rouge-score", "rouge")

    def measure(self, answer: str, reference: str, row: Row) -> dict[str, Part]:
        """Return the row's `rouge1`, `rouge2` and `rougeL`, 0..1."""
        return {**_metrics.rouge(answer, reference)}
