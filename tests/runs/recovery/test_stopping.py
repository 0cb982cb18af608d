"""Real signals to real runs: the exit code, what is said and written, and that `--resume` ends as if nothing was."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from llmkit.errors import Interrupted, LlmkitError, RunError
from llmkit.runs.folder import RunFolder
from llmkit.runs.limits import limit_callback
from llmkit.runs.progress import Narrator
from llmkit.runs.recovery import stopping
from llmkit.runs.recovery.stopping import SIGNALS, Pace, Stopper

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe

Maker = Callable[..., "Recipe"]
TERM, INT, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
# Five steps are an epoch, so that the last one ends in the middle of the second.
STEPS = (
    "training.max_steps=7",
    "training.save_steps=2",
    "training.logging_steps=1",
    "training.per_device_train_batch_size=2",
    "training.gradient_accumulation_steps=2",
    "adapter.lora_dropout=0.1",
)


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """Begin with Python's own handlers: whoever runs the tests in the background has SIGINT ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == INT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def forked(work: Callable[[], object], told: Path) -> tuple[int, str]:
    """Do `work` in a fork of this process; returns its exit code and its error, as the command line has them."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            import torch

            torch.set_num_threads(1)  # the threads of the process above are not here
            work()
            code = 0
        except LlmkitError as error:
            told.write_text(str(error))
            code = error.exit_code
        except BaseException:  # noqa: BLE001 - the fork must end, whatever happens in it
            told.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    for _ in range(2400):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), told.read_text() if told.exists() else ""
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the run did not end")


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.01)


def once(then: Callable[[], None], when: Callable[..., bool], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return `plain`, which does `then` before the first call of which `when` is true."""
    done: list[bool] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        if not done and when(*args):
            done.append(True)
            then()
        return plain(*args, **kwargs)

    return call


def in_step(step: int, *numbers: int) -> None:
    """Have these signals sent in a step's first batch."""
    from transformers import Trainer

    of_step = lambda self, *args: self.state.global_step == step - 1  # noqa: E731
    Trainer.training_step = once(lambda: send(*numbers), of_step, Trainer.training_step)  # type: ignore[method-assign]


def in_call(owner: Any, name: str, count: int, *numbers: int) -> None:
    """Have these signals sent in the `count`-th call of a function."""
    calls = iter(range(1, 10**6))
    setattr(owner, name, once(lambda: send(*numbers), lambda *_: next(calls) == count, getattr(owner, name)))


def weights(out: Path) -> bytes:
    return (out / "model" / "adapter_model.safetensors").read_bytes()


def figures(out: Path) -> list[Any]:
    """What was logged, without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "grad_norm", "learning_rate", "num_tokens", "eval_loss", "reward")
    return [{n: line[n] for n in names if n in line} for line in lines if {"loss", "eval_loss"} & set(line)]


def checkpoints(out: Path) -> set[str]:
    return {path.name for path in (out / "checkpoints").glob("checkpoint-*")}


def interrupt(the_recipe: Recipe, out: Path, plant: Callable[[], None], **options: Any) -> tuple[int, str, str]:
    """Run in a fork with a fault planted; returns the exit code, the error, and what the run said."""
    from llmkit.runs.runner import run

    said = out.with_suffix(".said")

    def work() -> None:
        plant()
        with said.open("w") as file:
            run(the_recipe, out=out, narrator=Narrator(Console(file=file, width=1000)), **options)

    code, error = forked(work, out.with_suffix(".error"))
    return code, error, said.read_text()


def test_a_stopped_run_goes_on_as_if_nothing_had_been(recipe: Maker, tmp_path: Path) -> None:
    """One run that is stopped again and again: before a step, in one, twice in one, in the last one, and after it."""
    from llmkit.runs import scoring
    from llmkit.runs.runner import run

    mine = recipe(*STEPS, "evaluation=[{type: perplexity}]")
    straight = run(mine, out=tmp_path / "straight").folder
    out = tmp_path / "cut"
    again = f"`llmkit run {out / 'recipe.yaml'} --resume`"
    moments: list[tuple[Callable[[], None], int, str, str]] = [
        (lambda: in_call(scoring, "score", 1, TERM), 75, "by SIGTERM before the first step", "starts at step 0"),
        (lambda: in_step(3, INT), 75, "by SIGINT after step 3 of 7", "goes on from checkpoint-3"),
        (lambda: in_step(6, USR1, TERM), 128 + TERM, "", ""),
        (lambda: in_step(7, USR1), 75, "by SIGUSR1 after step 7 of 7", "goes on from checkpoint-7"),
        (lambda: in_call(scoring, "score", 2, INT), 75, "by SIGINT after training", "goes on from checkpoint-7"),
    ]
    for number, (plant, code, what, way) in enumerate(moments):
        ended, error, said = interrupt(mine, out, plant, exits=True, resume=number > 0)
        assert ended == code, error
        assert not (out / "evaluation.json").exists()
        if code == 75:
            assert f"stopped {what}" in error
            assert f"{again} {way}" in error
        else:
            assert "SIGUSR1: the run ends with step 6 of 7 at the latest" in said
            assert "continuing from checkpoint-3" in said
            # That of step 4 may have been on its way, and is lost then; nobody waits for step 6.
            assert {"checkpoint-3"} <= checkpoints(out) <= {"checkpoint-2", "checkpoint-3", "checkpoint-4"}
    run(mine, out=out, resume=True)
    assert weights(out) == weights(straight)
    assert figures(out) == figures(straight)
    assert (out / "evaluation.json").read_text() == (straight / "evaluation.json").read_text()


@pytest.mark.parametrize("save", ["epoch", "steps", "best"])
def test_what_is_due_at_the_end_of_an_epoch_is_done_once(recipe: Maker, tmp_path: Path, save: str) -> None:
    """Stopped in the middle of an epoch, while the evaluation at its end runs, and in the last step of the next one.

    Then killed in the last evaluation: a checkpoint without what is due would be taken for the end of the run.
    """
    from transformers import Trainer

    from llmkit.runs.runner import run

    epochs = [f"training.{name}_strategy=epoch" for name in ("eval", "logging")]
    saves = [f"training.save_strategy={save}", "training.save_steps=5", "training.metric_for_best_model=loss"]
    mine = recipe(*STEPS, *epochs, *saves, "training.max_steps=12")
    straight = run(mine, out=tmp_path / "straight").folder
    # Two whole epochs of five steps, and the last two steps.
    assert [(line["step"], "eval_loss" in line) for line in figures(straight)] == [
        (step, kind) for step in (5, 10, 12) for kind in (False, True)
    ]
    out = tmp_path / "cut"
    moments: list[tuple[Callable[[], None], int]] = [
        (lambda: in_step(3, TERM), 3),
        (lambda: in_call(Trainer, "evaluate", 1, TERM), 5),
        (lambda: in_step(10, TERM), 10),
    ]
    for number, (plant, step) in enumerate(moments):
        code, error, _ = interrupt(mine, out, plant, resume=number > 0)
        assert code == 75, error
        assert f"after step {step} of 12" in error
        assert f"checkpoint-{step}" in checkpoints(out)
        assert len(figures(out)) == 2 * number
    code, error, _ = interrupt(mine, out, lambda: in_call(Trainer, "evaluate", 1, signal.SIGKILL), resume=True)
    assert code == -signal.SIGKILL, error
    assert "checkpoint-12" not in checkpoints(out)
    run(mine, out=out, resume=True)
    assert weights(out) == weights(straight)
    assert figures(out) == figures(straight)


def test_a_step_that_samples_ends_first(
    grpo_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.recipe.loading import load_recipe
    from llmkit.rewards.exact_match import ExactMatch
    from llmkit.runs.runner import run

    rows = [{"prompt": f"what is {i}?", "answer": str(i)} for i in range(12)]
    monkeypatch.setattr(ExactMatch, "score", lambda self, completion, row: sum(c.isalpha() for c in completion) / 10)
    batches = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    mine = load_recipe(grpo_file("rl", rows, max_completion_length=4, max_steps=3, save_strategy="no", **batches))
    straight = run(mine, out=tmp_path / "straight").folder
    # Each step scores 8 answers: the 12th call is one of the second step's.
    out = tmp_path / "cut"
    code, error, _ = interrupt(mine, out, lambda: in_call(ExactMatch, "score", 12, TERM))
    assert code == 75, error
    assert "after step 2 of 3" in error
    assert checkpoints(out) == {"checkpoint-2"}  # although the recipe asks for none
    run(mine, out=out, resume=True)
    assert weights(out) == weights(straight)
    assert figures(out) == figures(straight)


def test_the_command_line_leaves_with_75(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        "run",
        recipe_file,
        "--out",
        out,
        "--set",
        "training.max_steps=100000",
        "--set",
        "training.logging_steps=1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "llmkit", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = out / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    process.send_signal(USR1)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    (name,) = checkpoints(out)
    step = int(name.partition("-")[2])
    assert f"SIGUSR1: the run ends with step {step:,} of 100,000" in said
    assert f"stopped by SIGUSR1 after step {step:,} of 100,000" in said
    assert f"`llmkit run {out / 'recipe.yaml'} --resume` goes on from {name}." in said
    assert "Traceback" not in said


# --- The parts -------------------------------------------------------------------------------------------------------


def training(stopper: Stopper) -> Any:
    """Begin a step."""
    callback: Any = stopper.callback(SimpleNamespace(wait=lambda: None))  # type: ignore[arg-type]
    callback.on_step_begin(None, SimpleNamespace(max_steps=9), None)
    return callback


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


def test_handlers_are_put_back_also_by_a_run_within_a_run(tmp_path: Path) -> None:
    before = handlers()
    with Stopper(print) as outer:
        within = handlers()
        assert within != before
        with Stopper(print, RunFolder(tmp_path)):
            assert handlers() != within
        assert handlers() == within
        training(outer)
        with pytest.raises(Interrupted, match="before the first step"), Stopper(print, RunFolder(tmp_path)):
            send(TERM)
        assert outer.signal is None
    assert handlers() == before


def test_after_training_a_signal_waits_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(Interrupted) as caught, Stopper(print, RunFolder(tmp_path)) as stopper:
        training(stopper)
        stopper.raise_if_stopped(RunFolder(tmp_path))
        send(USR1)
        pytest.fail("it went on")
    assert caught.value.what == "stopped by SIGUSR1 after training, before everything was scored and exported"


def test_from_python_a_second_signal_is_a_keyboard_interrupt(tmp_path: Path) -> None:
    before = handlers()
    with pytest.raises(KeyboardInterrupt), Stopper(print, RunFolder(tmp_path)) as stopper:
        training(stopper)
        send(USR1)
        assert stopper.signal == "SIGUSR1"
        send(TERM)
    assert handlers() == before


def test_a_signal_that_is_sent_twice_at_once_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, passed = 100.0, False
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock)
    with pytest.raises(KeyboardInterrupt), Stopper(print, RunFolder(tmp_path)) as stopper:
        training(stopper)
        os.kill(os.getpid(), TERM)
        clock += 0.4
        os.kill(os.getpid(), TERM)
        passed = stopper.signal == "SIGTERM"
        clock += 0.2
        os.kill(os.getpid(), TERM)
        pytest.fail("it went on")
    assert passed


def flow(save: str = "steps", evaluate: str = "epoch", log: str = "steps", **state: Any) -> tuple[Any, Any, Any]:
    """Arguments, state and control, as the callbacks get them."""
    args = SimpleNamespace(save_strategy=save, eval_strategy=evaluate, logging_strategy=log)
    flags = ("should_save", "should_log", "should_evaluate", "should_training_stop")
    here = {"global_step": 5, "max_steps": 12, "epoch": 1.0, **state}
    return args, SimpleNamespace(**here), SimpleNamespace(**dict.fromkeys(flags, False))


@pytest.mark.parametrize(
    ("given", "waits"),
    [
        ({}, True),
        ({"evaluate": "steps", "log": "epoch"}, True),
        ({"evaluate": "no"}, False),
        ({"epoch": 0.8}, False),
        ({"epoch": 1.4, "global_step": 12}, True),
    ],
)
def test_a_checkpoint_waits_for_what_is_due_at_the_end(given: dict[str, Any], waits: bool) -> None:
    callback, (args, state, control) = training(Stopper(print)), flow(**given)
    control.should_save = True
    callback.on_step_end(args, state, control)
    assert control.should_save is not waits
    control.should_save = False
    callback.on_epoch_end(args, state, control)
    assert control.should_save is waits
    assert not control.should_training_stop


@pytest.mark.parametrize("save", ["steps", "no", "best"])
def test_a_signal_in_the_last_evaluation_of_an_epoch_leaves_a_checkpoint(save: str) -> None:
    stopper = Stopper(print)
    callback, (args, state, control) = training(stopper), flow(save)
    callback.on_step_end(args, state, control)
    callback.on_epoch_end(args, state, control)
    assert not control.should_save
    stopper.signal = "SIGTERM"
    callback.on_evaluate(args, state, control)
    assert control.should_save
    assert control.should_training_stop
    assert args.save_strategy == ("no" if save == "no" else "steps"), "else the score would decide"


def test_a_signal_in_the_evaluation_of_a_step_waits_for_the_end_of_the_epoch() -> None:
    stopper = Stopper(print)
    callback, (args, state, control) = training(stopper), flow("best", "steps", "epoch")
    callback.on_step_end(args, state, control)
    stopper.signal = "SIGTERM"
    callback.on_evaluate(args, state, control)
    assert not control.should_save, "what is logged at the epoch's end would be missing"
    callback.on_epoch_end(args, state, control)
    assert control.should_save
    assert args.save_strategy == "steps"


def test_what_a_good_score_had_saved_is_saved_again_with_what_the_end_of_the_epoch_logs() -> None:
    callback, (args, state, control) = training(Stopper(print)), flow("best", "steps", "epoch")
    callback.on_step_end(args, state, control)
    callback.on_save(args, state, control)
    callback.on_epoch_end(args, state, control)
    assert control.should_save


def test_in_the_last_step_of_the_run_what_is_due_is_done_although_a_signal_came() -> None:
    stopper = Stopper(print)
    callback, (args, state, control) = training(stopper), flow(epoch=1.4, global_step=12)
    stopper.signal = "SIGTERM"
    callback.on_step_end(args, state, control)
    control.should_log = control.should_evaluate = True
    callback.on_epoch_end(args, state, control)
    assert (control.should_log, control.should_evaluate, control.should_save) == (True, True, True)


def test_a_limit_leaves_a_checkpoint_whatever_the_score_is() -> None:
    callback: Any = limit_callback(SimpleNamespace(step=lambda done, steps: True))  # type: ignore[arg-type]
    args, state, control = flow("best")
    callback.on_step_end(args, state, control)
    assert (control.should_save, control.should_training_stop, args.save_strategy) == (True, True, "steps")


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(INT, signal.SIG_IGN)
    with Stopper(print) as stopper:
        send(INT)
        assert stopper.signal is None
    assert signal.getsignal(INT) == signal.SIG_IGN


def test_another_thread_sets_no_handlers() -> None:
    before, found = handlers(), []

    def work() -> None:
        with Stopper(print) as stopper:
            found.append(handlers())
            training(stopper)
            stopper.raise_if_stopped(RunFolder(Path()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_step_that_can_not_be_ended_is_an_interruption_and_a_found_fault_is_none(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(Interrupted) as caught, Stopper(print, RunFolder(tmp_path)) as stopper:
        training(stopper).on_step_end(
            SimpleNamespace(save_strategy="no"), SimpleNamespace(global_step=4), SimpleNamespace(should_save=False)
        )
        send(TERM)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")
    assert (
        "stopped by SIGTERM after step 4 of 9; the next step could not be ended (RuntimeError: Data"
        in caught.value.what
    )
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "--resume` starts at step 0" in str(caught.value.remedy)
    with pytest.raises(RunError, match="the loss is nan"), Stopper(print, RunFolder(tmp_path)) as stopper:
        training(stopper)
        send(TERM)
        raise RunError("the loss is nan")


def test_a_library_that_swallows_errors_does_not_swallow_the_stop(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as caught, Stopper(print, RunFolder(tmp_path)):
        try:
            send(USR1)
        except Exception:  # noqa: BLE001 - as such a library does
            pytest.fail("an ordinary error")
    assert caught.value.exit_code == 75
    assert caught.value.remedy == "Nothing had been written yet: start it again."


def test_processes_that_are_forked_within_a_run_only_end_by_sigterm() -> None:
    with Stopper(print) as stopper:
        ends = []
        for numbers in ((INT, USR1), (TERM,)):
            pid = os.fork()
            if pid == 0:
                try:
                    send(*numbers)
                finally:
                    os._exit(7)
            ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        assert ends == [7, -TERM]
        assert stopper.signal is None


def test_a_signal_is_said_while_the_step_goes_on(tmp_path: Path) -> None:
    text = io.StringIO()
    narrator = Narrator(Console(file=text, width=1000))
    with Stopper(narrator.say, RunFolder(tmp_path)) as stopper:
        training(stopper)
        send(TERM)
        until = time.monotonic() + 5
        while not text.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
        assert "SIGTERM: the run ends with step 1 of 9" in text.getvalue()
        with pytest.raises(Interrupted, match="stopped by SIGTERM after step 0 of 9"):
            stopper.raise_if_stopped(RunFolder(tmp_path))


def test_how_long_it_takes_is_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock)
    pace = Pace()
    pace.begin(60)
    assert pace.notice().endswith("step 1 of 60 at the latest, and a checkpoint; how long that takes is not known yet")
    for step, seconds in ((1, 9.0), (2, 2.0), (3, 3.0)):
        clock += seconds
        pace.step(step)
    assert pace.notice().endswith("within about 9.0 s (steps took up to 9.0 s, no checkpoint has been written yet)")
    clock += 30.0
    pace.rest()  # an evaluation
    clock += 1.5
    pace.checkpoint()
    for step in range(4, 54):
        pace.begin(60)
        clock += 2.5
        pace.step(step)
    # The slow first step is one of the last fifty no more.
    assert pace.notice() == (
        "the run ends with step 54 of 60 at the latest, and a checkpoint, within about 4.0 s "
        "(steps took up to 2.5 s, checkpoints up to 1.5 s)"
    )
