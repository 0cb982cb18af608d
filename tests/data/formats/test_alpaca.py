from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.formats import alpaca
from llmkit.data.shapes import RowError, Shape

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def test_instruction_with_input() -> None:
    row = {"instruction": "Translate to French.", "input": "Good morning", "output": "Bonjour"}
    assert alpaca.SHAPE is Shape.CONVERSATION
    assert alpaca.convert(row) == {
        "messages": [
            {"role": "user", "content": "Translate to French.\n\nGood morning"},
            {"role": "assistant", "content": "Bonjour"},
        ]
    }


def test_system_and_history() -> None:
    row = {"instruction": "And 3?", "input": " ", "output": "9", "system": "Square it.", "history": [["2?", "4"]]}
    assert alpaca.convert(row) == {
        "messages": [
            {"role": "system", "content": "Square it."},
            {"role": "user", "content": "2?"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "And 3?"},
            {"role": "assistant", "content": "9"},
        ]
    }


@pytest.mark.parametrize("nothing", [None, "", []])
def test_empty_optional_columns_count_as_absent(nothing: Any) -> None:
    row = {"instruction": "Hi", "output": "Hello", "input": None, "system": "", "history": nothing}
    assert [m["role"] for m in alpaca.convert(row)["messages"]] == ["user", "assistant"]


GOOD = {"instruction": "Hi", "output": "Hello"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "Hi", "outputs": "x"}, "no column 'output' (did you mean 'outputs'?)"),
        ({"output": "Hello"}, "no column 'instruction'; the row's columns: output"),
        (GOOD | {"output": ""}, "column 'output' is empty"),
        (GOOD | {"output": None}, "column 'output' must be a string, not null"),
        (GOOD | {"instruction": 5}, "column 'instruction' must be a string, not a number"),
        (GOOD | {"input": ["a"]}, "column 'input' must be a string, not a list"),
        (GOOD | {"system": True}, "column 'system' must be a string, not true"),
        (GOOD | {"history": "x"}, "column 'history' must be a list of [user, assistant] pairs, not a string"),
        (GOOD | {"history": [["a"]]}, "history[0] must be a pair [user, assistant]"),
        (GOOD | {"history": [["a", "b"], ["c", ""]]}, "history[1][1] is empty"),
    ],
)
def test_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        alpaca.convert(row)
    assert reason in str(caught.value)


def test_shared_identity_rows() -> None:
    file = SHARED / "lf_identity" / "identity.json"
    if not file.exists():
        pytest.skip("no shared data beside the repository")
    rows = json.loads(file.read_text(encoding="utf-8"))
    converted = [alpaca.convert(row)["messages"] for row in rows]
    assert len(converted) == 91
    assert converted[0][0] == {"role": "user", "content": "hi"}
