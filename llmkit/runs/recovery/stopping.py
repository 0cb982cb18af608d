"""SIGTERM, SIGINT and SIGUSR1: the step ends, a checkpoint is written, and the run leaves with code 75."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from llmkit.errors import Interrupted, LlmkitError
from llmkit.runs.folder import RunFolder

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from llmkit.runs.recovery.checkpoints import Checkpoints

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""What ends a run: a scheduler's, Ctrl-C, and Slurm's warning."""

RECENT = 50
"""Steps whose slowest one says how long the next may take."""

ECHO = 0.5
"""Seconds within which a signal that comes again is the same one: `timeout` and other wrappers send each one twice."""


class Stopper:
    """Turns signals into a stop at the end of the step, and into `Interrupted` (code 75) everywhere else.

    Python runs handlers between two of its own instructions, so a long call into C (a backward pass, a write) delays
    them. A handler sets a flag; outside of training it raises KeyboardInterrupt, which no library takes for an error of
    its own, and `__exit__` turns that into `Interrupted`. A second signal leaves at once: with `exits`, by `os._exit`
    and code 128 + signal (the command line); otherwise by KeyboardInterrupt (a notebook). Only the main thread can set
    handlers; in another one this does nothing. Handlers within a run within a run are put back in order.
    """

    def __init__(self, narrate: Callable[[str], None], folder: RunFolder | None = None, *, exits: bool = False) -> None:
        self.signal: str | None = None
        """Name of the first signal that came."""
        self.folder = folder
        """Folder of the run that a signal ends."""
        self._narrate, self._exits = narrate, exits
        self._pace = Pace()
        self._training = self._trained = self._twice = False
        self._heard_at = 0.0
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}
        # Its put() may be called by a handler that interrupts another put().
        self._heard: SimpleQueue[str | None] = SimpleQueue()
        self._speaker = threading.Thread(target=self._say, name="llmkit-signals", daemon=True)

    def __enter__(self) -> Stopper:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in SIGNALS:
            before = signal.getsignal(number)
            # Ignored by whoever started us (nohup, a job in the background), or handled by C: left as it is.
            if before not in (signal.SIG_IGN, None):
                self._before[number] = before
                signal.signal(number, self._handle)
        self._speaker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._speaker.is_alive():
            self._heard.put(None)
            self._speaker.join(1.0)  # what it has to say comes before the error; a terminal may be held (Ctrl-S)
        if self.signal is None or self._twice:
            return
        if isinstance(error, KeyboardInterrupt):
            raise self._interrupted() from None
        if isinstance(error, Exception) and not isinstance(error, LlmkitError):
            # The signal went to the whole group of processes, and the step needed one of the others.
            raise self._interrupted(error) from error

    def raise_if_stopped(self, folder: RunFolder) -> None:
        """End the part in which a signal waits for the step; raises Interrupted if one came, once training is over."""
        self.folder = folder
        # In this order: a signal in between is seen here, and a later one raises by itself.
        self._training = False
        if self.signal is not None:
            raise self._interrupted()
        self._trained = True

    def callback(self, checkpoints: Checkpoints) -> TrainerCallback:
        """Return the callback that ends training at the step's end; `checkpoints` finishes what is being written."""
        from transformers import TrainerCallback

        stopper, pace = self, self._pace

        class Stop(TrainerCallback):
            """Times the steps; ends the one that is under way, evaluates where that is due, and has it saved."""

            saved = -1
            due = over = False
            """Whether the checkpoint of this step waits for the epoch's end, and whether the epoch has come to it."""

            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                stopper._training, self.over = True, False
                pace.begin(state.max_steps)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                pace.step(state.global_step)
                stopper._stop(control)
                # A run that goes on from this step begins the next epoch: nobody would do what this one's end asks for.
                self.due = control.should_save and _more_comes(args, state)
                control.should_save = control.should_save and not self.due

            def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                pace.rest()
                stopper._stop(control)
                if stopper.signal and self.over and self.saved != state.global_step:
                    _insist(args, control)

            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                pace.checkpoint()
                self.saved = state.global_step
                stopper._stop(control)

            def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                # The trainer comes by here whenever training stops, and does then what it was told to.
                saved = self.saved == state.global_step
                again = saved and _more_comes(args, state)
                control.should_save = control.should_save or self.due or again
                self.due, self.over = False, True
                stopper._stop(control, state, saved=saved)
                if stopper.signal and control.should_save:
                    _insist(args, control)

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if stopper.signal:
                    checkpoints.wait()

        return Stop()

    def _stop(self, control: Any, ended: Any = None, *, saved: bool = False) -> None:
        """Stop training if a signal came; where an epoch ends or is left (in state `ended`), with a checkpoint."""
        if self.signal is None:
            return
        control.should_training_stop = True
        if ended is None:
            return
        if not _at_an_end(ended):  # what is due at the epoch's end, the resumed run does
            control.should_log = control.should_evaluate = False
        control.should_save = control.should_save or not saved

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            _as_a_child(number)
            return
        name = signal.Signals(number).name
        now = time.monotonic()
        if name == self.signal and now - self._heard_at < ECHO:
            return
        if self.signal is not None:
            self._leave(number, name)
        # In this order: the echo may come in between.
        self._heard_at, self.signal = now, name
        if not self._training:
            raise KeyboardInterrupt
        self._heard.put(name)

    def _leave(self, number: int, name: str) -> None:
        """End the process now; what is being written stays beside its place, and the checkpoint before it is whole."""
        if not self._exits:
            self._twice = True
            raise KeyboardInterrupt
        # The handler may have interrupted a write to the same stream.
        with suppress(OSError, RuntimeError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        cursor = "\x1b[?25h" if os.isatty(2) else ""  # the progress bar hides it
        with suppress(OSError):
            os.write(2, f"{cursor}\n{name} again: left at once; {self._way_on()}\n".encode())
        os._exit(128 + number)

    def _say(self) -> None:
        # In a thread of its own: a handler that prints may have interrupted a print.
        while (name := self._heard.get()) is not None:
            self._narrate(f"{name}: {self._pace.notice()}; a second signal leaves at once")

    def _interrupted(self, error: Exception | None = None) -> Interrupted:
        when = f"after step {self._pace.done:,} of {self._pace.steps:,}"
        if self._trained:
            when = "after training, before everything was scored and exported"
        elif not self._pace.steps:
            when = "before the first step"
        why = f"; the next step could not be ended ({type(error).__name__}: {error})" if error else ""
        return Interrupted(f"stopped by {self.signal} {when}{why}", remedy=self._way_on())

    def _way_on(self) -> str:
        if self.folder is None or not (self.folder.path / "recipe.yaml").is_file():
            return "Nothing had been written yet: start it again."
        last = self.folder.last_checkpoint()
        start = f"goes on from {last.name}" if last else "starts at step 0"
        return f"`llmkit run {self.folder.path / 'recipe.yaml'} --resume` {start}."


class Pace:
    """How long the steps and the checkpoints of a session take, in seconds."""

    def __init__(self) -> None:
        self.done = self.steps = 0
        """Steps done, over all sessions, and steps of the whole run; 0 until the first one begins."""
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._slowest_checkpoint = 0.0
        self._mark = 0.0

    def begin(self, steps: int) -> None:
        """Note the begin of a step of a run of `steps`."""
        if not self.steps:
            self.steps, self._mark = steps, time.monotonic()

    def step(self, done: int) -> None:
        """Note the end of a step."""
        self.done = done
        self._recent.append(self.rest())

    def checkpoint(self) -> None:
        """Note that a checkpoint is written."""
        self._slowest_checkpoint = max(self._slowest_checkpoint, self.rest())

    def rest(self) -> float:
        """Return the seconds since the last event, and begin anew."""
        before, self._mark = self._mark, time.monotonic()
        return self._mark - before

    def notice(self) -> str:
        """Return what happens now, and how long it takes at most, by what the steps so far took."""
        step = min(self.done + 1, self.steps)
        text = f"the run ends with step {step:,} of {self.steps:,} at the latest, and a checkpoint"
        if not self._recent:
            return f"{text}; how long that takes is not known yet"
        slowest, checkpoint = max(self._recent), self._slowest_checkpoint
        parts = [f"steps took up to {slowest:,.1f} s"]
        parts += [f"checkpoints up to {checkpoint:,.1f} s" if checkpoint else "no checkpoint has been written yet"]
        return f"{text}, within about {slowest + checkpoint:,.1f} s ({', '.join(parts)})"


def _at_an_end(state: Any) -> bool:
    """Whether this step is the last one of an epoch, or of the run."""
    return bool(state.epoch % 1 == 0 or state.global_step >= state.max_steps)


def _more_comes(args: Any, state: Any) -> bool:
    """Whether something is logged or evaluated when the epoch is over, and it is over with this step."""
    return _at_an_end(state) and "epoch" in (args.eval_strategy, args.logging_strategy)


def _insist(args: Any, control: Any) -> None:
    """Have this step saved; with `save_strategy: best` its evaluation alone would decide."""
    from transformers.trainer_utils import SaveStrategy

    control.should_save = True
    if args.save_strategy == SaveStrategy.BEST:
        args.save_strategy = SaveStrategy.STEPS


def _as_a_child(number: int) -> None:
    """Take a signal in a process that was forked within a run (a data loader's, a pool's).

    Ctrl-C and Slurm's signal go to all processes of a group, and the step that is to be ended needs these ones; whoever
    forked them ends them by SIGTERM.
    """
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
