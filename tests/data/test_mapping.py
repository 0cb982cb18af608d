from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit.data import sources
from llmkit.data.shapes import LeftOutError, RowError
from llmkit.errors import DataError, LlmkitError, RecipeError, SetupError
from llmkit.recipe.recipe import Source


def source(folder: Path, *rows: dict[str, Any], **keys: Any) -> Source:
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return Source(path="t.jsonl", **keys)


def examples(folder: Path, *rows: dict[str, Any], **keys: Any) -> list[Any]:
    """Return the examples of the rows; a RowError is its text."""
    placed = sources.read_examples(source(folder, *rows, **keys), folder)
    return [str(row) if isinstance(row, RowError) else row for _, row in placed]


def refusal(error: type[LlmkitError], folder: Path, *rows: dict[str, Any], **keys: Any) -> LlmkitError:
    with pytest.raises(error) as caught:
        examples(folder, *rows, **keys)
    return caught.value


# --- columns ---


@pytest.mark.parametrize(
    ("columns", "row", "example"),
    [
        ({"prompt": "q", "completion": "a"}, {"q": "x", "a": "y"}, {"prompt": "x", "completion": "y"}),
        # The rows' own column of that name gives way.
        ({"completion": "a"}, {"prompt": "x", "completion": "z", "a": "y"}, {"prompt": "x", "completion": "y"}),
        ({"prompt": "completion", "completion": "prompt"}, {"prompt": "x", "completion": "y"},
         {"prompt": "y", "completion": "x"}),
        ({"prompt": "a", "completion": "a"}, {"a": "x"}, {"prompt": "x", "completion": "x"}),
        ({"prompt": "prompt", "completion": "a"}, {"prompt": "x", "a": "y"}, {"prompt": "x", "completion": "y"}),
        # What was renamed is gone, the others stay: `prompt` keeps them for rewards.
        ({"prompt": "q"}, {"q": "x", "level": 3}, {"prompt": "x", "level": 3}),
        ({"text": "{{ a }}: {{ b }}\n"}, {"a": 1, "b": "y"}, {"text": "1: y\n"}),
        ({"text": "{% for t in list %}{{ loop.index }}{{ t.x }} {% endfor %}"}, {"list": [{"x": "a"}, {"x": "b"}]},
         {"text": "1a 2b "}),
        ({"text": "{{ row['Puzzle (s)'] }}"}, {"Puzzle (s)": "x"}, {"text": "x"}),
        ({"text": "{{ row }}"}, {"row": "my own"}, {"text": "my own"}),
        ({"text": "{{ a | tojson }}"}, {"a": {"x": "<é>"}}, {"text": '{"x": "<é>"}'}),
        ({"text": "<b>{{ a }}</b>"}, {"a": "1 < 2 & 3"}, {"text": "<b>1 < 2 & 3</b>"}),
        ({"text": "{% if b is defined %}{{ b }}{% else %}-{% endif %}"}, {"a": 1}, {"text": "-"}),
        ({"prompt": "q", "completion": "{{ q }}!"}, {"q": "x"}, {"prompt": "x", "completion": "x!"}),
        ({"label": "{{ score > 3 }}", "prompt": "q", "completion": "a"}, {"q": "x", "a": "y", "score": 4},
         {"prompt": "x", "completion": "y", "label": True}),
    ],
)  # fmt: skip
def test_columns(tmp_path: Path, columns: dict[str, str], row: dict[str, Any], example: dict[str, Any]) -> None:
    assert examples(tmp_path, row, columns=columns) == [example]


def test_a_missing_column_of_the_first_row_stops_the_reading(tmp_path: Path) -> None:
    for line, name in (("qestion", "qestion"), ("{{ qestion }}?", "qestion")):
        error = refusal(DataError, tmp_path, {"question": "x", "id": 1}, columns={"text": line}, format="text")
        assert error.where == "t.jsonl:1"
        assert error.what == (
            f"no column {name!r} (did you mean 'question'?), of which `columns` makes 'text'; "
            "the row's columns: question, id"
        )
    error = refusal(DataError, tmp_path, {"question": "x"}, columns={"text": "qestion"})
    assert "the only row can't be read: no column 'qestion'" in error.what


def test_a_missing_column_further_down_is_a_broken_row(tmp_path: Path) -> None:
    rows = examples(tmp_path, {"a": "x"}, {"b": "y"}, {"a": "z"}, columns={"text": "a"})
    missing = "no column 'a', of which `columns` makes 'text'; the row's columns: b"
    assert rows == [{"text": "x"}, missing, {"text": "z"}]
    rows = examples(tmp_path, {"a": "x"}, {"b": "y"}, {"a": "z"}, columns={"text": "{{ a }}"})
    assert rows == [{"text": "x"}, missing, {"text": "z"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{{ a.b.c }}", "UndefinedError: 'int object' has no attribute 'b'"),
        ("{{ a[0] }}", "UndefinedError: int object has no element 0"),
        ("{{ 1 // a }}", "ZeroDivisionError: "),
        ("{{ a + '' }}", "TypeError: "),
        ("{{ range(10 ** 9) | list }}", "OverflowError: Range too big"),
        ("{{ a.__class__.__mro__ }}", "SecurityError: access to attribute '__class__' of 'int' object is unsafe"),
    ],
)
def test_a_line_that_fails_on_a_row_breaks_this_row(tmp_path: Path, line: str, reason: str) -> None:
    (found,) = examples(tmp_path, {"a": 0}, columns={"text": line}, format="text")
    assert found.startswith(f"`columns.text`: {reason}")


def test_a_line_can_not_change_the_row(tmp_path: Path) -> None:
    columns = {"prompt": "q", "completion": "{{ q.append('z') }}"}
    (found,) = examples(tmp_path, {"q": ["x"]}, columns=columns, format="prompt_completion")
    assert "SecurityError" in found


def test_a_line_can_not_write_half_a_character(tmp_path: Path) -> None:
    (found,) = examples(tmp_path, {"a": "😀"}, columns={"text": r"{{ a }}{{ '\ud83d' }}"}, format="text")
    assert found == r"column 'text' has a lone surrogate (\ud83d), which is no character"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"columns": {"text": "{{ a"}}, "t.jsonl: `columns.text` is no Jinja: "),
        ({"columns": {"text": "{% for x in y %}"}}, "is no Jinja: Unexpected end of template."),
        ({"columns": {"text": "{{ a | nofilter }}"}}, "is no Jinja: No filter named 'nofilter'"),
        ({"columns": {"text": "{{ a | random }}"}}, "is no Jinja: No filter named 'random'"),
        (
            {"columns": {"promt": "a"}, "format": "prompt_completion"},
            "t.jsonl: format 'prompt_completion' has no column 'promt' (did you mean 'prompt'?)\n"
            "Its columns: prompt, completion. In `columns`, the format's column comes first: `prompt: NAME IN",
        ),
        (
            {"columns": {"text": "a"}, "python": "f.py:f"},
            "`python` makes the whole row, so `columns` has nothing to do",
        ),
        ({"python": "gone.py:f"}, "`python`: the file can't be read: No such file"),
    ],
)
def test_refused_before_a_row_is_read(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    (tmp_path / "t.jsonl").write_text("not read", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        sources.check_source(Source(path="t.jsonl", **keys), tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("row_format", "columns"),
    [
        ("alpaca", {"input": "a", "system": "b"}),
        ("unpaired", {"messages": "turns", "label": "liked"}),
        ("scored", {"instruction": "q", "completions": "answers"}),
        ("prompt", {"prompt": "q", "anything": "for the rewards"}),
        ("auto", {"whatever": "is known once rows are read"}),
    ],
)
def test_columns_that_a_format_may_have(tmp_path: Path, row_format: str, columns: dict[str, str]) -> None:
    (tmp_path / "t.jsonl").write_text("not read", encoding="utf-8")
    sources.check_source(Source(path="t.jsonl", format=row_format, columns=columns), tmp_path)


def test_a_column_that_the_recognised_format_does_not_know(tmp_path: Path) -> None:
    error = refusal(RecipeError, tmp_path, {"text": "x", "a": "y"}, columns={"txt": "a"})
    assert error.what == "format 'text' has no column 'txt' (did you mean 'text'?)"


def test_broken_rows_are_not_mapped(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": "x"}\nbroken\n{"a": "y"}', encoding="utf-8")
    rows = [row for _, row in sources.read_examples(Source(path="t.jsonl", columns={"text": "a"}), tmp_path)]
    assert [type(row) for row in rows] == [dict, RowError, dict]


# --- python ---

CODE = """
def turn(row):
    if row["n"] == 2:
        return None
    row["n"] += 1
    return {"text": f"{row['a']} {row['n']}"}

def fails(row):
    return {"text": row["a"] / 0}

def wrong(row):
    return [row]

def keys(row):
    return {1: 2}

def surrogate(row):
    return {"text": "\\ud800"}

def leaves(row):
    import sys
    sys.exit(3)

def two(row, other):
    return row
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")
    return tmp_path


ROWS = ({"a": "x", "n": 1}, {"a": "y", "n": 2}, {"a": "z", "n": 3})


@pytest.mark.parametrize("row_format", ["auto", "text"])
def test_python(folder: Path, row_format: str) -> None:
    placed = list(sources.read_examples(source(folder, *ROWS, python="mine.py:turn", format=row_format), folder))
    assert [where for where, _ in placed] == ["t.jsonl:1", "t.jsonl:2", "t.jsonl:3"]
    (_, first), (_, second), (_, third) = placed
    assert (first, third) == ({"text": "x 2"}, {"text": "z 4"})
    assert type(second) is LeftOutError
    assert str(second) == "left out by turn"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "t.jsonl:1: mine.py:fails raised TypeError: unsupported operand type(s) for /: 'str' and 'int'"),
        ("wrong", "t.jsonl:1: mine.py:wrong must return a dict by column, or None to leave the row out, not list"),
        ("keys", "t.jsonl:1: mine.py:keys must return a dict by column"),
        ("leaves", "t.jsonl:1: mine.py:leaves raised SystemExit: 3"),
    ],
)
def test_a_function_that_fails_stops_the_reading(folder: Path, name: str, message: str) -> None:
    for row_format in ("auto", "text"):
        error = refusal(DataError, folder, *ROWS, python=f"mine.py:{name}", format=row_format)
        assert str(error).startswith(message)


def test_what_a_function_returns_is_checked_like_a_row(folder: Path) -> None:
    found = examples(folder, *ROWS, python="mine.py:surrogate", format="text")
    assert found == [r"column 'text' has a lone surrogate (\ud800), which is no character"] * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [("trun", "no function 'trun' (did you mean 'turn'?)"), ("two", "'two' can't be called with a row")],
)
def test_a_function_that_can_not_be_called_is_refused_unrun(folder: Path, name: str, message: str) -> None:
    (folder / "t.jsonl").write_text("not read", encoding="utf-8")
    (folder / "mine.py").write_text(f"{CODE}\nopen('ran', 'w')", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        sources.check_source(Source(path="t.jsonl", python=f"mine.py:{name}"), folder)
    assert message in str(caught.value)
    assert "Write `def" in str(caught.value)
    assert not (folder / "ran").exists()


def test_an_error_while_importing(folder: Path) -> None:
    (folder / "mine.py").write_text(f"import no_such_package_anywhere\n{CODE}", encoding="utf-8")
    error = refusal(SetupError, folder, *ROWS, python="mine.py:turn")
    assert "`python`: importing mine.py raised ModuleNotFoundError" in error.what
    (folder / "mine.py").write_text(f"{CODE}\nraise SystemExit(3)", encoding="utf-8")
    error = refusal(SetupError, folder, *ROWS, python="mine.py:turn")
    assert error.what == "`python`: importing mine.py raised SystemExit: 3"


VALUES = """
import datetime

def row(row):
    call = {"type": "function", "function": {"name": "f", "arguments": row["arguments"]}}
    said = {"role": "assistant", "tool_calls": [call]} if row["arguments"] else {"role": "assistant", "content": "b"}
    return {"messages": [{"role": "user", "content": "a", "at": VALUE}, said], "tools": [{"name": "f"}]}
"""


@pytest.mark.parametrize(
    ("value", "arguments", "reason"),
    [
        ("[datetime.datetime(2024, 1, 1)]", "", "messages[0].at holds a date, which JSON can't write"),
        ("{'a': {1, 2}}", "", "messages[0].at holds a set, which JSON can't write"),
        ("{(1, 2): 3}", "", "messages[0].at holds a list as a key, which JSON can't write"),
        ("b'x'", "", "messages[0].at holds bytes, which JSON can't write"),
        ("object()", "", "messages[0].at holds an object, which JSON can't write"),
        ("1", r'{"x": ["\ud800"]}',
         r"messages[1].tool_calls[0].function.arguments has a lone surrogate (\ud800), which is no character"),
        ("1", '{"x": ' + "1" * 5000 + "}",
         "messages[1].tool_calls[0].function.arguments is not readable JSON: Exceeds the limit (4300 digits)"),
    ],
)  # fmt: skip
def test_values_that_json_can_not_hold(folder: Path, value: str, arguments: str, reason: str) -> None:
    (folder / "mine.py").write_text(VALUES.replace("VALUE", value), encoding="utf-8")
    (found,) = examples(folder, {"arguments": arguments}, python="mine.py:row", format="messages")
    assert found.startswith(reason)


def test_spelling_is_the_recipes_business() -> None:
    with pytest.raises(ValidationError, match="must be FILE.py:NAME, not 'mine:turn'"):
        Source(path="t.jsonl", python="mine:turn")
    for header in (["a", "a"], ["a", " "]):
        with pytest.raises(ValidationError, match="must name the columns, each once"):
            Source(path="t.csv", header=header)
    assert Source(path="t.csv", header=["a", "b"]).header == ("a", "b")


def test_the_functions_file_is_among_the_hashed_ones(folder: Path, recipe: Any) -> None:
    from llmkit.runs.folder import code_hashes

    made = recipe("data.train.0.python=mine.py:turn").placed(folder)
    assert list(code_hashes(made)) == ["mine.py"]
