"""How likely a language model finds tokens: the head's logits only where they are asked for, chunk by chunk.

The logits of a batch are its largest tensor, 1.6 GB for 8,192 tokens of SmolLM2, and a fifth of its work. Here the
hidden states before the tokens asked for are picked out behind the model's last layer, and its own forward pass turns
them into logits, `CHUNK_BYTES` at a time: what scales or caps logits stays in place.

Shapes: B rows, T tokens, N tokens asked for, n of a chunk, H hidden units, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmkit.model.batches import to_read
from llmkit.model.generation import eval_mode

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHUNK_BYTES = 2**26
"""Bytes of the logits of a chunk in float32: 340 tokens of SmolLM2, from which on products are as fast as they get."""

Asked = tuple[Sequence[int], Sequence[bool]]
"""Token ids of a row, and which of them are asked for; the first has nothing before it, and is never counted."""


def log_probabilities(
    model: PreTrainedModel,
    rows: Sequence[Asked],
    *,
    batch_size: int | None,
    on_done: Callable[[int], None] | None = None,
) -> list[tuple[float, int]]:
    """Return the summed log-probability in nats of the tokens asked for, and their number, of each row in order.

    The result does not depend on the batches; where `batch_size` is None, they are bounded by their tokens. The model
    is in eval mode meanwhile. `on_done` is called with the number of rows done so far.
    """
    found = [(0.0, 0)] * len(rows)
    done = 0
    with eval_mode(model):
        for batch in to_read(model, [len(ids) for ids, _ in rows], batch_size):
            for i, summed in zip(batch, _batch(model, [rows[i] for i in batch]), strict=True):
                found[i] = summed
            done += len(batch)
            if on_done is not None:
                on_done(done)
    return found


def _batch(model: PreTrainedModel, rows: Sequence[Asked]) -> list[tuple[float, int]]:
    """Return what `log_probabilities` does for one batch, padded on the right."""
    import torch

    width = max(len(ids) for ids, _ in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    asked_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (ids, asked) in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        mask_BT[row, : len(ids)] = 1
        asked_BT[row, : len(ids)] = torch.tensor(asked)
    asked_BT[:, 0] = False
    counts = asked_BT.sum(1).tolist()
    if not any(counts):
        return [(0.0, 0)] * len(rows)
    values_N = _values(model, ids_BT, mask_BT, asked_BT)
    parts = torch.split(values_N.cpu().double(), counts)
    return [(float(part.sum()), count) for part, count in zip(parts, counts, strict=True)]


def _values(
    model: PreTrainedModel, ids_BT: torch.Tensor, mask_BT: torch.Tensor, asked_BT: torch.Tensor
) -> torch.Tensor:
    """Return the log-probability of each token asked for, (N,), row by row."""
    import torch
    from torch.nn.functional import cross_entropy

    targets_N = ids_BT[asked_BT]
    words = model.config.get_text_config().vocab_size
    chunks_n = torch.split(targets_N, max(1, CHUNK_BYTES // (4 * words)))
    inputs = {"input_ids": ids_BT.to(model.device), "attention_mask": mask_BT.to(model.device), "use_cache": False}
    values = []
    # Not inference_mode: buffers a model fills on the way (rotary tables) must remain usable in later training.
    with torch.no_grad(), _picked(model, asked_BT[:, 1:], len(chunks_n[0])):
        for targets_n in chunks_n:
            logits_nV = model(**inputs).logits[0].float()
            values.append(-cross_entropy(logits_nV, targets_n.to(logits_nV.device), reduction="none"))
    return torch.cat(values)


@contextmanager
def _picked(model: PreTrainedModel, before_BT: torch.Tensor, size: int) -> Iterator[None]:
    """Let the head see only the masked positions, as one row, the next `size` of them at each forward pass of `model`.

    `before_BT` leaves out the last position, which foretells nothing. The layers compute in the first pass only.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone: Any = bare.base_model
    kept: list[Any] = []
    left: list[torch.Tensor] = []

    def pick(module: torch.nn.Module, args: Any, output: Any) -> Any:
        if not kept:
            # The last positions: prompt tuning puts virtual tokens before the row's own.
            hidden_BTH = output.last_hidden_state[:, -before_BT.shape[1] - 1 : -1]
            left.extend(hidden_BTH[before_BT.to(hidden_BTH.device)].split(size))
            kept.append(output)
            backbone.forward = lambda *_, **__: kept[0]
        output.last_hidden_state = left.pop(0).unsqueeze(0)
        return output

    own = vars(backbone).get("forward")
    hook = backbone.register_forward_hook(pick)
    try:
        yield
    finally:
        hook.remove()
        if own is not None:
            backbone.forward = own
        else:
            vars(backbone).pop("forward", None)
