"""Runs programs that nobody has read: each in a process of its own that can do next to nothing else.

`run` is one program and its tests; `probe` tries out, once, what this machine can keep a program from.
"""

from __future__ import annotations

import functools
import json
import marshal
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import RunError, SetupError

CHILD = Path(__file__).with_name("_sandbox_child.py")
ATTACKS = Path(__file__).with_name("_sandbox_attacks.py")
GRACE_SECONDS = 90.0
"""How much longer than its limit a sandbox may take, to start and to clean up on a busy machine."""
MB = 1 << 20
REPORT = re.compile(r"test (\d{1,6}) ([01]) (.*)")
"""A report of the worker: index of the test, verdict, problem as `ascii` writes it."""


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    seconds: float = 10.0
    """Wall clock, from when the program starts."""
    memory_mb: int = 512
    """Address space of each of its processes."""
    disk_mb: int = 16
    """Its folder; where that can't be a file system of its own, each file in it."""
    processes: int = 4
    """Processes and threads at once, its own included."""


@dataclass(frozen=True)
class Outcome:
    """What became of one program."""

    passed: tuple[bool, ...]
    """For each test; False for those that were not reached."""
    problems: tuple[str, ...]
    """For each test: what was raised, or how the program ended before; empty if it passed."""
    layers: frozenset[str]
    """What the program was kept in: `namespaces`, `mounts`, `landlock`, `seccomp`."""


@dataclass(frozen=True)
class Protection:
    """What this machine can do."""

    layers: frozenset[str]
    gaps: tuple[str, ...]
    """What a program could do all the same, e.g. `read your files`; empty if there is nothing of what is probed."""


def run(program: str, tests: Sequence[str], limits: Limits, layers: Collection[str] | None = None) -> Outcome:
    """Run `program`, then each test in its names, in a sandbox of exactly `layers` (default: all that are to be had).

    Whatever the program does, its tests end as passed or not. Raises RunError if the sandbox itself failed.
    """
    # In the machine's own temporary folder, which all users can walk to; the sandbox may run as another one.
    box = tempfile.mkdtemp(prefix="llmkit-box-")
    job = {
        "program": program,
        "tests": list(tests),
        "box": box,
        "seconds": float(limits.seconds),
        "memory": limits.memory_mb * MB,
        "disk": limits.disk_mb * MB,
        "processes": limits.processes,
        "layers": None if layers is None else sorted(layers),
    }
    try:
        return _outcome(_supervise(job, box, limits), len(tests))
    finally:
        _remove(box)


def _supervise(job: dict[str, object], box: str, limits: Limits) -> str:
    """Start the supervisor and return what it says."""
    # Nothing of the trainer's environment: keys and tokens are in there. A fixed hash seed, so that a program that
    # depends on the order of a set has the same reward each time. The linker's path, or Python may not start.
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": box, "TMPDIR": box, "PYTHONHASHSEED": "0"}
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    # No preexec_fn: Python then starts it by vfork, which does not copy a large trainer and is safe beside threads.
    process = subprocess.Popen(
        [sys.executable, "-s", "-P", "-S", "-B", str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=environment,
        start_new_session=True,
    )
    with process:
        try:
            said, complaint = process.communicate(marshal.dumps(job), timeout=limits.seconds + GRACE_SECONDS)
        except BaseException as error:
            process.kill()  # the kernel then ends the program as well
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise RunError(f"a sandbox did not end within {GRACE_SECONDS:g} seconds of its limit") from error
    text = said.decode("ascii", "replace")
    if process.returncode != 0 or not text.startswith("ready "):
        last = complaint.decode("utf-8", "replace").strip()[-2000:]
        raise RunError(f"a sandbox broke down (exit code {process.returncode})\n{last or text}")
    return text


def _outcome(text: str, count: int) -> Outcome:
    lines = text.rstrip("\n").split("\n")
    layers = frozenset(filter(None, lines[0].removeprefix("ready ").split(",")))
    ended = lines[-1]
    if ended == "ended with processes that could not be ended":
        raise RunError(f"a sandbox {ended}")
    passed: dict[int, bool] = {}
    problems = {index: f"not reached: the program {ended}" for index in range(count)}
    for report in filter(None, map(REPORT.fullmatch, lines[1:-1])):
        index, verdict, problem = int(report[1]), report[2] == "1", report[3]
        # Reported twice by a program that forked: all reports must be good.
        passed[index] = passed.get(index, True) and verdict
        problems[index] = problem[1:-1].encode("ascii", "replace").decode("unicode_escape", "replace")
    return Outcome(
        tuple(passed.get(index, False) for index in range(count)),
        tuple("" if passed.get(index, False) else problems[index] for index in range(count)),
        layers,
    )


def _remove(box: str) -> None:
    try:
        os.rmdir(box)  # it was a file system of its own, which is gone
    except OSError:
        # A program can nest folders deeper than shutil.rmtree can follow.
        subprocess.run(["rm", "-rf", "--", box], check=False, stderr=subprocess.DEVNULL)


@functools.cache
def probe(limits: Limits, only: frozenset[str] | None = None) -> Protection:
    """Attack this machine from inside a sandbox, and return what stood; `only` leaves the other layers out.

    Raises SetupError if not even an honest program runs.
    """
    with tempfile.TemporaryDirectory(prefix="llmkit-probe-") as outside, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        attacks = _attacks(outside, listener.getsockname()[1], limits)
        tests = ["assert works()", *(f"assert refused({call})" for calls in attacks.values() for call in calls)]
        try:
            outcome = run(ATTACKS.read_text(encoding="utf-8"), tests, limits, only)
        except RunError as error:
            raise SetupError(f"the sandbox of the code reward does not start here: {error.what}") from error
    if not outcome.passed[0]:
        raise SetupError(f"no program can run in the sandbox of the code reward here: {outcome.problems[0]}")
    stood = iter(outcome.passed[1:])
    held = {what: all([next(stood) for _ in calls]) for what, calls in attacks.items()}
    return Protection(outcome.layers, tuple(what for what, is_held in held.items() if not is_held))


def _attacks(outside: str, port: int, limits: Limits) -> dict[str, list[str]]:
    """Return the calls of `_sandbox_attacks` by what they show, each on a file of its own that all users may change."""
    os.chmod(outside, 0o777)
    changes = ("overwrite", "shorten", "lock", "age", "remove")
    for name in ("read", *changes):
        path = Path(outside, name)
        path.write_text("secret", encoding="utf-8")
        path.chmod(0o666)
    return {
        "reach the network": [f"connect, {port}", f"send, {port}"],
        "change files outside its folder": [
            *(f"{name}, {json.dumps(f'{outside}/{name}')}" for name in changes),
            f"create, {json.dumps(outside)}",
        ],
        "read your files": [f"read, {json.dumps(f'{outside}/read')}"],
        "signal other processes": [
            f"signal, {os.getpid()}",
            *(f"own, {os.getpid()}, {request}" for request in (0x8901, 0x8902)),
        ],
        "take more memory than it may": [f"allocate, {limits.memory_mb * MB}"],
        "fill the disk": [f"fill, {limits.disk_mb * MB}"],
        "start processes without end": [f"breed, {limits.processes + 64}"],  # last: the others would miss them
    }
