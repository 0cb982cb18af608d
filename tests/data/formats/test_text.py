from __future__ import annotations

from typing import Any

import pytest

from llmkit.data.formats import text
from llmkit.data.shapes import RowError, Shape


@pytest.mark.parametrize("row", [{"text": "Once upon a time."}, {"text": " two\n\nlines ", "url": "x"}])
def test_text_is_kept_as_it_is(row: dict[str, Any]) -> None:
    assert text.SHAPE is Shape.TEXT
    assert text.convert(row) == {"text": row["text"]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"txt": "x"}, "no column 'text' (did you mean 'txt'?); the row's columns: txt"),
        ({"text": "\n"}, "column 'text' is empty"),
        ({"text": None}, "column 'text' must be a string, not null"),
        ({"text": 1.5}, "column 'text' must be a string, not a number"),
    ],
)
def test_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        text.convert(row)
    assert reason in str(caught.value)
