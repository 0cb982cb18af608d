"""Several processes give what one gives, in the same order, and fail as one does."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from llmkit.data import parallel
from llmkit.data.parallel import LEAST, mapped
from llmkit.errors import DataError


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "processes", lambda: 2)


@pytest.mark.usefixtures("two")
def test_results_come_in_order_from_other_processes() -> None:
    offset = 10  # a closure: it can't be pickled
    found = list(mapped(lambda item: (item + offset, os.getpid()), iter(range(40))))
    assert [value for value, _ in found] == list(range(10, 50))
    assert os.getpid() not in {process for _, process in found}


@pytest.mark.usefixtures("two")
def test_a_few_items_stay_in_this_process() -> None:
    found = list(mapped(lambda item: os.getpid(), iter(range(LEAST - 1))))
    assert found == [os.getpid()] * (LEAST - 1)


def test_one_core_needs_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "processes", lambda: 1)
    assert set(mapped(lambda item: os.getpid(), iter(range(40)))) == {os.getpid()}


@pytest.mark.usefixtures("two")
def test_an_error_arrives_whole() -> None:
    def fail(item: int) -> int:
        if item == 7:
            raise DataError("broken", where="a:8", remedy="mend it")
        return item

    found = mapped(fail, iter(range(40)))
    assert [next(found) for _ in range(7)] == list(range(7))
    with pytest.raises(DataError) as caught:
        next(found)
    assert (caught.value.what, caught.value.where, caught.value.remedy) == ("broken", "a:8", "mend it")


@pytest.mark.usefixtures("two")
def test_no_more_is_read_than_is_worked_on() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            asked.append(number)
            yield number

    found = mapped(lambda item: item, items())
    next(found)
    assert len(asked) <= 2 * 2 + LEAST
    found.close()  # type: ignore[attr-defined]
