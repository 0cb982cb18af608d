"""How likely a language model finds given answers: summed log-probabilities, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmkit.model.likelihood import log_probabilities

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Answered = tuple[list[int], list[int]]
"""Token ids of a prompt, and of an answer to it."""


def answer_log_probabilities(
    model: PreTrainedModel,
    answered: Sequence[Answered],
    *,
    batch_size: int | None,
    on_done: Callable[[int], None] | None = None,
) -> list[float]:
    """Return log p(answer | prompt) in nats of each pair, in their order, whatever the batch size.

    The first token of an answer to an empty prompt is not counted: nothing comes before it. The model is in eval mode
    meanwhile. `on_done` is called with the number of pairs done so far.
    """
    rows = [(prompt + answer, [False] * len(prompt) + [True] * len(answer)) for prompt, answer in answered]
    return [value for value, _ in log_probabilities(model, rows, batch_size=batch_size, on_done=on_done)]
