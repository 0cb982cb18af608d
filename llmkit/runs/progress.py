"""What a person sees while a run works: stages, one live line, plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from transformers import TrainerCallback

from llmkit.recipe.secrets import redact
from llmkit.runs.folder import RunFolder

PLAIN_SECONDS = 10.0
"""Where there is no terminal, a line of progress is printed at most this often."""


SHOWN = 240
"""Characters of a prompt or a completion that are shown on the terminal."""


class Narrator:
    """Says what a run does. Silent for the Python API unless a console is given."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self.console = console or Console(quiet=True)
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line with the seconds since the start, without secrets."""
        from rich.markup import escape

        clock = time.monotonic() - self.started
        self.console.print(f"[dim]{clock:6.1f} s[/dim]  {escape(redact(text))}", highlight=False)

    def show_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Print sampled completions: the prompt, the completion, and what each part of the reward gave."""
        from rich.markup import escape

        for sample in samples:
            parts = " + ".join(f"{name} {value:.3g}" for name, value in sample["rewards"].items())
            self.say(f"step {sample['step']} · {sample['where']} · reward {sample['reward']:.3g} ({parts})")
            for mark, text in (("?", sample["prompt"]), (">", sample["completion"])):
                self.console.print(f"          [dim]{mark}[/dim] {escape(redact(shortened(text)))}", highlight=False)

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


def shortened(text: str) -> str:
    """Return `text` on one line, its middle left out where it is long: the end of an answer is what counts."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN // 3]} ... {line[-(SHOWN - SHOWN // 3) :]}"


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
            self.narrator.say(f"{self.title} {done}/{self.total} {note}  {duration(left)} left".replace("  ", " "))


def duration(seconds: float) -> str:
    """Return a time as `2:05` (minutes) or `1:02:05` (hours)."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Speed:
    """Real tokens per second from a running total."""

    def __init__(self, tokens: float = 0.0) -> None:
        self.tokens, self.clock = tokens, time.monotonic()
        self.smoothed = 0.0

    def measured(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Return the entry of metrics.jsonl for a logged step; none where the method counts no tokens."""
        return {"tokens_per_second": self.update(float(logs["num_tokens"]))} if "num_tokens" in logs else {}

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
        """Step, what is learnt from, real (unpadded) tokens per second and the time left."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # A method that samples goes on counting tokens where its checkpoint stopped.
            self.note, self.speed = "", Speed(float(state.num_input_tokens_seen))
            self.latest: dict[str, Any] = {}
            self.bar = open_bars.enter_context(narrator.bar("training", state.max_steps))

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kw: Any) -> None:
            if not state.is_world_process_zero or not logs:
                return
            entry = _metrics_entry(state.global_step, logs)
            if "loss" in logs:
                entry |= self.speed.measured(logs)
                # A step that learns again from the same answers logs no reward: the last one stands.
                self.latest |= logs
                self.note = note(self.latest, self.speed.smoothed)
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


HEADLINES = (("reward", "reward {:.3f}"), ("loss", "loss {:.4f}"))
"""The figure that training is about, by the key in the logs: the first that is there."""

DETAILS = (
    ("rewards/accuracies", "accuracy {:.0%}"),
    ("rewards/margins", "margin {:.3f}"),
    ("accuracy", "accuracy {:.0%}"),
    ("margin", "margin {:.3f}"),
    ("kl", "KL {:.4f}"),
    ("frac_reward_zero_std", "{:.0%} of groups without signal"),
)
"""What stands behind it, in this order, each where it is logged."""

PARTS = ("generate", "score", "learn")
"""The parts that a step's time is split into, as `time/PART` seconds."""


def note(logs: Mapping[str, Any], tokens_per_second: float) -> str:
    """Return the live line's words on one logged step: every known figure that `logs` has; a speed of 0 is unknown."""
    known = [(key, text) for key, text in HEADLINES if logs.get(key) is not None][:1]
    known += [(key, text) for key, text in DETAILS if logs.get(key) is not None]
    words = [text.format(logs[key]) for key, text in known]
    seconds = {part: float(logs[f"time/{part}"]) for part in PARTS if f"time/{part}" in logs}
    if seconds:
        split = " + ".join(f"{part} {value:.1f}" for part, value in seconds.items())
        words.append(f"{sum(seconds.values()):.1f} s/step ({split})")
    if tokens_per_second:
        words.append(f"{tokens_per_second:,.0f} tokens/s")
    return " · ".join(words)


def outcome(history: Sequence[Mapping[str, Any]]) -> str:
    """Return what training did to its headline figure, e.g. `loss 2.1 -> 0.3`.

    A reward varies with the prompts of a step, so its first and last values are means over a tenth of the steps.
    """
    steps = [entry for entry in history if "loss" in entry]
    key = next(key for key, _ in HEADLINES if any(entry.get(key) is not None for entry in steps))
    values = [float(entry[key]) for entry in steps if entry.get(key) is not None]
    count = max(1, len(values) // 10) if key == "reward" else 1
    first, last = sum(values[:count]) / count, sum(values[-count:]) / count
    means = f" (means of {count} steps)" if count > 1 else ""
    return f"{key} {first:.4f} -> {last:.4f}{means}"


def terminal() -> Narrator:
    """Return the narrator of the command line: standard error, so that results can be piped."""
    from rich.console import Console

    return Narrator(Console(file=sys.stderr, soft_wrap=True))
