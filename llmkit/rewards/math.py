r"""Math: 1 where the completion's answer equals the row's as mathematics, by the package math-verify.

>>> Math(type="math").score(r"Half of it: \boxed{0.5}", {"answer": r"\frac{1}{2}"})
1.0
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from llmkit.data.shapes import RowError
from llmkit.rewards._marks import boxed, tagged
from llmkit.rewards._packages import check_package
from llmkit.rewards.base import Reward


class Math(Reward):
    r"""Compare LaTeX or plain expressions: numbers, fractions, polynomials, sets, intervals, matrices, equations.

    The answer is what the last `\boxed{...}` holds, else the last `<answer>...</answer>`, else what math-verify finds
    in the whole completion (LaTeX between dollars, "the final answer is", the last expression).

    math-verify reads a bare word as a product of letters, so words are compared better by `exact_match`. What it can't
    parse or compare, or not within `timeout`, scores 0: the package returns that by itself, so nothing is caught here.
    It measures time with a signal, which only a program's main thread can receive; in another thread it raises.
    """

    type: Literal["math"]
    """1 for an equal expression, else 0; needs the package math-verify."""

    column: str = "answer"
    r"""Column of the row with the right expression, in LaTeX or plain; of a solution, its last box or `####` counts."""

    timeout: int = Field(default=5, ge=1)
    """Seconds that parsing one expression, and comparing one pair, may take."""

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError where math-verify is not installed."""
        check_package("math_verify", "math-verify", self.name)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise RowError if the row's answer is missing, or is nothing that math-verify can parse."""
        if row.get(self.column) is None:
            raise RowError(f"no column {self.column!r}, which reward `{self.name}` compares with")
        text = _gold(str(row[self.column]))
        if all(isinstance(value, str) for value in _parse_gold(text, self.timeout)):
            raise RowError(f"math-verify finds no expression in column {self.column!r}: {text[:80]!r}")

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return 1.0 or 0.0."""
        math_verify = importlib.import_module("math_verify")
        found = [
            value for text in _places(completion) for value in math_verify.parse(text, parsing_timeout=self.timeout)
        ]
        right = list(_parse_gold(_gold(str(row[self.column])), self.timeout))
        return float(math_verify.verify(right, found, timeout_seconds=self.timeout))

    def golden(self, row: Mapping[str, Any]) -> str | None:
        """Return the right expression in a box."""
        return _box(_gold(str(row[self.column])))


def _gold(text: str) -> str:
    box = boxed(text)
    return text.rpartition("####")[2].strip() if box is None else box


def _places(completion: str) -> list[str]:
    """Return the texts that math-verify is to search: the marked answer, or the whole completion."""
    box = boxed(completion)
    if box is not None:
        return [_box(box)]
    inside = tagged(completion)
    # In tags stands an expression or a sentence with one in it.
    return [completion] if inside is None else [_box(inside), inside]


def _box(text: str) -> str:
    # math-verify takes LaTeX for LaTeX only where something says so; a full stop would make `5.` no number.
    return rf"\boxed{{{text.strip().rstrip('.')}}}"


@lru_cache(maxsize=4096)
def _parse_gold(text: str, timeout: int) -> tuple[Any, ...]:
    """Return the row's answer as math-verify reads it; the same for all completions of a group."""
    return tuple(importlib.import_module("math_verify").parse(_box(text), parsing_timeout=timeout))
