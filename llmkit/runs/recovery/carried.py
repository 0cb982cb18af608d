"""What a trainer carries from step to step in memory alone, and transformers' checkpoints leave out.

Sums that the next logged step is a mean of, counts of tokens, a reference model that moves, data types of an adapter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import RunError

if TYPE_CHECKING:
    from transformers import Trainer

CARRIED = "carried.json"
REFERENCE = "reference.safetensors"

COUNTS = ("_total_train_tokens", "_seen_tokens", "_hits")
"""What TRL's trainers and llmkit's own count over the whole run, or until the next logged step."""

FIGURES = ("_metrics", "_stored_metrics")
"""Where TRL's trainers gather figures until the next logged step, by `train` and `eval`."""


def write_carried(trainer: Trainer, checkpoint: Path) -> None:
    """Write into `checkpoint` what `read_carried` and `go_on_logging` give back."""
    found: Any = trainer
    figures = {name: getattr(found, name)["train"] for name in FIGURES if hasattr(found, name)}
    carried = {
        "loss": found._tr_loss.item(),
        "logged_step": found._globalstep_last_logged,
        "counts": {name: getattr(found, name) for name in COUNTS if hasattr(found, name)},
        "figures": {
            name: {key: list(map(_number, values)) for key, values in by_key.items()}
            for name, by_key in figures.items()
        },
    }
    (checkpoint / CARRIED).write_text(json.dumps(carried, indent=2) + "\n", encoding="utf-8")
    if getattr(trainer.args, "sync_ref_model", False):
        from safetensors.torch import save_model

        save_model(found.ref_model, str(checkpoint / REFERENCE))


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def read_carried(trainer: Trainer, checkpoint: Path) -> None:
    """Give `trainer` its counts and its moving reference back, before it trains."""
    found: Any = trainer
    carried = _read(checkpoint)
    for name, value in carried["counts"].items():
        setattr(found, name, value)
    for name, figures in carried["figures"].items():
        getattr(found, name)["train"].update(figures)
    if getattr(trainer.args, "sync_ref_model", False):
        from safetensors.torch import load_model

        load_model(found.ref_model, str(checkpoint / REFERENCE))


def go_on_logging(trainer: Trainer, checkpoint: Path) -> None:
    """Give `trainer`, which is about to take its first step, the losses back that its next log is the mean of."""
    found: Any = trainer
    carried = _read(checkpoint)
    found._tr_loss.fill_(carried["loss"])
    found._globalstep_last_logged = carried["logged_step"]


def _read(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / CARRIED
    if not file.is_file():
        raise RunError(
            f"{checkpoint} has no {CARRIED}, so that it can't be gone on from exactly",
            remedy="Start a new run from its weights: `model.name: PATH`.",
        )
    carried: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return carried


def follow_schedule(optimizer: Any, scheduler: Any) -> None:
    """Set the rate of the next step by the run's schedule: transformers takes what the checkpoint's would have given.

    They are the same unless the recipe has another number of steps than before.
    """
    from torch.optim.lr_scheduler import LambdaLR

    if not isinstance(scheduler, LambdaLR):
        return
    rates = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def in_their_types(trainer: Trainer, types: dict[str, Any]) -> None:
    """Give parameters their data types back: PEFT makes adapters float32 whenever it loads them."""
    model: Any = trainer.model
    for name, parameter in model.named_parameters():
        if name in types and parameter.dtype != types[name]:
            parameter.data = parameter.data.to(types[name])
