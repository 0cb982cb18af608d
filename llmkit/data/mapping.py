"""What a recipe says about a source's columns: `columns:` renames or writes them, `python:` does anything else.

    columns: {prompt: question, completion: "{{ reasoning }}\\n#### {{ answer }}"}
    python: rows.py:to_messages

A value with `{{` or `{%` is a Jinja line over the row's columns (and `row`, for names that Jinja can't spell). Any
other value is the name of a column, which is then called by the key. All other columns stay.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.formats.base import Format, MissingColumnError
from llmkit.data.readers import LONGEST, TOO_LONG, Placed
from llmkit.data.shapes import LeftOutError, RowError
from llmkit.data.surrogates import check_strings
from llmkit.errors import DataError, RecipeError, did_you_mean
from llmkit.recipe.functions import Form, check_function, load_function
from llmkit.recipe.problems import shortened

if TYPE_CHECKING:
    from jinja2 import nodes
    from jinja2.sandbox import SandboxedEnvironment

    from llmkit.recipe.recipe import Source

FORM = Form("def NAME(row: dict) -> dict | None", "a row", 1)

Row = dict[str, Any]

MOST_BITS = 100_000
"""Length of the largest whole number that a Jinja line may compute: larger ones take longer than anybody waits."""


def check_mapping(source: Source, folder: Path) -> None:
    """Check `columns` and `python` without reading a row.

    Raises RecipeError for a Jinja line or a file that can't be understood, and if both are set.
    """
    if source.python is not None:
        if source.columns:
            raise RecipeError(
                "`python` makes the whole row, so `columns` has nothing to do",
                where=source.path,
                remedy="Keep one of them; the function returns a row in the format's columns.",
            )
        check_function(source.python, folder, FORM, "`python`")
    for column, line in source.columns.items():
        if is_template(line):
            _parsed(column, line, source.path)


def check_columns(source: Source, row_format: Format) -> None:
    """Raise RecipeError for a key of `columns` that the format doesn't know."""
    known = (*row_format.columns, *row_format.optional)
    for column in source.columns:
        if column not in known and not row_format.keeps_all:
            raise RecipeError(
                f"format {row_format.name!r} has no column {column!r}{did_you_mean(column, known)}",
                where=source.path,
                remedy=f"Its columns: {', '.join(known)}. In `columns`, the format's column comes first: "
                f"`{known[0]}: NAME IN THE ROWS`.",
            )


def mapped(rows: Placed, source: Source, folder: Path) -> Placed:
    """Return the rows as `columns` or `python` make them; a row that they can't be made of is its RowError.

    Raises DataError with the row's place if the function fails or returns no row.
    """
    if source.python is not None:
        return _through_function(rows, source.python, folder)
    return _renamed(rows, source) if source.columns else rows


# --- columns ---------------------------------------------------------------------------------------------------------


def _renamed(rows: Placed, source: Source) -> Placed:
    takers = {column: _taker(column, line, source.path) for column, line in source.columns.items()}
    gone = {line for line in source.columns.values() if not is_template(line)}
    for where, row in rows:
        if isinstance(row, RowError):
            yield where, row
            continue
        try:
            made = {column: take(row) for column, take in takers.items()}
        except RowError as error:
            yield where, error.with_traceback(None)
            continue
        yield where, {name: value for name, value in row.items() if name not in gone} | made


def is_template(line: str) -> bool:
    """Whether a value of `columns` is a Jinja line, and not the name of a column."""
    return "{{" in line or "{%" in line


def _taker(column: str, line: str, label: str) -> Callable[[Row], Any]:
    """Return what makes the value of `column` from a row; raises RecipeError for Jinja that can't be understood."""
    return _writer(column, line, label) if is_template(line) else _renamer(column, line)


def _renamer(column: str, name: str) -> Callable[[Row], Any]:
    def take(row: Row) -> Any:
        try:
            return row[name]
        except KeyError:
            raise _missing(column, name, row) from None

    return take


def _missing(column: str, name: str, row: Row) -> MissingColumnError:
    has = ", ".join(row) or "none"
    return MissingColumnError(
        f"no column {name!r}{did_you_mean(name, row)}, of which `columns` makes {column!r}; the row's columns: {has}"
    )


def _writer(column: str, line: str, label: str) -> Callable[[Row], Any]:
    import jinja2
    from jinja2 import meta

    environment = _environment()
    parsed = _parsed(column, line, label)
    try:
        names = meta.find_undeclared_variables(parsed) - {"row", *environment.globals}
        template = environment.from_string(line)
    except (jinja2.TemplateSyntaxError, SyntaxError) as error:  # also of the Python that Jinja makes of it
        raise RecipeError(f"`columns.{column}` is no Jinja: {error}", where=label, remedy=shortened(line)) from error
    except RecursionError as error:
        raise RecipeError(f"`columns.{column}` is nested too deeply", where=label) from error

    def take(row: Row) -> Any:
        try:
            text = template.render({"row": row, **row})
        except jinja2.UndefinedError as error:
            absent = sorted(names - row.keys())
            raise _missing(column, absent[0], row) if absent else _failed(column, error) from None
        except Exception as error:  # noqa: BLE001 - what the user's line does to this row's values may fail in any way
            raise _failed(column, error) from None
        if len(text) > LONGEST:
            raise RowError(f"`columns.{column}` is {TOO_LONG}")
        if not text.isascii():
            check_strings({column: text})
        return text

    return take


def _parsed(column: str, line: str, label: str) -> nodes.Template:
    """Return a Jinja line as its parts, none of which is worked out yet: `{{ 9**9**9 }}` would take for ever.

    Raises RecipeError for what is no Jinja, and for filters and tests that Jinja lacks.
    """
    from jinja2 import TemplateSyntaxError, nodes

    environment = _environment()
    try:
        parsed = environment.parse(line)
    except (TemplateSyntaxError, RecursionError, ValueError) as error:
        what = error.message if isinstance(error, TemplateSyntaxError) else str(error)
        raise RecipeError(f"`columns.{column}` is no Jinja: {what}", where=label, remedy=shortened(line)) from error
    for kind, known in ((nodes.Filter, environment.filters), (nodes.Test, environment.tests)):
        for node in parsed.find_all(kind):
            if node.name not in known:
                what = f"No {kind.__name__.lower()} named {node.name!r}{did_you_mean(node.name, known)}"
                raise RecipeError(f"`columns.{column}` is no Jinja: {what}", where=label, remedy=shortened(line))
    if any(parsed.find(other) for other in (nodes.Extends, nodes.FromImport, nodes.Import, nodes.Include)):
        raise RecipeError(
            f"`columns.{column}`: a line can't reach other templates", where=label, remedy=shortened(line)
        )
    return parsed


def _failed(column: str, error: Exception) -> RowError:
    return RowError(f"`columns.{column}`: {type(error).__name__}: {error}")


def _environment() -> SandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Bounded(ImmutableSandboxedEnvironment):
        """The sandbox, in which products and powers stay small; Jinja computes those of constants when it compiles."""

        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if _is_too_large(operator, left, right):
                raise SecurityError(f"`{operator}` gives a longer text or number than any row needs")
            return super().call_binop(context, operator, left, right)

    environment = Bounded(undefined=StrictUndefined, keep_trailing_newline=True)
    # What they return is another thing each time, and rows are kept from one run to the next.
    del environment.filters["random"], environment.globals["lipsum"]
    # Jinja's own writes < and > as escapes, for web pages.
    environment.filters["tojson"] = _to_json
    return environment


def _is_too_large(operator: str, left: Any, right: Any) -> bool:
    """Whether a product or a power is a text of more than LONGEST characters, or a whole number of MOST_BITS bits."""
    numbers = [value for value in (left, right) if isinstance(value, int)]
    sizes = [len(value) for value in (left, right) if isinstance(value, str | list | tuple)]
    if len(numbers) == 2:
        bits = numbers[0].bit_length()
        return (bits * numbers[1] if operator == "**" else bits + numbers[1].bit_length()) > MOST_BITS
    return bool(numbers and sizes) and numbers[0] * sizes[0] > LONGEST


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


# --- python ----------------------------------------------------------------------------------------------------------


def _through_function(rows: Placed, reference: str, folder: Path) -> Placed:
    function = load_function(reference, folder, "`python`")
    for where, row in rows:
        yield where, row if isinstance(row, RowError) else _made(function, row, reference, where)


def _made(function: Callable[[Row], Any], row: Row, reference: str, where: str) -> Row | RowError:
    try:
        made = function(dict(row))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's function may raise anything, or call `exit`
        raise DataError(f"{reference} raised {type(error).__name__}: {error}", where=where) from error
    if made is None:
        return LeftOutError(f"left out by {reference.rpartition(':')[2]}")
    if not isinstance(made, Mapping) or not all(isinstance(name, str) for name in made):
        raise DataError(
            f"{reference} must return a dict by column, or None to leave the row out, not {type(made).__name__}",
            where=where,
        )
    try:
        check_strings(made)
    except RowError as error:
        return error.with_traceback(None)
    return dict(made)
