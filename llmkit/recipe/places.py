"""Where llmkit keeps what it makes again and again, and how it knows that a file is still the same."""

from __future__ import annotations

import hashlib
import os
import time
from functools import cache
from pathlib import Path

SETTLED = 1_000_000_000
"""Nanoseconds after which a file that is written again has another time of change."""


def cache_folder() -> Path:
    """Return llmkit's cache: $LLMKIT_CACHE, or `llmkit` in the user's cache folder."""
    if chosen := os.environ.get("LLMKIT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "llmkit"


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
