"""Prepared rows that are kept: a second run on the same bytes, tokenizer, settings and code reads them back."""

from __future__ import annotations

import atexit
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.sources import is_generated, local_path
from llmkit.recipe.places import cache_folder, file_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.recipe.recipe import Source

CODE = ("llmkit", "tokenizers", "transformers", "pyarrow", "trl")
KEPT_DAYS = 30
"""Prepared rows that no run has used for so long are removed."""


def source_hashes(source: Source, folder: Path) -> dict[str, str | None]:
    """Return the SHA-256 of a source's local file, or of each file of its folder; None for made and hub data."""
    path = None if is_generated(source) else local_path(source, folder)
    if path is not None and path.is_dir():
        return {f"{source.path}/{p.name}": file_hash(p) for p in sorted(path.iterdir()) if p.is_file()}
    return {source.path: file_hash(path) if path is not None else None}


def key(source: Source, folder: Path, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> str | None:
    """Return what prepared rows are kept under, or None where it can't be known that the data are the same.

    It depends on the bytes of the data, the source's settings, the tokenizer, its template, `settings` and the code.
    """
    if source.python is not None:
        return None  # what the file imports is not known
    hashes = source_hashes(source, folder)
    if not is_generated(source) and None in hashes.values():
        return None  # a data set of the hub, which `datasets` keeps itself
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts = {
        "source": source.model_dump(exclude={"weight", "repeat"}),
        "hashes": hashes,
        "tokenizer": backend.to_str(),
        "template": tokenizer.chat_template,
        "day": str(date.today()) if "strftime_now" in str(tokenizer.chat_template) else None,
        "special": tokenizer.special_tokens_map,
        "settings": settings,
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@cache
def _code() -> dict[str, str]:
    """Return versions of what prepares rows, and a hash of our own part of it."""
    hashed = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        hashed.update(file.read_bytes())
    return {name: importlib.metadata.version(name) for name in CODE} | {"data": hashed.hexdigest()}


def prepared(name: str | None, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Return the file of rows that is kept under `name`, and what was noted with it; made by `make` if there is none.

    `make` writes the file whose path it is given, and returns what to note. Nothing half-made is ever kept.
    """
    home = cache_folder() / "data"
    place = home / name if name else None
    if place is not None and (place / "account.json").is_file():
        os.utime(place)
        return place / "rows.arrow", json.loads((place / "account.json").read_text(encoding="utf-8"))
    home.mkdir(parents=True, exist_ok=True)
    _remove_old(home)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=home))
    try:
        noted = dict(make(new / "rows.arrow"))
        (new / "account.json").write_text(json.dumps(noted), encoding="utf-8")
    except BaseException:
        shutil.rmtree(new)
        raise
    if place is None:
        atexit.register(shutil.rmtree, new, ignore_errors=True)
        return new / "rows.arrow", noted
    try:
        new.rename(place)
    except OSError:  # another run has just made the same
        shutil.rmtree(new)
    return place / "rows.arrow", noted


def _remove_old(home: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 86400
    for place in home.iterdir():
        with suppress(FileNotFoundError):  # another run removes it at this moment
            if place.stat().st_mtime < oldest:
                shutil.rmtree(place, ignore_errors=True)
