"""Links that lead out of a folder: a model, a data set or a run folder that somebody hands over may hold some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path


def leading_out(files: Iterable[Path], folder: Path) -> Iterator[Path]:
    """Yield those of `files`, which lie in `folder`, that are links to a place outside of it.

    The hub's cache is no other place: its snapshots, and folders in them, link to the `blobs` beside them.
    """
    home = folder.resolve()
    homes = (home, *(place.parent / "blobs" for place in home.parents if place.name == "snapshots"))
    for file in files:
        if file.is_symlink() and not any(_real(file).is_relative_to(place) for place in homes):
            yield file


def _real(link: Path) -> Path:
    try:
        return link.resolve()
    except RuntimeError:  # a link to itself (Python below 3.13): it leads nowhere, and so not into the folder
        return Path(link.anchor)
