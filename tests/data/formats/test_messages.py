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


def test_arguments_in_json_become_the_object_that_templates_write() -> None:
    as_json = {**CALL, "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    without = {**CALL, "function": {"name": "weather"}}
    for given, kept in ((as_json, CALL), (CALL, CALL), (without, without), ({"name": "old"}, {"name": "old"})):
        turns = [ASK, {"role": "assistant", "content": "", "tool_calls": [given]}]
        assert messages.convert({"messages": turns})["messages"][1]["tool_calls"] == [kept]
    assert as_json["function"]["arguments"] == '{"city": "Rome"}', "the row was changed"


@pytest.mark.parametrize("marks", [{"weight": 0}, {"weight": 1}, {"weight": 0.5}, {"train": True}, {"train": False}])
def test_marks_of_training_are_kept(marks: dict[str, Any]) -> None:
    turns = [ASK, {"role": "assistant", "content": "Sunny.", **marks}]
    assert messages.convert({"messages": turns}) == {"messages": turns}
    assert messages.convert({"messages": [turns[0], turns[1] | {"weight": None, "train": None}]}) == {
        "messages": [ASK, {"role": "assistant", "content": "Sunny."}]
    }


@pytest.mark.parametrize("content", ["x", " x", "\n\nx\n", "\u3000x", "\0x", "嗨", "\x01", "é "])
def test_content_is_kept_as_it_is(content: str) -> None:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    kept = messages.convert({"messages": turns})["messages"]
    assert kept == turns
    assert kept[0] is not turns[0]


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
        ({"messages": assistant(content="\u3000\u2028")}, "messages[1].content is empty"),
        ({"messages": assistant(content="\0\0 \0")}, "messages[1].content is empty"),
        ({"messages": assistant(content="x", weight=-1)}, "messages[1].weight must not be negative, as -1 is"),
        (
            {"messages": assistant(content="x", weight=2e6)},
            "messages[1].weight must not be more than 1,000,000, as 2e+06",
        ),
        ({"messages": assistant(content="x", weight=10**400)}, "messages[1].weight must be a finite number"),
        ({"messages": assistant(content="x", weight=True)}, "messages[1].weight must be a finite number, not true"),
        (
            {"messages": assistant(content="x", weight=float("nan"))},
            "messages[1].weight must be a finite number, not nan",
        ),
        ({"messages": assistant(content="x", train=1)}, "messages[1].train must be true or false, not a number"),
        (
            {"messages": assistant(content="x", keep_reasoning="no")},
            "messages[1].keep_reasoning must be true or false, not a string",
        ),
        (
            {"messages": assistant(content="x", weight=0, train=True)},
            "messages[1]: weight 0 and train true contradict each other",
        ),
        (
            {"messages": assistant(content="x", weight=0.5, train=False)},
            "messages[1]: weight 0.5 and train false contradict each other",
        ),
        ({"messages": [{**ASK, "weight": 1}]}, "messages[0]: only a turn of the assistant can be trained, not one of"),
        (
            {"messages": [{**ASK, "train": True}]},
            "messages[0]: only a turn of the assistant can be trained, not one of",
        ),
        (
            {"messages": assistant(tool_calls=[{"function": {"name": "f", "arguments": "{"}}])},
            "messages[1].tool_calls[0].function.arguments is not JSON: ",
        ),
        (
            {"messages": assistant(tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}])},
            "messages[1].tool_calls[0].function.arguments must be an object, not a list",
        ),
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
