"""What widely used models look like, so that a plan for them needs no hub and no download.

The rows of `known.json` were written down by hand. The tests build each model without memory and compare the number of
its parameters with the published one: a wrong size does not get by.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

_MORE = re.compile(
    r"^meta-(?=llama)|(?<=^qwen2\.5)-coder"
    r"|-(instruct|thinking)(?=-v0|-2507$|$)|-(base|it|chat|hf|2507|v1\.0|intermediate-step-[^/]*)$"
)
"""What a name has beside that of its architecture: the same shape, trained further."""

_OTHERS = MappingProxyType({"mixtral-8x7b-v0.1": "mixtral-8x7b", "zephyr-7b-beta": "mistral-7b-v0.1"})
"""Names that `_MORE` does not explain."""


def known_config(name: str) -> dict[str, Any] | None:
    """Return the transformers config arguments of the model of hub id `name`, or None for one that is not known.

    They go to `AutoConfig.for_model`; `model_type` is one of them. The organisation does not count, nor do the usual
    suffixes (`-Instruct`, `-Base`, `-it`): copies and tuned models have the shape of their base.
    """
    row = _find(name)
    if row is None:
        return None
    return {key: value for key, value in row.items() if key not in ("name", "parameters")}


def known_parameters(name: str) -> int | None:
    """Return the published number of parameters of the model of hub id `name`; tied weights count once."""
    row = _find(name)
    return row["parameters"] if row is not None else None


def known_names() -> tuple[str, ...]:
    """Return the names of all models that are known, in lower case and without suffixes."""
    return tuple(_rows())


def _find(name: str) -> dict[str, Any] | None:
    # A path, a package and a packed file are looked into instead: their names say nothing certain.
    if name.startswith(("package:", ".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf"):
        return None
    short = name.lower().rpartition("/")[2]
    while short not in _rows() and short not in _OTHERS:
        shorter = _MORE.sub("", short, count=1)
        if shorter == short:
            return None
        short = shorter
    return _rows()[_OTHERS.get(short, short)]


@cache
def _rows() -> dict[str, dict[str, Any]]:
    """Return all models by name: `name`, `parameters`, `model_type` and the other arguments of the config."""
    table = json.loads((Path(__file__).parent / "known.json").read_text(encoding="utf-8"))
    columns = table.pop("columns")
    found = {}
    for model_type, rows in table.items():
        for row in rows:
            values = dict(zip(columns, row[: len(columns)], strict=True))
            extra = row[len(columns)] if len(row) > len(columns) else {}
            found[values["name"]] = {"model_type": model_type, **values, **extra}
    return found
