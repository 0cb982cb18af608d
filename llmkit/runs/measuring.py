"""How fast training is, measured while it runs: tokens per second, the share of the device's ceiling, the time left."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from llmkit.data.splits import Row
from llmkit.data.store import Listed, Rows
from llmkit.model.ceiling import gemm_ceiling
from llmkit.model.matrices import matrices_of
from llmkit.model.passes import Passed, Passes
from llmkit.planning.hardware import Hardware
from llmkit.planning.speed import Matrices, needed_flops
from llmkit.runs.folder import RunFolder
from llmkit.runs.pace import completions_per_step
from llmkit.runs.prepare import Prepared
from llmkit.runs.progress import Narrator, duration

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback

WARM_UP = 4
"""Steps of a session that no figure is taken from: they set up kernels and memory."""

SAID_AFTER = 20
"""Steps of a session after which its speed is said."""

SLOW_STEPS = 20
"""So many steps in a row at less than half the usual speed are worth a line."""

TOKENS_FILE = "tokens.json"
"""File of a checkpoint that says how many tokens had been learnt from."""


@dataclass(frozen=True)
class Measured:
    """The speed of a session's training: medians over its steps, evaluations and checkpoints left out."""

    steps: int
    """Steps that the medians are over."""

    seconds_per_step: float
    """For methods that sample, the mean: steps that learn again from the same completions are short."""

    unit: str
    """What is counted: `tokens` (real ones, learnt from), `completions` (sampled and learnt from), or `steps`."""

    per_second: float
    """How many of them per second."""

    device: str
    """`cpu`, `cuda` or `mps`."""

    dtype: str
    """The data type that products are computed in."""

    flops_per_second: float | None = None
    """What those tokens need (`llmkit.planning.speed`); None for methods that sample."""

    ceiling: float | None = None
    """FLOP/s of square matrix products, measured on this device in this data type."""

    @property
    def share(self) -> float | None:
        """Share of the ceiling, from 0 to 1."""
        return self.flops_per_second / self.ceiling if self.flops_per_second and self.ceiling else None

    def sentence(self) -> str:
        """Return the speed in words, e.g. `141 tokens/s, 58% of the 130 GFLOP/s that this CPU reaches in float32`."""
        words = f"{figure(self.seconds_per_step)} s/step"
        if self.unit != "steps":
            words = f"{figure(self.per_second)} {self.unit}/s"
        if self.unit == "completions":
            words += f" ({figure(self.seconds_per_step)} s/step)"
        if self.share is not None and self.ceiling is not None:
            place = "this CPU" if self.device == "cpu" else "this GPU"
            words += f", {self.share:.0%} of the {flops(self.ceiling)} that {place} reaches in {self.dtype}"
        return words

    def to_dict(self) -> dict[str, Any]:
        """Return what `speed.json` holds."""
        return {**asdict(self), "share": self.share}


def figure(value: float) -> str:
    """Return a speed with three digits, and all of them from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def flops(rate: float) -> str:
    """Return a rate in FLOP/s with its unit."""
    return f"{rate / 1e12:,.0f} TFLOP/s" if rate >= 1e13 else f"{rate / 1e9:,.0f} GFLOP/s"


class Tempo:
    """Seconds and counts of the steps of a session, one after the other."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.passed = Passed()
        """Sum over the steps behind the warm-up."""
        self._slow = 0
        self._usual: tuple[float, float] | None = None

    def add(self, seconds: float, passed: Passed) -> None:
        """Note a step."""
        self.seconds.append(seconds)
        self.tokens.append(passed.tokens)
        if len(self.seconds) > WARM_UP:
            self.passed += passed

    @property
    def settled(self) -> int:
        """Number of steps behind the warm-up."""
        return max(0, len(self.seconds) - WARM_UP)

    def seconds_per_step(self) -> float:
        """Return the median of the steps behind the warm-up."""
        return median(self.seconds[WARM_UP:])

    def tokens_per_second(self) -> float:
        """Return the median over the steps behind the warm-up."""
        pairs = zip(self.tokens[WARM_UP:], self.seconds[WARM_UP:], strict=True)
        return median(tokens / seconds for tokens, seconds in pairs)

    def turned_slow(self) -> bool:
        """Whether this step is the last of `SLOW_STEPS` slow ones in a row.

        Slow is a step that takes more than twice as long as the first ones did, and learns from its tokens at less than
        half their speed: one long row is no slow step, and neither is a batch of short ones.
        """
        if self._usual is None:
            if len(self.seconds) >= SAID_AFTER:
                self._usual = self.seconds_per_step(), self.tokens_per_second()
            return False
        seconds, speed = self._usual
        slow = self.seconds[-1] > 2 * seconds and self.tokens[-1] / self.seconds[-1] <= speed / 2
        self._slow = self._slow + 1 if slow else 0
        return self._slow == SLOW_STEPS

    def slow_speed(self) -> tuple[float, float]:
        """Return the seconds of a step of the last slow ones and of the usual ones, as medians."""
        return median(self.seconds[-SLOW_STEPS:]), self._usual[0] if self._usual else 0.0


@dataclass(frozen=True)
class Workload:
    """What the arithmetic of a run depends on, and what is still to come."""

    matrices: Matrices
    scored: float
    """Share of the tokens that carry loss."""
    tokens: int | None
    """Tokens of an epoch; None for a stream."""
    completions: float | None
    """Completions of a step, for methods that sample."""

    def flops(self, passed: Passed) -> float:
        """Return the FLOPs that these passes need."""
        learnt = needed_flops(
            self.matrices, tokens=passed.tokens, scored=self.scored * passed.tokens, pairs=passed.pairs
        )
        return learnt + needed_flops(
            self.matrices.reference,
            tokens=passed.read_tokens,
            scored=self.scored * passed.read_tokens,
            pairs=passed.read_pairs,
            learn=False,
        )


def workload(prepared: Prepared) -> Workload:
    """Return what the arithmetic of `prepared` depends on."""
    recipe, matrices = prepared.recipe, matrices_of(prepared.trainer.model)
    if recipe.method.needs_rewards:
        return Workload(matrices, scored=0.0, tokens=None, completions=completions_per_step(recipe, prepared.plan))
    rows = as_rows(prepared.splits.train)
    total, trained = int(rows.totals.sum(dtype="int64")), int(rows.trained.sum(dtype="int64"))
    streamed = prepared.splits.stream is not None
    return Workload(matrices, trained / total if total else 0.0, None if streamed else total, completions=None)


def as_rows(rows: Sequence[Row]) -> Rows:
    """Return rows with what is counted of them."""
    return rows if isinstance(rows, Rows) else Rows([Listed(rows)])


def measured(tempo: Tempo, work: Workload, device: str, dtype: str, ceiling: float | None) -> Measured | None:
    """Return the speed of the steps so far; None where there are too few."""
    if not tempo.settled:
        return None
    seconds = tempo.seconds_per_step()
    if work.completions is not None:
        seconds = mean(tempo.seconds[WARM_UP:])
        return Measured(tempo.settled, seconds, "completions", work.completions / seconds, device, dtype)
    if not tempo.passed.tokens:
        return Measured(tempo.settled, seconds, "steps", 1 / seconds, device, dtype)
    speed = tempo.tokens_per_second()
    flops = work.flops(tempo.passed) / tempo.passed.tokens * speed
    return Measured(tempo.settled, seconds, "tokens", speed, device, dtype, flops, ceiling)


def seconds_left(found: Measured, work: Workload, steps: int, steps_per_epoch: float | None) -> float:
    """Return the seconds that `steps` steps will take.

    By the tokens of a mean step where they are known: batches grouped by length begin with the longest.
    """
    if found.unit == "tokens" and work.tokens is not None and steps_per_epoch:
        return steps * work.tokens / steps_per_epoch / found.per_second
    return steps * found.seconds_per_step


def projection(found: Measured, steps: int, seconds: float, now: datetime) -> str:
    """Return the line that is said once the speed is known: it, the steps and the time left, and when that will be."""
    end = now + timedelta(seconds=seconds)
    clock = f"{end:%H:%M}" if end.date() == now.date() else f"{end:%Y-%m-%d %H:%M}"
    plural = "s" if steps != 1 else ""
    return f"{found.sentence()}; {steps:,} step{plural} left take {duration(seconds)}, until about {clock}"


class Gauge:
    """The speed of a run's training, and the tokens that it has learnt from, over all of its sessions."""

    def __init__(self, prepared: Prepared, folder: RunFolder, narrator: Narrator) -> None:
        trainer = prepared.trainer
        self.device: torch.device = trainer.args.device
        self.dtype = computing_dtype(trainer)
        self.hardware = prepared.plan.hardware
        self.work = workload(prepared)
        self.folder, self.narrator = folder, narrator
        self.passes = Passes(trainer.model, getattr(trainer, "ref_model", None))
        self.tempo = Tempo()
        self.tokens = 0
        """Tokens learnt from since step 0."""
        self._ceiling: float | None = None
        self._mark = time.monotonic()

    def begin(self, checkpoint: Path | None) -> None:
        """Start the clock; `checkpoint` is where training goes on from."""
        self.tokens = (tokens_of(checkpoint) or 0) if checkpoint else 0
        self._mark = time.monotonic()

    def step(self, done: int, steps: int, steps_per_epoch: float | None) -> None:
        """Note the end of step `done` of `steps`, and say what there is to say."""
        passed = self.passes.take()
        self.tempo.add(time.monotonic() - self._mark, passed)
        self.tokens += passed.tokens
        if len(self.tempo.seconds) == SAID_AFTER and done < steps:
            self._say(steps - done, steps_per_epoch)
        if self.tempo.turned_slow():
            self.narrator.say(slow_line(*self.tempo.slow_speed(), self.hardware))
        self.skip()

    def skip(self) -> None:
        """Leave out the time since the last step: something else than training was done in it."""
        self._mark = time.monotonic()

    def keep_tokens(self, checkpoint: Path) -> None:
        """Write into a checkpoint how many tokens have been learnt from."""
        (checkpoint / TOKENS_FILE).write_text(json.dumps({"tokens": self.tokens}) + "\n", encoding="utf-8")

    def result(self) -> Measured | None:
        """Return the speed so far, and write it to `speed.json`; None where there were too few steps."""
        if not self.tempo.settled:
            return None
        if self._ceiling is None and self.work.completions is None:
            self._ceiling = gemm_ceiling(self.device, self.dtype)
        name = str(self.dtype).removeprefix("torch.")
        found = measured(self.tempo, self.work, self.device.type, name, self._ceiling)
        if found is not None:
            self.folder.write_json("speed.json", found.to_dict())
        return found

    def _say(self, left: int, steps_per_epoch: float | None) -> None:
        found = self.result()
        if found is not None:
            seconds = seconds_left(found, self.work, left, steps_per_epoch)
            self.narrator.say(projection(found, left, seconds, datetime.now()))


def computing_dtype(trainer: Any) -> torch.dtype:
    """Return the data type that the trainer's matrix products are computed in."""
    import torch

    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trainer.accelerator.mixed_precision)
    dtype: torch.dtype = mixed or trainer.model.dtype
    return dtype


def tokens_of(checkpoint: Path) -> int | None:
    """Return how many tokens had been learnt from at a checkpoint; None where it doesn't say."""
    file = checkpoint / TOKENS_FILE
    return int(json.loads(file.read_text(encoding="utf-8"))["tokens"]) if file.is_file() else None


def slow_line(seconds: float, usual: float, hardware: Hardware) -> str:
    """Return the warning that steps have become slow."""
    line = f"the last {SLOW_STEPS} steps took {figure(seconds)} s each, and the first ones {figure(usual)} s"
    if hardware.kind != "cpu":
        return f"{line}: another program may use {hardware.name}, or it has become hot"
    return f"{line}: another program may take the cores (load {os.getloadavg()[0]:.1f} on {hardware.cpu_cores})"


def gauge_callback(gauge: Gauge, checkpoint: Path | None) -> TrainerCallback:
    """Return the callback that tells `gauge` what training does; `checkpoint` is where it goes on from."""
    from transformers import TrainerCallback

    class Measure(TrainerCallback):
        """Times the steps; evaluations and checkpoints are not counted."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gauge.begin(checkpoint)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps_per_epoch = None
            if gauge.work.tokens is not None:
                steps_per_epoch = len(kwargs["train_dataloader"]) / args.gradient_accumulation_steps
            gauge.step(state.global_step, state.max_steps, steps_per_epoch)

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gauge.skip()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gauge.skip()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gauge.passes.close()

    return Measure()
