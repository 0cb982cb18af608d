"""Two processes in one run folder: the second is refused, and the first one's end lets go, however it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.errors import SetupError
from llmkit.runs.recovery.alone import alone

HOLDS = """
import os, sys, time
from pathlib import Path
from llmkit.runs.recovery.alone import alone
with alone(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    worker = int(first.stdout.readline())
    try:
        with pytest.raises(SetupError, match="is written by another process"), alone(tmp_path):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        os.kill(worker, 0)  # a worker that outlives the run holds nothing
        with alone(tmp_path):
            pass
    finally:
        first.kill()
        os.kill(worker, signal.SIGKILL)


def test_it_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), alone(tmp_path):
        raise ValueError("mine")
    with alone(tmp_path), pytest.raises(SetupError), alone(tmp_path):
        pass


def test_a_disk_without_locks_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def refuses(place: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuses)
    with alone(tmp_path):
        pass
    assert "can't be locked (Operation not supported)" in caplog.text


def test_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    with alone(tmp_path):
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []
