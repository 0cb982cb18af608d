from __future__ import annotations

import hashlib
import json
from itertools import islice
from typing import Any

import pytest

from llmkit.data.formats import preference
from llmkit.data.made import units
from llmkit.errors import DataError

PAIRS = {split: list(units.rows(split)) for split in units.SPLITS}


def questions(split: str) -> list[str]:
    return [row["prompt"][0]["content"] for row in PAIRS[split]]


def test_the_same_rows_for_ever() -> None:
    first = "".join(json.dumps(row) for row in islice(units.rows("train"), 100))
    assert (
        hashlib.sha256(first.encode()).hexdigest() == "da6cf2230e7948d971e336ed4ef636218b6d114036d2bba92ee3a3ad17fa7bd5"
    )


def test_sizes_and_splits_without_duplicates() -> None:
    assert {split: len(set(questions(split))) for split in units.SPLITS} == {"train": 2000, "test": 400}
    assert not set(questions("train")) & set(questions("test"))


UNITS = {"chosen": ("m", "kg", "l", "km", "cm"), "rejected": ("ft", "lb", "gal", "mi", "in")}


def measure(row: dict[str, Any], name: str) -> str:
    """The number and unit in an answer."""
    words = row[name][0]["content"].rstrip(".").split()
    at = next(i for i, word in enumerate(words) if word in UNITS[name] and words[i - 1][0].isdigit())
    return f"{words[at - 1]} {words[at]}"


@pytest.mark.parametrize("split", units.SPLITS)
def test_both_answers_are_in_the_question(split: str) -> None:
    for row in PAIRS[split]:
        assert preference.convert(row) == row
        assert all(measure(row, name) in row["prompt"][0]["content"] for name in UNITS)


def test_neither_place_nor_length_gives_the_answer_away() -> None:
    pairs = PAIRS["train"]
    first = sum(f"{measure(row, 'chosen')} (" in row["prompt"][0]["content"] for row in pairs)
    shorter = sum(len(measure(row, "chosen")) < len(measure(row, "rejected")) for row in pairs)
    assert 0.45 < first / len(pairs) < 0.55
    assert 0.2 < shorter / len(pairs) < 0.6


def test_unknown_split() -> None:
    with pytest.raises(DataError, match=r"no split 'tests' \(did you mean 'test'\?\)"):
        units.rows("tests")
