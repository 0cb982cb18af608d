"""The turns of a conversation: which are trained and how much each counts, and whether a rendering has all of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.data import reasoning
from llmkit.data.formats.base import MARKS
from llmkit.data.shapes import RowError, UnlearnableError
from llmkit.data.templates import Span, template_with_calls

Message = Mapping[str, Any]

UNTRAINED = "no turn is marked for training"


def weights(messages: Sequence[Message], train_on: str) -> dict[int, float]:
    """Return the weight of each trained turn by its index; `train_on` is `all`, `last` or `marked`.

    A turn with `weight: 0` or `train: false` is never trained. `marked` are those with `train: true` or a `weight`.

    Raises UnlearnableError if none is trained.
    """
    said = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if train_on == "last":
        said = said[-1:]
    marked = train_on == "marked"
    found = {
        index: float(messages[index].get("weight", 1.0))
        for index in said
        if messages[index].get("train", not marked or "weight" in messages[index])
    }
    found = {index: weight for index, weight in found.items() if weight}
    if not found:
        raise UnlearnableError(UNTRAINED)
    return found


def spoken(messages: Sequence[Message]) -> list[Message]:
    """Return the messages as a template gets them from transformers, without the keys that llmkit reads itself."""
    return [message if len(message) == 2 else _spoken(message) for message in messages]  # two: `role`, `content`


def _spoken(message: Message) -> Message:
    found = {key: value for key, value in message.items() if key not in MARKS and value is not None}
    trace = next((found[key] for key in reasoning.KEYS if key in found), None)
    # Older templates read the trace as `thinking`.
    return found if trace is None else {"thinking": trace, **found, "reasoning_content": trace}


def check_complete(message: Message, number: int, rendered: str, span: Span) -> None:
    """Raise RowError if the trained span of message `number` (from 1) lacks something that the message has."""
    start, end = span
    said = rendered[start:end]
    trace, text = (part.strip() for part in reasoning.trace_and_text(message))
    if trace not in said:
        raise RowError(
            f"the chat template leaves out the reasoning of message {number}, which is trained; cut it "
            "(`data.reasoning: cut`, or `last`), write it into the content as <think>...</think>, or use a template "
            "that renders it (`model.chat_template`)"
        )
    # The model may be given the first characters: templates of reasoning models ask with `<think>`.
    if text and text not in said and rendered.find(text, max(0, start - len(text) + 1), end) < 0:
        raise RowError(
            f"the chat template leaves out or changes the text of message {number}, which is trained; use another "
            "template (`model.chat_template`)"
        )
    for call in message.get("tool_calls", ()):
        name = str(call.get("function", call).get("name", ""))
        if name not in said:
            raise RowError(_without_calls(rendered))


def _without_calls(rendered: str) -> str:
    """Return the reason, the same for all rows: what a template does to one call, it does to each."""
    file = template_with_calls(rendered)
    such_as = f", such as {file}, which also writes a system prompt into rows that have none" if file else ""
    return (
        "the chat template leaves out the tool calls of a trained turn; write them into the content, or use a template "
        f"that renders them (`model.chat_template`){such_as}"
    )
