"""One process at a time writes into a run folder."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmkit.errors import SetupError

logger = logging.getLogger(__name__)

_held: set[int] = set()


def _let_go() -> None:
    """Close what a forked process has from its parent: a worker that outlives a killed run would hold its folder."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process, until it ends, however it does; raises SetupError if another process does.

    Where a system or its disk has no locks (flock), nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    _held.add(place)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise SetupError(
                    f"{folder} is written by another process: two runs in one folder would destroy each other's files",
                    remedy="Wait for it or end it (SIGTERM has it write a checkpoint first), or choose --out FOLDER.",
                ) from None
            logger.warning("%s can't be locked (%s): two processes could write into it", folder, error.strerror)
        yield
    finally:
        if place in _held:
            _held.remove(place)
            os.close(place)
