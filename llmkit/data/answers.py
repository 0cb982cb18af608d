"""Prompts and answers -> tokens: preference pairs, unpaired feedback, and prompts alone.

A prompt's tokens are exactly those that generation sees: its own text (of messages: rendered up to where the assistant
begins), tokenized by itself. The answer of a conversation has the tokens that follow these in the tokenized whole, the
same that `sft` trains on; where a token of the whole would span the boundary, the answer is tokenized by itself too.
Plain strings are always tokenized apart, as in `prompt_completion` rows. So both answers of a pair follow one prompt.

An answer ends with a token that generation stops on, and nothing behind it is learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmkit.data.masks import Tokens, end_token, render, token_ids, up_to_stop
from llmkit.data.shapes import EMPTY, RowError, UnlearnableError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def preference(tokenizer: PreTrainedTokenizerBase, example: Mapping[str, Any], stops: frozenset[int]) -> Tokens:
    """Return `prompt_ids`, `chosen_ids` and `rejected_ids`.

    Raises UnlearnableError for a pair whose answers have the same tokens, and what `unpaired` raises.
    """
    ids = _prompt_and_answers(tokenizer, example, ("chosen", "rejected"), stops)
    if ids["chosen_ids"] == ids["rejected_ids"]:
        raise UnlearnableError("the answers have the same tokens")
    return ids


def unpaired(tokenizer: PreTrainedTokenizerBase, example: Mapping[str, Any], stops: frozenset[int]) -> Tokens:
    """Return `prompt_ids` and `completion_ids`.

    Raises UnlearnableError for an answer of which the template leaves nothing, RowError for a conversation that the
    template refuses or that can't be split, SetupError where there is no template, or one that ends turns with another
    token than `stops`.
    """
    return _prompt_and_answers(tokenizer, example, ("completion",), stops)


def prompt(tokenizer: PreTrainedTokenizerBase, example: Mapping[str, Any], stops: frozenset[int]) -> Tokens:
    """Return `prompt_ids`; raises as `unpaired` does."""
    return _prompt_and_answers(tokenizer, example, (), stops)


def _prompt_and_answers(
    tokenizer: PreTrainedTokenizerBase, example: Mapping[str, Any], names: tuple[str, ...], stops: frozenset[int]
) -> Tokens:
    if isinstance(example["prompt"], str):
        ids = {"prompt_ids": token_ids(tokenizer, example["prompt"], special=True)}
        for name in names:
            ids[f"{name}_ids"] = [*token_ids(tokenizer, example[name], special=False), end_token(tokenizer)]
        return ids
    asked = render(tokenizer, example["prompt"], example.get("tools"), prompt=True)
    prompt_ids = token_ids(tokenizer, asked, special=False)
    answers = {f"{name}_ids": _answer(tokenizer, example, name, asked, prompt_ids, stops) for name in names}
    return {"prompt_ids": prompt_ids, **answers}


def _answer(
    tokenizer: PreTrainedTokenizerBase,
    example: Mapping[str, Any],
    name: str,
    asked: str,
    prompt_ids: list[int],
    stops: frozenset[int],
) -> list[int]:
    """Return the ids of the messages in column `name`; `asked` is the rendered prompt, `prompt_ids` its tokens."""
    text = render(tokenizer, [*example["prompt"], *example[name]], example.get("tools"))
    if not text.startswith(asked):
        raise RowError(
            f"the chat template renders the prompt differently once {name!r} follows, so its tokens can't be told "
            "apart; use another template (`model.chat_template`)"
        )
    start, end = up_to_stop(tokenizer, text, (len(asked), len(text)), stops)
    whole = token_ids(tokenizer, text[:end], special=False)
    aligned = whole[: len(prompt_ids)] == prompt_ids
    ids = whole[len(prompt_ids) :] if aligned else token_ids(tokenizer, text[start:end], special=False)
    if all(token in stops for token in ids):
        raise UnlearnableError(EMPTY)
    return ids
