"""Gates: bounds that the scores of a run must keep, as a recipe writes them (`exact_match >= 0.9`)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

FORMS = "`METRIC >= NUMBER` (or <=, >, <), or against the base model `METRIC >= base - NUMBER` (or <=, +)"

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_GATE = re.compile(
    r"(?P<metric>[^\s<>=]+)\s*(?P<op>>=|<=|>|<)\s*"
    rf"(?:(?P<base>base)(?:\s*(?P<sign>[+-])\s*(?P<offset>{_NUMBER}))?|(?P<number>[+-]?{_NUMBER}))"
)


@dataclass(frozen=True)
class Gate:
    """`metric` `op` `bound`; a relative one bounds the change: tuned less base."""

    metric: str
    op: str
    """One of >=, <=, >, <; of a relative gate >= or <=."""
    bound: float
    """In the metric's own unit."""
    relative: bool
    text: str
    """As the recipe writes it."""


def parse_gate(text: str) -> Gate:
    """Return the gate that a recipe writes as `text`; raises ValueError with the forms that there are."""
    written = text.strip()
    if "%" in written:
        raise ValueError(
            f"the gate {written!r} has a percent sign: bounds are on the metric's own scale, e.g. 0.9 for 90% of a "
            "metric that goes from 0 to 1"
        )
    found = _GATE.fullmatch(written)
    if found is None:
        raise ValueError(f"the gate {written!r} can't be read: write {FORMS}")
    relative = found["base"] is not None
    if relative and found["op"] in (">", "<"):
        raise ValueError(f"the gate {written!r} compares with the base model: write {found['op']}= there")
    bound = float((found["sign"] or "") + (found["offset"] or "0") if relative else found["number"])
    if not math.isfinite(bound):
        raise ValueError(f"the gate {written!r} has a bound that is too large for a number")
    return Gate(found["metric"], found["op"], bound, relative, written)
