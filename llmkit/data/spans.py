"""Where in the text of a conversation the trained turns stand.

A trained turn begins where generation would begin, after exactly the text that the model would be given, and ends with
the first token that generation stops on. Both are shown by renderings of the chat template: by its marks, by those of
TRL's twin of it, or as the difference between the texts before and after the turn. Where none of them shows it, the row
is refused, because the mask would be a guess.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.data.shapes import RowError
from llmkit.data.templates import Chat, Message, Span, twin_file
from llmkit.errors import SetupError

_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Dialogue:
    """A conversation, and what of it is trained."""

    messages: Sequence[Message]
    tools: Any
    wanted: tuple[int, ...]
    """Indices of the messages that are trained, at least one."""
    ends: tuple[str, ...]
    """How the tokens that end an answer are written."""

    @property
    def said(self) -> list[int]:
        """Indices of the messages of the assistant."""
        return [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]


def trained_spans(chat: Chat, talk: Dialogue) -> tuple[str, list[Span]]:
    """Return the text of a conversation, and where in it the wanted turns stand.

    Raises RowError where that can't be told, SetupError where something else than a stop token ends a turn.
    """
    if chat.own.marked:
        text, marks = chat.own.render_marked(talk.messages, talk.tools)
        return text, _marked(chat, talk, text, marks)
    try:
        return _in_own_text(chat, talk)
    except (RowError, SetupError):
        found = _in_twin_text(chat, talk)
        if found is None:
            raise
        return found


def _in_own_text(chat: Chat, talk: Dialogue) -> tuple[str, list[Span]]:
    text = chat.own.render(talk.messages, talk.tools)
    if chat.twin is not None and len(talk.wanted) > 1:
        # One more rendering in place of two for each turn, where the twin renders the same.
        marked, marks = chat.twin.render_marked(talk.messages, talk.tools)
        if marked == text:
            return text, _marked(chat, talk, text, marks)
    return text, _by_prefix(chat, talk, text)


def _in_twin_text(chat: Chat, talk: Dialogue) -> tuple[str, list[Span]] | None:
    """Return the twin's text and spans, if before each wanted turn it is what the tokenizer's own template asks with.

    For turns that the own template does not show as the model writes them, e.g. DeepSeek-R1's without its reasoning.
    """
    if chat.twin is None:
        return None
    try:
        text, marks = chat.twin.render_marked(talk.messages, talk.tools)
        by_turn = _by_turn(talk, marks)
        return text, [_asked_and_marked(chat, talk, text, turn, by_turn[turn]) for turn in talk.wanted]
    except (RowError, SetupError):
        return None


# --- by marks --------------------------------------------------------------------------------------------------------


def _marked(chat: Chat, talk: Dialogue, text: str, marks: Sequence[Span]) -> list[Span]:
    by_turn = _by_turn(talk, marks)
    spans = []
    for turn in talk.wanted:
        start, end = by_turn[turn]
        begin = _behind_header(chat.header, text, start, end)
        if begin is None:
            spans.append(_asked_and_marked(chat, talk, text, turn, (start, end)))
        else:
            spans.append(up_to_first_stop(text, (begin, end), talk.ends, chat.closing))
    return spans


def _by_turn(talk: Dialogue, marks: Sequence[Span]) -> dict[int, Span]:
    """Return what is marked of each turn of the assistant, by its index; raises RowError if that is not one piece."""
    pieces: list[Span] = []
    for start, end in marks:
        if start < end and pieces and pieces[-1][1] == start:
            pieces[-1] = pieces[-1][0], end  # e.g. Phi-3's twin, which marks the end of the text by itself
        elif start < end:
            pieces.append((start, end))
    if len(pieces) != len(talk.said):
        raise RowError(
            f"the chat template marks {len(pieces)} pieces of {len(talk.said)} turns of the assistant, so they can't "
            "be told apart; put {% generation %} and {% endgeneration %} around each turn"
        )
    return dict(zip(talk.said, pieces, strict=True))


def _behind_header(header: str | None, text: str, start: int, end: int) -> int | None:
    """Return where `header` ends, if it does at the beginning of a marked piece or within it.

    Marks may enclose a part of what asks for the answer, as those of Qwen2.5's twin do, and the model is given that.
    """
    if header is None:
        return None
    size = len(header)
    places = range(max(start, size), min(start + size, end) + 1)
    return next((place for place in places if text.startswith(header, place - size)), None)


def _asked_and_marked(chat: Chat, talk: Dialogue, text: str, turn: int, mark: Span) -> Span:
    """Return the part of a mark behind what the tokenizer's own template asks for the turn with.

    Raises RowError where the text does not begin with that.
    """
    asked = chat.own.render(talk.messages[:turn], talk.tools, prompt=True) if turn else ""
    if not text.startswith(asked) or not mark[0] <= len(asked) < mark[1]:
        raise _asked_elsewise(chat, talk, turn, asked)
    return up_to_first_stop(text, (len(asked), mark[1]), talk.ends, chat.closing)


# --- by prefix -------------------------------------------------------------------------------------------------------


def _by_prefix(chat: Chat, talk: Dialogue, text: str) -> list[Span]:
    spans = []
    for turn in talk.wanted:
        if turn == 0:
            raise RowError("the conversation begins with the assistant, so there is nothing it answers to")
        asked = chat.own.render(talk.messages[:turn], talk.tools, prompt=True)
        if not text.startswith(asked):
            raise _asked_elsewise(chat, talk, turn, asked)
        last = turn == len(talk.messages) - 1
        answered = text if last else chat.own.render(talk.messages[: turn + 1], talk.tools)
        if not text.startswith(answered) or len(answered) <= len(asked):
            raise RowError(
                f"the chat template renders message {turn + 1} differently once more messages follow, so its tokens "
                f"can't be told apart; {_instead(chat, talk, turn)}"
            )
        spans.append(up_to_first_stop(text, (len(asked), len(answered)), talk.ends, chat.closing))
    return spans


def _asked_elsewise(chat: Chat, talk: Dialogue, turn: int, asked: str) -> RowError:
    thinking = turn == talk.said[-1] and asked.rstrip().endswith("<think>")
    reason = " (the message must begin with its reasoning: <think>...</think> in its content)" if thinking else ""
    return RowError(
        f"the chat template asks for message {turn + 1} with {asked[-30:]!r}, and renders what stands before it "
        f"differently once it is there{reason}; {_instead(chat, talk, turn)}"
    )


def _instead(chat: Chat, talk: Dialogue, turn: int) -> str:
    only_last = "" if turn == talk.said[-1] else "train on the last turn only (`data.train_on: last`), or "
    such_as = f", such as {twin_file(chat.name)}" if chat.name else ""
    return f"{only_last}use a template that renders it alike (`model.chat_template`){such_as}"


# --- the end of a turn -----------------------------------------------------------------------------------------------


def up_to_first_stop(text: str, span: Span, ends: tuple[str, ...], closing: Collection[str]) -> Span:
    """Cut a span as `up_to_stop` does, and a second stop token behind the first: Phi-3 ends the last turn twice."""
    start, end = up_to_stop(text, span, ends, closing)
    while True:
        stop = max((stop for stop in ends if text.endswith(stop, start, end)), key=len)
        shorter = start + len(text[start : end - len(stop)].rstrip())
        if not text.endswith(ends, start, shorter):
            return start, end
        end = shorter


def up_to_stop(text: str, span: Span, ends: tuple[str, ...], closing: Collection[str]) -> Span:
    """Cut a span after the stop token that ends it: the template's white space behind it is not learnt.

    Raises SetupError where something else than one of `ends` ends it; one of the tokens `closing` may be what does.
    """
    start, end = span
    turn = text[start:end].rstrip()
    if turn.endswith(ends):
        return start, start + len(turn)
    # Marks may enclose the content only; the stop token then follows directly.
    space = _SPACE.match(text, start + len(turn))
    behind = space.end() if space else end
    stop = next((stop for stop in ends if text.startswith(stop, behind)), None)
    if stop is None:
        following = (token for token in closing if text.startswith(token, behind))  # what begins the text opens turns
        raise SetupError(
            f"the chat template ends the assistant's turn with {turn[-20:]!r}, but generation stops on "
            f"{' or '.join(map(repr, ends))}: the model would learn never to stop",
            remedy=end_remedy(turn + _longest(token for token in following if not text.startswith(token)), closing),
        )
    return start, behind + len(stop)


def end_remedy(turn: str, closing: Collection[str], ends: tuple[str, ...] = ()) -> str:
    """Say what makes a turn end with a token that generation stops on.

    `turn` is its text, `closing` are special tokens, and `ends` those that generation stops on, if `turn` may end so.
    """
    turn = turn.rstrip()
    if stop := _longest(token for token in ends if turn.endswith(token)):
        return f"Make {stop!r} a token of the tokenizer (`added_tokens` in its tokenizer.json), or end turns otherwise."
    if token := _longest(token for token in closing if turn.endswith(token)):
        return (
            f"The turn ends with the token {token!r}. If it ends every turn, name it: model: {{eos_token: {token!r}}}."
        )
    if not closing:
        return (
            "Name the token that ends a turn in `model.eos_token`, or write {{ eos_token }} after each in the template."
        )
    return (
        "No special token stands there, so the template writes no end token: add {{ eos_token }} after the "
        "assistant's content (`model.chat_template`)."
    )


def _longest(tokens: Iterable[str]) -> str:
    return max(tokens, key=len, default="")
