"""Rows of a single sequence -> tokens and labels. A conversation is rendered once; offsets say what is trained.

The tokenizer's own Jinja template is the only source of the rendering. A template with `{% generation %}` marks says
itself what the assistant wrote; for any other, each assistant turn is the difference between the rendering before it
(with the generation prompt) and after it. A template for which those renderings are not prefixes of the whole is
refused, because the mask would be a guess.

Each function takes a tokenizer, an example and the token ids that end a generated answer (`stops`), and returns
`input_ids` and `labels`, which are -100 where nothing is learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmkit.data.shapes import RowError
from llmkit.errors import SetupError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
Tokens = dict[str, list[int]]
"""Token ids under the names of TRL's columns."""


def text(tokenizer: PreTrainedTokenizerBase, example: Mapping[str, Any], stops: frozenset[int]) -> Tokens:
    """Train on every token of a text, and on the end token."""
    ids = [*token_ids(tokenizer, example["text"], special=True), end_token(tokenizer)]
    return {"input_ids": ids, "labels": list(ids)}


def completion(tokenizer: PreTrainedTokenizerBase, example: Mapping[str, Any], stops: frozenset[int]) -> Tokens:
    """Train on the completion of a plain prompt, and on the end token."""
    # Apart, as at inference: a token that spans the boundary would never be seen there.
    prompt = token_ids(tokenizer, example["prompt"], special=True)
    answer = [*token_ids(tokenizer, example["completion"], special=False), end_token(tokenizer)]
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """Return the ids of a text; with `special`, with the tokens that the tokenizer puts around it (e.g. a start)."""
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that ends a plain text; raises SetupError for a tokenizer that has none."""
    if tokenizer.eos_token_id is None:
        raise SetupError(
            "the tokenizer has no end token, so the model would learn never to stop",
            remedy="Name one of its tokens: model: {eos_token: '</s>'}.",
        )
    return int(tokenizer.eos_token_id)


def conversation(tokenizer: PreTrainedTokenizerBase, example: Mapping[str, Any], stops: frozenset[int]) -> Tokens:
    """Train on each turn of the assistant, with the token that ends it.

    Raises RowError for a conversation that can't be masked, SetupError where the tokenizer has no chat template or its
    template ends turns with a token that generation does not stop on.
    """
    messages, tools = example["messages"], example.get("tools")
    text = render(tokenizer, messages, tools)
    if "{% generation" in str(tokenizer.chat_template) or "{%- generation" in str(tokenizer.chat_template):
        spans = _marked_spans(tokenizer, messages, tools)
    else:
        spans = _spans_by_prefix(tokenizer, text, messages, tools)
    spans = [up_to_stop(tokenizer, text, span, stops) for span in spans]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = list(encoded["input_ids"])
    labels = [
        token if start < end and any(a <= start and end <= b for a, b in spans) else IGNORED
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return {"input_ids": ids, "labels": labels}


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Any = None, *, prompt: bool = False
) -> str:
    """Render a conversation as text; with `prompt`, up to where the assistant would answer next.

    Raises SetupError for a tokenizer without a chat template, RowError for a conversation that the template refuses.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise SetupError(
            "the tokenizer has no chat template, so conversations can't be rendered",
            remedy="Give one as a Jinja file: model: {chat_template: template.jinja}; or train on plain strings.",
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt))
    except TemplateError as error:
        raise RowError(f"the chat template refuses this conversation: {error}") from error


def _marked_spans(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Any
) -> list[tuple[int, int]]:
    """Return the character spans that the template's own `{% generation %}` marks enclose."""
    from transformers.utils.chat_template_utils import render_jinja_template

    _, indices = render_jinja_template(
        [messages],
        tools=tools,
        chat_template=str(tokenizer.chat_template),
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    return [(int(a), int(b)) for a, b in indices[0]]


def _spans_by_prefix(
    tokenizer: PreTrainedTokenizerBase, text: str, messages: list[dict[str, Any]], tools: Any
) -> list[tuple[int, int]]:
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if turn == 0:
            raise RowError("the conversation begins with the assistant, so there is nothing it answers to")
        before = render(tokenizer, messages[:turn], tools, prompt=True)
        after = render(tokenizer, messages[: turn + 1], tools)
        if not (text.startswith(before) and text.startswith(after)):
            raise RowError(
                f"the chat template renders message {turn + 1} differently once more messages follow, so its tokens "
                "can't be told apart; use a template with {% generation %} marks (`model.chat_template`)"
            )
        spans.append((len(before), len(after)))
    return spans


def up_to_stop(
    tokenizer: PreTrainedTokenizerBase, text: str, span: tuple[int, int], stops: frozenset[int]
) -> tuple[int, int]:
    """Cut a span after the stop token that ends it: the template's white space behind it is not learnt.

    Raises SetupError where something else ends it.
    """
    start, end = span
    ends = [tokenizer.decode([i]) for i in sorted(stops)]
    turn = text[start:end].rstrip()
    if not turn.endswith(tuple(ends)):
        # Marks may enclose the content only; the stop token then follows directly.
        behind = text[start + len(turn) :].lstrip()
        stop = next((e for e in ends if behind.startswith(e)), None)
        if stop is None:
            raise SetupError(
                f"the chat template ends the assistant's turn with {turn[-20:]!r}, but generation stops on "
                f"{' or '.join(map(repr, ends))}: the model would learn never to stop",
                remedy="Name the token that ends a turn: model: {eos_token: '<|im_end|>'}, or mend the template.",
            )
        return start, text.index(stop, start + len(turn)) + len(stop)
    return start, start + len(turn)
