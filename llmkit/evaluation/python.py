"""Python: a metric of your own, as a function."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from llmkit.data.splits import Row
from llmkit.errors import LlmkitError, RunError
from llmkit.evaluation._generation import Generated
from llmkit.evaluation._rows import scored
from llmkit.evaluation.base import Score, Subject
from llmkit.recipe.functions import Form, check_function, load_function, spelled

OWNER = "evaluation `python`"
FORM = Form(
    "def NAME(answers: list[str], rows: list[dict]) -> list[float]", "a list of answers and a list of their rows", 2
)


class Python(Generated):
    """Call `def NAME(answers: list[str], rows: list[dict])` on all greedy answers; `rows` have the rows' columns.

    It returns a list with a number for each row, which becomes the metric NAME, or a dict of such lists by metric. The
    metrics are the means. The file is run on this machine with your rights: point only to code you trust.
    """

    type: Literal["python"]
    """Means of the numbers that a function of yours gives to each answer."""

    function: str
    """`FILE.py:NAME`, the file in the recipe's folder or below it, or `package.module:NAME` of an installed package."""

    @field_validator("function")
    @classmethod
    def _spelling(cls, value: str) -> str:
        return spelled(value)

    def check_setup(self, folder: Path) -> None:
        """Raise RecipeError where the file is missing or broken, or has no such function; nothing in it is run."""
        super().check_setup(folder)
        check_function(self.function, folder, FORM, OWNER)

    def check_row(self, row: Row) -> None:
        """Ask nothing of the row: what a row must have is the function's to know."""

    def score(self, subject: Subject) -> Score:
        """Return the mean of each metric of the function.

        Raises what `prepared` raises, SetupError where the file can't be imported, RunError where the function fails or
        returns something else than finite numbers, one for each row (true and false are 1 and 0).
        """
        subject = self.prepared(subject)
        function = load_function(self.function, subject.folder, OWNER)
        samples = self.answers(subject)
        answers, rows = [sample.answer for sample in samples], [dict(row.example) for row in subject.rows]
        try:
            returned = function(answers, rows)
        except LlmkitError:
            raise
        except Exception as error:  # noqa: BLE001 - a function of the user's may raise anything
            raise RunError(f"{OWNER}: it raised {type(error).__name__}: {error}", where=self.function) from error
        columns = self._columns(returned, len(samples))
        by_row = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return scored(by_row, samples)

    def _columns(self, returned: Any, rows: int) -> dict[str, list[float]]:
        """Return the numbers of each row by metric; raises RunError for anything else."""
        name = self.function.rpartition(":")[2]
        found = dict(returned) if isinstance(returned, Mapping) else {name: returned}
        columns = {}
        for metric, values in found.items():
            try:
                column = list(values)
            except TypeError:
                column = []
            if not isinstance(metric, str) or len(column) != rows:
                raise RunError(
                    f"{OWNER}: it returned {values!r:.80} as {metric!r} for {rows} answers",
                    where=self.function,
                    remedy="Return a list with one number for each answer, or a dict of such lists by metric.",
                )
            odd = [value for value in column if not _is_number(value)]
            if odd:
                raise RunError(f"{OWNER}: {odd[0]!r:.80} in {metric!r} is no finite number", where=self.function)
            columns[metric] = [float(value) for value in column]
        if not columns:
            raise RunError(f"{OWNER}: it returned an empty dict, and so no metric", where=self.function)
        return columns


def _is_number(value: Any) -> bool:
    """Whether `value` is a finite number, also one of NumPy's."""
    try:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False
