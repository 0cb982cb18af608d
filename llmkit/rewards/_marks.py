"""Where a completion says what its answer is: in a LaTeX box, or in tags. Both run in linear time on any text."""

from __future__ import annotations

import re

# An escaped character comes first, so that the braces of \{1, 2\} are no groups.
_TOKEN = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def boxed(text: str) -> str | None:
    r"""Return what the last complete `\boxed{...}` holds, braces inside it balanced; None where there is none."""
    opened: list[int] = []
    boxes: set[int] = set()
    found = None
    for token in _TOKEN.finditer(text):
        if token[0] == "}":
            start = opened.pop() if opened else -1
            if start in boxes:
                found = text[start : token.start()]
        elif token[0].endswith("{") and token[0] != r"\{":
            opened.append(token.end())
            if len(token[0]) > 1:
                boxes.add(token.end())
    return found


def tagged(text: str, tag: str = "answer") -> str | None:
    """Return what the last complete `<tag>...</tag>` holds, stripped; None where there is none."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, max(end, 0))
    return None if start < 0 else text[start + len(tag) + 2 : end].strip()
