"""Reading ahead changes nothing but the time it takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from llmkit.data.reading import ahead


def test_items_come_in_their_order() -> None:
    assert list(ahead(iter([[1], [2, 3], []]))) == [[1], [2, 3], []]
    assert list(ahead(iter([]))) == []


def test_the_next_item_is_made_while_the_caller_works() -> None:
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        made.set()
        yield 2

    found = ahead(items())
    assert next(found) == 1
    assert made.wait(timeout=10)
    assert list(found) == [2]


def test_what_making_raises_reaches_the_caller() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="broken"):
        next(found)


def test_a_caller_that_stops_waits_for_no_more_than_one() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            asked.append(number)
            yield number

    found = ahead(items())
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert len(asked) <= 2
