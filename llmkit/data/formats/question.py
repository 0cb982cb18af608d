"""A question and its answer in two columns, as GSM8K has them: the model answers itself, and rewards see the answer.

    {"question": "What is 2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\\n#### 5"}

The question becomes the user's turn, after the system's if there is a column `system`; all columns are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.data.formats import base
from llmkit.data.shapes import RowError, Shape

SHAPE = Shape.PROMPT
COLUMNS = ("question", "answer")
OPTIONAL = ("system",)


def recognises(row: Mapping[str, Any]) -> base.Signs | None:
    """Return the signs of this format."""
    if not isinstance(row.get("question"), str) or row.get("answer") is None:
        return None
    return base.Signs(frozenset(COLUMNS), "column `question` asks the model, and `answer` is there for rewards")


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole row with a `prompt` made of its question.

    Raises RowError.
    """
    question = base.required_text(row, "question")
    answer = base.require(row, "answer")
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        raise RowError("column 'answer' is empty")
    if row.get("prompt") is not None:
        raise RowError("the columns 'prompt' and 'question' contradict each other: keep one")
    system = base.optional_text(row, "system")
    return {**row, "prompt": [*(base.said("system", system) if system else []), *base.said("user", question)]}
