"""Halves of surrogate pairs in rows: JSON and Python can write them, and UTF-8, files and tokenizers can't."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from llmkit.data.shapes import RowError


def check_strings(row: Mapping[str, Any]) -> None:
    """Raise RowError if a string of the row has half a surrogate pair, which JSON can write and UTF-8 can't."""
    for name, value in row.items():
        if half := lone_surrogate(name) or lone_surrogate(value):
            raise RowError(f"column {ascii(name)} has a lone surrogate ({half}), which is no character")


def lone_surrogate(value: Any) -> str | None:
    """Return the first half of a surrogate pair in the strings of `value`, as JSON writes it; None if there is none."""
    if isinstance(value, str):
        if value.isascii():
            return None
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            return ascii(value[exc.start])[1:-1]
        return None
    if isinstance(value, Mapping):
        value = chain(value.keys(), value.values())
    elif not isinstance(value, list | tuple):
        return None
    return next((half for item in value if (half := lone_surrogate(item))), None)


def has_surrogates(text: str) -> bool:
    """Whether JSON escapes a surrogate (\\ud800 to \\udfff): one of a pair, as in any emoji, or a lone one."""
    return "\\u" in text and ("\\ud" in text or "\\uD" in text)
