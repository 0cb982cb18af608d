"""Work on batches in several processes, in order; where that can't be done or doesn't pay, in this one."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from typing import Any, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

LEAST = 4
"""Batches from which on other processes are started."""
MOST = 8
"""Processes; one reads for all of them."""

_adopted: Callable[[Any], Any] = NotImplemented


def processes() -> int:
    """Return how many processes work at once: one for each core, and one where processes can't be forked safely."""
    return min(MOST, len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1


def mapped(function: Callable[[In], Out], items: Iterator[In]) -> Iterator[Out]:
    """Yield `function(item)` for each of `items`, in their order; raises what `function` raises.

    Processes are forked, so `function` may hold what can't be pickled; items and results are pickled. Few of them are
    under way at a time, however many there are.
    """
    first = list(islice(items, LEAST))
    count = processes()
    if count == 1 or len(first) < LEAST:
        yield from map(function, chain(first, items))
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(count, context, initializer=_adopt, initargs=(function,)) as pool:
        under_way: deque[Future[Out]] = deque()
        try:
            for item in chain(first, items):
                under_way.append(pool.submit(_call, item))
                if len(under_way) > 2 * count:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def _adopt(function: Callable[[Any], Any]) -> None:
    """Begin a forked process."""
    global _adopted
    _adopted = function
    gc.freeze()  # what was inherited is not looked through for garbage, so its memory stays shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were not forked, and all cores are busy


def _call(item: Any) -> Any:
    return _adopted(item)
