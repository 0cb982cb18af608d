"""What the machine itself does to a run, in sentences: a disk that is full or can't be written, memory that runs out.

Whichever library meets it says so in words of its own; safetensors and torch raise no OSError.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmkit.errors import LlmkitError, RunError, SetupError

NO_SPACE = re.compile(r"No space left|Disk quota exceeded|write failed|writing file|unexpected pos")
NOT_ALLOWED = re.compile(r"Permission denied|Read-only file system|Operation not permitted")
NO_MEMORY = re.compile(
    r"can.t allocate memory|not enough memory|cannot allocate memory|out of memory|bad_alloc|alloc_failed",
    re.IGNORECASE,
)
ALMOST_FULL = 100_000_000
"""Free bytes below which "write failed" means a full disk."""


@contextmanager
def machine_explained(folder: Path) -> Iterator[None]:
    """Turn what the machine does to the run in `folder` into a SetupError (the disk) or RunError (memory)."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        explained = _explained(error, folder)
        if explained is None:
            raise
        raise explained from error


def _explained(error: Exception, folder: Path) -> LlmkitError | None:
    number = error.errno if isinstance(error, OSError) else None
    again = f"continue: llmkit run {folder / 'recipe.yaml'} --resume"
    if _is_full(error, number, folder):
        return SetupError(
            f"no space is left on the disk of {folder}",
            remedy=f"Free some space, then {again}; or start again with --out on another disk.",
        )
    if _is_out_of_memory(error, number):
        return RunError(
            f"memory ran out: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            remedy=f"If other programs took it, end them and {again}\nOtherwise `llmkit plan "
            f"{folder / 'recipe.yaml'}` shows what takes how much, and what would make it fit in a new run.",
        )
    if _is_forbidden(error, number, folder):
        return SetupError(
            f"{folder} can't be written: {getattr(error, 'strerror', None) or error}",
            remedy=f"Make it writable (or its disk, which a system sets read-only when it breaks), then {again}",
        )
    return None


def _is_full(error: Exception, number: int | None, folder: Path) -> bool:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return True
    # torch says only that a write failed, safetensors quotes the system's message.
    return bool(NO_SPACE.search(str(error))) and shutil.disk_usage(folder).free < ALMOST_FULL


def _is_out_of_memory(error: Exception, number: int | None) -> bool:
    known = isinstance(error, MemoryError) or number == errno.ENOMEM or type(error).__name__ == "OutOfMemoryError"
    return known or bool(NO_MEMORY.search(str(error)))


def _is_forbidden(error: Exception, number: int | None, folder: Path) -> bool:
    """Whether a file of the run, and no other one, may not be written."""
    if isinstance(error, OSError):
        place = Path(str(error.filename)).absolute() if error.filename else None
        inside = place is not None and place.is_relative_to(folder.absolute())
        return inside and number in (errno.EACCES, errno.EPERM, errno.EROFS)
    return bool(NOT_ALLOWED.search(str(error)))
