"""Conversations in ShareGPT's layout, trained on the assistant's turns.

    {"conversations": [{"from": "human", "value": "Say hi."}, {"from": "gpt", "value": "Hi!"}]}

A `function_call` turn holds JSON, {"name": ..., "arguments": {...}} or a list of them; `observation` is its result.
A turn may have `weight`, `train` and `keep_reasoning`, as in `messages`.
The columns `system` (a string) and `tools` (a JSON string of a list) are optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.data.formats import base
from llmkit.data.shapes import RowError, Shape

SHAPE = Shape.CONVERSATION
COLUMNS = ("conversations",)
OPTIONAL = ("system", "tools")

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function_call": "assistant",
}


def recognises(row: Mapping[str, Any]) -> base.Signs | None:
    """Return the signs of this format."""
    if not base.are_turns(row.get("conversations"), "from", "value"):
        return None
    return base.Signs(frozenset(COLUMNS), "column `conversations` holds turns with `from` and `value`")


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `messages` and, if there are any, `tools`.

    Raises RowError.
    """
    return {"messages": base.trainable(conversation(row), "conversations"), **base.tools_in(row)}


def conversation(row: Mapping[str, Any]) -> list[base.Message]:
    """Return the messages in the columns `system` and `conversations`, in any state of the dialogue.

    Raises RowError.
    """
    messages = to_messages(base.require(row, "conversations"), "conversations")
    system = base.optional_text(row, "system")
    if not system:
        return messages
    if messages[0]["role"] == "system":
        raise RowError("a column 'system' and a system turn in 'conversations' contradict each other: keep one")
    return base.said("system", system) + messages


def to_messages(value: Any, place: str) -> list[base.Message]:
    """Return a list of {from, value} turns as messages.

    Raises RowError for the first turn that can't be used, or for an empty list.
    """
    messages = [_message(turn, f"{place}[{i}]") for i, turn in enumerate(base.turns_in(value, place))]
    base.check_order(messages, place)
    return messages


def _message(turn: Any, place: str) -> base.Message:
    speaker = base.checked_role(base.turn_key(turn, "from", place), tuple(ROLES), place)
    text = base.filled(base.turn_key(turn, "value", place), f"{place}.value")
    message: base.Message = {"role": ROLES[speaker], "content": text}
    if speaker == "function_call":
        message |= {"content": "", "tool_calls": _calls(text, f"{place}.value")}
    marks = {key: turn[key] for key in base.MARKS if turn.get(key) is not None}
    if marks:
        base.check_marks(message | marks, place)
        message |= marks
    return message


def _calls(text: str, place: str) -> list[dict[str, Any]]:
    value = base.parsed_json(text, place)
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise RowError(f"{place} calls no function")
    return [{"type": "function", "function": _function(call, place)} for call in calls]


def _function(call: Any, place: str) -> dict[str, Any]:
    name = base.filled(base.turn_key(call, "name", place), f"{place}.name")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        arguments = base.parsed_json(arguments, f"{place}.arguments")
    if not isinstance(arguments, dict):
        raise RowError(f"{place}.arguments must be an object, not {base.kind(arguments)}")
    return {"name": name, "arguments": arguments}
