"""How likely a language model finds given answers: summed log-probabilities, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmkit.model.generation import eval_mode
from llmkit.model.scores import longest_first

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Answered = tuple[list[int], list[int]]
"""Token ids of a prompt, and of an answer to it."""


def answer_log_probabilities(
    model: PreTrainedModel,
    answered: Sequence[Answered],
    *,
    batch_size: int,
    on_done: Callable[[int], None] | None = None,
) -> list[float]:
    """Return log p(answer | prompt) in nats of each pair, in their order, whatever the batch size.

    The first token of an answer to an empty prompt is not counted: nothing comes before it. The model is in eval mode
    meanwhile. `on_done` is called with the number of pairs done so far.
    """
    found = [0.0] * len(answered)
    done = 0
    with eval_mode(model):
        for batch in longest_first([len(prompt) + len(answer) for prompt, answer in answered], batch_size):
            sums = _batch_log_probabilities(model, [answered[i] for i in batch])
            for i, value in zip(batch, sums, strict=True):
                found[i] = value
            done += len(batch)
            if on_done is not None:
                on_done(done)
    return found


def _batch_log_probabilities(model: PreTrainedModel, answered: Sequence[Answered]) -> list[float]:
    """Return the summed log-probabilities of the answers of one batch (rows x longest, padded on the right)."""
    import torch
    from torch.nn.functional import cross_entropy

    lengths = [len(prompt) + len(answer) for prompt, answer in answered]
    width = max(lengths)
    ids_BT = torch.zeros(len(answered), width, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    foretold_BT = torch.zeros(len(answered), width, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(answered):
        ids_BT[row, : lengths[row]] = torch.tensor(prompt + answer)
        mask_BT[row, : lengths[row]] = 1
        foretold_BT[row, max(len(prompt), 1) : lengths[row]] = True
    targets = ids_BT[foretold_BT].to(model.device)
    # Not inference_mode: buffers a model fills on the way (rotary tables) must remain usable in later training.
    with torch.no_grad():
        # The last `width` positions: prompt tuning puts virtual tokens before the row's own.
        logits_BTV = model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device)).logits[
            :, -width:
        ]
        # Only the answers' positions are copied to float32; a vocabulary of logits per token is the largest tensor.
        picked_NV = logits_BTV[:, :-1][foretold_BT[:, 1:].to(logits_BTV.device)].float()
        losses_N = cross_entropy(picked_NV, targets.to(picked_NV.device), reduction="none")
    parts = torch.split(losses_N.cpu().double(), foretold_BT.sum(1).tolist())
    return [-float(part.sum()) for part in parts]
