"""The stages of a rehearsal: which one is under way, how long each took, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from llmkit.errors import Interrupted, LlmkitError
from llmkit.runs.progress import Narrator

Outcome = Literal["passed", "warned", "failed", "skipped"]

BEFORE, WHILE, AFTER, RESUMED = "before training", "while training", "after training", "when it is resumed"
TIMES = {
    **dict.fromkeys(("train", "evaluate", "checkpoint", "best checkpoint"), WHILE),
    **dict.fromkeys(("save", "tuned", "export", "reload"), AFTER),
    "resume": RESUMED,
}
"""When in a run a stage comes, by its name or the first word of it; all others come before training."""


class Ended(Exception):  # noqa: N818 - no error: it leaves a rehearsal that a failure has ended
    """Nothing after this stage can be rehearsed."""


@dataclass
class Stage:
    """One stage and what came of it."""

    name: str
    outcome: Outcome = "skipped"
    seconds: float = 0.0
    said: str = ""
    """What was found; of a failed stage the error, of a skipped one the reason."""

    error: Exception | None = field(default=None, repr=False)

    @property
    def when(self) -> str:
        """When in the run it comes."""
        return TIMES.get(self.name) or TIMES.get(self.name.split(":")[0].split(" ")[0], BEFORE)


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal found, stage by stage in the order of a run."""

    stages: tuple[Stage, ...]
    seconds: float

    @property
    def failures(self) -> tuple[Stage, ...]:
        """The stages that failed."""
        return tuple(stage for stage in self.stages if stage.outcome == "failed")

    @property
    def passed(self) -> bool:
        """Whether no stage failed."""
        return not self.failures

    def stage(self, name: str) -> Stage:
        """Return the stage called `name`; raises KeyError where there is none."""
        found = next((stage for stage in self.stages if stage.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def sentences(self) -> list[str]:
        """Return what would have gone wrong, each with when and where, and the error that the run would have shown."""
        return [f"would have failed {stage.when}, at {stage.name}:\n{stage.said}" for stage in self.failures]


class Stages:
    """Keeps the stages; one is under way at a time, and may be taken up again."""

    def __init__(self, narrator: Narrator, names: Sequence[str]) -> None:
        self.narrator = narrator
        self.stages = {name: Stage(name) for name in names}
        self.words: list[Callable[[str], str]] = []
        """What puts an error into the words that the real run would use."""
        self._began = self._mark = time.monotonic()
        self._now: Stage | None = None

    def call(self, told: str, real: str) -> None:
        """Have an error say `real` where it says `told`."""
        self.words.append(lambda text: text.replace(told, real))

    @contextmanager
    def stage(self, name: str, *, goes_on: bool = False) -> Iterator[None]:
        """Do a stage. What it raises is kept in the stage under way then, which `begin` may have changed.

        Raises Ended after a failure, unless the rest `goes_on` without it, and Interrupted after a signal.
        """
        self.begin(name)
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - whatever would end the run is what is looked for
            self.fail(error)
            if not goes_on:
                raise Ended from error
        self._close()

    def begin(self, name: str) -> None:
        """Go over to a stage; the one before has passed so far."""
        self._close()
        self._now = self.stages.setdefault(name, Stage(name))
        if self._now.outcome == "skipped":
            self._now.outcome = "passed"
            self.narrator.say(name)
        self._mark = time.monotonic()

    def _close(self) -> None:
        if self._now is not None:
            self._now.seconds += time.monotonic() - self._mark
        self._now = None

    def say(self, text: str, *, warning: bool = False) -> None:
        """Note what the stage under way, or the last one, has found."""
        if self._now is not None and text:
            self._now.said = self._in_words(text)
            self._now.outcome = "warned" if warning else self._now.outcome

    def fail(self, error: Exception) -> None:
        """Note that the stage under way has failed."""
        assert self._now is not None
        text = str(error) if isinstance(error, LlmkitError) else f"{type(error).__name__}: {error}"
        self._now.outcome, self._now.error, self._now.said = "failed", error, self._in_words(text)
        self.narrator.say(f"{self._now.name}: failed")

    def skip(self, name: str, reason: str) -> None:
        """Note that a stage is left out."""
        self.stages.setdefault(name, Stage(name)).said = reason

    def result(self) -> Rehearsal:
        """Return all stages; those that were not come to say so."""
        self._close()
        failed = any(stage.outcome == "failed" for stage in self.stages.values())
        for stage in self.stages.values():
            if stage.outcome == "skipped" and not stage.said:
                stage.said = "not reached" if failed else "nothing to do"
        return Rehearsal(tuple(self.stages.values()), time.monotonic() - self._began)

    def _in_words(self, text: str) -> str:
        for put in reversed(self.words):
            text = put(text)
        return text
