"""Format: 1 where the completion consists of the given tags, each once and in order.

>>> reward = Format(type="format")
>>> reward.score("<think>2 + 3</think> <answer>5</answer>", {})
1.0
>>> reward.score("<answer>5</answer>", {})
0.0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from llmkit.rewards.base import Reward

Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][\w.-]*$")]
PARTIAL = 0.5
"""The most that tags without the whole form are worth."""


class Format(Reward):
    """Ask for `<think>...</think><answer>...</answer>` (DeepSeek-R1, arXiv:2501.12948, table 1) or other tags.

    The whole form is worth 1: every tag once, in order, something between its ends, nothing but white space outside.
    """

    type: Literal["format"]
    """1 for the whole form, else 0, or partial credit."""

    tags: tuple[Tag, ...] = Field(default=("think", "answer"), min_length=1, strict=False)
    """Names of the tags, in order."""

    prefix: str = ""
    """Text put before each completion: `<think>`, where the chat template already writes it at the prompt's end."""

    partial: bool = False
    """Without the whole form, give half the share of the opening and closing tags that are there exactly once."""

    @field_validator("tags")
    @classmethod
    def _different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"each tag can be asked for once, not {', '.join(value)}")
        return value

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return 1.0 for the whole form; else 0.0, or with `partial` up to 0.5."""
        text = self.prefix + completion
        ends = [end for tag in self.tags for end in (f"<{tag}>", f"</{tag}>")]
        once = sum(text.count(end) == 1 for end in ends)
        if once == len(ends) and in_order(text, self.tags):
            return 1.0
        return PARTIAL * once / len(ends) if self.partial else 0.0

    def golden(self, row: Mapping[str, Any]) -> str | None:
        """Return the form itself, three dots in each tag."""
        return "\n".join(f"<{tag}>...</{tag}>" for tag in self.tags).removeprefix(self.prefix)


def in_order(text: str, tags: tuple[str, ...]) -> bool:
    """Whether `text` is the tags one after the other, none of them empty, with only white space outside."""
    rest = text
    for tag in tags:
        before, opening, rest = rest.partition(f"<{tag}>")
        inside, closing, rest = rest.partition(f"</{tag}>")
        if before.strip() or not opening or not closing or not inside.strip():
            return False
    return not rest.strip()
