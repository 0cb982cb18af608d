"""Losses and gradients that are no finite numbers: seen before the optimizer, with the batch that they came from."""

from __future__ import annotations

import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from llmkit.errors import RunError
from llmkit.recipe.recipe import Stability
from llmkit.runs.folder import RunFolder
from llmkit.runs.recovery.batches import rows_of, tensors_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer, TrainerCallback

FOLDER = "nonfinite"
"""Folder of the run folder with the batches, as `step-N.safetensors` (tensors) and `step-N.json` (what was found)."""

MOST_FILES = 10
"""Batches that `on_nan: skip` writes."""

MOST_NAMES = 10
"""Parameters that are named."""

SPIKE = 20.0
"""So many times the usual gradient norm is worth a line."""

MOST_OVERFLOWS = 30
"""Steps in a row that a scaler may leave out: each halves its scale, and so many leave next to nothing of it."""

WINDOW, LEAST = 50, 20
"""Steps whose median is the usual norm, and how many of them there must be."""


@dataclass(frozen=True)
class Found:
    """A step with a loss or a gradient that is no finite number."""

    step: int
    losses: list[float]
    """Of each batch of the step."""
    grad_norm: float
    parameters: list[str]
    """Those whose gradient is no finite number."""
    weights_finite: bool
    """Whether all weights were finite when it was found."""

    def sentence(self) -> str:
        """Return what was found."""
        wrong = [loss for loss in self.losses if not math.isfinite(loss)]
        what = f"the loss is {wrong[0]}" if wrong else f"the gradient norm is {self.grad_norm}"
        if not self.weights_finite:
            return f"step {self.step:,}: {what}, because some weights already are no finite numbers"
        return f"step {self.step:,}: {what}; the optimizer has not touched the weights"

    def to_dict(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what `step-N.json` holds; numbers that JSON has no word for as text."""
        return {
            "step": self.step,
            "losses": [_number(loss) for loss in self.losses],
            "grad_norm": _number(self.grad_norm),
            "parameters_not_finite": len(self.parameters),
            "first_parameters": self.parameters[:MOST_NAMES],
            "weights_finite": self.weights_finite,
            "tensors": f"step-{self.step}.safetensors",
            "rows": list(rows),
        }


def watch_finite(
    trainer: Trainer,
    stability: Stability,
    folder: RunFolder,
    narrate: Callable[[str], None],
    last: Callable[[], Path | None],
) -> None:
    """Have every loss and gradient of `trainer` looked at before the optimizer uses it; `last` gives a checkpoint.

    Beside one wait for the device per step, nothing changes: the numbers of a run are those that they were. Call it
    behind all other callbacks, so that it sees whether training stops.
    """
    watched: Any = trainer
    watch = FiniteWatch(watched, stability, folder, narrate, last)
    compute_loss, log, save = watched.compute_loss, watched.log, watched._save_checkpoint
    # It would put another number in the place of a loss that is none, and wait for the device after each batch.
    watched.args.logging_nan_inf_filter = False

    def compute_and_keep(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not model.training:
            return compute_loss(model, inputs, *args, **kwargs)
        batch = dict(inputs)
        loss = compute_loss(model, inputs, *args, **kwargs)
        watch.saw(batch, loss)
        return loss

    def log_with_skips(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        watch.amend(logs)
        log(logs, *args, **kwargs)

    def look_and_save(*args: Any, **kwargs: Any) -> None:
        # Here, and not where a step ends: the end of an epoch and a new best score have checkpoints written too.
        watch.require_finite_weights(watched.state.global_step)
        save(*args, **kwargs)

    watched.compute_loss, watched.log, watched._save_checkpoint = compute_and_keep, log_with_skips, look_and_save
    watched.accelerator.clip_grad_norm_ = watch.clip
    watched.add_callback(_callback(watch))


def _callback(watch: FiniteWatch) -> TrainerCallback:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    class NonFinite(TrainerCallback, ExportableState):
        """Begins the steps, and keeps the number of skipped ones in the checkpoints, as transformers does it."""

        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": {"skipped": watch.skipped, "since_log": watch.since_log}}

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kept = state.stateful_callbacks.setdefault("NonFinite", self.state())
            watch.skipped, watch.since_log = kept["attributes"]["skipped"], kept["attributes"]["since_log"]

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if control.should_training_stop:
                watch.require_finite_weights(state.global_step)

    return NonFinite()


class FiniteWatch:
    """Looks at the losses and gradients of each step, and keeps its batches until the next one."""

    def __init__(
        self,
        trainer: Any,
        stability: Stability,
        folder: RunFolder,
        narrate: Callable[[str], None],
        last: Callable[[], Path | None],
    ) -> None:
        self.skipped = 0
        """Steps left out, over the whole run."""
        self._trainer, self._stability, self._folder = trainer, stability, folder
        self._narrate, self._last = narrate, last
        self._spikes = Spikes()
        self._batches: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._sum: Tensor | None = None
        self._overflows = 0
        self.since_log = [0, 0]
        """Steps since the last one that was logged, and how many of them were left out."""

    def begin(self) -> None:
        """Forget the batches of the step before."""
        self._batches.clear()
        self._losses.clear()
        self._sum = self._trainer._tr_loss.clone()

    def saw(self, batch: dict[str, Any], loss: Tensor) -> None:
        """Keep a batch and its loss; nothing waits for the device here."""
        self._batches.append(batch)
        self._losses.append(loss.detach())

    def clip(self, parameters: Iterable[Tensor], max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Clip gradients as accelerate does in one process, and look at them in between: clipping spreads a NaN to all.

        Raises RunError where the run stops; where the step is left out, the gradients are None afterwards, and every
        optimizer passes over such parameters: neither weights nor moments nor decay move.
        """
        from torch.nn.utils import clip_grads_with_norm_, get_total_norm

        parameters = list(parameters)
        self._trainer.accelerator.unscale_gradients()
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None], norm_type)
        self.since_log[0] += 1
        if self._is_fine(norm):
            clip_grads_with_norm_(parameters, max_norm, norm)
            return norm
        self._stop_or_skip(self._found(norm))
        for parameter in parameters:
            parameter.grad = None
        return norm

    def amend(self, logs: dict[str, float]) -> None:
        """Take skipped steps out of what is logged: they count as none in the mean, and their number is added."""
        if "loss" not in logs:
            return
        (steps, skipped), self.since_log = self.since_log, [0, 0]
        if self.skipped:
            logs["skipped_steps"] = self.skipped
        if not skipped:
            return
        if steps > skipped:
            logs["loss"] *= steps / (steps - skipped)
        else:
            del logs["loss"]
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            del logs["grad_norm"]

    def require_finite_weights(self, step: int) -> None:
        """Raise RunError if step `step` has made weights that are no finite numbers; no checkpoint is written then."""
        if not _finite(self._trained().values()):
            found = Found(step, self._figures(), math.nan, [], weights_finite=False)
            self._stop(found, f"the update of step {step:,} has made weights that are no finite numbers")

    def _is_fine(self, norm: Tensor) -> bool:
        import torch

        # The step's only wait for the device.
        *losses, size = torch.stack([*(loss.float() for loss in self._losses), norm.float()]).tolist()
        # With float16 gradients overflow now and then: the scaler leaves such a step out and takes a smaller scale.
        scaled = self._trainer.accelerator.scaler is not None
        self._overflows = 0 if math.isfinite(size) else self._overflows + 1
        tolerated = MOST_OVERFLOWS if scaled else 0
        if not all(map(math.isfinite, losses)) or self._overflows > tolerated:
            return False
        said = self._spikes.seen(self._trainer.state.global_step + 1, size, self._trainer.args.max_grad_norm)
        if said:
            self._narrate(said)
        return True

    def _found(self, norm: Tensor) -> Found:
        trained = self._trained()
        wrong = [name for name, p in trained.items() if p.grad is not None and not _finite([p.grad])]
        step = self._trainer.state.global_step + 1
        return Found(step, self._figures(), norm.item(), wrong, _finite(self._trainer.model.parameters()))

    def _figures(self) -> list[float]:
        return [loss.item() for loss in self._losses]

    def _trained(self) -> dict[str, Tensor]:
        return {name: p for name, p in self._trainer.model.named_parameters() if p.requires_grad}

    def _stop_or_skip(self, found: Found) -> None:
        limit = self._stability.max_skips
        if self._stability.on_nan == "stop" or not found.weights_finite:
            self._stop(found, found.sentence())
        if self.skipped == limit:
            self._stop(found, f"{found.sentence()}, and {limit:,} steps have been left out (`stability.max_skips`)")
        self.skipped += 1
        self.since_log[1] += 1
        self._trainer._tr_loss.copy_(self._sum)
        place = "not kept: there are enough of them"
        if len(list((self._folder.path / FOLDER).glob("step-*.json"))) < MOST_FILES:
            place = f"in {self._keep(found)}"
        count = f"{self.skipped:,} of at most {limit:,}"
        self._narrate(f"{found.sentence()}, and this step is left out ({count}; its batch is {place})")

    def _stop(self, found: Found, what: str) -> None:
        where = self._keep(found)
        good = self._last_good()
        lines = [self._way_on(found, good), *self._causes(found)]
        raise RunError(what, where=str(where), remedy="\n".join(lines))

    def _keep(self, found: Found) -> Path:
        """Write the batches of the step; returns the JSON file."""
        from safetensors.torch import save_file

        place = self._folder.path / FOLDER
        place.mkdir(exist_ok=True)
        tensors = tensors_of(self._batches)
        scratch = place / f".step-{found.step}.tmp"
        save_file(tensors, scratch)
        os.replace(scratch, place / f"step-{found.step}.safetensors")
        rows = [
            {"batch": number, **row}
            for number, batch in enumerate(self._batches)
            for row in rows_of(batch, self._trainer.processing_class)
        ]
        name = f"{FOLDER}/step-{found.step}.json"
        self._folder.write_json(name, found.to_dict(rows))
        return self._folder.path / name

    def _last_good(self) -> Path | None:
        """Return the newest checkpoint with finite weights; newer ones are moved away, so that `--resume` takes it."""
        while (found := self._newest()) is not None and not finite_file(found):
            aside = self._folder.path / FOLDER / found.name
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(found, aside)
            self._narrate(f"{found.name} has weights that are no finite numbers: it is moved to {aside}")
        return found

    def _newest(self) -> Path | None:
        """Return the newest checkpoint; what went wrong with one is said, and not raised instead of what was found."""
        for _ in range(2):  # the second time without the one that went wrong
            try:
                return self._last()
            except Exception as error:  # noqa: BLE001 - whatever the disk or a library has raised
                self._narrate(f"the last checkpoint could not be finished: {type(error).__name__}: {error}")
        return None

    def _way_on(self, found: Found, good: Path | None) -> str:
        last = f"The last good checkpoint is {good}." if good else "There is no good checkpoint yet."
        again = f"llmkit run {self._folder.path / 'recipe.yaml'} --resume"
        if not found.weights_finite:
            return f"{last} Resumed as it is, the run would end here again: start a new one with what follows changed."
        if self._stability.on_nan == "stop":
            return f"{last} To go on without this batch: `{again} --set stability.on_nan=skip`"
        return f"{last} To leave out more: `{again} --set stability.max_skips={2 * self._stability.max_skips}`"

    def _causes(self, found: Found) -> list[str]:
        """Return what is worth trying, most likely first."""
        args, lines = self._trainer.args, []
        trained = [row.get("trained_tokens", 1) for batch in self._batches for row in rows_of(batch, None)]
        if trained and not any(trained):
            lines.append("- No token of this step carries a label, and a mean over nothing is no number.")
        if args.fp16 or str(self._trainer.model.dtype) == "torch.float16":
            lines.append("- float16 ends at 65,504: take bfloat16 or float32 (`model.dtype`, `training.bf16`).")
        lines.append(
            f"- A learning rate that is too high ({args.learning_rate:g}) is the usual cause: take a third of it, or "
            f"more `training.warmup_steps`, or a smaller `training.max_grad_norm` ({args.max_grad_norm:g})."
        )
        if found.step == 1 and not found.weights_finite:
            lines.append("- The base weights may be damaged: fetch them again, or load them in another `model.dtype`.")
        lines.append("- Rows that nothing can be learnt from: the file above has the texts of this step.")
        return lines


class Spikes:
    """Says when a gradient norm is far beyond the usual, at most once in `WINDOW` steps."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._quiet_until = 0

    def seen(self, step: int, norm: float, max_norm: float) -> str | None:
        """Note the norm of a step, and return what there is to say."""
        usual = median(self._norms) if len(self._norms) >= LEAST else 0.0
        if math.isfinite(norm):
            self._norms.append(norm)
        if not usual or not SPIKE * usual < norm < math.inf or step < self._quiet_until:
            return None
        self._quiet_until = step + WINDOW
        clipped = f"it was clipped to {max_norm:g}" if max_norm else "nothing clips it (`training.max_grad_norm: 0`)"
        times = f"{norm / usual:,.0f} times the usual {usual:.3g}"
        return (
            f"step {step:,}: the gradient norm is {norm:.3g}, {times}; {clipped}. Where there are more, take a lower "
            "`training.learning_rate`, or look at the rows"
        )


def finite_file(checkpoint: Path) -> bool:
    """Whether all weights in the safetensors files of a checkpoint are finite numbers."""
    from safetensors import safe_open

    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            if not _finite(opened.get_tensor(name) for name in opened.keys()):  # noqa: SIM118 - not a mapping
                return False
    return True


def _finite(tensors: Iterable[Tensor]) -> bool:
    import torch

    return all(bool(torch.isfinite(tensor.detach()).all()) for tensor in tensors)


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
