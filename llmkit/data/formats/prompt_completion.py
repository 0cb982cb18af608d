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


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `prompt` and `completion`.

    Raises RowError.
    """
    return {name: base.required_text(row, name) for name in COLUMNS}
