"""A prompt that the model answers itself; any other columns are kept, for the rewards.

    {"prompt": [{"role": "user", "content": "What is 2 + 3?"}], "answer": "5"}

`prompt` is a string, or messages that end with the user; `tools` are offered to the chat template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.data.formats import base
from llmkit.data.shapes import RowError, Shape

SHAPE = Shape.PROMPT
COLUMNS = ("prompt",)
OPTIONAL = ("tools",)


def recognises(row: Mapping[str, Any]) -> base.Signs | None:
    """Return the signs of this format."""
    if not base.is_said(row.get("prompt")):
        return None
    return base.Signs(frozenset(COLUMNS), "column `prompt` asks the model; all other columns are kept, for rewards")


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole row with its `prompt` checked.

    Raises RowError.
    """
    value = base.require(row, "prompt")
    row = {name: column for name, column in row.items() if name != "tools"} | base.tools_in(row)
    if not isinstance(value, list | tuple):
        return {**row, "prompt": base.filled(value, "column 'prompt'")}
    messages = base.to_messages(value, "prompt")
    if messages[-1]["role"] != "user":
        raise RowError(f"prompt ends with the {messages[-1]['role']}; it must end with the user")
    return {**row, "prompt": messages}
