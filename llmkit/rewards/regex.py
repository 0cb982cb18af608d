r"""Regex: 1 where the completion matches a pattern.

>>> Regex(type="regex", pattern=r"\d{4}-\d{2}-\d{2}", match="full").score("2024-02-29", {})
1.0
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from llmkit.rewards.base import Reward

SECONDS = 1.0
"""Time that one completion may take: patterns like (a+)+$ need longer than a run lasts on some texts."""


class Regex(Reward):
    """Match with the package `regex`, whose syntax contains that of Python's `re`; flags are written as (?i), (?s).

    A completion on which the pattern takes more than a second scores 0, with a warning: `re` has no such limit.
    """

    type: Literal["regex"]
    """1 for a match, else 0."""

    pattern: str = Field(min_length=1)
    """Regular expression."""

    match: Literal["search", "full"] = "search"
    """Whether the pattern may match anywhere (`search`), or must match the whole completion (`full`)."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        regex = importlib.import_module("regex")
        try:
            regex.compile(value)
        except (regex.error, RecursionError) as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return value

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return 1.0 or 0.0."""
        regex = importlib.import_module("regex")
        find = regex.fullmatch if self.match == "full" else regex.search
        try:
            return float(find(self.pattern, completion, timeout=SECONDS) is not None)
        except TimeoutError:
            warnings.warn(
                f"reward `{self.name}`: the pattern takes more than {SECONDS:g} s on some completions; these score 0",
                stacklevel=2,
            )
            return 0.0
