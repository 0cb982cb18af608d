"""BLEU, by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llmkit.evaluation import _metrics
from llmkit.evaluation._generation import Generated


class Bleu(Generated):
    """Compare greedy answers with the references by corpus BLEU (Papineni et al. 2002; Post 2018)."""

    type: Literal["bleu"]
    """Corpus BLEU against the references."""

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError where the package is missing."""
        _metrics.require_installed("sacrebleu", "sacrebleu", "bleu")

    def measure(self, predictions: Sequence[str], references: Sequence[str], folder: Path) -> dict[str, float]:
        """Return `bleu`, 0..100; raises SetupError without sacrebleu."""
        return _metrics.bleu(predictions, references)
