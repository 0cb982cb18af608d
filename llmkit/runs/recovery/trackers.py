"""Trackers (`training.report_to`) in threads of their own: one that fails or hangs neither stops nor holds a run."""

from __future__ import annotations

import contextvars
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from queue import Empty, Full, Queue
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmkit.recipe.secrets import redact

if TYPE_CHECKING:
    from transformers import Trainer

    from llmkit.runs.folder import RunFolder

PATIENCE = 10.0
"""Seconds that all trackers together are given at the end."""

MOST = 10_000
"""Events that may wait for a tracker: one that is so far behind does not answer any more."""

REMEMBERED = "trackers.json"
"""File of the run folder: by tracker, what its service calls this run."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """How a tracker is asked what it calls the run, and told to go on with that one."""

    of: Callable[[Any], str]
    """Of transformers' callback, once it has begun; raises where there is none."""

    told: Mapping[str, str]
    """Environment variables, which its package reads; `{}` stands for what it calls the run."""


IDENTITIES: Mapping[str, Identity] = MappingProxyType(
    {
        "wandb": Identity(lambda tracker: tracker._wandb.run.id, {"WANDB_RUN_ID": "{}", "WANDB_RESUME": "allow"}),
        "mlflow": Identity(lambda tracker: tracker._ml_flow.active_run().info.run_id, {"MLFLOW_RUN_ID": "{}"}),
    }
)
"""tensorboard goes on by its folder, trackio by the run's name; the others begin anew."""


class Trackers:
    """The guarded trackers of a trainer."""

    def __init__(self, guards: Sequence[Guard], narrate: Callable[[str], None], told: Sequence[str] = ()) -> None:
        self._guards, self._narrate, self._told = guards, narrate, told

    def close(self) -> None:
        """Give what is under way `PATIENCE` seconds to arrive, and leave behind who has not taken it by then."""
        until = time.monotonic() + PATIENCE
        for guard in self._guards:
            guard.end()
        for guard in self._guards:
            missed = guard.missed(until)
            if missed:
                self._narrate(
                    f"{guard.name} has not answered for {PATIENCE:g} s: it is left behind, and misses the last "
                    f"{missed:,} events; metrics.jsonl has all figures"
                )
        for variable in self._told:
            os.environ.pop(variable, None)


def guard_trackers(trainer: Trainer, folder: RunFolder, narrate: Callable[[str], None]) -> Trackers:
    """Put a guard in the place of each callback that `report_to` has added; nothing is said where there are none.

    A run that goes on does so in the trackers as well, where they can: what each calls it is kept in `folder`.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    names = {kind: name for name, kind in INTEGRATION_TO_CALLBACK.items()}
    callbacks = trainer.callback_handler.callbacks
    guards = []
    memory = _Memory(folder)
    for place, tracker in enumerate(callbacks):
        if type(tracker) in names:
            guard = Guard(names[type(tracker)], tracker, narrate, memory.keep)
            callbacks[place] = guard.callback()
            guards.append(guard)
    return Trackers(guards, narrate, memory.tell([guard.name for guard in guards]))


class _Memory:
    """What the services call the run, kept in its folder."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._lock = folder, threading.Lock()
        try:
            found = json.loads((folder.path / REMEMBERED).read_text(encoding="utf-8"))
            self._names: dict[str, str] = {str(kind): str(name) for kind, name in found.items()}
        except (OSError, ValueError, AttributeError):  # none yet, or damaged: the trackers begin anew
            self._names = {}

    def tell(self, kinds: Sequence[str]) -> list[str]:
        """Set the variables that have each tracker go on; those that the user has set stay. Returns which were set."""
        variables = {
            variable: text.format(self._names[kind])
            for kind in kinds
            if kind in self._names and kind in IDENTITIES and not set(IDENTITIES[kind].told) & set(os.environ)
            for variable, text in IDENTITIES[kind].told.items()
        }
        os.environ.update(variables)
        return list(variables)

    def keep(self, kind: str, tracker: Any) -> bool:
        """Keep what a tracker calls the run; returns whether it could be told."""
        if kind not in IDENTITIES:
            return True
        try:
            name = IDENTITIES[kind].of(tracker)
        except Exception:  # noqa: BLE001 - not begun yet, or another version of a foreign package
            return False
        with self._lock:
            if self._names.get(kind) != name:
                self._names[kind] = name
                self._folder.write_json(REMEMBERED, self._names)
        return True


class Guard:
    """Hands the events of training to one tracker, in their order, in a thread of its own.

    What it raises is said once, and the tracker is left out from then on. Training never waits for it.
    """

    def __init__(
        self, name: str, tracker: Any, narrate: Callable[[str], None], keep: Callable[[str, Any], bool]
    ) -> None:
        self.name = name
        self._tracker, self._narrate, self._keep = tracker, narrate, keep
        self._events: Queue[tuple[Any, ...] | None] = Queue(MOST)
        self._left = False
        # Trackers keep the current run in context variables: one that the caller has begun is theirs as well.
        work = partial(contextvars.copy_context().run, self._work)
        self._thread = threading.Thread(target=work, name=f"llmkit-{name}", daemon=True)
        self._thread.start()

    def callback(self) -> Any:
        """Return the callback that takes the tracker's place; it has those events that the tracker has."""
        from transformers import TrainerCallback

        relay: Any = TrainerCallback()
        for event in (name for name in vars(TrainerCallback) if name.startswith("on_")):
            if getattr(type(self._tracker), event) is not getattr(TrainerCallback, event):
                setattr(relay, event, partial(self._hand_over, event))
        return relay

    def end(self) -> None:
        """Have the thread end behind the events that wait."""
        if not self._left:
            self._put(None)

    def missed(self, until: float) -> int:
        """Return how many events have not arrived by the time `until` (monotonic), after which none will."""
        if self._left:
            return 0
        self._thread.join(max(0.0, until - time.monotonic()))
        if not self._thread.is_alive():
            return 0
        # The one under way, and those that wait, without the mark of the end.
        missed = self._events.qsize()
        self._leave()
        return max(1, missed)

    def _hand_over(self, event: str, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._left:
            return
        # The trainer goes on changing these.
        given = {name: dict(value) if isinstance(value, dict) else value for name, value in kwargs.items()}
        self._put((event, args, copy(state), copy(control), given))

    def _put(self, event: tuple[Any, ...] | None) -> None:
        try:
            self._events.put_nowait(event)
        except Full:
            self._leave()
            self._narrate(f"{self.name} is {MOST:,} events behind: it is left out from here on")

    def _work(self) -> None:
        kept = False
        while (found := self._events.get()) is not None:
            event, args, state, control, kwargs = found
            try:
                getattr(self._tracker, event)(args, state, control, **kwargs)
                kept = kept or self._keep(self.name, self._tracker)
            except BaseException as error:  # noqa: BLE001 - a foreign library, and nothing of it may reach training
                if not self._left:
                    self._leave()
                    self._failed(event, error)
                return

    def _failed(self, event: str, error: BaseException) -> None:
        lines = redact(str(error)).splitlines()
        said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        logger.warning("%s failed in %s:\n%s", self.name, event, redact(traceback.format_exc()))
        self._narrate(f"{self.name} failed ({event}) and is left out from here on: {said}")

    def _leave(self) -> None:
        self._left = True
        # Events hold the model, and what hangs may do so for as long as the process lives.
        with suppress(Empty):
            while True:
                self._events.get_nowait()
        with suppress(Full):
            self._events.put_nowait(None)
