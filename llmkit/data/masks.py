"""Rows of a single sequence -> tokens and labels. A conversation is rendered once; offsets say what is trained.

Each function takes a batch of examples and the token ids that end a generated answer (`stops`). It returns for each
example `input_ids` and `labels`, which are -100 where nothing is learnt, and `loss_weights` if a turn has a weight
other than 1; or the RowError that says why there are none.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

from llmkit.data import reasoning, turns
from llmkit.data.shapes import RowError
from llmkit.data.spans import Dialogue, end_remedy, trained_spans
from llmkit.data.templates import Chat, Span, chat_of, control_tokens
from llmkit.errors import SetupError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.data.tokens import Rules

IGNORED = -100
Tokens = dict[str, list[Any]]
"""Token ids under the names of TRL's columns, and `loss_weights` (floats) where turns have weights."""

In = TypeVar("In")
Out = TypeVar("Out")


def texts(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Mapping[str, Any]], stops: frozenset[int], rules: Rules
) -> list[Tokens | RowError]:
    """Train on every token of a text, and on the end token."""
    end = end_token(tokenizer)

    def whole(ids: list[int]) -> Tokens:
        return {"input_ids": [*ids, end], "labels": [*ids, end]}

    return each(whole, token_ids(tokenizer, [example["text"] for example in examples], special=True))


def completions(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Mapping[str, Any]], stops: frozenset[int], rules: Rules
) -> list[Tokens | RowError]:
    """Train on the completion of a plain prompt, and on the end token."""
    end = end_token(tokenizer)
    # Apart, as at inference: a token that spans the boundary would never be seen there.
    prompts = token_ids(tokenizer, [example["prompt"] for example in examples], special=True)
    answers = token_ids(tokenizer, [example["completion"] for example in examples], special=False)

    def joined(pair: tuple[list[int] | RowError, list[int] | RowError]) -> Tokens:
        prompt, answer = raised(pair[0]), [*raised(pair[1]), end]
        return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}

    return each(joined, zip(prompts, answers, strict=True))


def conversations(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Mapping[str, Any]], stops: frozenset[int], rules: Rules
) -> list[Tokens | RowError]:
    """Train on turns of the assistant (those that `rules.train_on` says), each with the token that ends it.

    Raises SetupError where the tokenizer has no chat template or no offsets, or its template ends turns with a token
    that generation does not stop on.
    """
    ends = end_texts(tokenizer, stops)
    chats = cache(partial(chat_of, tokenizer))

    def remedy(turn: str) -> str:
        return end_remedy(turn, control_tokens(tokenizer), ends)

    masked = each(
        lambda example: _masked(chats(tools=example.get("tools") is not None), example, ends, rules), examples
    )
    read = iter(_with_offsets(tokenizer, [one.text for one in masked if not isinstance(one, RowError)]))
    return each(lambda one: _labelled(one, *next(read), stops, remedy), masked)


# --- batches ---------------------------------------------------------------------------------------------------------


def each(function: Callable[[In], Out], items: Iterable[In | RowError]) -> list[Out | RowError]:
    """Return what `function` makes of each item, or the RowError that it raises; RowErrors among the items stay."""
    found: list[Out | RowError] = []
    for item in items:
        try:
            found.append(item if isinstance(item, RowError) else function(item))
        except RowError as error:
            found.append(error)
    return found


def raised(item: In | RowError) -> In:
    """Return `item`, or raise it if it is a RowError."""
    if isinstance(item, RowError):
        raise item
    return item


def token_ids(tokenizer: PreTrainedTokenizerBase, given: Sequence[str], *, special: bool) -> list[list[int] | RowError]:
    """Return the ids of each text; with `special`, with the tokens that the tokenizer puts around it (e.g. a start)."""
    checked = each(readable, given)
    ids = iter(_encoded(tokenizer, [text for text in checked if not isinstance(text, RowError)], special)["input_ids"])
    return [text if isinstance(text, RowError) else next(ids) for text in checked]


def _encoded(tokenizer: PreTrainedTokenizerBase, given: list[str], special: bool, **options: Any) -> Mapping[str, Any]:
    """Return what the tokenizer makes of a batch of texts, in one call; no warning about long ones."""
    if not given:
        return {"input_ids": [], "offset_mapping": []}
    # Without the columns that nobody reads: each costs as much as the ids.
    unread = {"return_attention_mask": False, "return_token_type_ids": False}
    found: Mapping[str, Any] = tokenizer(given, add_special_tokens=special, verbose=False, **unread, **options)
    return found


def _with_offsets(tokenizer: PreTrainedTokenizerBase, given: list[str]) -> Iterable[tuple[list[int], list[Span]]]:
    if not tokenizer.is_fast:
        raise SetupError(
            f"{type(tokenizer).__name__} does not say which characters a token stands for, so turns can't be masked",
            remedy="Use a model whose tokenizer has a tokenizer.json.",
        )
    found = _encoded(tokenizer, given, special=False, return_offsets_mapping=True)
    return zip(found["input_ids"], found["offset_mapping"], strict=True)


def readable(text: str) -> str:
    """Return `text`; raises RowError if it has half of a surrogate pair, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"the text has a lone surrogate, {text[error.start]!r}") from None
    return text


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that ends a plain text; raises SetupError for a tokenizer that has none."""
    if tokenizer.eos_token_id is None:
        raise SetupError(
            "the tokenizer has no end token, so the model would learn never to stop",
            remedy="Name one of its tokens: model: {eos_token: '</s>'}.",
        )
    return int(tokenizer.eos_token_id)


def end_texts(tokenizer: PreTrainedTokenizerBase, stops: frozenset[int]) -> tuple[str, ...]:
    """Return how the tokens that end an answer are written."""
    written = (str(tokenizer.decode([token])) for token in sorted(stops))
    return tuple(stop for stop in written if stop)


# --- one conversation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Masked:
    text: str
    spans: tuple[Span, ...]
    weights: tuple[float, ...]


def _masked(chat: Chat, example: Mapping[str, Any], ends: tuple[str, ...], rules: Rules) -> _Masked:
    """Return the text of a conversation, its trained spans and their weights."""
    messages = reasoning.ruled(example["messages"], rules.reasoning)
    weights = turns.weights(messages, rules.train_on)
    said = turns.spoken(messages)
    text, spans = trained_spans(chat, Dialogue(said, example.get("tools"), tuple(weights), ends))
    for turn, span in zip(weights, spans, strict=True):
        turns.check_complete(said[turn], turn + 1, text, span)
    return _Masked(readable(text), tuple(spans), tuple(weights.values()))


def _labelled(
    one: _Masked, ids: list[int], offsets: list[Span], stops: frozenset[int], remedy: Callable[[str], str]
) -> Tokens:
    labels, factors = [IGNORED] * len(ids), [0.0] * len(ids)
    for (start, end), weight in zip(one.spans, one.weights, strict=True):
        first, behind = tokens_within(offsets, start, end)
        if behind <= first or ids[behind - 1] not in stops:
            raise SetupError(
                f"the tokenizer reads the end of an answer, {one.text[start:end][-20:]!r}, as other tokens than the "
                "one that generation stops on: the model would learn never to stop",
                remedy=remedy(one.text[start:end]),
            )
        labels[first:behind] = ids[first:behind]
        factors[first:behind] = [weight] * (behind - first)
    tokens: Tokens = {"input_ids": ids, "labels": labels}
    return tokens if set(one.weights) == {1.0} else tokens | {"loss_weights": factors}


def tokens_within(offsets: Sequence[Span], start: int, end: int) -> Span:
    """Return the first token that lies wholly between two characters, and the one behind the last.

    Several tokens may share the offsets of one character, and a token of spaces may have none left (Llama 3 trims
    them): it counts where its spaces stand, before its offset.
    """
    ends = itemgetter(1)
    first = max(bisect_left(offsets, start, key=itemgetter(0)), bisect_right(offsets, start, key=ends))
    return first, bisect_right(offsets, end, key=ends)
