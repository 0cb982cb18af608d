"""Instructions in Stanford Alpaca's layout, as a conversation trained on the assistant's turns.

    {"instruction": "Translate to French.", "input": "Good morning", "output": "Bonjour"}

`input`, `system` and `history` ([[user, assistant], ...], the turns before) are optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.data.formats import base
from llmkit.data.shapes import RowError, Shape

SHAPE = Shape.CONVERSATION
COLUMNS = ("instruction", "output")
OPTIONAL = ("input", "system", "history")


def recognises(row: Mapping[str, Any]) -> base.Signs | None:
    """Return the signs of this format."""
    if not all(isinstance(row.get(name), str) for name in COLUMNS):
        return None
    return base.Signs(frozenset(COLUMNS), "columns `instruction` and `output` are strings")


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `messages`: system, history, then instruction and input as the user's turn, output as the answer.

    Raises RowError.
    """
    instruction = base.required_text(row, "instruction")
    extra = base.optional_text(row, "input")
    output = base.required_text(row, "output")
    system = base.optional_text(row, "system")
    return {
        "messages": [
            *(base.said("system", system) if system else []),
            *_history(row.get("history")),
            *base.said("user", f"{instruction}\n\n{extra}" if extra else instruction),
            *base.said("assistant", output),
        ]
    }


def _history(value: Any) -> list[base.Message]:
    if value is None or value == "":  # an empty CSV field
        return []
    if not isinstance(value, list | tuple):
        raise RowError(f"column 'history' must be a list of [user, assistant] pairs, not {base.kind(value)}")
    messages: list[base.Message] = []
    for index, pair in enumerate(value):
        place = f"history[{index}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f"{place} must be a pair [user, assistant]")
        messages += base.said("user", base.filled(pair[0], f"{place}[0]"))
        messages += base.said("assistant", base.filled(pair[1], f"{place}[1]"))
    return messages
