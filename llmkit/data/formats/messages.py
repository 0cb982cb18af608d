"""Conversations in OpenAI's layout, trained on the assistant's turns.

    {"messages": [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi!"}]}

An assistant turn may carry `tool_calls`; a column `tools` (a list, or a JSON string of one) offers tools. It may have a
`weight`, the factor of its loss (0: not trained), and `train: true` or `false`, for `train_on: marked`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.data.formats import base
from llmkit.data.shapes import Shape

SHAPE = Shape.CONVERSATION
COLUMNS = ("messages",)
OPTIONAL = ("tools",)


def recognises(row: Mapping[str, Any]) -> base.Signs | None:
    """Return the signs of this format."""
    if not base.are_turns(row.get("messages")):
        return None
    return base.Signs(frozenset(COLUMNS), "column `messages` holds turns with `role` and `content`")


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `messages` and, if there are any, `tools`.

    Raises RowError.
    """
    messages = base.to_messages(base.require(row, "messages"), "messages")
    return {"messages": base.trainable(messages, "messages"), **base.tools_in(row)}
