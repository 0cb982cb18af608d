"""Which sequences go through a model together: those of like length, longest first.

Longest first, because a batch that doesn't fit in memory then fails at once, and each batch needs little padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 2048
"""Tokens of a batch to be read whose size is left open, padding included; a longer row is a batch of its own."""

PASS_ON_CPU, PASS = 50, 2000
"""What a forward pass costs beside what goes through it, in tokens: all weights go by; on GPUs kernels start too.

On a CPU core, SmolLM2 in float32 takes 0.22 s for a decoding step and 0.005 s for each row in it, and reads 255 tokens
per second. The figure for other devices is an estimate."""


def pass_cost(model: PreTrainedModel) -> int:
    """Return what a forward pass of the model costs beside what goes through it, in tokens."""
    return PASS_ON_CPU if model.device.type == "cpu" else PASS


def to_read(model: PreTrainedModel, lengths: Sequence[int], batch_size: int | None) -> list[list[int]]:
    """Return the batches for one forward pass each: of `batch_size` rows, or where that is None, of `TOKENS` tokens."""
    if batch_size is not None:
        return longest_first(lengths, batch_size)
    return least_work(lengths, batch_cost=pass_cost(model), tokens=TOKENS, most=TOKENS)


def longest_first(lengths: Sequence[int], batch_size: int, *, equal: bool = False) -> list[list[int]]:
    """Return the indices of `lengths` in batches of `batch_size`; with `equal`, each batch is of one length."""
    batches: list[list[int]] = []
    for i in _order(lengths):
        last = batches[-1] if batches else None
        if last is None or len(last) == batch_size or (equal and lengths[last[0]] != lengths[i]):
            batches.append([i])
        else:
            last.append(i)
    return batches


def least_work(
    lengths: Sequence[int], *, batch_cost: int, tokens: int, most: int, equal: bool = False
) -> list[list[int]]:
    """Return the indices of `lengths` in the batches, longest first, that cost least.

    A batch costs its tokens with their padding, and `batch_cost` besides. It has up to `most` sequences and `tokens`
    tokens; a longer sequence is a batch of its own. With `equal`, each batch is of one length.
    """
    order = _order(lengths)
    # Of the first n sequences: what they cost at least, and where their last batch begins.
    cost, begins = [0], [0]
    for end in range(1, len(order) + 1):
        options = []
        for begin in range(end - 1, max(end - most, 0) - 1, -1):
            longest, rows = lengths[order[begin]], end - begin
            if rows > 1 and (longest * rows > tokens or (equal and longest != lengths[order[end - 1]])):
                break
            options.append((cost[begin] + batch_cost + longest * rows, begin))
        least, begin = min(options)
        cost.append(least)
        begins.append(begin)
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[begins[end] : end])
        end = begins[end]
    return batches[::-1]


def _order(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
