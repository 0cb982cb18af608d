"""What a recipe's paths mean, where llmkit keeps what it makes again and again, and which files are still the same."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from llmkit.errors import RecipeError

SETTLED = 1_000_000_000
"""Nanoseconds after which a file that is written again has another time of change."""


def cache_folder() -> Path:
    """Return llmkit's cache: $LLMKIT_CACHE, or `llmkit` in the user's cache folder."""
    if chosen := os.environ.get("LLMKIT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "llmkit"


def named_path(written: str, folder: Path) -> Path:
    """Return the path that a recipe in `folder` means by `written`, be there a file or not; `~` is the home folder.

    Raises RecipeError for what can be no path here: the home of an unknown user, links in a circle, a name that is too
    long, a folder that may not be looked into.
    """
    try:
        path = folder / Path(written).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, RuntimeError, ValueError) as error:
        shown = repr(written) if len(written) <= 60 else f"{written[:57]!r}..."
        raise RecipeError(f"{shown} can't be a path here: {getattr(error, 'strerror', error)}") from error
    return path


def read_file(path: Path, most: int | None = None) -> bytes:
    """Return the bytes of a regular file of at most `most` bytes.

    Raises OSError for any other: a pipe would be waited for, and /dev/zero never ends.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if most is not None and found.st_size > most:
        raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, and may have {most}", str(path))
    return path.read_bytes()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hex; one that has not changed is read once per process."""
    found = path.stat()
    # A file that was just written may change again within one tick of the file system's clock.
    if time.time_ns() - found.st_mtime_ns < SETTLED:
        return _hash_of(path)
    return _kept_hash(path.absolute(), found.st_ino, found.st_size, found.st_mtime_ns)


@cache
def _kept_hash(path: Path, *state: int) -> str:
    return _hash_of(path)


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_hash(text: str) -> str:
    """Return the SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
