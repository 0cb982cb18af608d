from __future__ import annotations

from typing import Any

import pytest

from llmkit.data.formats import scored
from llmkit.data.shapes import RowError, Shape, UnlearnableError

LISTS = {"prompt": "Say hi.", "completions": ["Hm.", "Hi!", "No."], "scores": [0.5, 0.9, 0.1]}
PAIR = {"prompt": "Say hi.", "chosen": "Hi!", "rejected": "No."}


@pytest.mark.parametrize(
    "row",
    [
        LISTS,
        {
            "instruction": "Say hi.",
            "models": ["a", "b", "c"],
            "completions": [
                {"model": "a", "response": "No.", "overall_score": 1.0, "annotations": {}},
                {"model": "b", "response": "Hm.", "overall_score": 7},
                {"model": "c", "response": "Hi!", "overall_score": 8.5},
            ],
        },
        {"prompt": "Say hi.", "completions": [{"content": "No.", "score": -1}, {"content": "Hi!", "score": 0}]},
        {"prompt": "Say hi.", "completions": [{"text": "Hi!", "score": 2}, {"text": "No.", "score": 1}]},
    ],
)
def test_best_against_worst(row: dict[str, Any]) -> None:
    assert scored.SHAPE is Shape.PREFERENCE
    assert scored.convert(row) == PAIR


def test_of_equal_scores_the_first_counts() -> None:
    row = {"prompt": "x", "completions": ["a", "b", "c", "d"], "scores": [1, 2, 2, 1]}
    assert scored.convert(row) == {"prompt": "x", "chosen": "b", "rejected": "a"}


def test_messages_margin_and_tools() -> None:
    ask, good, bad = ({"role": role, "content": role} for role in ("user", "assistant", "assistant"))
    bad["content"] = "No."
    row = {"prompt": [ask], "completions": [[bad], [good]], "scores": [0, 1], "margin": 1, "tools": [{"name": "wave"}]}
    assert scored.convert(row) == {
        "prompt": [ask],
        "chosen": [good],
        "rejected": [bad],
        "margin": 1.0,
        "tools": [{"name": "wave"}],
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scores": [1, 1, 1]}, "all answers have the same score"),
        ({"completions": ["a"], "scores": [1]}, "fewer than two scored answers"),
        ({"completions": [], "scores": []}, "fewer than two scored answers"),
        ({"completions": ["Hi!", "Hi!"], "scores": [1, 2]}, "the answers are equal"),
        ({"completions": ["Hi!", ""], "scores": [1, 2]}, "an answer is empty"),
    ],
)
def test_rows_that_teach_nothing(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnlearnableError) as caught:
        scored.convert(LISTS | change)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"completions": ["a", "b"], "scores": [1, 2]}, "the row has none of prompt, instruction; it has completions"),
        ({"prompt": "x", "completion": ["a"]}, "no column 'completions' (did you mean 'completion'?)"),
        ({"prompt": "x", "completions": "a"}, "column 'completions' must be a list, not a string"),
        ({"prompt": "x", "completions": ["a", "b"]}, "no column 'scores', and the completions are no objects"),
        (LISTS | {"scores": [1, 2]}, "column 'scores' must be a list of 3 numbers"),
        (LISTS | {"scores": [1, 2, None]}, "score of completions[2] must be a finite number, not null"),
        (LISTS | {"scores": [1, 2, "3"]}, "score of completions[2] must be a finite number, not a string"),
        ({"prompt": "x", "completions": [{"text": "a", "score": 1}, {"text": "b"}]}, "completions[1] has none of"),
        ({"prompt": "x", "completions": [{"answer": "a", "score": 1}]}, "completions[0] has none of response, content"),
        (LISTS | {"completions": ["a", 4, "c"]}, "column 'completions[1]' must be a string, not a number"),
    ],
)
def test_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        scored.convert(row)
    assert reason in str(caught.value)
    assert not isinstance(caught.value, UnlearnableError)
