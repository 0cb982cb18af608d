"""What goes through a model while it is trained: real tokens and attended pairs, learnt from or only read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Passed:
    """Counts of some forward passes. Padding counts nowhere; pairs are those of causal attention within a row."""

    tokens: int = 0
    """Tokens that were learnt from: their pass has gradients."""
    pairs: int = 0
    read_tokens: int = 0
    """Tokens of passes without gradients: those of a reference, or for log-probabilities that are held fixed."""
    read_pairs: int = 0

    def __add__(self, other: Passed) -> Passed:
        return Passed(
            self.tokens + other.tokens,
            self.pairs + other.pairs,
            self.read_tokens + other.read_tokens,
            self.read_pairs + other.read_pairs,
        )


class Passes:
    """Counts what goes through `model`, and through the reference model beside it, until it is closed.

    Only while `model` is in training mode: evaluation is not counted. Nor is sampling, which reads token by token.
    """

    def __init__(self, model: torch.nn.Module, reference: torch.nn.Module | None = None) -> None:
        import torch

        self._model = model
        # Counted on the device: reading them would make a GPU wait at each forward pass.
        self._counts: torch.Tensor | None = None
        # Within a model that is compiled whole, too: its hooks are compiled with it unless they are kept out.
        count = torch.compiler.disable(self._count)  # type: ignore[no-untyped-call]
        models = [model, *([reference] if reference is not None else [])]
        self._hooks = [one.register_forward_pre_hook(count, with_kwargs=True) for one in models]

    def take(self) -> Passed:
        """Return what has passed since the last call; waits for the device."""
        counts, self._counts = self._counts, None
        return Passed() if counts is None else Passed(*counts.tolist())

    def close(self) -> None:
        """Stop counting."""
        for hook in self._hooks:
            hook.remove()

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        import torch

        if not self._model.training or kwargs.get("past_key_values") is not None:
            return
        batch = kwargs if "input_ids" in kwargs or not args else {"input_ids": args[0], **kwargs}
        counted = count_batch(batch)
        counted = counted if torch.is_grad_enabled() else counted.roll(2)
        self._counts = counted if self._counts is None else self._counts + counted


def count_batch(batch: Mapping[str, Any]) -> torch.Tensor:
    """Return (tokens, pairs, 0, 0) of a batch as models take it, as whole numbers on its device.

    Rows are told apart by `attention_mask` (B, T), or else by `position_ids`, which begin at 0 with each row and are 0
    in padding; with neither, each of the sequences in `input_ids` is a row.
    """
    import torch

    mask, positions = batch.get("attention_mask"), batch.get("position_ids")
    if mask is not None:
        lengths_B = mask.sum(-1)
        tokens, pairs = lengths_B.sum(), (lengths_B * (lengths_B + 1)).sum() // 2
    elif positions is not None:
        # A row of two or more tokens has one position 1. (A single token trains nothing.)
        tokens = (positions > 0).sum() + (positions == 1).sum()
        pairs = positions.sum() + tokens
    else:
        rows, length = batch["input_ids"].shape
        tokens = torch.tensor(rows * length, device=batch["input_ids"].device)
        pairs = tokens * (length + 1) // 2
    zero = torch.zeros_like(tokens)
    return torch.stack([tokens, pairs, zero, zero])
