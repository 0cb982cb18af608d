from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.recognition import Chosen, best, formats, load_format, recognise
from llmkit.data.shapes import RowError
from llmkit.errors import DataError

ASK = {"role": "user", "content": "Say hi."}
SAY = {"role": "assistant", "content": "Hi!"}
HUMAN = {"from": "human", "value": "Say hi."}
GPT = {"from": "gpt", "value": "Hi!"}
NO = {"role": "assistant", "content": "No."}
NOT = {"from": "gpt", "value": "No."}
SCORED = [{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": 2}]

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": [ASK, SAY]}),
    ("messages", {"messages": [ASK, SAY], "tools": "[]", "source": "x", "label": 3}),
    ("messages", {"messages": [ASK, {"role": "assistant", "tool_calls": [{}]}, {"role": "tool", "content": "x"}, SAY]}),
    ("sharegpt", {"conversations": [HUMAN, GPT], "system": "Be brief."}),
    ("alpaca", {"instruction": "x", "input": "", "output": "y"}),
    ("prompt_completion", {"prompt": "x", "completion": "y"}),
    ("prompt_completion", {"prompt": "x", "completion": "y", "label": None}),
    ("prompt_completion", {"prompt": "x", "completion": "y", "label": 3}),  # a class, and no verdict
    ("text", {"text": "x", "url": "y"}),
    ("text", {"text": ""}),  # an empty row has its type still
    ("preference", {"prompt": "x", "chosen": "a", "rejected": "b"}),
    ("preference", {"prompt": [ASK], "chosen": [SAY], "rejected": [NO], "margin": 1}),
    ("preference", {"prompt": [ASK], "chosen": SAY, "rejected": NO}),
    ("preference", {"chosen": [ASK, SAY], "rejected": [ASK, NO]}),
    ("preference", {"conversations": [HUMAN], "chosen": GPT, "rejected": NOT}),
    ("scored", {"prompt": "x", "completions": ["a", "b"], "scores": [1, 2]}),
    ("scored", {"instruction": "x", "completions": SCORED, "models": ["m"]}),
    ("unpaired", {"prompt": "x", "completion": "y", "label": True}),
    ("unpaired", {"prompt": "x", "completion": "y", "label": "False"}),
    ("unpaired", {"prompt": [ASK], "completion": SAY, "label": False}),
    ("unpaired", {"messages": [ASK, SAY], "label": True}),
    ("unpaired", {"conversations": [HUMAN, GPT], "kto_tag": False}),
    ("prompt", {"prompt": [ASK], "answer": "5"}),
    ("prompt", {"prompt": "x", "completion": None, "chosen": None, "rejected": None}),
    ("question", {"question": "x", "answer": "5"}),
    ("question", {"question": "x", "answer": 5, "system": "y"}),
]


def name_of(row: dict[str, Any], *mapped: str) -> str:
    return recognise([("t.jsonl:1", row)], mapped, "t.jsonl").format.name


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_recognised(name: str, row: dict[str, Any]) -> None:
    assert name_of(row) == name
    assert best(row)[name].columns <= row.keys()


def test_every_format_is_recognised_by_columns_that_it_has() -> None:
    assert {name for name, _ in ROWS} == {f.name for f in formats()}
    for name, row in ROWS:
        known = load_format(name)
        assert best(row)[name].columns <= {*known.columns, *known.optional}


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, row in ROWS if row.get("text") != ""])
def test_what_is_recognised_can_be_converted(name: str, row: dict[str, Any]) -> None:
    assert load_format(name).convert(row)


def test_the_rows_of_the_docs_are_recognised() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- test: format (\w+) -->\n```jsonl\n(.*?)```", page, re.DOTALL)
    found = [(name, name_of(json.loads(line))) for name, text in blocks for line in text.splitlines()]
    assert len(found) > 12
    assert [pair for pair in found if pair[0] != pair[1]] == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [ASK, SAY]}, "column `messages` holds turns with `role` and `content`"),
        ({"text": "x", "category": "y"}, "column `text` is a string; not read: `category`"),
        ({"prompt": "x", "level": 3}, "column `prompt` asks the model; all other columns are kept, for rewards"),
        (
            {"text": "x"} | {f"c{i}": i for i in range(10)},
            "column `text` is a string; not read: `c0`, `c1`, `c2`, `c3`, `c4`, `c5`, `c6`, `c7` and 2 more",
        ),
        ({"messages": [ASK, SAY], "label": True}, "column `label` says whether the answer in `messages` is good"),
        (
            {"prompt": "x", "completion": "y", "label": True},
            "column `label` says whether the answer in `prompt` and `completion` is good",
        ),
    ],
)
def test_the_reason_says_what_it_went_by_and_what_is_left(row: dict[str, Any], reason: str) -> None:
    assert recognise([("t.jsonl:1", row)], (), "t.jsonl").reason == reason


def refusal(*rows: Any, mapped: tuple[str, ...] = (), hint: str = "") -> DataError:
    head = [(f"t.jsonl:{line}", row) for line, row in enumerate(rows, start=1)]
    with pytest.raises(DataError) as caught:
        recognise(head, mapped, "t.jsonl", hint)
    return caught.value


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"messages": [ASK, SAY], "prompt": "x", "completion": "y"}, "messages, prompt_completion"),
        ({"messages": [ASK, SAY], "prompt": "x"}, "messages, prompt"),
        ({"messages": [ASK, SAY], "prompt": "x", "chosen": "a", "rejected": "b"}, "messages, preference"),
        ({"messages": [ASK, SAY], "conversations": [HUMAN, GPT]}, "messages, sharegpt"),
        ({"instruction": "x", "output": "y", "text": "z"}, "alpaca, text"),
        ({"prompt": "x", "question": "x", "answer": "y"}, "prompt, question"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "completion": "y"}, "preference, prompt_completion"),
    ],
)
def test_two_that_fit_as_well_are_never_chosen_between(row: dict[str, Any], names: str) -> None:
    error = refusal(row)
    assert error.where == "t.jsonl:1"
    assert error.what == f"the row fits 2 formats: {names}"
    for name in names.split(", "):
        assert f"  format: {name} " in (error.remedy or "")


def test_merged_rows_are_of_one_format_alone_if_its_columns_hold_all_the_others() -> None:
    """For every two rows of different formats: one is chosen only if it knows strictly more of the columns."""
    chosen = 0
    for (first, a), (second, b) in combinations(ROWS, 2):
        merged = b | a
        found = {f.name: signs.columns for f in formats() if (signs := f.recognises(merged)) is not None}
        kept = best(merged)
        assert set(kept) == {n for n, c in found.items() if not any(c < other for other in found.values())}
        if len(kept) == 1 and first != second:
            chosen += 1
            (only,) = kept
            assert all(found[only] >= columns for columns in found.values())
        elif len(kept) > 1:
            with pytest.raises(DataError, match="the row fits"):
                recognise([("x", merged)], (), "x")
    assert chosen > 10


def test_rows_of_two_formats_are_told_apart_with_their_places() -> None:
    error = refusal({"text": "x"}, {"id": 3}, {"instruction": "x", "output": "y"})
    assert str(error) == (
        "t.jsonl: the first rows are of 2 formats: text, alpaca\n"
        "Write the one that is meant into the source; the rows of the others will count as broken:\n"
        "  format: text               # t.jsonl:1: column `text` is a string\n"
        "  format: alpaca             # t.jsonl:3: columns `instruction` and `output` are strings"
    )


@pytest.mark.parametrize(
    "broken",
    [
        {"prompt": "x", "chosen": "a", "rejected": 3},
        {"prompt": "x", "chosen": "a", "rejected": None},
        {"prompt": "x", "chosen": "a"},
        {"prompt": "x"},
    ],
)
def test_a_broken_row_does_not_make_it_another_format(broken: dict[str, Any]) -> None:
    whole = {"prompt": "x", "chosen": "a", "rejected": "b"}
    for rows in ([whole, broken], [broken, whole]):
        assert recognise([("x", row) for row in rows], (), "x").format.name == "preference"


def test_rows_that_are_of_no_format_are_left_to_the_conversion() -> None:
    head = [("a", RowError("not JSON")), ("b", {"id": 1}), ("c", {"messages": []}), ("d", {"messages": [ASK, SAY]})]
    assert recognise(head, (), "x").format.name == "messages"


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        (
            {"Rank": "1", "Puzzles": "1 1 4 6"},
            ["in the columns `Rank`, `Puzzles`\n", "e.g. `columns: {prompt: Rank, completion: Puzzles}`.\nFormats and"],
        ),
        (
            {"question": {"stem": "x"}, "answer": "A"},
            ["It is not question: column 'question' must be a string, not an object.\n", "question: question, answer;"],
        ),
        (
            {"instruction": "a", "response": "b"},
            ["It is not alpaca: no column 'output'; the row's columns: instruction"],
        ),
        ({"messages": [{"from": "human", "value": "x"}]}, ["It is not messages: messages[0] has no 'role'"]),
        ({"messages": "x"}, ["It is not messages: messages must be a list of turns, not a string"]),
        (
            {"chosen": "x", "rejected": "y"},
            ["It is not preference: no column 'prompt', which answers that are strings"],
        ),
        ({"a, b": "x"}, ['`columns: {text: "a, b"}`']),
        ({"n" * 90: "x"}, [f"`{'n' * 37}...`"]),
        ({str(i): i for i in range(20)}, ["`6`, `7`, ...\n"]),
        ({}, ["in the columns (none)\n"]),
    ],
)
def test_nothing_fits(row: dict[str, Any], parts: list[str]) -> None:
    error = refusal(row, hint="A hint.")
    assert error.where == "t.jsonl:1"
    assert "\nA hint.\nSay which column is which" in f"\n{error.remedy}"
    assert [part for part in parts if part not in f"{error.what}\n{error.remedy}"] == []


@pytest.mark.parametrize(
    ("row", "mapped", "name"),
    [
        ({"text": "x", "prompt": "x", "completion": "y"}, ["prompt", "completion"], "prompt_completion"),
        ({"text": "x", "prompt": "x", "completion": "y"}, ["text"], "text"),
        ({"question": "x", "answer": "y", "prompt": "z"}, ["prompt"], "prompt"),
        ({"prompt": "x", "answer": "y"}, ["answer"], "prompt"),  # no format is recognised by it: all are asked
        ({"messages": [ASK, SAY], "text": "x"}, ["text"], "text"),
    ],
)
def test_what_the_recipe_maps_says_what_is_meant(row: dict[str, Any], mapped: list[str], name: str) -> None:
    assert name_of(row, *mapped) == name


def test_no_rows() -> None:
    assert refusal().what == "holds no rows"
    error = refusal(RowError("not JSON: x"), RowError("y"))
    assert str(error) == "t.jsonl:1: none of the first 2 rows can be read; this one: not JSON: x"


def test_a_choice_is_a_value() -> None:
    head = [("x", {"text": "a"})]
    assert recognise(head, (), "x") == Chosen(load_format("text"), "column `text` is a string")
