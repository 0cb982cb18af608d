"""chrF, by sacrebleu."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from llmkit.data.splits import Row
from llmkit.evaluation import _metrics
from llmkit.evaluation._generation import Generated
from llmkit.evaluation.base import Part


class Chrf(Generated):
    """Compare greedy answers with the references by corpus chrF: n-grams of 1 to 6 characters (Popović 2015)."""

    type: Literal["chrf"]
    """Corpus chrF against the references: BLEU's companion for languages with much inflection or without spaces."""

    aggregate: ClassVar[Mapping[str, str]] = {"chrf": "chrf"}

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError where the package is missing, and what is raised for its own rows."""
        super().check_setup(folder)
        _metrics.require_installed("sacrebleu", "sacrebleu", "chrf")

    def measure(self, answer: str, reference: str, row: Row) -> dict[str, Part]:
        """Return what the row adds to `chrf`, 0..100."""
        return {"chrf": _metrics.chrf(answer, reference)}
