"""TRL's fused LM head applied only where something is learnt, on devices without Triton.

On CUDA, TRL scores only the positions with a label. Elsewhere it scores every position, prompts and padding included:
that takes most of a step of GRPO with short answers on a CPU. The numbers are the same.

TRL computes the logits again in the backward pass. With a frozen head that isn't needed, so the head is llmkit's
(`_chunked_head.py`) where it is a plain matrix; whatever else there is, is left to TRL's.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from trl.trainer.utils import FusedCausalLMOutput

from llmkit.methods._chunked_head import EXTRAS, linear_head, log_probs

PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")


def score_trained_positions(model: Any) -> None:
    """Have the fused head that TRL added to `model` (PEFT or bare, or None) score the labelled positions alone."""
    if model is None or model.device.type in ("cuda", "xpu"):
        return
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(bare.forward, "scores_trained_positions"):
        return
    fused = bare.forward
    asked = _asked_of(bare)

    # The signature of the class: `generate` validates its arguments against it, as TRL's own patch allows for.
    @functools.wraps(type(bare).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None:
            return fused(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        mask_BT = labels[:, 1:] != -100
        if not mask_BT.any():
            return fused(*args, fused_lm_head=True, labels=labels, **kwargs)
        targets_N = labels[:, 1:][mask_BT]
        with kept(self.base_model, mask_BT):
            head = linear_head(self) if asked is not None and kwargs.keys().isdisjoint(TRLS_OWN) else None
            if head is None or asked is None:
                found = fused(*args, fused_lm_head=True, shift_labels=targets_N.unsqueeze(0), **kwargs)
            else:
                hidden_1NH = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
                found = _score(hidden_1NH[0], head, targets_N, asked)
        spread = {name: _spread(getattr(found, name), mask_BT) for name in PER_TOKEN}
        return FusedCausalLMOutput(loss=found.loss, aux_loss=found.aux_loss, **spread)

    forward.scores_trained_positions = True  # type: ignore[attr-defined]
    bare.forward = types.MethodType(forward, bare)


TRLS_OWN = ("num_items_in_batch", "output_router_logits")
"""Arguments of TRL's fused head that llmkit's does not know."""


class _Asked(NamedTuple):
    """What the trainer asked TRL's fused head for."""

    temperature: float
    extras: tuple[str, ...]
    float32: bool
    """Whether the head computes in float32, whatever the model does."""


def _asked_of(bare: Any) -> _Asked | None:
    """Return what TRL's fused head of `bare` was made for; None where logits are scaled, capped or routed.

    The trainers tell it to the function that makes the head, and nobody else: it is read where the head has it.
    """
    made = inspect.getclosurevars(bare.forward).nonlocals
    known = {"temperature", "outputs", "cast_lm_head_to_fp32", "final_logit_softcapping", "logit_scale", "text_config"}
    if not known <= made.keys():
        return None
    bent = made["final_logit_softcapping"] is not None or made["logit_scale"] != 1.0
    if bent or getattr(made["text_config"], "output_router_logits", False):
        return None
    extras = tuple(name for name in EXTRAS if name in made["outputs"])
    return _Asked(made["temperature"], extras, made["cast_lm_head_to_fp32"])


def _score(hidden_NH: torch.Tensor, head: torch.nn.Linear, targets_N: torch.Tensor, asked: _Asked) -> Any:
    """Return what TRL's fused head returns for one row of N labelled positions."""
    hidden_NH = hidden_NH.to(head.weight.device)
    targets_N = targets_N.to(head.weight.device)
    autocast: AbstractContextManager[None] = nullcontext()
    if asked.float32:
        hidden_NH, autocast = hidden_NH.float(), torch.autocast(hidden_NH.device.type, enabled=False)
    with autocast:
        scores = log_probs(
            hidden_NH, head.weight, head.bias, targets_N, temperature=asked.temperature, extras=asked.extras
        )
    row = {name: None if values is None else values.unsqueeze(0) for name, values in scores._asdict().items()}
    mask_1N = torch.ones_like(targets_N, dtype=torch.bool).unsqueeze(0)
    return FusedCausalLMOutput(loss=-scores.log_probs.mean(), label_mask=mask_1N, **row)


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
