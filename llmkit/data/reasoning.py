"""Reasoning traces: a turn's `reasoning_content`, or `<think>...</think>` at the beginning of its text.

They are kept, cut, or kept in the last turn only (`data.reasoning`); a turn's own key `keep_reasoning` (true or false)
says otherwise. The last turn is all that the assistant does after the last question, its steps with tools included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.data.shapes import EMPTY, RowError, UnlearnableError

Message = Mapping[str, Any]

KEYS = ("reasoning_content", "thinking", "reasoning")
"""The keys that transformers takes for a turn's reasoning, the one that templates read first."""

_THOUGHT = re.compile(r"\A\s*<think>(.*?)</think>\s*", re.DOTALL)


def trace_and_text(message: Message) -> tuple[str, str]:
    """Return the reasoning of a turn, empty if it has none, and its text without it."""
    content = message.get("content") or ""
    for key in KEYS:
        if message.get(key) is not None:
            return str(message[key]), content
    found = _THOUGHT.match(content)
    return (found[1], content[found.end() :]) if found else ("", content)


def ruled(messages: Sequence[Message], rule: str) -> Sequence[Message]:
    """Return the messages with the reasoning traces that `rule` (`keep`, `last` or `cut`) leaves.

    Raises RowError for a turn of which it is unclear what to cut, UnlearnableError for one of which nothing is left.
    """
    if rule == "keep" and not any("keep_reasoning" in message for message in messages):
        return messages
    last = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=-1)
    found = []
    for index, message in enumerate(messages):
        kept = message.get("keep_reasoning", rule == "keep" or (rule == "last" and index > last))
        found.append(message if kept or message["role"] != "assistant" else _without(message, index))
    return found


def _without(message: Message, index: int) -> Message:
    _, text = trace_and_text(message)
    if "<think>" in text or "</think>" in text:
        raise RowError(
            f"message {index + 1} has <think> or </think> where no reasoning begins or ends, so what to cut is unclear"
        )
    if not text.strip() and not message.get("tool_calls"):
        raise UnlearnableError(EMPTY)
    return {key: value for key, value in message.items() if key not in KEYS} | {"content": text}
