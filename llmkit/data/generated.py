"""Data sets that are made when they are read: llmkit's own (`made:NAME`) and those of reasoning_gym."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmkit.data import reasoning_gym
from llmkit.data.readers import Placed
from llmkit.errors import DataError, did_you_mean
from llmkit.recipe.spec import variant_names

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Source

MADE = "llmkit.data.made"


@dataclass(frozen=True)
class Generator:
    """A maker of rows."""

    what: str
    """What its sources are called."""
    unused: tuple[str, ...]
    """The keys that its sources have no use for."""
    check: Callable[[Source], None]
    """Raises an error for a source that it can't make."""
    read: Callable[[Source], Placed]
    """Yields the rows after their places."""


def generator_of(source: Source) -> Generator | None:
    """Return the maker of the rows of `source`, or None if it is a file or a hub data set."""
    return next((maker for prefix, maker in GENERATORS.items() if source.path.startswith(prefix)), None)


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
        raise no_split(source.path, source.split, splits)


def no_split(label: str, split: str, splits: Iterable[str]) -> DataError:
    """Return the error for a split that isn't there."""
    splits = tuple(splits)
    return DataError(
        f"no split {split!r}{did_you_mean(split, splits)}", where=label, remedy=f"Splits: {', '.join(splits)}."
    )


def _read_made(source: Source) -> Placed:
    module = importlib.import_module(f"{MADE}.{source.path.removeprefix('made:')}")
    for index, row in enumerate(module.rows(source.split or "train")):
        yield f"{source.path}[{index}]", row


GENERATORS = {
    "made:": Generator("a made data set", ("name", "revision", "options"), _check_made, _read_made),
    reasoning_gym.PREFIX: Generator(
        "a reasoning_gym task", ("name", "revision"), reasoning_gym.check, reasoning_gym.rows
    ),
}
"""The makers of rows, by what a source's `path` begins with."""
