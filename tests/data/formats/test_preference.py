from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.formats import preference
from llmkit.data.shapes import RowError, Shape

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"

ASK = {"role": "user", "content": "Say hi."}
GOOD = {"role": "assistant", "content": "Hi!"}
BAD = {"role": "assistant", "content": "No."}
AS_MESSAGES = {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}


def test_strings_stay_strings() -> None:
    row = {"prompt": "Say hi.", "chosen": "Hi!", "rejected": "No.", "score": 3}
    assert preference.SHAPE is Shape.PREFERENCE
    assert preference.convert(row) == {"prompt": "Say hi.", "chosen": "Hi!", "rejected": "No."}


@pytest.mark.parametrize(
    "row",
    [
        AS_MESSAGES,
        {"prompt": [ASK], "chosen": "Hi!", "rejected": "No."},
        {"prompt": "Say hi.", "chosen": [GOOD], "rejected": BAD},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": "Say hi.", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": [ASK], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {
            "conversations": [{"from": "human", "value": "Say hi."}],
            "chosen": {"from": "gpt", "value": "Hi!"},
            "rejected": [{"from": "gpt", "value": "No."}],
        },
        {"conversations": [{"from": "human", "value": "Say hi."}], "chosen": "Hi!", "rejected": "No."},
    ],
)
def test_every_layout_gives_the_same_messages(row: dict[str, Any]) -> None:
    assert preference.convert(row) == AS_MESSAGES


def test_shared_turns_are_the_prompt() -> None:
    system = {"role": "system", "content": "Be kind."}
    shared = [system, ASK, GOOD, {"role": "user", "content": "Again."}]
    row = {"chosen": [*shared, GOOD], "rejected": [*shared, BAD], "tools": [{"name": "wave"}]}
    assert preference.convert(row) == {
        "prompt": shared,
        "chosen": [GOOD],
        "rejected": [BAD],
        "tools": [{"name": "wave"}],
    }
    # A string prompt is the user's last turn, a system turn before it is kept.
    assert preference.convert(row | {"prompt": "Again."})["prompt"] == shared


STRINGS = {"prompt": "Say hi.", "chosen": "Hi!", "rejected": "No."}
OTHER = {"role": "user", "content": "Say bye."}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x", "chosen": "y", "reject": "z"}, "no column 'rejected' (did you mean 'reject'?)"),
        ({"chosen": "y", "rejected": "z"}, "no column 'prompt', which answers that are strings need"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "no column 'prompt'; the row's columns: chosen, rejected"),
        (STRINGS | {"rejected": "Hi!"}, "'chosen' and 'rejected' are equal"),
        (AS_MESSAGES | {"rejected": "Hi!"}, "'chosen' and 'rejected' are equal"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, GOOD]}, "'chosen' and 'rejected' are equal"),
        (STRINGS | {"chosen": ""}, "column 'chosen' is empty"),
        (STRINGS | {"chosen": []}, "chosen is an empty conversation"),
        (STRINGS | {"rejected": 4}, "column 'rejected' must be a string, not a number"),
        (STRINGS | {"rejected": [ASK]}, "rejected must begin with an assistant turn, not user"),
        (STRINGS | {"rejected": [BAD, ASK]}, "rejected must end with an assistant turn, not user"),
        (STRINGS | {"prompt": " "}, "column 'prompt' is empty"),
        (AS_MESSAGES | {"prompt": [ASK, GOOD]}, "prompt ends with the assistant; a prompt must end with the user"),
        ({"chosen": [ASK, GOOD], "rejected": [OTHER, BAD]}, "begin with different turns, so they share no prompt"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK]}, "'rejected' has no answer after the prompt"),
        ({"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, GOOD, OTHER, BAD]}, "chosen after the prompt must begin"),
        ({"prompt": "x", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "it differs from column 'prompt'"),
        ({"prompt": [OTHER], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "it differs from column 'prompt'"),
        (
            {"conversations": [{"from": "gpt", "value": "x"}], "chosen": "y", "rejected": "z"},
            "conversations ends with the assistant; a prompt must end with the user or a tool",
        ),
        (
            {"conversations": [{"from": "human", "value": "x"}], "chosen": {"from": "gpt"}, "rejected": "z"},
            "chosen[0] has no 'value'; its keys: from",
        ),
        ({"conversations": [{"from": "human", "value": "x"}], "chosen": 1, "rejected": "z"}, "column 'chosen' must be"),
    ],
)
def test_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        preference.convert(row)
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", ["dpo_en_demo", "dpo_zh_demo"])
def test_shared_pairs(name: str) -> None:
    file = SHARED / "lf_dpo_kto" / f"{name}.json"
    if not file.exists():
        pytest.skip("no shared data beside the repository")
    converted = [preference.convert(row) for row in json.loads(file.read_text(encoding="utf-8"))]
    assert len(converted) == 300
    assert all(row["prompt"][-1]["role"] == "user" and len(row["chosen"]) == 1 for row in converted)
