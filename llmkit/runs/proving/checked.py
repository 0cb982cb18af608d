"""One thing of a run that was looked at: is it still what the lock says?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["same", "changed", "missing", "other version", "not recorded"]
FAILED = ("changed", "missing")
"""States in which a run is not what it was."""

RECORD, INPUTS, MODEL, CHECKPOINTS, EXPORTS, ENVIRONMENT = PARTS = (
    "record",
    "inputs",
    "model",
    "checkpoints",
    "exports",
    "environment",
)


@dataclass(frozen=True)
class Checked:
    """One thing that was looked at."""

    part: str
    what: str
    state: State
    detail: str = ""


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, read from disk: nothing that is remembered of it counts. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_checked(part: str, what: str, path: Path, locked: object) -> Checked:
    """Compare a file with the hash that is locked for it."""
    try:
        found = digest(path)
    except OSError as error:
        return Checked(part, what, "missing", f"{path}: {error.strerror}")
    if found == locked:
        return Checked(part, what, "same")
    return Checked(part, what, "changed", f"SHA-256 was {str(locked)[:12]}, is {found[:12]}")
