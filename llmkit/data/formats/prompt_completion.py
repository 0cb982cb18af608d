"""A prompt and its completion as plain strings, trained on the completion only; no chat template is applied.

{"prompt": "The capital of France is", "completion": " Paris."}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.data.formats import base
from llmkit.data.shapes import Shape

SHAPE = Shape.PROMPT_COMPLETION
COLUMNS = ("prompt", "completion")
OPTIONAL = ()


def recognises(row: Mapping[str, Any]) -> base.Signs | None:
    """Return the signs of this format."""
    if not all(isinstance(row.get(name), str) for name in COLUMNS):
        return None
    return base.Signs(frozenset(COLUMNS), "columns `prompt` and `completion` are strings")


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `prompt` and `completion`.

    Raises RowError.
    """
    return {name: base.required_text(row, name) for name in COLUMNS}
