"""Prompts and answers -> tokens: preference pairs, unpaired feedback, and prompts alone.

A prompt's tokens are exactly those that generation sees: its own text (of messages: rendered up to where the assistant
begins), tokenized by itself. The answer of a conversation has the tokens that follow these in the tokenized whole, the
same that `sft` trains on; where a token of the whole would span the boundary, the answer is tokenized by itself too.
Plain strings are always tokenized apart, as in `prompt_completion` rows. So both answers of a pair follow one prompt.

An answer ends with a token that generation stops on, and nothing behind it is learnt.

Each function takes a batch of examples, and returns for each its tokens or the RowError that says why there are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from llmkit.data import reasoning, turns
from llmkit.data.masks import Tokens, each, end_texts, end_token, raised, token_ids
from llmkit.data.shapes import EMPTY, RowError, UnlearnableError
from llmkit.data.spans import up_to_stop
from llmkit.data.templates import Chat, Message, chat_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.data.tokens import Rules

Ids = list[int]


def preferences(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Mapping[str, Any]], stops: frozenset[int], rules: Rules
) -> list[Tokens | RowError]:
    """Return `prompt_ids`, `chosen_ids` and `rejected_ids`.

    An UnlearnableError stands for a pair whose answers have the same tokens; the others are those of `unpaired`.
    """

    def differing(ids: Tokens) -> Tokens:
        if ids["chosen_ids"] == ids["rejected_ids"]:
            raise UnlearnableError("the answers have the same tokens")
        return ids

    return each(differing, _prompts_and_answers(tokenizer, examples, ("chosen", "rejected"), stops, rules))


def unpaired(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Mapping[str, Any]],
    stops: frozenset[int],
    rules: Rules | None,
) -> list[Tokens | RowError]:
    """Return `prompt_ids` and `completion_ids`.

    An UnlearnableError stands for an answer of which the template leaves nothing, another RowError for a conversation
    that the template refuses, that can't be split, or of whose answer it leaves something out. Without `rules`, for
    answers that are not learnt, any text will do. Raises SetupError where there is no template, or one that ends turns
    with another token than `stops`.
    """
    return _prompts_and_answers(tokenizer, examples, ("completion",), stops, rules)


def prompts(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Mapping[str, Any]],
    stops: frozenset[int],
    rules: Rules | None,
) -> list[Tokens | RowError]:
    """Return `prompt_ids`; RowErrors and what is raised as in `unpaired`."""
    return _prompts_and_answers(tokenizer, examples, (), stops, rules)


@dataclass
class _Parts:
    """The texts of one example."""

    prompt: str
    plain: bool
    """Whether they are no conversation."""
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    """For each answer: where it begins, and the text that it ends."""


def _prompts_and_answers(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Mapping[str, Any]],
    names: tuple[str, ...],
    stops: frozenset[int],
    rules: Rules | None,
) -> list[Tokens | RowError]:
    ends = end_texts(tokenizer, stops)
    chats = cache(partial(chat_of, tokenizer))

    def split(example: Mapping[str, Any]) -> _Parts:
        if isinstance(example["prompt"], str):
            return _Parts(example["prompt"], True, {name: (0, example[name]) for name in names})
        return _rendered(chats(tools=example.get("tools") is not None), example, names, ends, rules)

    found = each(split, examples)
    parts = [one for one in found if not isinstance(one, RowError)]
    plain = {one.prompt: None for one in parts if one.plain}
    others = {one.prompt: None for one in parts if not one.plain}
    others |= {text: None for one in parts for _, text in one.answers.values()}
    starting = dict(zip(plain, token_ids(tokenizer, list(plain), special=True), strict=True))
    read = dict(zip(others, token_ids(tokenizer, list(others), special=False), strict=True))

    def tokens(one: _Parts) -> Tokens:
        ids = raised((starting if one.plain else read)[one.prompt])
        answers = {f"{name}_ids": _answer(tokenizer, one, name, ids, read, stops) for name in names}
        return {"prompt_ids": list(ids), **answers}

    return each(tokens, found)


def _answer(
    tokenizer: PreTrainedTokenizerBase,
    one: _Parts,
    name: str,
    prompt_ids: Ids,
    read: Mapping[str, Ids | RowError],
    stops: frozenset[int],
) -> Ids:
    """Return the ids of the answer `name`; `read` has those of its whole text."""
    start, text = one.answers[name]
    whole = raised(read[text])
    if one.plain:
        return [*whole, end_token(tokenizer)]
    if whole[: len(prompt_ids)] == prompt_ids:
        ids = whole[len(prompt_ids) :]
    else:
        ids = raised(token_ids(tokenizer, [text[start:]], special=False)[0])
    if all(token in stops for token in ids):
        raise UnlearnableError(EMPTY)
    return ids


def _rendered(
    chat: Chat,
    example: Mapping[str, Any],
    names: tuple[str, ...],
    ends: tuple[str, ...],
    rules: Rules | None,
) -> _Parts:
    """Return the texts of an example of messages."""
    rule, tools = rules.reasoning if rules else "keep", example.get("tools")
    before = turns.spoken(reasoning.ruled(example["prompt"], rule))
    asked = chat.own.render(before, tools, prompt=True)
    parts = _Parts(asked, plain=False)
    for name in names:
        for turn in example[name]:
            if turn.get("weight", 1) != 1 or not turn.get("train", True):
                raise RowError(f"{name!r}: an answer counts as a whole: `weight` and `train` are for conversations")
        messages = turns.spoken(reasoning.ruled([*example["prompt"], *example[name]], rule))
        start, end, text = _reply(chat, asked, messages, tools, ends, name)
        if rules is not None:
            turns.check_complete(messages[-1], len(messages), text, (start, end))
        parts.answers[name] = start, text[:end]
    return parts


def _reply(
    chat: Chat, asked: str, messages: Sequence[Message], tools: Any, ends: tuple[str, ...], name: str
) -> tuple[int, int, str]:
    """Return where the last message begins and ends in the text of all; `asked` is what generation sees before it."""
    text = chat.own.render(messages, tools)
    if not text.startswith(asked) and chat.twin is not None:
        text = chat.twin.render(messages, tools)
    if not text.startswith(asked):
        raise RowError(
            f"the chat template renders the prompt differently once {name!r} follows: it asks with {asked[-20:]!r}, so "
            "the answer's tokens can't be told apart; use another template (`model.chat_template`)"
        )
    start, end = up_to_stop(text, (len(asked), len(text)), ends, chat.closing)
    return start, end, text
