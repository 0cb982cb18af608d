"""Tokens as text that a person can check: white space, control characters and token boundaries can be seen."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST_EDGE = 8
"""Tokens that stay on either side of what is left out, at least."""

LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8: as many tokens may be needed to read it."""

UNREADABLE = "\ufffd"

MARKS = {"\n": "↵\n", "\t": "⇥", "\x7f": "␡", " ": " ", "\u3000": "\u3000", "\u200c": "\u200c", "\u200d": "\u200d"}
"""White space and its mark; what stands for itself is a full-width space, or a joiner of Persian words and emoji."""

EDGE_SPACE = re.compile(r"(?<![^ \n]) | (?![^ \n])")
"""A space that could be overlooked: at an end, at a line's end, or one of several."""


PLACE = re.compile(r"(.*?)(:\d+|\[\d+\])", re.DOTALL)
"""A row's place: what it stands in, and its line or its number."""


@dataclass(frozen=True)
class Passage:
    """What the model reads of a row, or a part of it: a prompt, an answer."""

    title: str
    """`prompt`, `chosen`, ...; empty where the row is a single sequence."""
    ids: Sequence[int]
    weights: Sequence[float]
    """The factor of each token's loss: 0 is not trained."""

    @property
    def trained(self) -> int:
        """Number of trained tokens."""
        return sum(weight != 0 for weight in self.weights)


@dataclass(frozen=True)
class Piece:
    """The text of one token, or of several that only together make a character."""

    text: str
    ids: tuple[int, ...]
    weight: float
    special: bool = False
    """Whether it is a token with a name of its own, e.g. `<|im_end|>`."""


@dataclass(frozen=True)
class Gap:
    """Tokens that are left out; their weight is 0 where it is not the same for all."""

    tokens: int
    trained: int
    weight: float


@dataclass(frozen=True)
class _Stretch:
    start: int
    stop: int
    weight: float
    shown: bool = True


def spell(tokenizer: PreTrainedTokenizerBase, passage: Passage, most: int) -> list[Piece | Gap]:
    """Return the passage as text with visible white space, in about `most` tokens.

    A long run of equal weight loses its middle and keeps its ends, so each boundary of what is trained stays in sight;
    where there are too many runs for that, those in the middle are left out.
    """
    named = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    parts: list[Piece | Gap] = []
    for stretch in _stretches(passage.weights, most):
        if stretch.shown:
            parts += _pieces(tokenizer, passage.ids[stretch.start : stretch.stop], stretch.weight, named)
        else:
            trained = sum(weight != 0 for weight in passage.weights[stretch.start : stretch.stop])
            parts.append(Gap(stretch.stop - stretch.start, trained, stretch.weight))
    return list(_visible_parts(_whole_characters(parts)))


def _stretches(weights: Sequence[float], most: int) -> Iterator[_Stretch]:
    runs, at = [], 0
    for weight, group in groupby(weights):
        runs.append(_Stretch(at, at := at + len(list(group)), weight))
    if len(weights) <= most:
        yield from runs
        return
    ends = max(1, most // (4 * LEAST_EDGE))
    middle = runs[ends:-ends]
    if len(middle) > 1:
        runs = [*runs[:ends], _Stretch(middle[0].start, middle[-1].stop, 0.0, shown=False), *runs[-ends:]]
    edge = _edge([run.stop - run.start for run in runs if run.shown], most)
    for run in runs:
        if not run.shown or run.stop - run.start <= 2 * edge + 2:
            yield run
        else:
            yield replace(run, stop=run.start + edge)
            yield replace(run, start=run.start + edge, stop=run.stop - edge, shown=False)
            yield replace(run, start=run.stop - edge)


def _edge(lengths: Sequence[int], most: int) -> int:
    """Return the largest n for which all runs, each cut to its first and last n tokens, have at most `most` tokens."""
    fits = (n for n in range(most // 2, LEAST_EDGE, -1) if sum(min(length, 2 * n) for length in lengths) <= most)
    return next(fits, LEAST_EDGE)


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], weight: float, named: set[int]) -> Iterator[Piece]:
    def text(begin: int, end: int) -> str:
        return str(tokenizer.decode(ids[begin:end], clean_up_tokenization_spaces=False))

    # The piece before is decoded as well: at the beginning of a text, some tokenizers leave out a word's space.
    before = begin = 0

    def piece(end: int) -> Piece:
        nonlocal before, begin
        new = text(before, end)[len(text(before, begin)) :] or str(tokenizer.convert_ids_to_tokens(ids[end - 1]))
        before, begin, was = begin, end, begin
        return Piece(new, tuple(ids[was:end]), weight, ids[was] in named)

    for end in range(1, len(ids) + 1):
        pending = text(begin, end)
        if pending.endswith(2 * UNREADABLE) and end - begin > 1:
            yield piece(end - 1)  # the beginning of a character is one such mark: these tokens never become one
        last = end == len(ids) or ids[end - 1] in named or ids[end] in named
        if last or not pending.endswith(UNREADABLE) or end - begin >= LONGEST_CHARACTER:
            yield piece(end)


def _whole_characters(parts: Sequence[Piece | Gap]) -> list[Piece | Gap]:
    """Leave out as well what a cut has made unreadable: the bytes of a character beside a gap."""
    kept: list[Piece | Gap] = []
    for part in parts:
        before = kept[-1] if kept else None
        if isinstance(before, Gap) and isinstance(part, Piece) and UNREADABLE in part.text:
            kept[-1] = _wider(before, part)
            continue
        while isinstance(part, Gap) and kept and isinstance(last := kept[-1], Piece) and UNREADABLE in last.text:
            part = _wider(part, last)
            kept.pop()
        kept.append(part)
    return kept


def _wider(gap: Gap, piece: Piece) -> Gap:
    count = len(piece.ids)
    return replace(gap, tokens=gap.tokens + count, trained=gap.trained + count * (piece.weight != 0))


def _visible_parts(parts: Sequence[Piece | Gap]) -> Iterator[Piece | Gap]:
    """Make white space visible, that at the ends of a run with the rest."""

    def kind(part: Piece | Gap) -> tuple[bool, bool, float]:
        return isinstance(part, Gap), isinstance(part, Piece) and part.special, part.weight

    groups = [list(group) for _, group in groupby(parts, kind)]
    for before, group, after in zip([[], *groups], groups, [*groups[1:], []], strict=False):
        # Beside a gap, a space is not at an end: a letter stands for what is left out.
        left, right = ("x" if neighbour and isinstance(neighbour[0], Gap) else "" for neighbour in (before, after))
        text = "".join(part.text for part in group if isinstance(part, Piece))
        marked = EDGE_SPACE.sub("·", f"{left}{text}{right}").removeprefix(left)
        for part in group:
            if isinstance(part, Piece):
                own, marked = marked[: len(part.text)], marked[len(part.text) :]
                yield replace(part, text=visible(own))
            else:
                yield part


def visible(text: str) -> str:
    """Return `text` with a mark for each character that could not be seen, or that could change how others are shown.

    Terminals act on control characters, and some format characters turn the direction of the text around them.
    """
    return "".join(MARKS.get(character) or _named(character) for character in text)


def _named(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cc" and character < " ":
        return chr(0x2400 + ord(character))
    if category in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp"):
        return f"‹U+{ord(character):04X}›"
    return "⍽" if category == "Zs" else character


def places(where: Sequence[str], count: int) -> str:
    """Return the places of the first of `count` rows; a file that several stand in is named once."""
    said, file = [], ""
    for place in where:
        match = PLACE.fullmatch(place)
        said.append(match[2] if match and match[1] == file else place)
        file = match[1] if match else ""
    return visible(", ".join(said)) + (", …" if count > len(where) else "")
