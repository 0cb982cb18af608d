"""Any metric written for the `evaluate` library, from a local folder."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from llmkit.errors import DataError, RecipeError, RunError, SetupError, did_you_mean
from llmkit.evaluation import _metrics
from llmkit.evaluation._generation import Generated
from llmkit.evaluation.base import Score, Subject
from llmkit.recipe.places import named_path


class Metric(Generated):
    """Score greedy answers with an `evaluate` metric: `compute(predictions=, references=)` on two lists of strings.

    The metric's Python file is run on this machine; point only to code you trust.
    """

    type: Literal["metric"]
    """A metric of the `evaluate` library's interface."""

    path: str = Field(min_length=1)
    """Local folder `DIR/NAME` that holds `NAME.py`, or that file; relative to the recipe's folder."""

    key: str | None = None
    """Keep only this number of the metric's results; all its numbers if unset."""

    def check_setup(self, folder: Path) -> None:
        """Raise DataError where the folder is missing, SetupError where `evaluate` is."""
        super().check_setup(folder)
        find_script(self.path, folder)
        _metrics.require_installed("evaluate", "evaluate", "metric")

    def score(self, subject: Subject) -> Score:
        """Return the metric's numbers, which are of all answers together: no row has a part in them of its own."""
        subject = self.prepared(subject)
        samples = self.answers(subject)
        references = [sample.reference or "" for sample in samples]
        found = self.compute([sample.answer for sample in samples], references, subject.folder)
        return Score(found, len(samples), samples)

    def compute(self, predictions: Sequence[str], references: Sequence[str], folder: Path) -> dict[str, float]:
        """Return the metric's numbers.

        Raises DataError where the folder is missing or the metric refuses the texts, SetupError where a package is
        missing, RecipeError where `key` is not among the results, RunError where none of them is a number.
        """
        script = find_script(self.path, folder)
        evaluate = _metrics.require("evaluate", "evaluate", "metric")
        try:
            metric = evaluate.load(str(script), keep_in_memory=True)
        except ImportError as error:
            raise SetupError(f"the metric can't be loaded: {error}", where=str(script)) from error
        try:
            results = metric.compute(predictions=list(predictions), references=list(references))
        except (TypeError, ValueError) as error:
            raise DataError(f"the metric refuses the answers and references: {error}", where=str(script)) from error
        return pick(results or {}, self.key, where=str(script))


def find_script(path: str, folder: Path) -> Path:
    """Return the metric's Python file, absolute, so that `evaluate` never looks for it on the hub.

    Raises DataError where it does not exist.
    """
    place = named_path(path, folder).resolve()
    script = place if place.suffix == ".py" else place / f"{place.name}.py"
    if not script.is_file():
        raise DataError(
            f"there is no metric at {path!r}: {script} does not exist",
            remedy=(
                "metrics are not fetched from the hub: download the metric's folder and set `path` to it, "
                f"e.g. ./metrics/{place.stem or 'NAME'} holding {script.name}"
            ),
        )
    return script


def pick(results: Mapping[str, Any], key: str | None, *, where: str) -> dict[str, float]:
    """Return the results that are numbers, or only `key`; raises RecipeError or RunError as `Metric.compute` does."""
    found = {
        name: float(value)
        for name, value in results.items()
        if isinstance(value, numbers.Real) and not isinstance(value, bool)
    }
    if not found:
        raise RunError(f"the metric gives no number, only {sorted(results)}", where=where)
    if key is None:
        return found
    if key not in found:
        raise RecipeError(f"the metric has no number {key!r}{did_you_mean(key, found)}: it has {sorted(found)}")
    return {key: found[key]}
