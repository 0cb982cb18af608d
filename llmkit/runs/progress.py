"""What a person sees while a run works: stages, one live line, plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from transformers import TrainerCallback

    from llmkit.runs.folder import RunFolder

PLAIN_SECONDS = 10.0
"""Where there is no terminal, a line of progress is printed at most this often."""


class Narrator:
    """Says what a run does. Silent for the Python API unless a console is given."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self.console = console or Console(quiet=True)
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line with the seconds since the start."""
        from rich.markup import escape

        clock = time.monotonic() - self.started
        self.console.print(f"[dim]{clock:6.1f} s[/dim]  {escape(text)}", highlight=False)

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "") -> Iterator[Bar]:
        """Show progress towards `total`: a live bar on a terminal, a line now and then elsewhere."""
        if not self.console.is_terminal:
            yield Bar(self, title, total, unit)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("         {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as live:
            yield Bar(self, title, total, unit, live)


class Bar:
    """Progress towards a total."""

    def __init__(self, narrator: Narrator, title: str, total: int, unit: str, live: Progress | None = None) -> None:
        self.narrator, self.title, self.total, self.unit, self.live = narrator, title, total, unit, live
        self.began = self.printed = time.monotonic()
        self.task = live.add_task(title, total=total, note="") if live else None

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of the total is done, with a note such as the loss."""
        if self.live is not None and self.task is not None:
            self.live.update(self.task, completed=done, note=note)
            return
        now = time.monotonic()
        # The line after the last step is the caller's: what came of it.
        if now - self.printed >= PLAIN_SECONDS and done < self.total:
            self.printed = now
            left = (now - self.began) / max(done, 1) * (self.total - done)
            self.narrator.say(f"{self.title} {done}/{self.total} {note}  {_duration(left)} left".replace("  ", " "))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Speed:
    """Real tokens per second from a running total."""

    def __init__(self) -> None:
        self.tokens, self.clock = 0.0, time.monotonic()
        self.smoothed = 0.0

    def update(self, tokens: float) -> float:
        """Return the speed since the last update; `smoothed` is the one for the eye."""
        now = time.monotonic()
        latest = (tokens - self.tokens) / max(now - self.clock, 1e-9)
        self.smoothed = latest if not self.smoothed else 0.8 * self.smoothed + 0.2 * latest
        self.tokens, self.clock = tokens, now
        return round(latest, 1)


def training_callback(narrator: Narrator, folder: RunFolder | None) -> TrainerCallback:
    """Return the callback that draws the training line and writes metrics.jsonl."""
    from transformers import TrainerCallback

    open_bars = ExitStack()

    class Watch(TrainerCallback):
        """Step, loss, real (unpadded) tokens per second and the time left."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.note, self.speed = "", Speed()
            self.bar = open_bars.enter_context(narrator.bar("training", state.max_steps))

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kw: Any) -> None:
            if not state.is_world_process_zero or not logs:
                return
            entry = _metrics_entry(state.global_step, logs)
            if "num_tokens" in logs and "loss" in logs:
                entry["tokens_per_second"] = self.speed.update(float(logs["num_tokens"]))
                self.note = f"loss {logs['loss']:.4f} · {self.speed.smoothed:,.0f} tokens/s"
            if folder is not None:
                folder.append_metrics(entry)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                self.bar.update(state.global_step, self.note)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.close()

        def close(self) -> None:
            """Put the terminal back, also where training ends in an error."""
            open_bars.close()

    return Watch()


def _metrics_entry(step: int, logs: dict[str, Any]) -> dict[str, Any]:
    return {"step": step, **{name: value for name, value in logs.items() if name != "total_flos"}}


def terminal() -> Narrator:
    """Return the narrator of the command line: standard error, so that results can be piped."""
    from rich.console import Console

    return Narrator(Console(file=sys.stderr, soft_wrap=True))
