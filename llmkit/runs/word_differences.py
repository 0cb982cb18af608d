"""Two answers side by side: the words that only one of them has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

ALIKE = 0.25
"""Share of common words below which nothing is marked: everything would be, and no mark would say anything."""

_OWN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
"""Characters that are words by themselves here: no spaces are written between the words of Chinese and Japanese."""

_WORD = re.compile(rf"^\s+|[{_OWN}]\s*|[^\W{_OWN}]+\s*|\W\s*")


@dataclass(frozen=True)
class Piece:
    """Some words in a row, and whether the other text lacks them."""

    text: str
    own: bool


@dataclass(frozen=True)
class Marked:
    """Two texts in pieces, which together are the texts."""

    one: tuple[Piece, ...]
    other: tuple[Piece, ...]
    alike: float
    """Share of words that they have in common, from 0 to 1."""


def compare_words(one: str, other: str) -> Marked:
    """Return both texts with the words marked that the other one lacks; white space alone makes no difference."""
    a, b = _WORD.findall(one), _WORD.findall(other)
    matcher = SequenceMatcher(None, [w.strip() for w in a], [w.strip() for w in b], autojunk=False)
    alike = matcher.ratio()
    if alike < ALIKE:
        return Marked((Piece(one, own=False),), (Piece(other, own=False),), alike)
    blocks = matcher.get_matching_blocks()
    common_a = {index for block in blocks for index in range(block.a, block.a + block.size)}
    common_b = {index for block in blocks for index in range(block.b, block.b + block.size)}
    return Marked(tuple(_pieces(a, common_a)), tuple(_pieces(b, common_b)), alike)


def _pieces(words: Sequence[str], common: set[int]) -> Iterator[Piece]:
    for own, group in groupby(enumerate(words), key=lambda word: word[0] not in common):
        text = "".join(word for _, word in group)
        bare = text.rstrip() if own else text
        if bare:
            yield Piece(bare, own)
        if bare != text:
            yield Piece(text[len(bare) :], own=False)  # the space behind a word is not marked with it
