from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.formats import question
from llmkit.data.shapes import RowError, Shape

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"question": "2 + 3?", "answer": "#### 5"}, [{"role": "user", "content": "2 + 3?"}]),
        (
            {"question": "2 + 3?", "answer": 5, "system": "Be brief.", "level": 1},
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"}],
        ),
        ({"question": "2 + 3?", "answer": "5", "prompt": None}, [{"role": "user", "content": "2 + 3?"}]),
    ],
)
def test_the_question_is_asked_and_the_row_kept(row: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    assert question.SHAPE is Shape.PROMPT
    assert question.convert(row) == {**row, "prompt": prompt}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"questions": "x", "answer": "y"}, "no column 'question' (did you mean 'questions'?)"),
        ({"question": "x"}, "no column 'answer'"),
        ({"question": " ", "answer": "y"}, "column 'question' is empty"),
        ({"question": "x", "answer": " "}, "column 'answer' is empty"),
        ({"question": "x", "answer": None}, "column 'answer' is empty"),
        ({"question": "x", "answer": "y", "prompt": "z"}, "'prompt' and 'question' contradict each other"),
        ({"question": "x", "answer": "y", "system": 3}, "column 'system' must be a string, not a number"),
    ],
)
def test_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        question.convert(row)
    assert reason in str(caught.value)


def test_gsm8k() -> None:
    file = SHARED / "gsm8k" / "train.jsonl"
    if not file.exists():
        pytest.skip("no shared data beside the repository")
    with file.open(encoding="utf-8") as lines:
        rows = [question.convert(json.loads(line)) for line in islice(lines, 5)]
    assert [row["answer"].rpartition("#### ")[2] for row in rows] == ["72", "10", "5", "42", "624"]
    assert rows[0]["prompt"][0]["content"].startswith("Natalia sold clips to 48 of her friends")
