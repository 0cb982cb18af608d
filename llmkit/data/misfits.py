"""Rows of a format that the method can't learn from: what they nearly are, and what would make them fit.

Every remedy is tried on a row before it is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llmkit.data.formats.base import Format, are_turns
from llmkit.data.recognition import Row, best, formats, load_format, nearly, unknown_columns, written
from llmkit.data.shapes import RowError, Shape

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Source


def mending(row: Row | None, read_as: Format, source: Source, accepts: Collection[Shape]) -> str:
    """Return what to do about a source whose rows, such as `row`, are read as a format of a shape not in `accepts`."""
    wanted = [f for f in formats() if f.shape in accepts]
    said = unknown_columns(source.columns)
    mended = None
    if row is not None:
        said += nearly(row, wanted)
        mended = next(_mended(row, read_as, source, wanted), None)
    listed = "; ".join(f"{f.name}: {', '.join(f.columns)}" for f in wanted)
    return "\n".join([*said, mended or f"Formats that it learns from, and their columns: {listed}."])


def _mended(row: Row, read_as: Format, source: Source, wanted: list[Format]) -> Iterator[str]:
    """Yield what would make the row one of the `wanted` formats, the simplest first."""
    for f in wanted:
        if _converts(f, row):
            unread = [] if f.keeps_all else [n for n in read_as.columns if n in row.keys() - {*f.columns, *f.optional}]
            left = f" That leaves {' and '.join(f'`{name}`' for name in unread)} unread." if unread else ""
            yield f"The rows can be read with `format: {f.name}`.{left}"
    if source.python is not None:
        return
    for columns in _mappings(row, read_as):
        # What the recipe's own `columns` makes is no column of the rows.
        own = source.columns.keys().isdisjoint(columns.values())
        if own and _becomes(row, columns, {*columns, *source.columns}, wanted):
            yield f"Name the columns that are meant, such as {written({**source.columns, **columns})}."
    for body, function in _functions(row, read_as):
        if any(_converts(f, made) for made in _tried(function, row) for f in wanted):
            yield (
                "A function makes such rows: `python: rows.py:fitted`, with\n"
                f"  def fitted(row):\n      return {body}\nin rows.py beside the recipe."
            )


def _converts(row_format: Format, row: Row) -> bool:
    try:
        row_format.convert(row)
    except RowError:
        return False
    return True


def _becomes(row: Row, columns: Mapping[str, str], mapped: Collection[str], wanted: list[Format]) -> bool:
    """Whether the row is clearly one of the `wanted` formats once its columns have these names."""
    gone = set(columns.values())
    made = {name: value for name, value in row.items() if name not in gone} | {
        column: row[name] for column, name in columns.items()
    }
    names = list(best(made, mapped))
    return len(names) == 1 and load_format(names[0]) in wanted and _converts(load_format(names[0]), made)


def _mappings(row: Row, read_as: Format) -> Iterator[dict[str, str]]:
    """Yield ways to name the row's columns that give another shape."""
    pairs = {
        "question": {"prompt": "question", "completion": "answer"},
        "preference": {"completion": "chosen"},
    }
    yield from (
        columns for name, columns in pairs.items() if name == read_as.name and set(columns.values()) <= set(row)
    )
    if read_as.name == "prompt" and (answer := _answer(row)):
        yield {"completion": answer}
    if read_as.name == "preference" and are_turns(row["chosen"]) and row["chosen"][0]["role"] != "assistant":
        yield {"messages": "chosen"}  # a whole transcript
    # An instruction's input and the turns before it would be lost.
    if read_as.name == "alpaca" and "input" not in row and "history" not in row:
        yield {"question": "instruction", "answer": "output"}


def _answer(row: Row) -> str | None:
    """Return the first column besides the prompt that holds text."""
    return next((name for name, value in row.items() if name != "prompt" and isinstance(value, str) and value), None)


Function = Callable[[Row], dict[str, Any]]


def _functions(row: Row, read_as: Format) -> Iterator[tuple[str, Function]]:
    """Yield expressions over `row` that give another shape, each with what it does."""
    if "tools" in row:  # they would be lost
        return
    yield (
        '{"messages": [*row["prompt"], *row["chosen"]]}',
        lambda row: {"messages": [*row["prompt"], *row["chosen"]]},
    )
    yield (
        '{"prompt": row["messages"][:-1], "answer": row["messages"][-1]["content"]}',
        lambda row: {"prompt": row["messages"][:-1], "answer": row["messages"][-1]["content"]},
    )
    answer = _answer(row)
    if answer is not None and read_as.name == "prompt":
        yield (
            f'{{"messages": [*row["prompt"], {{"role": "assistant", "content": row[{answer!r}]}}]}}',
            lambda row: {"messages": [*row["prompt"], {"role": "assistant", "content": row[answer]}]},
        )


def _tried(function: Function, row: Row) -> Iterator[Row]:
    with suppress(KeyError, TypeError, IndexError):
        yield function(row)
