"""When a run was worked on, how long, and the most memory that it took: a line in `sessions.jsonl` for each session."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from llmkit.planning.hardware import Kind
from llmkit.runs.folder import RunFolder

SESSIONS_FILE = "sessions.jsonl"

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Session:
    """One start of a run, the first or a resumed one, to its end, whichever that was."""

    began: str
    """ISO 8601, with the offset of the time zone."""
    seconds: float
    """From reading the rows to the last export."""
    peak_bytes: int | None
    """Most memory held at once: of the process on a CPU, of the fullest device on GPUs; None where it isn't known."""


@contextmanager
def session(folder: RunFolder, kind: Kind) -> Iterator[None]:
    """Write down the session that is within, however it ends; `kind` is the device's."""
    began, clock = datetime.now().astimezone(), time.monotonic()
    try:
        yield
    finally:
        # The folder of a refused run is gone; and what went wrong with the run is what counts.
        with suppress(Exception):
            if (folder.path / "recipe.yaml").is_file():
                found = Session(began.isoformat(timespec="seconds"), time.monotonic() - clock, peak_bytes(kind))
                with (folder.path / SESSIONS_FILE).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(found)) + "\n")


def peak_bytes(kind: Kind) -> int | None:
    """Return the most memory that this process has held at once, on the devices of `kind`; None where nobody counts."""
    if kind == "cuda":
        import torch

        return max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())), default=None)
    if kind == "cpu" and _STATUS.is_file():
        # Not getrusage: its figure may be that of the process which started this one.
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
    return None
