"""The rows that an evaluation scores on, held out or a set of its own, and the score that comes of their parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

from pydantic import Field

from llmkit.data.shapes import LeftOutError, RowError
from llmkit.data.sources import check_source, read_examples
from llmkit.data.splits import Row
from llmkit.errors import DataError, RecipeError
from llmkit.evaluation.base import Evaluation, Part, Sample, Score, Subject
from llmkit.recipe.recipe import Source

UNUSED = ("weight", "repeat", "streaming")
"""Keys of a source that say how rows are trained on."""

Parts = Mapping[str, Part]
"""What one row adds to each metric."""


class OnRows(Evaluation):
    """Base of the evaluations that need nothing of a row but what it says."""

    data: Source | None = None
    """Rows to score on in place of the held-out ones: one source, as in `data.train`."""

    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows; all of them if unset."""

    def requires_rows(self) -> bool:
        """Whether held-out rows are required: not with rows of its own."""
        return self.data is None

    def check_setup(self, folder: Path) -> None:
        """Raise DataError, RecipeError or SetupError where its own rows can't be read as the recipe says."""
        if self.data is None:
            return
        unused = [key for key in UNUSED if key in self.data.model_fields_set]
        if unused:
            raise RecipeError(
                f"`data` of evaluation `{self.type}` has `{unused[0]}`, which is for rows that are trained on",
                remedy=f"Leave `{unused[0]}` out.",
            )
        check_source(self.data, folder)

    def check_row(self, row: Row) -> None:
        """Raise RowError where the row lacks what scoring needs; called for all rows before the model is."""

    def prepared(self, subject: Subject) -> Subject:
        """Return the subject with the rows to score on, each of them checked.

        Raises what `check_setup` raises, DataError where there are no rows and, with its place, for a row that can't
        be scored.
        """
        self.check_setup(subject.folder)
        rows = subject.rows[: self.limit] if self.data is None else self._read(self.data, subject.folder)
        if not rows:
            raise DataError(f"evaluation `{self.type}` has no held-out rows", remedy="set `data.eval`")
        for row in rows:
            with placed(row):
                self.check_row(row)
        return replace(subject, rows=rows)

    def _read(self, source: Source, folder: Path) -> list[Row]:
        rows = []
        read = ((w, e) for w, e in read_examples(source, folder) if not isinstance(e, LeftOutError))
        for where, example in islice(read, self.limit):
            if isinstance(example, RowError):
                raise DataError(str(example), where=where) from example
            rows.append(Row(where=where, example=example))
        return rows


@contextmanager
def placed(row: Row) -> Iterator[None]:
    """Turn a RowError within the block into a DataError with the row's place."""
    try:
        yield
    except RowError as error:
        raise DataError(str(error), where=row.where) from error


def scored(
    parts: Sequence[Parts], samples: tuple[Sample, ...] = (), aggregate: Mapping[str, str] | None = None
) -> Score:
    """Return the score of rows, of which each adds its `parts` to the same metrics.

    `aggregate` names how a metric that is no mean comes of the sums of its parts (`AGGREGATES`).
    """
    import numpy as np

    from llmkit.evaluation.statistics.aggregates import AGGREGATES

    ways = dict(aggregate or {})
    per_row = {name: tuple(row[name] for row in parts) for name in parts[0]}
    metrics = {}
    for name, column in per_row.items():
        sums = np.asarray(column, dtype=np.float64).reshape(len(column), -1).sum(axis=0)
        metrics[name] = float(AGGREGATES[ways.get(name, "mean")](sums, len(column)))
    return Score(metrics, len(parts), samples, per_row=per_row, aggregate=ways)
