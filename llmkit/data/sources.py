"""Rows from files, folders, installed packages, generators and the hub, each with the place it stands."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data import reasoning_gym
from llmkit.data.formats.base import Format, MissingColumnError
from llmkit.data.readers import READERS, Placed, read_file, read_folder, reader_of
from llmkit.data.shapes import RowError, Shape, UnlearnableError
from llmkit.errors import DataError, RecipeError, SetupError, did_you_mean
from llmkit.recipe.spec import variant_names

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Source

FORMATS = "llmkit.data.formats"
MADE = "llmkit.data.made"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


# --- formats ---------------------------------------------------------------------------------------------------------


@cache
def load_format(name: str) -> Format:
    """Return the row format of the file `llmkit/data/formats/{name}.py`.

    Raises RecipeError if there is none.
    """
    names = variant_names(FORMATS)
    if name not in names:
        raise RecipeError(f"no format {name!r}{did_you_mean(name, names)}", remedy=f"Formats: {', '.join(names)}.")
    module = importlib.import_module(f"{FORMATS}.{name}")
    return Format(name, module.SHAPE, module.COLUMNS, module.convert)


def format_of(source: Source) -> Format:
    """Return the row format that `source` names.

    Raises RecipeError if there is none.
    """
    return load_format(source.format)


def common_shape(sources: Iterable[Source]) -> Shape:
    """Return the shape that the rows of all `sources` have.

    Raises RecipeError if they differ, or if there are no sources.
    """
    shapes = [(source, format_of(source).shape) for source in sources]
    if not shapes:
        raise RecipeError("no data sources")
    if len({shape for _, shape in shapes}) > 1:
        listed = "; ".join(f"{source.path} is {shape} (format {source.format})" for source, shape in shapes)
        raise RecipeError(f"the data sources have rows of different shapes: {listed}", where="data")
    return shapes[0][1]


def _unheard(reason: str) -> None:
    pass


def read_examples(source: Source, folder: Path, on_drop: Callable[[str], None] = _unheard) -> Placed:
    """Yield the rows of `source` in the shape of its format, each after its place.

    A row that teaches nothing is left out, and `on_drop` is told why. Raises DataError at the first row that is broken,
    and what `read_rows` raises.
    """
    row_format = format_of(source)
    for index, (where, row) in enumerate(read_rows(source, folder)):
        try:
            example = row_format.convert(row)
        except UnlearnableError as exc:
            on_drop(str(exc))
            continue
        except RowError as exc:
            unfit = index == 0 and isinstance(exc, MissingColumnError)
            remedy = _fitting(row, row_format) if unfit else None
            raise DataError(str(exc), where=where, remedy=remedy) from exc
        yield where, example


def _fitting(row: dict[str, Any], tried: Format) -> str:
    formats = [load_format(name) for name in variant_names(FORMATS)]
    fits = [f for f in formats if f != tried and row.keys() >= set(f.columns)]
    if not fits:
        needs = "; ".join(f"{f.name}: {', '.join(f.columns)}" for f in formats)
        return f"No format fits these columns; rename them. Formats and the columns they need: {needs}."
    fits.sort(key=lambda f: -len(f.columns))
    listed = " or ".join(f"`format: {f.name}`" for f in fits)
    return f"The source has `format: {tried.name}`; the row's columns fit {listed}."


# --- which kind of source --------------------------------------------------------------------------------------------


def read_rows(source: Source, folder: Path) -> Placed:
    """Yield the rows of `source` as they stand, each after its place (`data/train.jsonl:17`, `made:orders[3]`).

    Relative paths start from `folder`, the recipe's. No more than `source.max_rows` rows are read.

    Raises DataError for a source that is missing, unreadable, empty or broken, RecipeError for keys that this kind of
    source has no use for, and SetupError for a hub that can't be reached or a package that isn't installed.
    """
    check_source(source, folder)
    generator = _generator(source)
    if generator is not None:
        rows = generator.read(source)
    elif (path := local_path(source, folder)) is not None:
        rows = read_folder(path, source.path) if path.is_dir() else read_file(path, source.path)
    else:
        rows = _read_hub(source)
    return islice(_some(rows, source.path), source.max_rows)


def check_source(source: Source, folder: Path) -> None:
    """Check, without reading any data, that `source` is there; a hub id always passes.

    Raises DataError for a missing file, folder or made data set, RecipeError for keys that this kind of source has no
    use for, and SetupError for a package that isn't installed.
    """
    generator = _generator(source)
    if generator is not None:
        generator.check(source)
        what, unused = generator.what, generator.unused
    elif (path := local_path(source, folder)) is not None:
        if path.is_file():
            reader_of(path, source.path)
        what, unused = "a local file", ("split", "name", "revision", "options")
    else:
        what, unused = "a hub data set", ("options",)
    for key in unused:
        if getattr(source, key) not in (None, {}):
            raise RecipeError(f"{what} has no `{key}`", where=source.path, remedy=f"Leave `{key}` out.")


def is_generated(source: Source) -> bool:
    """Whether the rows of `source` are made when they are read, so that there is no file of them."""
    return _generator(source) is not None


def _generator(source: Source) -> _Generator | None:
    return next((maker for prefix, maker in GENERATORS.items() if source.path.startswith(prefix)), None)


def local_path(source: Source, folder: Path) -> Path | None:
    """Return the file or folder that `source` names, or None if it must be a hub id.

    Raises DataError if it is meant to be a file but is not there, SetupError for a package that isn't installed.
    """
    if source.path.startswith("package:"):
        return _package_file(source.path)
    path = folder / Path(source.path).expanduser()
    if path.exists():
        return path
    if _looks_like_file(source.path):
        raise _no_such_file(source.path, path)
    # `datasets` would take a folder of this name in the current directory for the data set.
    if Path(source.path).exists():
        raise DataError(
            f"no such file or folder in {folder}; there is one in the current directory",
            where=source.path,
            remedy="Paths in a recipe are relative to the recipe's own folder.",
        )
    return None


def _looks_like_file(path: str) -> bool:
    unread = (".txt", ".gz", ".zip", ".zst", ".arrow", ".xlsx")
    return (
        path.startswith(("./", "../", "/", "~"))
        or path in (".", "..")
        or path.lower().endswith((*READERS, *unread))
        or not HUB_ID.fullmatch(path)
    )


def _no_such_file(label: str, path: Path) -> DataError:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else None
    if siblings is None:
        return DataError("no such file, and its folder isn't there either", where=label, remedy=f"Looked for {path}.")
    return DataError(f"no such file{did_you_mean(path.name, siblings)}", where=label, remedy=f"Looked for {path}.")


def _package_file(label: str) -> Path:
    name, _, inside = label.removeprefix("package:").partition("/")
    if not name or not inside:
        raise DataError("must be written package:NAME/path/of/file", where=label)
    module = name.replace("-", "_")
    # A dotted name would import the packages above it.
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
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


# --- generated data sets ---------------------------------------------------------------------------------------------


def _check_made(source: Source) -> None:
    name = source.path.removeprefix("made:")
    names = variant_names(MADE)
    if name not in names:
        raise DataError(
            f"llmkit makes no data set {name!r}{did_you_mean(name, names)}",
            where=source.path,
            remedy=f"Made data sets: {', '.join(names)}.",
        )
    splits = importlib.import_module(f"{MADE}.{name}").SPLITS
    if source.split is not None and source.split not in splits:
        raise _no_split(source.path, source.split, splits)


def _no_split(label: str, split: str, splits: Iterable[str]) -> DataError:
    splits = tuple(splits)
    return DataError(
        f"no split {split!r}{did_you_mean(split, splits)}", where=label, remedy=f"Splits: {', '.join(splits)}."
    )


def _read_made(source: Source) -> Placed:
    module = importlib.import_module(f"{MADE}.{source.path.removeprefix('made:')}")
    for index, row in enumerate(module.rows(source.split or "train")):
        yield f"{source.path}[{index}]", row


@dataclass(frozen=True)
class _Generator:
    """A maker of rows: what its sources are called, the keys they have no use for, and its two steps."""

    what: str
    unused: tuple[str, ...]
    check: Callable[[Source], None]
    read: Callable[[Source], Placed]


GENERATORS = {
    "made:": _Generator("a made data set", ("name", "revision", "options"), _check_made, _read_made),
    reasoning_gym.PREFIX: _Generator(
        "a reasoning_gym task", ("name", "revision"), reasoning_gym.check, reasoning_gym.rows
    ),
}
"""The makers of rows, by what a source's `path` begins with."""


# --- the hub ---------------------------------------------------------------------------------------------------------


def _read_hub(source: Source) -> Placed:
    split = source.split or "train"
    for index, row in enumerate(_load_hub(source, split)):
        yield f"{source.path}/{split}[{index}]", dict(row)


def _load_hub(source: Source, split: str) -> Iterable[dict[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        found: Iterable[dict[str, Any]] = datasets.load_dataset(
            source.path, name=source.name, split=split, revision=source.revision
        )
    except ValueError as exc:
        raise _hub_refusal(source.path, split, str(exc)) from exc
    except DatasetNotFoundError as exc:
        remedy = "Check the id; for a gated or private data set, log in with `hf auth login`."
        raise SetupError(f"not found on the hub: {exc}", where=_wanted(source, split), remedy=remedy) from exc
    except (DatasetsError, RuntimeError) as exc:  # broken files; data sets that need a script to be run
        raise DataError(f"can't be loaded: {exc}", where=source.path) from exc
    except OSError as exc:  # includes ConnectionError and the hub's HTTP errors
        raise _out_of_reach(source, split, exc) from exc
    return found


def _hub_refusal(label: str, split: str, reason: str) -> DataError:
    splits = re.search(r"(?:Should be one of|Available splits:) \[(.*?)\]", reason)
    if splits:
        return _no_split(label, split, re.findall(r"'(.*?)'", splits[1]))
    return DataError(reason, where=label, remedy="`name` chooses the data set's configuration, `split` its part.")


def _wanted(source: Source, split: str) -> str:
    chosen = [f"split {split}", f"revision {source.revision or 'main'}"]
    if source.name is not None:
        chosen.insert(0, f"name {source.name}")
    return f"{source.path} ({', '.join(chosen)})"


def _out_of_reach(source: Source, split: str, reason: OSError) -> SetupError:
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    why = "HF_HUB_OFFLINE is set" if offline else f"the hub can't be reached: {reason}"
    online = "unset HF_HUB_OFFLINE" if offline else "go online"
    return SetupError(
        f"neither a local file nor a cached data set, and {why}",
        where=_wanted(source, split),
        remedy=f"Looked for a file of that name, and in {HF_DATASETS_CACHE} and {constants.HF_HUB_CACHE} (set HF_HOME "
        f"to move them).\nEither {online} and run again, or point `path` to a local {', '.join(READERS)} file.",
    )
