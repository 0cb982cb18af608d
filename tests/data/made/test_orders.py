from __future__ import annotations

import hashlib
import json
from itertools import islice

import pytest

from llmkit.data.formats import messages
from llmkit.data.made import orders
from llmkit.errors import DataError

ORDERS = {split: list(orders.rows(split)) for split in orders.SPLITS}


def sentences(split: str) -> list[str]:
    return [row["messages"][1]["content"] for row in ORDERS[split]]


def test_the_same_rows_for_ever() -> None:
    first = "".join(json.dumps(row) for row in islice(orders.rows("train"), 100))
    assert (
        hashlib.sha256(first.encode()).hexdigest() == "73fbf69152fb630ddce77def2fa2fbe2fdcc41651289a2dff6b85c5df7dcc1a9"
    )


def test_sizes_without_duplicates() -> None:
    assert {split: len(set(sentences(split))) for split in orders.SPLITS} == {"train": 4000, "test": 1000}
    assert {split: len(rows) for split, rows in ORDERS.items()} == {"train": 4000, "test": 1000}


def test_splits_share_no_order() -> None:
    assert not set(sentences("train")) & set(sentences("test"))


@pytest.mark.parametrize("split", orders.SPLITS)
def test_answers_are_compact_json_of_the_order(split: str) -> None:
    for row in ORDERS[split]:
        assert messages.convert(row) == row
        system, order, reply = (turn["content"] for turn in row["messages"])
        answer = json.loads(reply)
        assert system == "Turn the order into JSON."
        assert reply == json.dumps(answer)
        assert list(answer) == ["item", "size", "count", "to_go", "name"]
        assert answer["size"] in "SML"
        assert isinstance(answer["to_go"], bool)
        assert 1 <= answer["count"] <= 6
        assert answer["name"] in order
        assert answer["item"] in order.lower()


def test_unknown_split() -> None:
    with pytest.raises(DataError, match=r"no split 'tests' \(did you mean 'test'\?\)\nSplits: train, test\."):
        orders.rows("tests")
