"""Sources -> rows in the shape of a format: from files, folders, installed packages, generators and the hub."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.formats.base import Format, MissingColumnError
from llmkit.data.generated import generator_of
from llmkit.data.hub import read_hub
from llmkit.data.mapping import check_columns, check_mapping, mapped
from llmkit.data.readers import READERS, TABLES, DataFile, Placed, files_in, read_file, read_folder, reader_of
from llmkit.data.recognition import ENOUGH, MOST, Chosen, fitting, load_format, recognise
from llmkit.data.shapes import RowError, Shape
from llmkit.errors import DataError, RecipeError, SetupError, did_you_mean
from llmkit.recipe.places import named_path

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Source

TABLE_LINE = re.compile(rf"({'|'.join(map(re.escape, TABLES))})(\.gz)?:\d+$", re.IGNORECASE)
"""Place of a row in a file whose first line names the columns."""

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


# --- formats ---------------------------------------------------------------------------------------------------------


def known_format(source: Source) -> Format | None:
    """Return the row format that the recipe names; None if the rows themselves are to say it (`auto`)."""
    return None if source.format == "auto" else load_format(source.format)


def format_of(source: Source, folder: Path) -> Chosen:
    """Return the row format of `source`, and why; for `auto`, the first rows are read.

    Raises DataError if no format or more than one is recognised, and what `read_rows` raises.
    """
    named = known_format(source)
    if named is not None:
        return Chosen(named, f"the recipe says `format: {named.name}`")
    return _recognised(_mapped_rows(source, folder), source)[0]


def common_shape(sources: Iterable[Source], folder: Path, *, read: bool) -> Shape | None:
    """Return the shape that the rows of all `sources` have.

    Without `read`, sources with `format: auto` are left out, and it is None if there are no others. Raises RecipeError
    if shapes differ, or if there are no sources, and what `format_of` raises.
    """
    sources = list(sources)
    if not sources:
        raise RecipeError("no data sources")
    chosen = [(s, format_of(s, folder)) for s in sources if read or known_format(s) is not None]
    shapes = {of.format.shape for _, of in chosen}
    if len(shapes) > 1:
        listed = "; ".join(f"{s.path} is {of.format.shape} ({_said(s, of)})" for s, of in chosen)
        raise RecipeError(f"the data sources have rows of different shapes: {listed}", where="data")
    return shapes.pop() if shapes else None


def _said(source: Source, chosen: Chosen) -> str:
    why = f", because {chosen.reason}" if source.format == "auto" else ""
    return f"format {chosen.format.name}{why}"


# --- examples --------------------------------------------------------------------------------------------------------


def read_examples(source: Source, folder: Path) -> Iterator[tuple[str, dict[str, Any] | RowError]]:
    """Yield the rows of `source` in the shape of its format, each after its place.

    A row that can't be used is its RowError: an UnlearnableError if it teaches nothing, any other if it is broken.
    Raises DataError if the first row lacks a column of the format that the recipe names, and what `format_of` and
    `read_rows` raise.
    """
    rows = _mapped_rows(source, folder)
    named = known_format(source)
    if named is None:
        chosen, rows = _recognised(rows, source)
    row_format = named or chosen.format
    convert, untried = row_format.convert, named is not None
    for where, row in rows:
        example = row
        if not isinstance(row, RowError):
            try:
                example = convert(row)
            except RowError as error:
                example = error.with_traceback(None)
        if untried:
            if isinstance(example, MissingColumnError):
                remedy = None if isinstance(row, RowError) else fitting(row, row_format)
                raise DataError(str(example), where=where, remedy=remedy) from example
            untried = isinstance(row, RowError)
        yield where, example


def _mapped_rows(source: Source, folder: Path) -> Placed:
    return mapped(read_rows(source, folder), source, folder)


def _recognised(rows: Placed, source: Source) -> tuple[Chosen, Placed]:
    """Return the format of the rows, and all of them, the first ones again."""
    head: list[tuple[str, dict[str, Any] | RowError]] = []
    readable = 0
    for placed in islice(rows, MOST):
        head.append(placed)
        readable += not isinstance(placed[1], RowError)
        if readable == ENOUGH:
            break
    chosen = recognise(head, source.columns, source.path, _hint(head, source))
    check_columns(source, chosen.format)
    return chosen, chain(head, rows)


def _hint(head: list[tuple[str, dict[str, Any] | RowError]], source: Source) -> str:
    if source.header or not (head and TABLE_LINE.search(head[0][0])):
        return ""
    return "If the first line of the file is a row already, name the columns: `header: [question, answer, ...]`."


# --- which kind of source --------------------------------------------------------------------------------------------


def first_row(source: Source, folder: Path, row_format: Format) -> dict[str, Any] | None:
    """Return the first row, as the recipe maps it, that is of the format; None if no early one is.

    Raises what `read_rows` raises.
    """
    rows = (row for _, row in islice(_mapped_rows(source, folder), MOST) if not isinstance(row, RowError))
    return next((row for row in rows if row_format.recognises(row) is not None), None)


def read_rows(source: Source, folder: Path) -> Placed:
    """Yield the rows of `source` as they stand, each after its place (`data/train.jsonl:17`, `made:orders[3]`).

    A row that can't be read is its RowError. Relative paths start from `folder`, the recipe's. No more than
    `source.max_rows` rows are read.

    Raises DataError for a source that is missing, unreadable or empty, RecipeError for keys that this kind of source
    has no use for, and SetupError for a hub that can't be reached or a package that isn't installed.
    """
    check_source(source, folder)
    generator = generator_of(source)
    if generator is not None:
        rows = generator.read(source)
    elif (path := local_path(source, folder)) is None:
        rows = read_hub(source)
    elif path.is_dir():
        rows = read_folder(path, source.path, source.header)
    else:
        rows = read_file(DataFile(path, source.path, source.header))
    return islice(_some(rows, source.path), source.max_rows)


def check_source(source: Source, folder: Path) -> None:
    """Check, without reading any data, that `source` is there and its columns can be mapped; a hub id always passes.

    Raises DataError for a missing file, folder or made data set, RecipeError for keys that this kind of source has no
    use for or that can't be understood, and SetupError for a package that isn't installed.
    """
    generator = generator_of(source)
    files: list[DataFile] = []
    if generator is not None:
        generator.check(source)
        what, unused = generator.what, generator.unused
    elif (path := local_path(source, folder)) is None:
        what, unused = "a hub data set", ("options",)
    else:
        what, unused = "a local file", ("split", "name", "revision", "options")
        files = files_in(path, source.path) if path.is_dir() else [DataFile(path, source.path)]
    for file in files:
        reader_of(file)
    for key in unused:
        if getattr(source, key) not in (None, {}):
            raise RecipeError(f"{what} has no `{key}`", where=source.path, remedy=f"Leave `{key}` out.")
    if source.header and not any(file.suffix in TABLES for file in files):
        raise RecipeError(
            f"`header` names the columns of {', '.join(TABLES)} files alone",
            where=source.path,
            remedy="Leave it out; `columns` renames what has names already.",
        )
    check_mapping(source, folder)
    if (row_format := known_format(source)) is not None:
        check_columns(source, row_format)


def is_generated(source: Source) -> bool:
    """Whether the rows of `source` are made when they are read, so that there is no file of them."""
    return generator_of(source) is not None


def local_path(source: Source, folder: Path) -> Path | None:
    """Return the file or folder that `source` names, or None if it must be a hub id.

    Raises DataError if it is meant to be a file but is not there, SetupError for a package that isn't installed.
    """
    if source.path.startswith("package:"):
        return _package_file(source.path)
    path = named_path(source.path, folder)
    if path.exists():
        if not path.is_file() and not path.is_dir():
            raise DataError("is no regular file: a pipe or a device can't be read twice", where=source.path)
        return path
    if _looks_like_file(source.path):
        raise _no_such_file(source.path, path)
    if meant := _misspelt_suffix(path, source.path):
        raise DataError(
            f"no such file, and {path.suffix!r} is no suffix of a data file{meant}",
            where=source.path,
            remedy=f"Looked for {path}.",
        )
    # `datasets` would take a folder of this name in the current directory for the data set.
    if Path(source.path).exists():
        raise DataError(
            f"no such file or folder in {folder}; there is one in the current directory",
            where=source.path,
            remedy="Paths in a recipe are relative to the recipe's own folder.",
        )
    return None


def _looks_like_file(path: str) -> bool:
    unread = (".gz", ".zip", ".zst", ".arrow", ".xlsx")
    return (
        path.startswith(("./", "../", "/", "~"))
        or path in (".", "..")
        or path.lower().endswith((*READERS, *unread))
        or not HUB_ID.fullmatch(path)
    )


def _misspelt_suffix(path: Path, label: str) -> str:
    """Return which suffix is meant by a path that would pass for a hub id (`chat.jsnol`), or an empty string."""
    in_folder = "/" in label and path.parent.is_dir()
    if path.name.count(".") != 1 or not path.stem or ("/" in label and not in_folder):
        return ""
    return did_you_mean(path.suffix.lower(), READERS)


def _no_such_file(label: str, path: Path) -> DataError:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else None
    if siblings is None:
        return DataError("no such file, and its folder isn't there either", where=label, remedy=f"Looked for {path}.")
    return DataError(f"no such file{did_you_mean(path.name, siblings)}", where=label, remedy=f"Looked for {path}.")


def _package_file(label: str) -> Path:
    name, _, inside = label.removeprefix("package:").partition("/")
    # Within the package: neither an absolute path nor one that leads out again.
    if not name or not inside or inside.startswith("/") or ".." in Path(inside).parts:
        raise DataError("must be written package:NAME/path/of/file", where=label)
    module = name.replace("-", "_")
    # A dotted name would import the packages above it, and Python knows no file of `__main__`.
    spec = importlib.util.find_spec(module) if module.isidentifier() and module != "__main__" else None
    if spec is None:
        raise SetupError(f"no Python package {name!r} is installed", where=label, remedy=f"pip install {name}")
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    if not folders:
        raise DataError(f"{name!r} is a single Python module and holds no files", where=label)
    for folder in folders:
        if (folder / inside).exists():
            return folder / inside
    raise _no_such_file(label, folders[0] / inside)


def _some(rows: Placed, label: str) -> Placed:
    """Yield `rows`; raises DataError if there are none."""
    first = next(rows, None)
    if first is None:
        raise DataError("holds no rows", where=label)
    yield first
    yield from rows
