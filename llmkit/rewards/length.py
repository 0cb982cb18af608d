"""Length: near a target, or not beyond a limit.

>>> Length(type="length", target=10, tolerance=5).score("only eight words long, so two too few", {})
0.6
>>> Length(type="length", max=4, over=4).score("two words more than allowed here", {})
-0.5
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from llmkit.rewards.base import Reward


class Length(Reward):
    """Score the number of words (split at white space) or characters; rewards see text, not tokens.

    With `target` and `tolerance`, 1 at the target, falling in a line to 0 at `tolerance` away from it on either side.
    With `max` and `over`, 0 up to `max`, falling in a line to -1 at `max + over` and beyond: the soft overlong
    punishment of DAPO (arXiv:2503.14476, equation 13), which speaks of tokens.
    """

    type: Literal["length"]
    """Up to 1 for a target, down to -1 for a limit."""

    unit: Literal["words", "characters"] = "words"
    """What is counted."""

    target: int | None = Field(default=None, ge=0)
    """The length that scores 1."""

    tolerance: int | None = Field(default=None, ge=1)
    """How far from the target the score reaches 0."""

    max: int | None = Field(default=None, ge=0)
    """The longest completion without a penalty."""

    over: int | None = Field(default=None, ge=1)
    """How far beyond `max` the penalty reaches -1."""

    @model_validator(mode="after")
    def _one_kind(self) -> Length:
        given = {name for name in ("target", "tolerance", "max", "over") if getattr(self, name) is not None}
        if given not in ({"target", "tolerance"}, {"max", "over"}):
            raise ValueError("a length has either `target` and `tolerance`, or `max` and `over`")
        return self

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return 0..1 with a target, -1..0 with a limit."""
        length = len(completion.split()) if self.unit == "words" else len(completion)
        if self.target is not None and self.tolerance is not None:
            return max(0.0, 1.0 - abs(length - self.target) / self.tolerance)
        return max(-1.0, min(0.0, ((self.max or 0) - length) / (self.over or 1)))
