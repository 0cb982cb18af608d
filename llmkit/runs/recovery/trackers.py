"""Trackers (`training.report_to`) in threads of their own: one that fails or hangs neither stops nor holds a run."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any

from llmkit.recipe.secrets import redact

if TYPE_CHECKING:
    from transformers import Trainer

PATIENCE = 10.0
"""Seconds that all trackers together are given at the end."""

MOST = 10_000
"""Events that may wait for a tracker: one that is so far behind does not answer any more."""

logger = logging.getLogger(__name__)


class Trackers:
    """The guarded trackers of a trainer."""

    def __init__(self, guards: Sequence[Guard], narrate: Callable[[str], None]) -> None:
        self._guards, self._narrate = guards, narrate

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


def guard_trackers(trainer: Trainer, narrate: Callable[[str], None]) -> Trackers:
    """Put a guard in the place of each callback that `report_to` has added; nothing is said where there are none."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    names = {kind: name for name, kind in INTEGRATION_TO_CALLBACK.items()}
    callbacks = trainer.callback_handler.callbacks
    guards = []
    for place, tracker in enumerate(callbacks):
        if type(tracker) in names:
            guard = Guard(names[type(tracker)], tracker, narrate)
            callbacks[place] = guard.callback()
            guards.append(guard)
    return Trackers(guards, narrate)


class Guard:
    """Hands the events of training to one tracker, in their order, in a thread of its own.

    What it raises is said once, and the tracker is left out from then on. Training never waits for it.
    """

    def __init__(self, name: str, tracker: Any, narrate: Callable[[str], None]) -> None:
        self.name = name
        self._tracker, self._narrate = tracker, narrate
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
        while (found := self._events.get()) is not None:
            event, args, state, control, kwargs = found
            try:
                getattr(self._tracker, event)(args, state, control, **kwargs)
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
