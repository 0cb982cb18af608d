"""JSON in answers: read as RFC 8259 has it, and taken apart into fields that can be compared."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from llmkit.rewards.code import FENCE

Place = tuple[str | int, ...]
"""Keys and indices that lead to a field."""

Leaf = tuple[bool, Any]
"""A value without parts, and whether it is true or false: Python takes True for 1."""


def in_answer(answer: str) -> str:
    """Return what the answer's last fenced block holds that is marked as JSON or not at all; else the whole answer."""
    blocks = [text for _, language, text in FENCE.findall(answer) if language.lower() in ("", "json")]
    return blocks[-1] if blocks else answer


def read_json(text: str) -> Any:
    """Return the value that `text` spells; raises ValueError, also for NaN and Infinity, which JSON doesn't have."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def leaves(value: Any) -> dict[Place, Leaf]:
    """Return the fields of a JSON value that hold no further ones, by their places.

    1 and 1.0 are equal then, 1 and true are not. An empty list or object is a field; a value that is no list or object
    has one, at the empty place.
    """
    found: dict[Place, Leaf] = {}
    waiting: list[tuple[Place, Any]] = [((), value)]
    while waiting:  # no recursion: an answer may be nested as deeply as Python reads it
        place, inside = waiting.pop()
        pairs = inside.items() if isinstance(inside, dict) else enumerate(inside) if isinstance(inside, list) else ()
        parts = [((*place, key), part) for key, part in pairs]
        waiting += parts
        if not parts:
            found[place] = (isinstance(inside, bool), inside)
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
