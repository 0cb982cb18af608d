"""TRL's fused LM head applied only where something is learnt, on devices without Triton.

On CUDA, TRL scores only the positions with a label. Elsewhere it scores every position, prompts and padding included:
that takes most of a step of GRPO with short answers on a CPU. The numbers are the same.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from trl.trainer.utils import FusedCausalLMOutput

PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")


def score_trained_positions(model: Any) -> None:
    """Have the fused head that TRL added to `model` (PEFT or bare, or None) score the labelled positions alone."""
    if model is None or model.device.type in ("cuda", "xpu"):
        return
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(bare.forward, "scores_trained_positions"):
        return
    fused = bare.forward

    # The signature of the class: `generate` validates its arguments against it, as TRL's own patch allows for.
    @functools.wraps(type(bare).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None:
            return fused(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        mask_BT = labels[:, 1:] != -100
        if not mask_BT.any():
            return fused(*args, fused_lm_head=True, labels=labels, **kwargs)
        with kept(self.base_model, mask_BT):
            found = fused(*args, fused_lm_head=True, shift_labels=labels[:, 1:][mask_BT].unsqueeze(0), **kwargs)
        spread = {name: _spread(getattr(found, name), mask_BT) for name in PER_TOKEN}
        return FusedCausalLMOutput(loss=found.loss, aux_loss=found.aux_loss, **spread)

    forward.scores_trained_positions = True  # type: ignore[attr-defined]
    bare.forward = types.MethodType(forward, bare)


@contextmanager
def kept(backbone: torch.nn.Module, mask_BT: torch.Tensor) -> Iterator[None]:
    """Let the backbone return the hidden states of the masked positions alone, as one row.

    `mask_BT` leaves out the last position, which predicts nothing.
    """

    def keep(module: torch.nn.Module, args: Any, output: Any) -> Any:
        hidden_BTH = output.last_hidden_state[:, :-1]
        output.last_hidden_state = hidden_BTH[mask_BT.to(hidden_BTH.device)].unsqueeze(0)
        return output

    hook = backbone.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()


def _spread(values_1N: torch.Tensor | None, mask_BT: torch.Tensor) -> torch.Tensor | None:
    """Put one row of values back to their positions; zero elsewhere, as TRL has it."""
    if values_1N is None:
        return None
    return values_1N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, values_1N)
