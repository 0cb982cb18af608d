"""A prompt with a better and a worse answer.

    {"prompt": "Say hi.", "chosen": "Hi there!", "rejected": "No."}

Each of them is a string or a list of messages. Without `prompt`, the turns that `chosen` and `rejected` share at their
beginning are the prompt. ShareGPT's layout is read as well:

    {"conversations": [{"from": "human", "value": "Say hi."}],
     "chosen": {"from": "gpt", "value": "Hi there!"}, "rejected": {"from": "gpt", "value": "No."}}

Each answer is one assistant turn. `margin`, a number by which the better answer is to win, and `tools` are optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.data.formats import base, sharegpt
from llmkit.data.shapes import EQUAL, RowError, Shape, UnlearnableError

SHAPE = Shape.PREFERENCE
COLUMNS = ("chosen", "rejected")
OPTIONAL = ("prompt", "conversations", "system", "margin", "tools")


def recognises(row: Mapping[str, Any]) -> base.Signs | None:
    """Return the signs of this format."""
    answers = [row.get(name) for name in COLUMNS]
    known = base.present(row, "prompt", "conversations")
    if not all(isinstance(answer, str | list | tuple | Mapping) for answer in answers):
        return None
    if not known and not all(_begins_with_prompt(answer) for answer in answers):
        return None
    return base.Signs(known | set(COLUMNS), "columns `chosen` and `rejected` are a better and a worse answer")


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `prompt`, `chosen`, `rejected`, all strings or all messages, and `margin` and `tools` if there are any.

    Raises UnlearnableError if the answers are equal or one is empty, RowError for what is no such row.
    """
    for name in COLUMNS:
        base.check_says_something(base.require(row, name))
    if row.get("conversations") is not None:
        pair = _from_sharegpt(row)
    elif _begins_with_prompt(row["chosen"]) and _begins_with_prompt(row["rejected"]):
        pair = _from_whole_dialogues(row)
    else:
        prompt = base.as_prompt(_prompt(row), "prompt")
        pair = base.aligned(prompt, **{name: base.as_answer(row[name], name) for name in COLUMNS})
    return {**base.differing(pair), **base.margin_in(row), **base.tools_in(row)}


def _prompt(row: Mapping[str, Any]) -> Any:
    if row.get("prompt") is None and isinstance(row["chosen"], str):
        raise base.MissingColumnError(
            f"no column 'prompt', which answers that are strings need; the row's columns: {', '.join(map(str, row))}"
        )
    return base.require(row, "prompt")


def _begins_with_prompt(value: Any) -> bool:
    first = value[0] if isinstance(value, list | tuple) and value else None
    return isinstance(first, Mapping) and first.get("role") != "assistant"


def _from_whole_dialogues(row: Mapping[str, Any]) -> dict[str, Any]:
    chosen, rejected = (base.to_messages(row[name], name) for name in COLUMNS)
    cut = 0
    while cut < min(len(chosen), len(rejected)) and chosen[cut] == rejected[cut]:
        cut += 1
    if cut == len(chosen) == len(rejected):
        raise UnlearnableError(EQUAL)
    if not cut:
        raise RowError("'chosen' and 'rejected' begin with different turns, so they share no prompt")
    if row.get("prompt") is not None:
        cut = _given(base.as_prompt(row["prompt"], "prompt"), chosen[:cut])
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if cut == len(messages):
            raise RowError(f"{name!r} has no answer after the prompt")
        base.answering(messages[cut:], f"{name} after the prompt")
    return {"prompt": base.awaiting(chosen[:cut], "prompt"), "chosen": chosen[cut:], "rejected": rejected[cut:]}


def _given(prompt: str | list[base.Message], shared: list[base.Message]) -> int:
    """Return how many of the shared turns the column `prompt` covers."""
    if isinstance(prompt, list) and shared[: len(prompt)] == prompt:
        return len(prompt)
    if isinstance(prompt, str):
        asked = [i for i, turn in enumerate(shared) if turn == {"role": "user", "content": prompt}]
        if asked:
            return asked[-1] + 1
    raise RowError("'chosen' and 'rejected' hold a prompt of their own, and it differs from column 'prompt'")


def _from_sharegpt(row: Mapping[str, Any]) -> dict[str, Any]:
    prompt = base.awaiting(sharegpt.conversation(row), "conversations")
    return base.aligned(prompt, **{name: _sharegpt_answer(row[name], name) for name in COLUMNS})


def _sharegpt_answer(value: Any, name: str) -> str | list[base.Message]:
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        return base.filled(value, f"column {name!r}")
    return base.answering(sharegpt.to_messages(value, name), name)
