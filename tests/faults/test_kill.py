"""SIGKILL at any moment: what goes on afterwards ends as if nothing had happened."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cases import LONG, SAVE_STEPS, STEPS, Case, began_at, differences, last_step
from harness import At, Ended, Fault

KILLS = {"sft": 140, "grpo": 60} if LONG else {"sft": 7, "grpo": 3}
"""How many kills there are of each: 200 together in `make test-faults`, 10 in `make test`."""

SEEDS = {"sft": 20261122, "grpo": 42}
WRITES = "open|os.mkdir|os.rename|os.remove|os.rmdir|shutil.rmtree"


@pytest.fixture(params=["sft", "grpo"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param)
    return found


@pytest.mark.timeout(3600)
def test_kills_at_random_moments_change_nothing(
    case: Case, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = request.node.callspec.params["case"]
    chance, left, runs, seconds = random.Random(SEEDS[name]), KILLS[name], 0, case.seconds
    while left:
        runs += 1
        killed, took = survive(case, tmp_path / f"run-{runs}", chance, left, seconds)
        left -= len(killed)
        if not killed:
            seconds = min(seconds, took)  # the machine was busier when the undisturbed run was made
        with capsys.disabled():
            if LONG:
                print(
                    f"\n{name}, run {runs}: killed after {', '.join(f'{s:.2f} s' for s in killed) or 'nothing'}", end=""
                )


def survive(case: Case, run: Path, chance: random.Random, most: int, seconds: float) -> tuple[list[float], float]:
    """Kill one run again and again, `most` times at most and within its first `seconds`, until it ends.

    Returns after how many seconds it was killed each time, and how long it took at last.
    """
    killed: list[float] = []
    while True:
        after = chance.uniform(0, seconds) if len(killed) < most else None
        ended = go_on(case, run, after)
        if not ended.killed:
            break
        assert after is not None
        killed.append(after)
    assert ended.code == 0, f"after kills at {killed}:\n{ended.said}"
    left = differences(run, case.straight)
    assert not left, f"after kills at {killed}: {left}\n{ended.said}"
    return killed, ended.seconds


def go_on(case: Case, run: Path, kill_after: float | None, fault: Fault | None = None) -> Ended:
    """Go on with a run, as somebody would who only knows what llmkit says, and check that little was lost."""
    reached = last_step(run)
    if not run.exists():
        return case.run(run, kill_after=kill_after, fault=fault)
    ended = case.run(run, "--resume", kill_after=kill_after, fault=fault)
    if ended.code == 2:  # killed before it had written what it is
        assert reached == 0
        assert "without --resume" in ended.error
        return case.run(run, kill_after=kill_after, fault=fault)
    began = began_at(ended)
    if began is not None:
        # A checkpoint is finished beside the steps that follow, and at the latest when the next one is written.
        assert reached - 2 * SAVE_STEPS <= began <= reached, f"at step {reached} before:\n{ended.said}"
    return ended


def in_checkpoint(step: int, count: int, events: str = WRITES) -> tuple[At, ...]:
    """Return the `count`-th operation on the checkpoint of `step` while it is written, beside its place."""
    return (At(events, rf"/\.writing/checkpoint-{step}\b", count),)


def after_renaming(step: int) -> tuple[At, ...]:
    return (*renaming(step), At(WRITES, "/checkpoints/"))


def renaming(step: int) -> tuple[At, ...]:
    return (At("os.rename", rf"-> .*/checkpoints/checkpoint-{step}$"),)


def pruning(step: int, count: int) -> tuple[At, ...]:
    """Return the `count`-th removal of a file of the checkpoint of `step`."""
    return (At("os.remove|os.rmdir", rf"checkpoint-{step}\.removed", count),)


MOMENTS = {
    "before it has its recipe": (At("os.rename", r"-> .*/recipe\.yaml$"),),
    "before the first file": in_checkpoint(2, 1),
    "among the files": in_checkpoint(2, 4),
    "before it has its name": renaming(2),
    "when it has its name": after_renaming(2),
    "before the second has its name": renaming(4),
    "before an old one is moved away": (At("os.rename", r"-> .*/checkpoint-2\.removed$"),),
    "in the middle of that": pruning(4, 4),
    "when an old one is all but gone": pruning(6, 9),
    "before the last has its name": renaming(STEPS),
    "when the last has its name": after_renaming(STEPS),
    "before the model is written": (At("open|os.mkdir", r"/model(/|$)"),),
    "among the files of the model": (At("open|os.rename", r"/model/", 3),),
    "before the scores are there": (At("os.rename", r"/evaluation\.json$"),),
    "while the export is written": (At("open", r"/export/\.merged", 2),),
    "before the export has its name": (At("os.rename", r"/export/merged$"),),
}
"""In the order in which one run comes to them."""

CHOSEN = (
    MOMENTS
    if LONG
    else {
        "before it has its recipe",
        "among the files",
        "before it has its name",
        "in the middle of that",
        "when the last has its name",
        "among the files of the model",
        "while the export is written",
    }
)
"""Those that `make test` takes."""


def test_kills_while_files_are_written_change_nothing(sft: Case, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in (name for name in MOMENTS if name in CHOSEN):
        ended = go_on(sft, run, None, Fault("kill", MOMENTS[name]))
        assert ended.killed, f"no such moment: {name}\n{ended.said}"
    sft.ends_the_same(run)


@pytest.mark.skipif(not LONG, reason="in `make test-faults`")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_kills_at_each_operation_change_nothing(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each operation on the files below `checkpoints/`, from the first one of the third checkpoint on, one run each."""
    case: Case = request.getfixturevalue(name)
    count = 0
    while True:
        count += 1
        run = tmp_path / str(count)
        moments = (*in_checkpoint(6, 1), At(WRITES, "/checkpoints/", count))
        if not go_on(case, run, None, Fault("kill", moments)).killed:
            break
        case.ends_the_same(run)
    assert count > 20
    with capsys.disabled():
        print(f"\n{name}: killed at {count - 1} operations")


@pytest.mark.slow
def test_a_real_process_goes_on_with_a_forked_one(sft: Case, tmp_path: Path) -> None:
    """Forked runs are a means to save time: `python -m llmkit` is killed and goes on like them."""
    run = tmp_path / "run"
    ended = go_on(sft, run, None, Fault("kill", renaming(8)))
    assert ended.killed
    command = [sys.executable, "-m", "llmkit", "run", str(sft.recipe), "--out", str(run), "--resume"]
    said = tmp_path / "said.txt"
    with said.open("wb") as file:
        process = subprocess.Popen(command, env=sft.zygote.environ, stderr=file)
    deadline = time.monotonic() + 120
    # The lines of the killed run may reach further than its checkpoint: they are dropped before this is said.
    for reached in (lambda: "continuing from checkpoint-6" in said.read_text(), lambda: last_step(run) >= 9):
        while not reached() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL, said.read_text()
    assert "continuing from checkpoint-6" in said.read_text()
    assert last_step(run) >= 9
    sft.ends_the_same(run)
