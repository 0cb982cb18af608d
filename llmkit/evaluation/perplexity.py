"""Perplexity: how well the model foretells the trained tokens of the held-out rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llmkit.errors import DataError, RecipeError
from llmkit.evaluation.base import Evaluation, Score, Subject
from llmkit.model.generation import eval_mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from llmkit.data.splits import Row

IGNORED = -100
"""Label of a token that carries no loss."""

_LARGEST_EXPONENT = 709.0
"""exp() of more overflows a double."""


class Perplexity(Evaluation):
    """Measure the mean negative log-likelihood over all trained tokens, each token weighing the same."""

    type: Literal["perplexity"]
    """Loss and perplexity per trained token."""

    limit: int | None = Field(default=None, ge=1)
    """Use only the first held-out rows; all of them if unset."""

    batch_size: int = Field(default=8, ge=1)
    """Rows run through the model at once; the result does not depend on it."""

    def score(self, subject: Subject) -> Score:
        """Return `loss` (nats per trained token) and `perplexity` (its exponential).

        A label in a row's first position is not counted: nothing comes before it. Raises DataError where there are no
        rows or no trained tokens, RecipeError where the rows are not tokenized.
        """
        rows = subject.rows[: self.limit]
        if not rows:
            raise DataError("evaluation `perplexity` has no held-out rows", remedy="set `data.eval`")
        if not any(row.input_ids for row in rows):
            raise RecipeError(
                "evaluation `perplexity` needs tokenized rows with labels, which this method's data has not",
                remedy="use an evaluation that generates, or a method that trains on text",
            )
        total, tokens = _negative_log_likelihood(subject, rows, self.batch_size)
        if tokens == 0:
            raise DataError("evaluation `perplexity` found no trained token in the held-out rows")
        loss = total / tokens
        return Score({"loss": loss, "perplexity": _exp(loss)}, len(rows))


def _exp(loss: float) -> float:
    return math.inf if loss > _LARGEST_EXPONENT else math.exp(loss)


def _negative_log_likelihood(subject: Subject, rows: Sequence[Row], batch_size: int) -> tuple[float, int]:
    """Return the summed negative log-likelihood in nats, and the number of tokens it was summed over."""
    # Longest first: a batch that doesn't fit in memory fails at once, and each batch needs little padding.
    ordered = sorted((row for row in rows if row.input_ids), key=lambda row: len(row.input_ids), reverse=True)
    total, tokens = 0.0, 0
    with eval_mode(subject.model):
        for start in range(0, len(ordered), batch_size):
            nll, counted = _batch_nll(subject.model, ordered[start : start + batch_size])
            total += nll
            tokens += counted
            if subject.on_done is not None:
                subject.on_done(min(start + batch_size, len(ordered)))
    return total, tokens


def _batch_nll(model: PreTrainedModel, rows: Sequence[Row]) -> tuple[float, int]:
    """Return the summed negative log-likelihood of one batch (rows x longest, padded on the right), and its tokens."""
    import torch
    from torch.nn.functional import cross_entropy

    width = max(len(row.input_ids) for row in rows)
    gaps = [width - len(row.input_ids) for row in rows]
    ids = torch.tensor([row.input_ids + [0] * gap for row, gap in zip(rows, gaps, strict=True)], device=model.device)
    mask = torch.tensor([[1] * (width - gap) + [0] * gap for gap in gaps], device=model.device)
    labels = torch.tensor([row.labels + [IGNORED] * gap for row, gap in zip(rows, gaps, strict=True)])[:, 1:]
    trained = labels != IGNORED
    if not trained.any():
        return 0.0, 0
    # Not inference_mode: buffers a model fills on the way (rotary tables) must remain usable in later training.
    with torch.no_grad():
        # The last `width` positions: prompt tuning puts virtual tokens before the row's own.
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -width:]
        # Only the trained positions are copied to float32; a vocabulary of logits per token is the largest tensor.
        picked = logits[:, :-1][trained.to(logits.device)].float()
        losses = cross_entropy(picked, labels[trained].to(logits.device), reduction="none")
    return float(losses.double().sum()), int(trained.sum())
