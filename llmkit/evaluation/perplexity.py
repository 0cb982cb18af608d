"""Perplexity: how well the model foretells the trained tokens of the held-out rows."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from llmkit.errors import DataError, RecipeError
from llmkit.evaluation._rows import scored
from llmkit.evaluation.base import Evaluation, Score, Subject
from llmkit.model.likelihood import log_probabilities

IGNORED = -100
"""Label of a token that carries no loss."""


class Perplexity(Evaluation):
    """Measure the mean negative log-likelihood over all trained tokens, each token weighing the same."""

    type: Literal["perplexity"]
    """Loss and perplexity per trained token."""

    limit: int | None = Field(default=None, ge=1)
    """Use only the first held-out rows; all of them if unset."""

    batch_size: int | None = Field(default=None, ge=1)
    """Rows run through the model at once, if unset as many as have 2048 tokens; the result does not depend on it."""

    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "perplexity"})

    def score(self, subject: Subject) -> Score:
        """Return `loss` (nats per trained token) and `perplexity` (its exponential).

        A label in a row's first position is not counted: nothing comes before it. Raises DataError where there are no
        rows or no trained tokens, RecipeError where the rows are not tokenized.
        """
        rows = subject.rows[: self.limit]
        if not rows:
            raise DataError("evaluation `perplexity` has no held-out rows", remedy="set `data.eval`")
        asked = [(row.input_ids, [label != IGNORED for label in row.labels]) for row in rows]
        if not any(ids for ids, _ in asked):
            raise RecipeError(
                "evaluation `perplexity` needs tokenized rows with labels, which this method's data has not",
                remedy="use an evaluation that generates, or a method that trains on text",
            )
        filled = [one for one in asked if one[0]]
        read = iter(log_probabilities(subject.model, filled, batch_size=self.batch_size, on_done=subject.on_done))
        found = [next(read) if ids else (0.0, 0) for ids, _ in asked]
        if not any(count for _, count in found):
            raise DataError("evaluation `perplexity` found no trained token in the held-out rows")
        parts = [(-value, float(count)) for value, count in found]
        return scored(
            [{"loss": part, "perplexity": part} for part in parts],
            aggregate={"loss": "ratio", "perplexity": "exp_ratio"},
        )
