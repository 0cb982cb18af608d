"""A prompt, one answer, and whether the answer is good.

    {"prompt": "Say hi.", "completion": "Hi there!", "label": true}

`prompt` and `completion` are strings or lists of messages. Whole dialogues, whose last turn is the answer, are read as
well: `messages` with `label`, or ShareGPT's `conversations` with `kto_tag`:

    {"messages": [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi!"}], "label": true}
    {"conversations": [{"from": "human", "value": "Say hi."}, {"from": "gpt", "value": "Hi!"}], "kto_tag": true}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.data.formats import base, sharegpt
from llmkit.data.shapes import RowError, Shape

SHAPE = Shape.UNPAIRED
COLUMNS = ("prompt", "completion", "label")
OPTIONAL = ("messages", "conversations", "system", "kto_tag", "tools")
LABELS = ("label", "kto_tag")


def recognises(row: Mapping[str, Any]) -> base.Signs | None:
    """Return the signs of this format."""
    label = next((name for name in LABELS if _is_verdict(row.get(name))), None)
    if label is None:
        return None
    if base.are_turns(row.get("conversations"), "from", "value"):
        answer = ["conversations"]
    elif base.are_turns(row.get("messages")) and "prompt" not in row:
        answer = ["messages"]
    elif base.is_said(row.get("prompt")) and _is_answer(row.get("completion")):
        answer = ["prompt", "completion"]
    else:
        return None
    named = " and ".join(f"`{name}`" for name in answer)
    return base.Signs(frozenset([*answer, label]), f"column `{label}` says whether the answer in {named} is good")


def _is_verdict(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false"))


def _is_answer(value: Any) -> bool:
    return base.is_said(value) or isinstance(value, Mapping)


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `prompt` and `completion`, both strings or both messages, `label`, and `tools` if there are any.

    Raises UnlearnableError if the answer is empty, RowError for what is no such row.
    """
    whole = row.get("conversations") or row.get("messages")
    if whole and "completion" not in row:
        base.check_says_something(whole)
    if row.get("conversations") is not None:
        columns = _split(sharegpt.conversation(row), "conversations")
    elif row.get("messages") is not None and "prompt" not in row:
        columns = _split(base.to_messages(row["messages"], "messages"), "messages")
    else:
        prompt = base.as_prompt(base.require(row, "prompt"), "prompt")
        columns = base.aligned(prompt, completion=base.as_answer(base.require(row, "completion"), "completion"))
    return {**columns, "label": _label(row), **base.tools_in(row)}


def _split(messages: list[base.Message], place: str) -> dict[str, Any]:
    base.trainable(messages, place)
    prompt = base.awaiting(messages[:-1], f"{place} before the answer")
    return {"prompt": prompt, "completion": messages[-1:]}


def _label(row: Mapping[str, Any]) -> bool:
    name = "kto_tag" if "kto_tag" in row and "label" not in row else "label"
    value = base.require(row, name)
    if isinstance(value, str) and value.lower() in ("true", "false"):  # CSV has no booleans
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise RowError(f"column {name!r} must be true or false, not {value!r}")
    return value
