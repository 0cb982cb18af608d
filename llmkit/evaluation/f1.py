"""Token F1, as SQuAD scores short answers."""

from __future__ import annotations

from typing import Literal

from llmkit.data.splits import Row
from llmkit.evaluation import _metrics
from llmkit.evaluation._generation import Generated
from llmkit.evaluation.base import Part


class F1(Generated):
    """Measure the overlap of words between greedy answers and references (Rajpurkar et al. 2016)."""

    type: Literal["f1"]
    """Mean token overlap F1 with the reference, as in SQuAD."""

    def measure(self, answer: str, reference: str, row: Row) -> dict[str, Part]:
        """Return the row's `f1`, 0..1."""
        return {"f1": _metrics.f1(answer, reference)}
