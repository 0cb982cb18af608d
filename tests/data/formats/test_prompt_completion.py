from __future__ import annotations

from typing import Any

import pytest

from llmkit.data.formats import prompt_completion
from llmkit.data.shapes import RowError, Shape


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "The capital of France is", "completion": " Paris."},
        {"id": "7", "prompt": "2 + 3 =\n", "completion": "5"},
    ],
)
def test_strings_are_kept_as_they_are(row: dict[str, Any]) -> None:
    assert prompt_completion.SHAPE is Shape.PROMPT_COMPLETION
    assert prompt_completion.convert(row) == {"prompt": row["prompt"], "completion": row["completion"]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x", "response": "y"}, "no column 'completion'; the row's columns: prompt, response"),
        ({}, "no column 'prompt'; the row's columns: none"),
        ({"prompt": "x", "completion": ""}, "column 'completion' is empty"),
        ({"prompt": [], "completion": "y"}, "column 'prompt' must be a string, not a list"),
        ({"prompt": "x", "completion": {"a": 1}}, "column 'completion' must be a string, not an object"),
    ],
)
def test_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        prompt_completion.convert(row)
    assert reason in str(caught.value)
