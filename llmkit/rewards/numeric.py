r"""Numeric: 1 where the completion's final number is the row's, however either is written.

>>> reward = Numeric(type="numeric")
>>> reward.score("She makes 9 * 2 = $18.00 a day.", {"answer": "9 * 2 = 18\n#### 18"})
1.0
>>> reward.score("That leaves 17.", {"answer": 18})
0.0
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from llmkit.data.shapes import RowError
from llmkit.rewards._marks import boxed, tagged
from llmkit.rewards.base import Reward

LONGEST = 100
"""Characters of a number; a longer one is read as none, so that no completion costs more than a moment."""

ROUNDING = 1e-6
"""Share of a fraction that its decimals may leave out: 0.333333 is 1/3."""

# English spelling: commas between thousands, a point before decimals. Possessive quantifiers keep this linear.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])(?:\.[0-9]++)?|[0-9]++(?:\.[0-9]++)?|(?<!\.)\.[0-9]++)"
_EXPONENT = r"(?:[eE][-+]?[0-9]++(?![A-Za-z]))?"
_NUMBER = re.compile(
    # A minus behind a letter, digit or bracket subtracts or joins: 16-3, COVID-19.
    r"(?P<sign>(?<![A-Za-z0-9_)\]}^])[-+\u2212])?(?:\\?[$€£¥]\s?)?(?<![A-Za-z0-9_^])"
    r"(?:(?P<whole>[0-9]++)\s++(?=[0-9]++\s?/\s?[0-9]))?"
    rf"(?P<top>{_DIGITS}{_EXPONENT})(?:\s?/\s?(?P<bottom>{_DIGITS}))?(?!\^)"
)
_PHRASE = re.compile(
    r"\banswer(?:\s+is|\s*[:=])[\s:=*$\\(\[]*+(?:(?:about|approximately|exactly|equal to)\s+[*$]*+)?", re.IGNORECASE
)
# From one number of an equation to the next: a unit, operators, `=`. The number behind `=` keeps its sign.
_STEP = re.compile(
    r"(?:[ \t]*+(?![xX]\b)[A-Za-z]++)?(?P<operators>[-+*/×÷·\u2212xX%$\\()\[\]{} \t]*+)(?P<equals>=[ \t*(\[{]*+)?"
)
_OPERATORS = frozenset("-+*/×÷·\u2212xX")
# `#### 3. Add them up` is a heading, `#### 18 dollars` an answer.
_HEADING = re.compile(r"[.):][ \t]*+[^\s*]")

_LATEX = (
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,!]"), ""),
    (re.compile(r"(?<=[0-9])\s*+\\[dt]?frac\s*+\{\s*+([^{}]+)\}\s*+\{\s*+([^{}]+)\}"), r" \1/\2"),
    (re.compile(r"\\[dt]?frac\s*+\{\s*+([^{}]+)\}\s*+\{\s*+([^{}]+)\}"), r"\1/\2"),
    (re.compile(r"(?<=[0-9])\s*+(?:\\times|\\cdot|[x×*])\s*+10\s*+(?:\^|\*\*)\s*+\{?([-+]?[0-9]{1,3})\}?"), r"e\1"),
    (re.compile(r"\^\s*+(?:\{\s*\\circ\s*\}|\\circ)"), ""),
    (re.compile(r"\\(?:times|cdot|div)(?![A-Za-z])"), "×"),
    # Exponents are no numbers of their own, nor is what they stand on: m^2, 2^3, 2**3.
    (re.compile(r"(?<=[0-9)])\*\*(?=[0-9(])"), "^"),
    (re.compile(r"\^\s*+(?:\{[^{}]*\}|[-+]?[A-Za-z0-9.]++)"), "^"),
)


class Numeric(Reward):
    r"""Compare the completion's final number with the row's: GSM8K and other tasks with one number as the answer.

    The final number is the first of these that is there: the last number in the last `\boxed{...}`, the number behind
    `####`, the last in `<answer>...</answer>`, the one behind "answer is" or "answer:", the last of all. Where a sum
    stands behind `####` or "answer is", what it comes to counts: 9 * 2 = 18 is 18. Currency signs, percent signs and
    units are passed over (50% is 50). Fractions, mixed numbers (2 1/2) and 1.5e3 are read as such; 1,234 is English.
    Words are no numbers.
    """

    type: Literal["numeric"]
    """1 for the right final number, else 0."""

    column: str = "answer"
    """Column of the row with the number: it holds one number, or a solution that ends with `#### NUMBER`."""

    tolerance: float | None = Field(default=None, ge=0, lt=1)
    """How far off a number may be, as a share of the right one. If unset, 1e-6, and whole numbers must be equal."""

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise RowError if the row's answer is missing or is not one number."""
        gold(row, self.column, self.name)

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return 1.0 or 0.0."""
        right, found = gold(row, self.column, self.name), final_number(completion)
        if found is None:
            return 0.0
        # A millionth of 1,450,000 would let 1,450,001 pass.
        whole = self.tolerance is None and found.denominator == right.denominator == 1
        share = 0.0 if whole else ROUNDING if self.tolerance is None else self.tolerance
        return float(abs(found - right) <= Fraction(share) * abs(right))

    def golden(self, row: Mapping[str, Any]) -> str | None:
        """Return the row's own solution."""
        return str(row[self.column])


def gold(row: Mapping[str, Any], column: str, name: str) -> Fraction:
    """Return the number in the row's `column`; raises RowError if it holds none, or several without `####`."""
    value = row.get(column)
    if value is None or isinstance(value, bool):
        raise RowError(f"no number in column {column!r}, which reward `{name}` compares with")
    _, marked, text = str(value).rpartition("####")
    numbers = _numbers(_plain(text))
    if len(numbers) != 1 and not (marked and numbers):
        raise RowError(
            f"column {column!r} holds {len(numbers)} numbers, and reward `{name}` needs one, "
            f"or a last line `#### NUMBER`: {str(value)[:80]!r}"
        )
    if numbers[0] is None:
        raise RowError(f"column {column!r} divides by zero, or its number is too long")
    return numbers[0]


def final_number(completion: str) -> Fraction | None:
    """Return the number that `completion` ends up with (the order is in `Numeric`); None where there is none."""
    box = boxed(completion)
    if box is not None:
        return _last(_plain(box))
    text = _plain(completion)
    for match in reversed(list(re.finditer(r"####\s*+[*$]*+", text))):
        number = _NUMBER.match(text, match.end())
        if number and not _HEADING.match(text, number.end()):
            return _stated(text, number)
    inside = tagged(text)
    if inside is not None:
        return _last(inside)
    for match in reversed(list(_PHRASE.finditer(text))):
        number = _NUMBER.match(text, match.end())
        if number:
            return _stated(text, number)
    return _last(text)


def _stated(text: str, number: re.Match[str]) -> Fraction | None:
    """Return `number`, or what the sum that starts with it comes to: the last side of the equation that is one number.

    Without an operator `number` itself is what is stated: 2 hours = 120 minutes, 7 = 3 + 4.
    """
    result, side, place = number, None, number.end()
    while (step := _STEP.match(text, place)) and (following := _NUMBER.match(text, step.end())):
        # What is left of ** is bold print: powers have become ^.
        operated = not _OPERATORS.isdisjoint(step["operators"].replace("**", ""))
        if step["equals"]:
            if place == number.end() and not operated:
                break
            result = result if side is None or operated else side
            side = following
        elif operated:
            side = None
        else:
            break
        place = following.end()
    return _value(side or result)


def _plain(text: str) -> str:
    """Return `text` with LaTeX's spelling of numbers in plain characters, and without exponents."""
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def _numbers(text: str) -> list[Fraction | None]:
    return [_value(match) for match in _NUMBER.finditer(text)]


def _last(text: str) -> Fraction | None:
    last = deque(_NUMBER.finditer(text), maxlen=1)
    return _value(last[0]) if last else None


def _value(match: re.Match[str]) -> Fraction | None:
    """Return the number that `_NUMBER` matched; None where it is too long, or divides by zero."""
    top = match["top"].replace(",", "")
    if len(match[0]) > LONGEST or len(top.lower().partition("e")[2].strip("+-")) > 3:
        return None
    number = Fraction(top)
    if match["bottom"]:
        bottom = Fraction(match["bottom"].replace(",", ""))
        if not bottom:
            return None
        number /= bottom
    number += int(match["whole"] or 0)
    return -number if match["sign"] in ("-", "\u2212") else number
