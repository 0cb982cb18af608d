from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.formats import preference
from llmkit.data.shapes import RowError, Shape, UnlearnableError

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
        (STRINGS | {"chosen": None}, "column 'chosen' must be a string, not null"),
        (STRINGS | {"margin": "big"}, "column 'margin' must be a finite number, not a string"),
        (STRINGS | {"margin": True}, "column 'margin' must be a finite number, not true"),
        (STRINGS | {"margin": float("nan")}, "column 'margin' must be a finite number, not nan"),
        (STRINGS | {"rejected": 4}, "column 'rejected' must be a string, not a number"),
        (STRINGS | {"rejected": [ASK]}, "rejected must be one assistant turn, not user"),
        (STRINGS | {"rejected": [BAD, ASK]}, "rejected must be one assistant turn, not assistant, user"),
        (STRINGS | {"prompt": " "}, "column 'prompt' is empty"),
        (AS_MESSAGES | {"prompt": [ASK, GOOD]}, "prompt ends with the assistant; a prompt must end with the user"),
        ({"chosen": [ASK, GOOD], "rejected": [OTHER, BAD]}, "begin with different turns, so they share no prompt"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK]}, "'rejected' has no answer after the prompt"),
        (
            {"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, GOOD, OTHER, BAD]},
            "chosen after the prompt must be one",
        ),
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


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "wave", "arguments": {}}}]}
RESULT = {"role": "tool", "content": "waved"}


@pytest.mark.parametrize("between", [[GOOD, OTHER], [CALL, RESULT], [GOOD]], ids=["user", "tool", "assistant"])
def test_an_answer_holds_nothing_but_one_turn_of_the_model(between: list[dict[str, Any]]) -> None:
    row = {"chosen": [ASK, *between, GOOD], "rejected": [ASK, BAD]}
    with pytest.raises(RowError, match="chosen after the prompt must be one assistant turn.*count as the model's own"):
        preference.convert(row)


def test_a_tool_call_is_an_answer_although_its_content_is_empty() -> None:
    assert preference.convert({"prompt": [ASK], "chosen": [CALL], "rejected": [BAD]})["chosen"] == [CALL]


def test_a_margin_is_kept() -> None:
    assert preference.convert(AS_MESSAGES | {"margin": 2}) == AS_MESSAGES | {"margin": 2.0}
    assert preference.convert(AS_MESSAGES | {"margin": None}) == AS_MESSAGES


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (STRINGS | {"rejected": "Hi!"}, "the answers are equal"),
        (AS_MESSAGES | {"rejected": "Hi!"}, "the answers are equal"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, GOOD]}, "the answers are equal"),
        (STRINGS | {"chosen": ""}, "an answer is empty"),
        (STRINGS | {"rejected": " \n"}, "an answer is empty"),
        (STRINGS | {"chosen": []}, "an answer is empty"),
        (STRINGS | {"chosen": "", "rejected": ""}, "an answer is empty"),
        (AS_MESSAGES | {"rejected": [BAD | {"content": ""}]}, "an answer is empty"),
        (AS_MESSAGES | {"rejected": BAD | {"content": ""}}, "an answer is empty"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD | {"content": " "}]}, "an answer is empty"),
        (
            {
                "conversations": [{"from": "human", "value": "x"}],
                "chosen": {"from": "gpt", "value": "y"},
                "rejected": {"from": "gpt", "value": ""},
            },
            "an answer is empty",
        ),
    ],
)
def test_pairs_that_teach_nothing(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnlearnableError) as caught:
        preference.convert(row)
    assert str(caught.value) == reason


def test_an_empty_user_turn_is_no_empty_answer() -> None:
    with pytest.raises(RowError, match=r"chosen\[1\].content is empty") as caught:
        preference.convert({"chosen": [ASK, ASK | {"content": ""}], "rejected": [ASK, BAD]})
    assert not isinstance(caught.value, UnlearnableError)


@pytest.mark.parametrize("name", ["dpo_en_demo", "dpo_zh_demo"])
def test_shared_pairs(name: str) -> None:
    file = SHARED / "lf_dpo_kto" / f"{name}.json"
    if not file.exists():
        pytest.skip("no shared data beside the repository")
    converted = [preference.convert(row) for row in json.loads(file.read_text(encoding="utf-8"))]
    assert len(converted) == 300
    assert all(row["prompt"][-1]["role"] == "user" and len(row["chosen"]) == 1 for row in converted)
