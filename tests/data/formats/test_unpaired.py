from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.formats import unpaired
from llmkit.data.shapes import RowError, Shape, UnlearnableError

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"

ASK = {"role": "user", "content": "Say hi."}
GOOD = {"role": "assistant", "content": "Hi!"}
AS_MESSAGES = {"prompt": [ASK], "completion": [GOOD], "label": True}
STRINGS = {"prompt": "Say hi.", "completion": "No.", "label": False}


def test_strings_stay_strings() -> None:
    assert unpaired.SHAPE is Shape.UNPAIRED
    assert unpaired.convert(STRINGS | {"id": 3}) == STRINGS


@pytest.mark.parametrize(
    "row",
    [
        AS_MESSAGES,
        AS_MESSAGES | {"label": "True"},
        {"prompt": [ASK], "completion": "Hi!", "label": True},
        {"prompt": "Say hi.", "completion": GOOD, "label": True},
        {"messages": [ASK, GOOD], "label": True},
        {
            "conversations": [{"from": "human", "value": "Say hi."}, {"from": "gpt", "value": "Hi!"}],
            "kto_tag": True,
        },
    ],
)
def test_every_layout_gives_the_same_messages(row: dict[str, Any]) -> None:
    assert unpaired.convert(row) == AS_MESSAGES


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x", "label": True}, "no column 'completion'; the row's columns: prompt, label"),
        ({"completion": "x", "label": True}, "no column 'prompt'; the row's columns: completion, label"),
        ({"prompt": "x", "completion": "y", "labels": True}, "no column 'label' (did you mean 'labels'?)"),
        (STRINGS | {"label": 1}, "column 'label' must be true or false, not 1"),
        (STRINGS | {"label": None}, "column 'label' must be true or false, not None"),
        (STRINGS | {"label": "good"}, "column 'label' must be true or false, not 'good'"),
        (STRINGS | {"completion": [ASK]}, "completion must be one assistant turn, not user"),
        (STRINGS | {"prompt": []}, "prompt is an empty conversation"),
        ({"messages": [ASK], "label": True}, "messages has no assistant turn"),
        ({"messages": [ASK, GOOD, ASK], "label": True}, "messages ends with the user"),
        ({"messages": [GOOD], "label": True}, "messages before the answer ends with nothing"),
        ({"conversations": [{"from": "gpt", "value": "x"}], "kto_tag": True}, "conversations before the answer ends"),
    ],
)
def test_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        unpaired.convert(row)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        STRINGS | {"completion": ""},
        STRINGS | {"completion": [GOOD | {"content": " "}]},
        {"messages": [ASK, GOOD | {"content": ""}], "label": True},
        {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": ""}], "kto_tag": True},
    ],
)
def test_an_empty_answer_teaches_nothing(row: dict[str, Any]) -> None:
    with pytest.raises(UnlearnableError, match="^an answer is empty$"):
        unpaired.convert(row)


def test_shared_feedback() -> None:
    file = SHARED / "lf_dpo_kto" / "kto_en_demo.json"
    if not file.exists():
        pytest.skip("no shared data beside the repository")
    rows = json.loads(file.read_text(encoding="utf-8"))
    converted = [unpaired.convert(row) for row in rows]
    assert len(converted) == 300
    assert [row["label"] for row in converted] == [row["label"] for row in rows]
