from __future__ import annotations

from typing import Any

import pytest

from llmkit.data.formats import prompt
from llmkit.data.shapes import RowError, Shape


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What is 2 + 3?", "answer": "5"},
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 3?"}],
            "answer": 5,
            "level": None,
        },
    ],
)
def test_whole_row_is_kept(row: dict[str, Any]) -> None:
    assert prompt.SHAPE is Shape.PROMPT
    assert prompt.convert(row) == row


def test_prompt_of_a_parquet_row_loses_its_nulls() -> None:
    row = {"prompt": [{"role": "user", "content": "Hi", "tool_calls": None}], "answer": "x"}
    assert prompt.convert(row) == {"prompt": [{"role": "user", "content": "Hi"}], "answer": "x"}


def test_tools_are_read_as_everywhere() -> None:
    row = {"prompt": "Hi", "tools": '[{"name": "wave"}]'}
    assert prompt.convert(row) == {"prompt": "Hi", "tools": [{"name": "wave"}]}
    assert prompt.convert(row | {"tools": []}) == {"prompt": "Hi"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "x"}, "no column 'prompt'; the row's columns: question"),
        ({"prompt": ""}, "column 'prompt' is empty"),
        ({"prompt": 3}, "column 'prompt' must be a string, not a number"),
        ({"prompt": []}, "prompt is an empty conversation"),
        ({"prompt": [{"role": "system", "content": "x"}]}, "prompt ends with the system; it must end with the user"),
        ({"prompt": [{"role": "human", "content": "x"}]}, "prompt[0]: unknown role 'human'"),
    ],
)
def test_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        prompt.convert(row)
    assert reason in str(caught.value)
