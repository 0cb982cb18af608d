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


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `text`.

    Raises RowError.
    """
    return {"text": base.required_text(row, "text")}
