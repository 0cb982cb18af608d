from __future__ import annotations

from typing import Any

import pytest

from llmkit.data.formats import messages
from llmkit.data.shapes import RowError, Shape

ASK = {"role": "user", "content": "Weather in Rome?"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def test_plain_row_is_kept() -> None:
    row = {
        "id": 4,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Say hi."},
            {"role": "assistant", "content": "Hi!"},
        ],
    }
    assert messages.SHAPE is Shape.CONVERSATION
    assert messages.convert(row) == {"messages": row["messages"]}


def test_tool_call_row_is_kept() -> None:
    turns = [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "sunny", "tool_calls": None},
        {"role": "assistant", "content": "It is sunny.", "tool_calls": []},
    ]
    assert messages.convert({"messages": turns, "tools": [TOOL]}) == {
        "messages": [
            ASK,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "weather", "content": "sunny"},
            {"role": "assistant", "content": "It is sunny."},
        ],
        "tools": [TOOL],
    }


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_no_tools_are_left_out(tools: Any) -> None:
    row = {"messages": [ASK, {"role": "assistant", "content": "No idea."}], "tools": tools}
    assert "tools" not in messages.convert(row)


def assistant(**keys: Any) -> list[dict[str, Any]]:
    return [ASK, {"role": "assistant", **keys}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"mesages": [], "id": 1}, "no column 'messages' (did you mean 'mesages'?); the row's columns: mesages, id"),
        ({"messages": "hi"}, "messages must be a list of turns, not a string"),
        ({"messages": None}, "messages must be a list of turns, not null"),
        ({"messages": []}, "messages is an empty conversation"),
        ({"messages": ["hi"]}, "messages[0] must be an object, not a string"),
        ({"messages": [{"rol": "user"}]}, "messages[0] has no 'role' (did you mean 'rol'?); its keys: rol"),
        (
            {"messages": [ASK, {"role": "asistant", "content": "x"}]},
            "messages[1]: unknown role 'asistant' (did you mean 'assistant'?); "
            "choose from system, user, assistant, tool",
        ),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown role ['user']; choose from"),
        ({"messages": [ASK]}, "messages has no assistant turn to learn from"),
        (
            {"messages": [*assistant(content="Sunny."), ASK]},
            "messages ends with the user; the last turn must be the assistant's",
        ),
        ({"messages": assistant()}, "messages[1] has no 'content'; its keys: role"),
        ({"messages": assistant(content=7)}, "messages[1].content must be a string, not a number"),
        ({"messages": assistant(content=[{"type": "text"}])}, "messages[1].content must be a string, not a list"),
        ({"messages": assistant(content=" \n")}, "messages[1].content is empty"),
        ({"messages": assistant(content=["x"], tool_calls=[CALL])}, "messages[1].content must be a string"),
        ({"messages": assistant(tool_calls="weather()")}, "messages[1].tool_calls must be a list of objects"),
        ({"messages": [{**ASK, "tool_calls": [CALL]}]}, "only an assistant turn can have tool_calls, not user"),
        ({"messages": [ASK, {"role": "system", "content": "x"}]}, "messages[1]: a system turn can only be the first"),
        (
            {"messages": [ASK, {"role": "tool", "content": "x"}]},
            "messages[1]: a tool turn must follow an assistant turn, not user",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "must follow an assistant turn, not come first"),
        ({"messages": assistant(content="x"), "tools": 3}, "column 'tools' must be a list of objects, not a number"),
        ({"messages": assistant(content="x"), "tools": "[{"}, "column 'tools' is not JSON: "),
    ],
)
def test_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        messages.convert(row)
    assert reason in str(caught.value)
