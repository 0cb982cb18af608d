"""Trackers that record, raise and hang: what arrives, what is said, and that training neither stops nor waits."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from rich.console import Console

from llmkit.runs.folder import RunFolder
from llmkit.runs.progress import Narrator
from llmkit.runs.recovery import trackers
from llmkit.runs.recovery.trackers import guard_trackers

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe

Maker = Callable[..., "Recipe"]
Kinds = tuple[type[Any], type[Any], type[Any]]


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kinds]:
    """Three integrations of transformers': one records, one raises at its second log, one never returns from setup."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    class Records(TrainerCallback):
        seen: ClassVar[list[Any]] = []

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            time.sleep(0.05)  # slower than the steps: events have to wait, and their state must stay what it was
            self.seen.append(("begin", state.global_step))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.seen.append(("log", state.global_step, dict(logs)))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seen.append(("end", state.global_step, threading.current_thread().name))

    class Raises(TrainerCallback):
        calls: ClassVar[list[int]] = []

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.calls.append(state.global_step)
            if len(self.calls) == 2:
                raise SystemExit("no route to https://me:hunter2secret@track.example\nand more")

    class Hangs(TrainerCallback):
        free = threading.Event()
        logs: ClassVar[list[int]] = []

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.free.wait(60)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.logs.append(state.global_step)

    for name, kind in (("tensorboard", Records), ("mlflow", Raises), ("wandb", Hangs)):
        monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, kind)
    monkeypatch.setattr(trackers, "PATIENCE", 0.3)
    yield Records, Raises, Hangs
    Hangs.free.set()


def drive(
    callbacks: list[Any], steps: int, between: Callable[[int], None] = lambda step: None, folder: Path = Path("nowhere")
) -> tuple[Any, list[str]]:
    """Take a trainer's callbacks through `steps` steps as the trainer does; returns the trackers and what was said."""
    from transformers import TrainerCallback, TrainerControl, TrainerState
    from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

    said: list[str] = []
    handler = CallbackHandler([DefaultFlowCallback, TrainerCallback(), *callbacks], None, None, None, None)
    trainer: Any = SimpleNamespace(callback_handler=handler)
    guarded = guard_trackers(trainer, RunFolder(folder), said.append)
    args, state, control = SimpleNamespace(), TrainerState(), TrainerControl()
    handler.on_train_begin(args, state, control)
    for step in range(1, steps + 1):
        state.global_step = step
        logs = {"loss": 1.0 / step}
        handler.on_log(args, state, control, logs)
        logs["loss"] = float("nan")  # the trainer's dict is its own
        between(step)
    handler.on_train_end(args, state, control)
    return guarded, said


def test_a_healthy_tracker_gets_every_event_in_order_as_it_was(kinds: Kinds) -> None:
    records, _, _ = kinds
    guarded, said = drive([records()], 200)
    guarded.close()
    assert records.seen[0] == ("begin", 0)
    assert [(step, logs) for _, step, logs in records.seen[1:-1]] == [(n, {"loss": 1.0 / n}) for n in range(1, 201)]
    assert records.seen[-1] == ("end", 200, "llmkit-tensorboard")
    assert said == []


def test_one_that_raises_is_said_once_and_left_out(kinds: Kinds, caplog: pytest.LogCaptureFixture) -> None:
    records, raises, _ = kinds

    def until_it_raised(step: int) -> None:
        while step == 2 and len(raises.calls) < 2:
            time.sleep(0.001)

    with caplog.at_level(logging.WARNING):
        guarded, said = drive([raises(), records()], 20, until_it_raised)
        assert guarded._guards[0]._events.qsize() <= 1  # what nobody takes is not kept
        guarded.close()
    assert raises.calls == [1, 2]
    assert said == [
        "mlflow failed (on_log) and is left out from here on: SystemExit: no route to https://me:***@track.example"
    ]
    assert "Traceback" in caplog.text
    assert "hunter2secret" not in caplog.text
    assert len(records.seen) == 22  # its neighbour misses nothing


def test_one_that_hangs_holds_nothing_and_is_left_at_the_end(kinds: Kinds) -> None:
    records, _, hangs = kinds
    began = time.monotonic()
    guarded, said = drive([hangs(), records()], 50)
    assert time.monotonic() - began < 0.3
    guarded.close()
    assert time.monotonic() - began < 1.5
    # The begin that hangs and 50 logs; it has no end.
    assert said == [
        "wandb has not answered for 0.3 s: it is left behind, and misses the last 51 events; "
        "metrics.jsonl has all figures"
    ]
    assert len(records.seen) == 52
    hangs.free.set()
    time.sleep(0.05)
    assert hangs.logs == []  # what it was left with is gone, and holds no model
    guarded.close()
    assert len(said) == 1


def test_one_that_falls_far_behind_is_left_out(kinds: Kinds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "MOST", 10)
    _, _, hangs = kinds
    guarded, said = drive([hangs()], 50)
    assert said == ["wandb is 10 events behind: it is left out from here on"]
    began = time.monotonic()
    guarded.close()
    assert time.monotonic() - began < 0.2


def test_it_sees_the_context_that_training_was_begun_in(kinds: Kinds) -> None:
    """Some trackers keep the current run there."""
    from contextvars import ContextVar

    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    current: ContextVar[str] = ContextVar("current", default="none")
    seen = []

    class Looks(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(current.get())

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Looks)
        current.set("mine")
        guarded, _ = drive([Looks()], 1)
        guarded.close()
    assert seen == ["mine"]


def test_a_run_that_goes_on_does_so_in_the_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a service calls the run is kept in its folder, and given to the next session's tracker."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    begun: list[str] = []

    class Service(TrainerCallback):
        """Goes on with the run that it is told, or begins another one; as transformers' callback for mlflow."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            name = os.environ.get("MLFLOW_RUN_ID", f"run-{len(begun) + 1}")
            begun.append(name)
            info = SimpleNamespace(info=SimpleNamespace(run_id=name))
            self._ml_flow = SimpleNamespace(active_run=lambda: info)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            pass

    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mlflow", Service)
    for _ in range(2):
        drive([Service()], 3, folder=tmp_path)[0].close()
    assert begun == ["run-1", "run-1"]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"mlflow": "run-1"}
    assert "MLFLOW_RUN_ID" not in os.environ
    monkeypatch.setenv("MLFLOW_RUN_ID", "mine")  # the user's word counts
    drive([Service()], 3, folder=tmp_path)[0].close()
    assert begun[-1] == os.environ["MLFLOW_RUN_ID"] == "mine"


def test_a_run_ends_as_without_trackers(kinds: Kinds, recipe: Maker, tmp_path: Path) -> None:
    """All three at once in `run`: the run is whole, and the healthy one has what metrics.jsonl has."""
    from llmkit.runs.runner import run

    records, raises, hangs = kinds
    plain = run(recipe(), out=tmp_path / "plain")
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmkit.runs.checks.require_trackers", lambda recipe: None)
        result = run(
            recipe("training.report_to=[tensorboard, mlflow, wandb]"),
            out=tmp_path / "run",
            narrator=Narrator(Console(file=text, width=1000)),
        )
    assert result.losses == plain.losses
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [logs["loss"] for kind, _, logs in records.seen[1:-1] if "loss" in logs]
    assert logged == [line["loss"] for line in metrics if "loss" in line]
    assert raises.calls == [1, 2]
    assert text.getvalue().count("mlflow failed (on_log) and is left out from here on: SystemExit") == 1
    assert text.getvalue().count("wandb has not answered for 0.3 s") == 1
    assert "hunter2secret" not in text.getvalue() + (tmp_path / "run" / "log.txt").read_text()
