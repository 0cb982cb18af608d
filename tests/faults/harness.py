"""Runs as processes of their own that are killed, or robbed of what they need, at a stated moment.

Importing the libraries takes 6 to 10 s and a fork 0.05 s: a zygote imports them once, and every run is forked from it.
It computes nothing itself, because threads that torch has started are gone in a child. Run as a script, this file is
the zygote; imported, it is its other end.

What happens to a run is a `Fault`: at a moment that Python's audit events tell (a file is opened, renamed, removed), an
action of `ACTIONS` is done inside the run.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

TOLD = "LLMKIT_ZYGOTE_IMPORTS"
"""Environment variable: the modules that the zygote imports, comma-separated."""

MODULES = (
    "llmkit.cli.main",
    "llmkit.runs.runner",
    "llmkit.runs.reopen",
    "llmkit.runs.report",
    "llmkit.runs.compiling",
    "llmkit.methods._rollouts",
    "datasets",
    "peft",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "trl.trainer.sft_trainer",
    "trl.trainer.grpo_trainer",
)
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE, MNT_DETACH = 1, 32, 16384, 1 << 18, 2
M_MMAP_THRESHOLD = -3


@dataclass(frozen=True)
class At:
    """The `count`-th audit event of one of these names (`open|os.rename`) whose path matches `where`.

    Files that Rust or C++ write by themselves (safetensors, torch.save) raise none; what llmkit does with them does.
    """

    event: str
    where: str
    count: int = 1


@dataclass(frozen=True)
class Fault:
    """`action` is done with `arguments` when the moments have come, one after the other, and before the last event."""

    action: str
    moments: tuple[At, ...]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (the negative signal where one killed it) and all that it printed."""

    code: int
    said: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def error(self) -> str:
        """What it printed from `error:` on; a traceback is none."""
        assert "Traceback" not in self.said, self.said
        assert "Logging error" not in self.said, self.said
        _, mark, text = self.said.partition("error:")
        assert mark, f"no error is named (exit code {self.code}):\n{self.said}"
        return text.strip()


# ------------------------------------------------------------------------------------------------ the tests' end


class Zygote:
    """Starts runs that need no imports; one at a time."""

    def __init__(self, folder: Path, environ: Mapping[str, str], modules: Sequence[str] = MODULES) -> None:
        self.folder = folder
        self.environ = {**environ, TOLD: ",".join(modules)}
        self.log = (folder / "zygote.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=self.environ,
            cwd=folder,
        )
        self._unread = b""
        self._runs = 0
        found = self._read(120)
        assert found is not None, "the zygote does not start"
        self.no_mounts: str | None = found["no_mounts"]
        """Why nothing can be mounted here; None where it can."""

    def close(self) -> None:
        """End the zygote; its mounts go with it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.log.close()

    def llmkit(
        self,
        *arguments: object,
        fault: Fault | None = None,
        kill_after: float | None = None,
        timeout: float = 120,
        powerless: bool = False,
        path: Path | None = None,
    ) -> Ended:
        """Run `llmkit ARGUMENTS` to its end, or for `kill_after` seconds.

        `powerless` takes root's right to write what the mode of a file forbids; `path` is a folder to import from.
        """
        self._runs += 1
        log = self.folder / f"said-{self._runs}.txt"
        log.touch()  # a run may be killed before it opens it
        job = {
            "argv": [str(argument) for argument in arguments],
            "log": str(log),
            "fault": asdict(fault) if fault else None,
            "powerless": powerless,
            "path": str(path) if path else None,
        }
        began = time.monotonic()
        process = os.pidfd_open(self._ask(job)["pid"])
        try:
            end = self._read(kill_after if kill_after is not None else timeout)
            if end is None:
                signal.pidfd_send_signal(process, signal.SIGKILL)
                end = self._read(20)
        finally:
            os.close(process)
        seconds = time.monotonic() - began
        said = log.read_text(encoding="utf-8", errors="replace")
        assert kill_after is not None or seconds < timeout, f"ran for {seconds:.0f} s:\n{said}"
        assert end is not None, "the zygote has lost its child"
        return Ended(end["code"], said, seconds)

    def mount(self, place: Path, size: int) -> None:
        """Put an empty disk of `size` bytes at `place`, for the runs alone: `seen` says where the tests find it."""
        place.mkdir()
        self._mount({"mount": str(place), "size": size})

    def resize(self, place: Path, size: int, *, read_only: bool = False) -> None:
        """Give the disk at `place` another size, and let it be written or not."""
        self._mount({"resize": str(place), "size": size, "read_only": read_only})

    def unmount(self, place: Path) -> None:
        """Take the disk at `place` away, with all that is on it."""
        self._mount({"unmount": str(place)})

    def seen(self, path: Path) -> Path:
        """Return where a path of the runs is for the tests."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def _mount(self, job: dict[str, Any]) -> None:
        error = self._ask(job)["error"]
        assert error is None, error

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()
        found = self._read(30)
        assert found is not None, "the zygote does not answer"
        return found

    def _read(self, timeout: float) -> dict[str, Any] | None:
        """Return the next line of the zygote, or None if none comes in time."""
        assert self.process.stdout is not None
        pipe, deadline = self.process.stdout.fileno(), time.monotonic() + timeout
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return None
            part = os.read(pipe, 1 << 16)
            assert part, f"the zygote has died:\n{(self.folder / 'zygote.log').read_text()}"
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found


# ------------------------------------------------------------------------------------------------ inside the zygote

libc = ctypes.CDLL(None, use_errno=True)


def serve() -> int:
    """Import, say so, and fork for each line of standard input."""
    no_mounts = _own_mounts()
    for module in os.environ[TOLD].split(","):
        __import__(module)
    gc.collect()
    gc.freeze()  # a collection would touch, and so copy, every page in every child
    _say(no_mounts=no_mounts)
    for line in sys.stdin:
        job = json.loads(line)
        if "argv" not in job:
            _say(error=_change_mounts(job))
            continue
        pid = os.fork()
        if pid == 0:
            _end(_child(job))
        _say(pid=pid)
        _say(code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return 0


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def _own_mounts() -> str | None:
    """Get a mount namespace of our own; returns why that is not possible here."""
    flags, uid, gid = CLONE_NEWNS | (CLONE_NEWUSER if os.getuid() else 0), os.getuid(), os.getgid()
    if libc.unshare(flags):
        return f"unshare: {os.strerror(ctypes.get_errno())}"
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        return f"mount: {os.strerror(ctypes.get_errno())}"
    return None


def _change_mounts(job: Mapping[str, Any]) -> str | None:
    if "unmount" in job:
        return None if libc.umount2(job["unmount"].encode(), MNT_DETACH) == 0 else os.strerror(ctypes.get_errno())
    if "mount" in job:
        return _mount_tmpfs(job["mount"], job["size"], 0)
    return _mount_tmpfs(job["resize"], job["size"], MS_REMOUNT | (MS_RDONLY if job["read_only"] else 0))


def _mount_tmpfs(place: str, size: int, flags: int) -> str | None:
    if libc.mount(b"tmpfs", place.encode(), b"tmpfs", flags, f"size={size}".encode()):
        return f"mount at {place}: {os.strerror(ctypes.get_errno())}"
    return None


def _child(job: Mapping[str, Any]) -> int:
    """Become the run; returns its exit code."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  the zygote's has read ahead
    if job["path"]:
        sys.path.insert(0, job["path"])
    if job["powerless"]:
        _drop_capabilities()
    if job["fault"]:
        if job["fault"]["action"] == "starve":
            # Freed memory goes back to the system: what is asked for again is asked of it, and refused.
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 14)
        sys.addaudithook(Trap(job["fault"]))
    sys.argv = ["llmkit", *job["argv"]]
    from llmkit.cli.main import main

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  what Python does at the top of a program
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """End as Python does, waiting for threads and doing what was left for the end, but for freeing each object."""
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # what others do at the end may take memory again
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _drop_capabilities() -> None:
    """Make the modes of files count for root as well, as they do for everybody else."""
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    if libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


class Trap:
    """The audit hook that waits for the moments of a fault."""

    def __init__(self, fault: Mapping[str, Any]) -> None:
        self.moments = [(set(m["event"].split("|")), re.compile(m["where"]), m["count"]) for m in fault["moments"]]
        self.action, self.arguments = ACTIONS[fault["action"]], fault["arguments"]
        self.events, self.where, self.left = self.moments.pop(0)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in self.events or not self.where.search(_path_of(arguments)):
            return
        self.left -= 1
        if self.left:
            return
        if self.moments:
            self.events, self.where, self.left = self.moments.pop(0)
            return
        self.events = set()
        self.action(*self.arguments)


def _path_of(arguments: tuple[Any, ...]) -> str:
    """Return the path that an event is about; of a renaming `FROM -> TO`."""
    path, rest = arguments[0], arguments[1:]
    if len(rest) == 1 and isinstance(rest[0], int) and rest[0] >= 0 and isinstance(path, str):
        return os.path.join(os.readlink(f"/proc/self/fd/{rest[0]}"), path)  # rmtree names a file below an open folder
    if len(rest) == 3 and isinstance(rest[0], (str, Path)):
        return f"{path} -> {rest[0]}"
    return str(path)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fill(place: str) -> None:
    """Leave no page free on the disk at `place`."""
    for _ in range(50):
        disk = os.statvfs(place)
        if _mount_tmpfs(place, (disk.f_blocks - disk.f_bfree) * disk.f_frsize, MS_REMOUNT) is None:
            return
    raise AssertionError(f"{place} can't be filled")  # it grows faster than it is measured


def _forbid(place: str) -> None:
    """Make a folder and all below read-only."""
    for folder, _, files in os.walk(place, topdown=False):
        for name in files:
            os.chmod(os.path.join(folder, name), 0o444)
        os.chmod(folder, 0o555)


def _starve(spare: int) -> None:
    """Leave `spare` bytes of memory for data."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmData:\s+(\d+) kB", status)
    assert found is not None
    limit = int(found[1]) * 1024 + spare
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def _append(path: str, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


ACTIONS: dict[str, Callable[..., None]] = {
    "kill": _kill,
    "fill": _fill,
    "forbid": _forbid,
    "starve": _starve,
    "remove": os.unlink,
    "append": _append,
}


if __name__ == "__main__":
    sys.exit(serve())
