from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.formats import sharegpt
from llmkit.data.shapes import RowError, Shape

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def test_plain_row() -> None:
    row = {
        "conversations": [{"from": "human", "value": "Say hi."}, {"from": "gpt", "value": "Hi!"}],
        "system": "Be brief.",
    }
    assert sharegpt.SHAPE is Shape.CONVERSATION
    assert sharegpt.convert(row) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Say hi."},
            {"role": "assistant", "content": "Hi!"},
        ]
    }


def test_marks_of_training_are_kept() -> None:
    turns = [
        {"from": "human", "value": "Say hi."},
        {"from": "gpt", "value": "Hi!", "weight": 0, "train": None},
        {"from": "gpt", "value": "Hello!", "weight": None, "train": True, "id": 3},
    ]
    assert sharegpt.convert({"conversations": turns})["messages"][1:] == [
        {"role": "assistant", "content": "Hi!", "weight": 0},
        {"role": "assistant", "content": "Hello!", "train": True},
    ]
    with pytest.raises(RowError, match=r"conversations\[1\].train must be true or false, not a string"):
        sharegpt.convert({"conversations": [turns[0], turns[1] | {"train": "yes"}]})


def test_tool_row() -> None:
    row = {
        "conversations": [
            {"from": "user", "value": "2 x 3, 4 x 5?"},
            {
                "from": "function_call",
                "value": '[{"name": "mul", "arguments": {"a": 2, "b": 3}},'
                ' {"name": "mul", "arguments": "{\\"a\\": 4}"}]',
            },
            {"from": "observation", "value": "[6, 20]"},
            {"from": "assistant", "value": "6 and 20"},
        ],
        "tools": '[{"name": "mul"}]',
    }
    assert sharegpt.convert(row) == {
        "messages": [
            {"role": "user", "content": "2 x 3, 4 x 5?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"type": "function", "function": {"name": "mul", "arguments": {"a": 2, "b": 3}}},
                    {"type": "function", "function": {"name": "mul", "arguments": {"a": 4}}},
                ],
            },
            {"role": "tool", "content": "[6, 20]"},
            {"role": "assistant", "content": "6 and 20"},
        ],
        "tools": [{"name": "mul"}],
    }


def talk(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in turns]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversation": []}, "no column 'conversations' (did you mean 'conversation'?)"),
        (talk(), "conversations is an empty conversation"),
        (
            talk(("humam", "x")),
            "conversations[0]: unknown role 'humam' (did you mean 'human'?); choose from human, gpt",
        ),
        (
            {"conversations": [{"role": "user", "content": "x"}]},
            "conversations[0] has no 'from'; its keys: role, content",
        ),
        (talk(("human", "x")), "conversations has no assistant turn to learn from"),
        (talk(("human", "x"), ("gpt", "y"), ("human", "z")), "conversations ends with the user"),
        (talk(("human", "x"), ("gpt", "")), "conversations[1].value is empty"),
        (talk(("human", None), ("gpt", "y")), "conversations[0].value must be a string, not null"),
        (talk(("observation", "x"), ("gpt", "y")), "conversations[0]: a tool turn must follow an assistant turn"),
        (talk(("human", "x"), ("system", "y")), "conversations[1]: a system turn can only be the first"),
        (talk(("human", "x"), ("function_call", "add(1)")), "conversations[1].value is not JSON: Expecting value"),
        (talk(("human", "x"), ("function_call", "[]")), "conversations[1].value calls no function"),
        (talk(("human", "x"), ("function_call", "3")), "conversations[1].value must be an object, not a number"),
        (talk(("human", "x"), ("function_call", '{"nam": "f"}')), "conversations[1].value has no 'name'"),
        (
            talk(("human", "x"), ("function_call", '{"name": "f", "arguments": 3}')),
            "conversations[1].value.arguments must be an object, not a number",
        ),
        (talk(("system", "x"), ("gpt", "y")) | {"system": "z"}, "contradict each other"),
        (talk(("human", "x"), ("gpt", "y")) | {"tools": "{"}, "column 'tools' is not JSON"),
        (
            talk(("human", "x"), ("gpt", "y")) | {"tools": "{}"},
            "column 'tools' must be a list of objects, not an object",
        ),
    ],
)
def test_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        sharegpt.convert(row)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("name", "calls"), [("glaive_toolcall_en_demo", 211), ("glaive_toolcall_zh_demo", 216)])
def test_shared_tool_rows(name: str, calls: int) -> None:
    file = SHARED / "lf_glaive_toolcall" / f"{name}.json"
    if not file.exists():
        pytest.skip("no shared data beside the repository")
    converted = [sharegpt.convert(row) for row in json.loads(file.read_text(encoding="utf-8"))]
    assert len(converted) == 300
    assert sum("tool_calls" in turn for row in converted for turn in row["messages"]) == calls
