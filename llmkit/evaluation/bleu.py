"""BLEU, by sacrebleu."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from llmkit.data.splits import Row
from llmkit.evaluation import _metrics
from llmkit.evaluation._generation import Generated
from llmkit.evaluation.base import Part


class Bleu(Generated):
    """Compare greedy answers with the references by corpus BLEU (Papineni et al. 2002; Post 2018).

    As sacrebleu does by default: tokenizer 13a, smoothing exp, effective order off.
    """

    type: Literal["bleu"]
    """Corpus BLEU against the references."""

    aggregate: ClassVar[Mapping[str, str]] = {"bleu": "bleu"}

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError where the package is missing, and what is raised for its own rows."""
        super().check_setup(folder)
        _metrics.require_installed("sacrebleu", "sacrebleu", "bleu")

    def measure(self, answer: str, reference: str, row: Row) -> dict[str, Part]:
        """Return what the row adds to `bleu`, 0..100."""
        return {"bleu": _metrics.bleu(answer, reference)}
