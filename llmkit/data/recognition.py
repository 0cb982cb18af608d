"""Which format a source's rows have, by their columns and values; nothing is guessed where two formats fit as well.

The rule: a format is recognised by certain columns and what they hold. Where several formats are, one whose columns are
those of another and more is preferred (`prompt`, `completion`, `label` to `prompt`, `completion`). With `columns:` in
the recipe, formats recognised by a column that it makes come first. The same holds between the rows of a source.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from llmkit.data.formats.base import Format, Signs
from llmkit.data.shapes import RowError
from llmkit.errors import DataError, RecipeError, did_you_mean
from llmkit.recipe.spec import variant_names

FORMATS = "llmkit.data.formats"

ENOUGH = 20
"""Readable rows by which the format is recognised."""

MOST = 1000
"""Rows that are read to find them: a file may begin with broken ones."""

SHOWN = 8
"""Columns that a message lists."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Chosen:
    """The format that a source's rows are read by, and why."""

    format: Format
    reason: str


@cache
def load_format(name: str) -> Format:
    """Return the row format of the file `llmkit/data/formats/{name}.py`.

    Raises RecipeError if there is none.
    """
    names = variant_names(FORMATS)
    if name not in names:
        raise RecipeError(f"no format {name!r}{did_you_mean(name, names)}", remedy=f"Formats: {', '.join(names)}.")
    module = importlib.import_module(f"{FORMATS}.{name}")
    return Format(name, module.SHAPE, module.COLUMNS, module.OPTIONAL, module.convert, module.recognises)


def formats() -> list[Format]:
    """Return all row formats."""
    return [load_format(name) for name in variant_names(FORMATS)]


def recognise(
    head: Iterable[tuple[str, Row | RowError]], mapped: Collection[str], label: str, hint: str = ""
) -> Chosen:
    """Return the format of the first rows of a source.

    `mapped` are the columns that the recipe's `columns:` makes, `label` is the source's name in messages, and `hint` a
    sentence about this kind of source for the case that nothing fits. Raises DataError if nothing does, or more than
    one format.
    """
    found: dict[str, tuple[str, Signs, Row]] = {}
    readable: list[tuple[str, Row]] = []
    refused: list[tuple[str, RowError]] = []
    for where, row in head:
        if isinstance(row, RowError):
            refused.append((where, row))
            continue
        readable.append((where, row))
        candidates = best(row, mapped)
        if len(candidates) > 1:
            raise _ambiguous(where, candidates)
        for name, signs in candidates.items():
            found.setdefault(name, (where, signs, row))
    if not found:
        hint = "\n".join(filter(None, [*unknown_columns(mapped), hint]))
        raise _nothing_fits(*readable[0], hint) if readable else _nothing_readable(refused, label)
    # A row that lacks one of the columns of the others looks like one of a simpler format: it is a broken one.
    every = [signs for _, signs, _ in found.values()]
    found = {name: first for name, first in found.items() if not _outdone(first[1], every)}
    if len(found) > 1:
        raise _mixed(found, label)
    ((name, (_, signs, row)),) = found.items()
    chosen = load_format(name)
    return Chosen(chosen, signs.reason + _unread(chosen, row))


def best(row: Row, mapped: Collection[str] = ()) -> dict[str, Signs]:
    """Return the formats that the row may be of, by the rule above: one if it is clear."""
    found = {f.name: signs for f in formats() if (signs := f.recognises(row)) is not None}
    knowing = {name: signs for name, signs in found.items() if not signs.columns.isdisjoint(mapped)}
    found = knowing or found
    return {name: signs for name, signs in found.items() if not _outdone(signs, found.values())}


def _outdone(signs: Signs, all_signs: Iterable[Signs]) -> bool:
    """Whether another format is recognised by these columns and more."""
    return any(signs.columns < other.columns for other in all_signs)


def fitting(row: Row, tried: Format) -> str:
    """Return the remedy for a source whose first row lacks a column of the format that the recipe names."""
    fits = [f for f in formats() if f != tried and f.recognises(row) is not None]
    if not fits:
        return _needs(row)
    fits.sort(key=lambda f: -len(f.columns))
    listed = " or ".join(f"`format: {f.name}`" for f in fits)
    return f"The source has `format: {tried.name}`; the row fits {listed}."


def _unread(chosen: Format, row: Row) -> str:
    unread = () if chosen.keeps_all else [name for name in row if name not in (*chosen.columns, *chosen.optional)]
    more = f" and {len(unread) - SHOWN} more" if len(unread) > SHOWN else ""
    return f"; not read: {_listed(unread[:SHOWN])}{more}" if unread else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _ambiguous(where: str, candidates: Mapping[str, Signs]) -> DataError:
    lines = [f"  format: {name:18} # {signs.reason}" for name, signs in candidates.items()]
    return DataError(
        f"the row fits {len(candidates)} formats: {', '.join(candidates)}",
        where=where,
        remedy="Write the one that is meant into the source:\n" + "\n".join(lines),
    )


def _mixed(found: Mapping[str, tuple[str, Signs, Row]], label: str) -> DataError:
    lines = [f"  format: {name:18} # {where}: {signs.reason}" for name, (where, signs, _) in found.items()]
    return DataError(
        f"the first rows are of {len(found)} formats: {', '.join(found)}",
        where=label,
        remedy="Write the one that is meant into the source; the rows of the others will count as broken:\n"
        + "\n".join(lines),
    )


def _nothing_readable(refused: Sequence[tuple[str, RowError]], label: str) -> DataError:
    if not refused:
        return DataError("holds no rows", where=label)
    where, error = refused[0]
    if len(refused) == 1:
        return DataError(f"the only row can't be read: {error}", where=where)
    return DataError(f"none of the first {len(refused)} rows can be read; this one: {error}", where=where)


def _nothing_fits(where: str, row: Row, hint: str) -> DataError:
    return DataError(
        f"no format is recognised in the columns {_listed(map(_short, islice(row, SHOWN))) or '(none)'}"
        f"{', ...' if len(row) > SHOWN else ''}",
        where=where,
        remedy="\n".join(filter(None, [*nearly(row, formats()), hint, _needs(row)])),
    )


def unknown_columns(mapped: Collection[str]) -> list[str]:
    """Return a sentence for each key of a recipe's `columns` that no format has."""
    known = sorted({name for f in formats() for name in (*f.columns, *f.optional)})
    return [f"`{name}` is no format's column{did_you_mean(name, known)}." for name in mapped if name not in known]


def nearly(row: Row, among: Iterable[Format]) -> list[str]:
    """Return a sentence for each format of which a column is there: what else it lacks."""
    near = [f for f in among if not row.keys().isdisjoint(f.columns)]
    reasons = []
    for tried in near:
        try:
            tried.convert(row)
        except RowError as error:
            reasons.append(f"It is not {tried.name}: {error}.")
    return reasons


def _needs(row: Row) -> str:
    needs = "; ".join(f"{f.name}: {', '.join(f.columns)}" for f in formats())
    return f"Say which column is which, e.g. {_example(row)}.\nFormats and the columns they need: {needs}."


def _example(row: Row) -> str:
    """Return a mapping of the row's own columns to write into the recipe."""
    names = [name for name, value in row.items() if isinstance(value, str)] or list(row) or ["COLUMN"]
    pairs = zip(("prompt", "completion"), names, strict=False) if len(names) > 1 else [("text", names[0])]
    # The row's own name of a format's column stays what it is.
    return written({column: name for column, name in pairs if column != name} or {"completion": "COLUMN"})


def written(columns: Mapping[str, str]) -> str:
    """Return `columns` as it is written into a recipe."""
    inside = ", ".join(f"{column}: {_quoted(name)}" for column, name in columns.items())
    return f"`columns: {{{inside}}}`"


def _quoted(name: str) -> str:
    plain = re.fullmatch(r"\w[\w .()-]*", _short(name)) and _short(name) == name
    return name if plain else json.dumps(_short(name), ensure_ascii=False)


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:37]}..."
