"""Rows -> tokens and labels. Conversations are rendered once; what is trained is found by character offsets.

The tokenizer's own Jinja template is the only source of the rendering. A template with `{% generation %}` marks says
itself what the assistant wrote; for any other, each assistant turn is the difference between the rendering before it
(with the generation prompt) and after it. A template for which those renderings are not prefixes of the whole is
refused, because the mask would be a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmkit.data.shapes import RowError, Shape
from llmkit.errors import SetupError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
Tokens = tuple[list[int], list[int]]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, shape: Shape, example: Mapping[str, Any], stops: frozenset[int]
) -> Tokens:
    """Return `(input_ids, labels)` of one example; labels are -100 where nothing is learnt.

    `stops` are the token ids that end a generated answer. Raises RowError for a row that can't be masked, SetupError
    where the tokenizer has no chat template or its template ends turns with a token that generation does not stop on.
    """
    if shape is Shape.CONVERSATION:
        return _conversation(tokenizer, example, stops)
    if shape is Shape.PROMPT_COMPLETION:
        # Apart, as at inference: a token that spans the boundary would never be seen there.
        prompt = _ids(tokenizer, example["prompt"], special=True)
        completion = [*_ids(tokenizer, example["completion"], special=False), tokenizer.eos_token_id]
        return prompt + completion, [IGNORED] * len(prompt) + completion
    if shape is Shape.TEXT:
        ids = [*_ids(tokenizer, example["text"], special=True), tokenizer.eos_token_id]
        return ids, list(ids)
    raise ValueError(f"{shape} rows are tokenized by their method's trainer")


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def _conversation(tokenizer: PreTrainedTokenizerBase, example: Mapping[str, Any], stops: frozenset[int]) -> Tokens:
    if not tokenizer.chat_template:
        raise SetupError(
            "the tokenizer has no chat template, so conversations can't be rendered",
            remedy="Give one as a Jinja file: model: {chat_template: template.jinja}; or train on `prompt_completion` "
            "or `text` rows.",
        )
    messages, tools = example["messages"], example.get("tools")
    text = render(tokenizer, messages, tools)
    if "{% generation" in str(tokenizer.chat_template) or "{%- generation" in str(tokenizer.chat_template):
        spans = _marked_spans(tokenizer, messages, tools)
    else:
        spans = _spans_by_prefix(tokenizer, text, messages, tools)
    ends = [tokenizer.decode([i]) for i in sorted(stops)]
    spans = [_up_to_stop(text, span, ends) for span in spans]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = list(encoded["input_ids"])
    labels = [
        token if start < end and any(a <= start and end <= b for a, b in spans) else IGNORED
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return ids, labels


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Any = None, *, prompt: bool = False
) -> str:
    """Render a conversation as text; with `prompt`, up to where the assistant would answer next."""
    from jinja2 import TemplateError

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


def _up_to_stop(text: str, span: tuple[int, int], ends: list[str]) -> tuple[int, int]:
    """Cut a span after the stop token that ends it: the template's white space behind it is not learnt."""
    start, end = span
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
