"""Sampled completions in a checkpoint, where steps are still to learn from them: TRL holds them in memory alone.

Without them a resumed run samples anew in the middle of a generation, and counts its generations from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

STATE = "rollouts.json"
TENSORS = "rollouts.safetensors"


def write_rollouts(checkpoint: Path, step: int, batches: Sequence[Mapping[str, Any]]) -> None:
    """Write into `checkpoint` the batches that a generation was split into; `step` counts batches over the whole run.

    Tensors of a batch share memory with those of the others, and safetensors writes no such tensors.
    """
    tensors = {
        f"{index}.{name}": value.detach().clone().contiguous()
        for index, batch in enumerate(batches)
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    }
    others = [{k: v for k, v in batch.items() if not isinstance(v, torch.Tensor)} for batch in batches]
    (checkpoint / STATE).write_text(json.dumps({"step": step, "batches": others}, indent=2) + "\n", encoding="utf-8")
    if tensors:
        save_file(tensors, checkpoint / TENSORS)


def read_rollouts(checkpoint: Path, device: torch.device) -> tuple[int, list[dict[str, Any]]]:
    """Return the step and the batches that were written into `checkpoint`; no batches between two generations."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    batches: list[dict[str, Any]] = state["batches"]
    tensors = load_file(checkpoint / TENSORS, device=str(device)) if batches else {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        batches[int(index)][key] = tensor
    return int(state["step"]), batches
