"""The manifest of a folder: bytes and SHA-256 of each of its files, by which a damaged one is known."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from llmkit.recipe.places import file_hash

MANIFEST = "manifest.json"
"""File of a checkpoint with the bytes and the SHA-256 of all the others."""

LOADED = frozenset({".safetensors", ".bin", ".pt", ".pth", ".pkl", ".distcp"})
"""Endings of files that a library may load as weights or state: none may be there that llmkit didn't write."""


def write_manifest(folder: Path) -> None:
    """Write the manifest of every file below `folder`, and return when the disk has all of it (fsync)."""
    paths = sorted(_files(folder))
    files = {_name(folder, path): {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in paths}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    for path in (*paths, manifest, *{path.parent for path in paths}, folder):
        sync(path)


def sync(path: Path) -> None:
    """Return when the disk has a file, or the names of a folder's files."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def faults(folder: Path) -> list[str]:
    """Return a sentence for each thing that is not as the manifest of `folder` says; none if it is whole."""
    try:
        files = _read(folder)
    except FileNotFoundError:
        return [f"it has no {MANIFEST}: it was not finished"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"{MANIFEST} can't be read: {error}"]
    found = [fault for name, (size, digest) in files.items() for fault in _faults_of(folder, name, size, digest)]
    there = {_name(folder, path) for path in _files(folder) if path.suffix in LOADED}
    return found + [f"{name} was added, and might be loaded" for name in sorted(there - set(files))]


def _read(folder: Path) -> dict[str, tuple[int, str]]:
    manifest: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}


def _faults_of(folder: Path, name: str, size: int, digest: str) -> Iterator[str]:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        yield f"{MANIFEST} names {name}, which is not in the folder"
        return
    path = folder / name
    try:
        if path.is_symlink():
            yield f"{name} is a link to another place"
        elif not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != size:
            yield f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        elif file_hash(path) != digest:
            yield f"{name} has changed: its SHA-256 is not the one in {MANIFEST}"
    except OSError as error:  # a disk that can't read a block says so here
        yield f"{name} can't be read: {error.strerror}"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
