"""The batches of a step as they are written down: their tensors, and the texts of their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NOT_TEXT = ("position_ids", "token_type_ids")


def tensors_of(batches: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the tensors of the batches of a step as `NUMBER.NAME`, on the CPU."""
    import torch

    return {
        f"{number}.{name}": value.detach().cpu().contiguous().clone()
        for number, batch in enumerate(batches)
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    }


def rows_of(batch: Mapping[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    """Return for each row of a batch its texts with special tokens (without a tokenizer, none) and its trained tokens.

    Columns of token ids are `(B, T)`; labels of -100 don't count, and neither does what `completion_mask` leaves out.
    """
    import torch

    grids = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and value.dim() == 2}
    ids = {name: value.tolist() for name, value in grids.items() if name.endswith("ids") and name not in NOT_TEXT}
    counts = [(value != -100).sum(-1).tolist() for name, value in grids.items() if name.endswith("labels")]
    if not counts and "completion_mask" in grids:
        counts = [grids["completion_mask"].sum(-1).tolist()]
    found = []
    for row in range(max(map(len, ids.values()), default=0)):
        entry: dict[str, Any] = {"row": row}
        if counts:
            entry["trained_tokens"] = int(sum(count[row] for count in counts if row < len(count)))
        if tokenizer is not None:
            pad = tokenizer.pad_token_id
            texts = {name: tokenizer.decode(_bare(rows[row], pad)) for name, rows in ids.items() if row < len(rows)}
            entry["text"] = texts
        found.append(entry)
    return found


def _bare(ids: list[int], pad: int | None) -> list[int]:
    """Return a row without the padding at its ends."""
    kept = [place for place, token in enumerate(ids) if token != pad]
    return ids[kept[0] : kept[-1] + 1] if kept else []
