"""Plain text, trained on every token; no chat template is applied.

{"text": "Once upon a time there was a fox."}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.data.formats import base
from llmkit.data.shapes import Shape

SHAPE = Shape.TEXT
COLUMNS = ("text",)
OPTIONAL = ()


def recognises(row: Mapping[str, Any]) -> base.Signs | None:
    """Return the signs of this format."""
    if not isinstance(row.get("text"), str):
        return None
    return base.Signs(frozenset(COLUMNS), "column `text` is a string")


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `text`.

    Raises RowError.
    """
    return {"text": base.required_text(row, "text")}
