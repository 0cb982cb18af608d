from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmkit.data.checking import check_data
from llmkit.data.misfits import mending
from llmkit.data.recognition import best, load_format
from llmkit.data.shapes import Shape
from llmkit.data.sources import first_row, format_of, read_examples
from llmkit.errors import RecipeError
from llmkit.recipe.recipe import Source

if TYPE_CHECKING:
    from collections.abc import Callable

SFT = {Shape.CONVERSATION, Shape.TEXT, Shape.PROMPT_COMPLETION}
ASK, SAY = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yo."}
NO = {"role": "assistant", "content": "No."}
PAIR = {"prompt": "a", "chosen": "x", "rejected": "y"}
TALK = {"messages": [ASK, SAY]}


def said(folder: Path, row: dict[str, Any], accepts: set[Shape], **keys: Any) -> str:
    (folder / "t.jsonl").write_text(json.dumps(row), encoding="utf-8")
    source = Source(path="t.jsonl", **keys)
    chosen = format_of(source, folder).format
    return mending(first_row(source, folder, chosen), chosen, source, accepts)


@pytest.mark.parametrize(
    ("row", "accepts", "line"),
    [
        ({"prompt": "x", "completion": 3}, SFT, "It is not prompt_completion: column 'completion' must be a string,"),
        (
            {"prompt": "x", "completion": "y", "label": "yes"},
            {Shape.UNPAIRED},
            "It is not unpaired: column 'label' must be true or false, not 'yes'.",
        ),
        (TALK, {Shape.PREFERENCE}, "Formats that it learns from, and their columns: preference: chosen, rejected;"),
        ({"prompt": "x", "n": 1}, SFT, "Formats that it learns from, and their columns: alpaca: instruction, output;"),
        (PAIR, {Shape.PROMPT}, "The rows can be read with `format: prompt`."),
        (PAIR | {"tools": []}, {Shape.CONVERSATION}, "Formats that it learns from"),
        (
            {"messages": [ASK, SAY], "label": True},
            SFT,
            "The rows can be read with `format: messages`. That leaves `label` unread.",
        ),
    ],
)  # fmt: skip
def test_what_the_row_nearly_is(tmp_path: Path, row: dict[str, Any], accepts: set[Shape], line: str) -> None:
    assert any(one.startswith(line) for one in said(tmp_path, row, accepts).splitlines())


@pytest.mark.parametrize(
    ("row", "accepts", "keys", "columns"),
    [
        ({"question": "x", "answer": "y"}, SFT, {}, {"prompt": "question", "completion": "answer"}),
        ({"question": "x", "answer": 3}, SFT, {}, None),
        ({"prompt": "x", "n": 1, "resp": "y"}, SFT, {}, {"completion": "resp"}),
        ({"prompt": "x", "n": 1}, SFT, {}, None),
        ({"ctx": "x", "resp": "y"}, SFT, {"columns": {"prompt": "ctx"}}, {"prompt": "ctx", "completion": "resp"}),
        (PAIR, SFT, {}, {"completion": "chosen"}),
        ({"chosen": [ASK, SAY], "rejected": [ASK, NO]}, SFT, {}, {"messages": "chosen"}),
        ({"instruction": "x", "output": "y"}, {Shape.PROMPT}, {}, {"question": "instruction", "answer": "output"}),
        ({"instruction": "x", "input": "z", "output": "y"}, {Shape.PROMPT}, {}, None),
        (TALK, {Shape.PREFERENCE}, {}, None),
    ],
)
def test_columns_that_are_offered_are_true(
    tmp_path: Path, row: dict[str, Any], accepts: set[Shape], keys: dict[str, Any], columns: dict[str, str] | None
) -> None:
    found = said(tmp_path, row, accepts, **keys)
    if columns is None:
        assert "such as" not in found
        return
    inside = ", ".join(f"{column}: {name}" for column, name in columns.items())
    assert found.endswith(f"Name the columns that are meant, such as `columns: {{{inside}}}`.")
    mended = Source(path="t.jsonl", columns=columns)
    assert format_of(mended, tmp_path).format.shape in accepts
    assert [type(example) for _, example in read_examples(mended, tmp_path)] == [dict]


@pytest.mark.parametrize(
    ("row", "accepts", "made"),
    [
        (TALK, {Shape.PROMPT}, {"prompt": [ASK], "answer": "Yo."}),
        ({"prompt": [ASK], "answer": "Yo."}, SFT, TALK),
        ({"prompt": [ASK], "chosen": [SAY], "rejected": [NO]}, SFT, TALK),
    ],
)
def test_functions_that_are_offered_are_true(
    tmp_path: Path, row: dict[str, Any], accepts: set[Shape], made: dict[str, Any]
) -> None:
    _, _, code = said(tmp_path, row, accepts).partition("with\n")
    names: dict[str, Any] = {}
    exec(code.replace("in rows.py beside the recipe.", "").replace("  def", "def"), names)
    assert names["fitted"](row) == made
    (name,) = best(made)
    assert load_format(name).shape in accepts


def test_a_misspelt_key_of_columns_is_said(tmp_path: Path) -> None:
    keys = {"columns": {"completoin": "response"}}
    found = said(tmp_path, {"prompt": "x", "response": "y"}, SFT, **keys)
    assert found.startswith("`completoin` is no format's column (did you mean 'completion'?).\n")
    with pytest.raises(Exception, match="`completoin` is no format's column") as caught:
        said(tmp_path, {"ctx": "x", "response": "y"}, SFT, **keys)
    assert "no format is recognised" in str(caught.value)


@pytest.mark.parametrize(
    ("row_format", "end"),
    [
        ("auto", "such as `columns: {prompt: question, completion: answer}`."),
        # No row is read where the recipe itself is known to be wrong.
        ("question", "prompt_completion: prompt, completion; sharegpt: conversations; text: text."),
    ],
)
def test_the_recipe_says_it(recipe: Callable[..., Any], tmp_path: Path, row_format: str, end: str) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "x", "answer": "y"}', encoding="utf-8")
    made = recipe("data.train.0.path=q.jsonl", f"data.train.0.format={row_format}", "data.eval=0.5").placed(tmp_path)
    with pytest.raises(RecipeError) as caught:
        check_data(made, read=True)
    assert caught.value.what.startswith(
        "method 'sft' learns from conversation, prompt_completion, text rows, but format "
    )
    assert caught.value.remedy is not None
    assert caught.value.remedy.endswith(end)
