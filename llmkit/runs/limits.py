"""The recipe's `limits`: training that reaches one ends at that step, with a checkpoint that `--resume` continues."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llmkit.errors import RecipeError, SetupError
from llmkit.recipe.recipe import Keep, Limits
from llmkit.runs.folder import RunFolder
from llmkit.runs.measuring import Gauge, tokens_of
from llmkit.runs.recovery.checkpoints import Checkpoints

if TYPE_CHECKING:
    from transformers import TrainerCallback

STOPPED_FILE = "stopped.json"
"""File of the run folder that says which limit ended training; none where training came to its end."""


@dataclass(frozen=True)
class Stopped:
    """Where a limit ended training."""

    by: str
    """The limit's key: `limits.hours` or `limits.tokens`."""

    limit: float
    step: int
    steps: int
    """Steps that the whole run has."""

    tokens: int
    """Tokens learnt from, over all sessions."""

    checkpoint: str
    """Folder to go on from, below the run folder."""

    def sentence(self, folder: RunFolder) -> str:
        """Return what happened and how to go on."""
        again = f"llmkit run {folder.path / 'recipe.yaml'} --resume"
        if self.by == "limits.tokens":
            again += f" --set limits.tokens={2 * int(self.limit)}"
        return (
            f"stopped by {self.by} ({self.limit:,g}) after step {self.step:,} of {self.steps:,} and {self.tokens:,} "
            f"tokens; {self.checkpoint} is written, and `{again}` continues"
        )


class Watchman:
    """Knows when a session has reached a limit of the recipe."""

    def __init__(self, limits: Limits, gauge: Gauge, began: float) -> None:
        self.limits, self.gauge, self.began = limits, gauge, began
        self.stopped: Stopped | None = None

    def reached(self) -> tuple[str, float] | None:
        """Return the key and the value of the limit that is reached, or None."""
        limits, hours = self.limits, (time.monotonic() - self.began) / 3600
        if limits.tokens is not None and self.gauge.tokens >= limits.tokens:
            return "limits.tokens", limits.tokens
        if limits.hours is not None and hours >= limits.hours:
            return "limits.hours", limits.hours
        return None

    def step(self, done: int, steps: int) -> bool:
        """Return whether training ends with step `done` of `steps`; the last step ends it by itself."""
        found = self.reached() if done < steps else None
        if found is not None:
            self.stopped = Stopped(*found, done, steps, self.gauge.tokens, f"checkpoints/checkpoint-{done}")
        return found is not None

    def record(self, folder: RunFolder) -> None:
        """Write `stopped.json`, or remove that of an earlier session."""
        if self.stopped is None:
            (folder.path / STOPPED_FILE).unlink(missing_ok=True)
        else:
            folder.write_json(STOPPED_FILE, asdict(self.stopped))


def limit_callback(watchman: Watchman) -> TrainerCallback:
    """Return the callback that ends training at a limit; it goes behind the one that counts the tokens."""
    from transformers import TrainerCallback
    from transformers.trainer_utils import SaveStrategy

    class Limit(TrainerCallback):
        """Ends training and asks for a checkpoint, as transformers' own callbacks do."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if watchman.step(state.global_step, state.max_steps):
                control.should_save = control.should_training_stop = True
                if args.save_strategy == SaveStrategy.BEST:
                    args.save_strategy = SaveStrategy.STEPS  # else the evaluation of this step alone would decide

    return Limit()


def require_left(folder: RunFolder, limits: Limits) -> None:
    """Raise RecipeError if the run in `folder` has learnt from all the tokens that `limits` allow.

    Raises SetupError where the checkpoint doesn't say how many there were.
    """
    if limits.tokens is None:
        return
    # Which ones are passed over is said when the run goes on from the one before.
    checkpoint = Checkpoints(folder.checkpoints, Keep(), lambda text: None).last()
    if checkpoint is None:
        return
    tokens = tokens_of(checkpoint)
    if tokens is None:
        raise SetupError(
            f"{checkpoint} doesn't say how many tokens have been learnt from, so `limits.tokens` can't be kept",
            remedy="Leave it out (--set limits.tokens=null), or use `limits.hours`.",
        )
    if tokens >= limits.tokens:
        raise RecipeError(
            f"{folder.path} has learnt from {tokens:,} tokens, and `limits.tokens` is {limits.tokens:,}",
            remedy=f"Raise it (--set limits.tokens={tokens + limits.tokens}), or leave it out (=null).",
        )
