"""What a format is, and the checks that formats share."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.data.shapes import EMPTY, EQUAL, RowError, Shape, UnlearnableError
from llmkit.data.surrogates import has_surrogates, lone_surrogate
from llmkit.errors import did_you_mean

ROLES = ("system", "user", "assistant", "tool")

MARKS = ("weight", "train", "keep_reasoning")
"""Keys by which a turn says something about its own training."""

HEAVIEST = 1e6
"""Largest weight of a turn: beyond it, a row outweighs all others, and float32 may not hold its loss."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Signs:
    """Why a row looks like one of a format."""

    columns: frozenset[str]
    """The columns that say so. A format that knows more of a row's columns than another one is the better guess."""
    reason: str
    """The sentence."""


@dataclass(frozen=True)
class Format:
    """One row layout: how it is recognised, and how it becomes a row of `shape`."""

    name: str
    shape: Shape
    columns: tuple[str, ...]
    """The columns that a row must have."""
    optional: tuple[str, ...]
    """The columns that are read if they are there."""
    convert: Callable[[Mapping[str, Any]], dict[str, Any]]
    recognises: Callable[[Mapping[str, Any]], Signs | None]

    @property
    def keeps_all(self) -> bool:
        """Whether columns that the format doesn't know are kept as well, for the rewards."""
        return self.shape is Shape.PROMPT


class MissingColumnError(RowError):
    """The row lacks a column, so that it may well be of another format."""


def kind(value: Any) -> str:
    """Return what `value` is in JSON's words, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    name = type(value).__name__
    return next((said for of, said in KINDS.items() if isinstance(value, of)), f"a{'n' * (name[0] in 'aeio')} {name}")


KINDS: dict[type, str] = {
    str: "a string",
    int: "a number",
    float: "a number",
    list: "a list",
    tuple: "a list",
    Mapping: "an object",
    datetime.date: "a date",  # and a time of day with it
    datetime.time: "a time",
    bytes: "bytes",
}
"""What values are in JSON's words; those at the end it can't write."""


def present(row: Mapping[str, Any], *names: str) -> frozenset[str]:
    """Return those of `names` that are columns of the row, and not null."""
    return frozenset(name for name in names if row.get(name) is not None)


def are_turns(value: Any, speaker: str = "role", text: str = "content") -> bool:
    """Whether `value` is a list of turns, each with the key `speaker` and one of them with `text`."""
    if not isinstance(value, list | tuple) or not value or not all(isinstance(turn, Mapping) for turn in value):
        return False
    return all(speaker in turn for turn in value) and any(text in turn for turn in value)


def is_said(value: Any) -> bool:
    """Whether `value` is a string or turns with `role` and `content`."""
    return isinstance(value, str) or are_turns(value)


def require(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of column `name`.

    Raises MissingColumnError, which lists the row's columns.
    """
    if name not in row:
        has = ", ".join(map(str, row)) or "none"
        raise MissingColumnError(f"no column {name!r}{did_you_mean(name, map(str, row))}; the row's columns: {has}")
    return row[name]


def filled(value: Any, place: str) -> str:
    """Return `value` if it is a string with something in it.

    Raises RowError, which begins with `place`.
    """
    if not isinstance(value, str):
        raise RowError(f"{place} must be a string, not {kind(value)}")
    if not value.strip() or (value[0] == "\0" and not value.strip("\0 \t\r\n")):  # zeros: what a crash leaves of a file
        raise RowError(f"{place} is empty")
    return value


def required_text(row: Mapping[str, Any], name: str) -> str:
    """Return the non-empty string in column `name`.

    Raises RowError if the column is missing, empty or not a string.
    """
    return filled(require(row, name), f"column {name!r}")


def optional_text(row: Mapping[str, Any], name: str) -> str:
    """Return the string in column `name`, or an empty string if the column is missing, null or blank.

    Raises RowError if it is something other than a string.
    """
    value = row.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return filled(value, f"column {name!r}")


def checked_role(role: Any, choices: Sequence[str], place: str) -> str:
    """Return `role` if it is one of `choices`.

    Raises RowError, which begins with `place` and names the choices.
    """
    if isinstance(role, str) and role in choices:
        return role
    hint = did_you_mean(role, choices) if isinstance(role, str) else ""
    raise RowError(f"{place}: unknown role {role!r}{hint}; choose from {', '.join(choices)}")


def turn_key(turn: Any, key: str, place: str) -> Any:
    """Return what stands under `key` of one turn.

    Raises RowError if the turn is not an object or lacks the key.
    """
    if not isinstance(turn, Mapping):
        raise RowError(f"{place} must be an object, not {kind(turn)}")
    if key not in turn:
        has = ", ".join(map(str, turn)) or "none"
        raise RowError(f"{place} has no {key!r}{did_you_mean(key, map(str, turn))}; its keys: {has}")
    return turn[key]


def turns_in(value: Any, place: str) -> list[Any]:
    """Return the turns of a conversation.

    Raises RowError if `value` is not a list, or an empty one.
    """
    if not isinstance(value, list | tuple):
        raise RowError(f"{place} must be a list of turns, not {kind(value)}")
    if not value:
        raise RowError(f"{place} is an empty conversation")
    return list(value)


def _message(turn: Any, place: str) -> Message:
    role = checked_role(turn_key(turn, "role", place), ROLES, place)
    # Arrow and parquet give every turn the keys of all turns, filled with null.
    message = {key: value for key, value in turn.items() if value is not None}
    calls = message.pop("tool_calls", None)
    if calls:
        if role != "assistant":
            raise RowError(f"{place}: only an assistant turn can have tool_calls, not {role}")
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise RowError(f"{place}.tool_calls must be a list of objects")
        if not isinstance(message.setdefault("content", ""), str):
            raise RowError(f"{place}.content must be a string, not {kind(message['content'])}")
        message["tool_calls"] = [_call(call, f"{place}.tool_calls[{i}]") for i, call in enumerate(calls)]
    else:
        filled(turn_key(turn, "content", place), f"{place}.content")
    if not message.keys().isdisjoint(MARKS):
        check_marks(message, place)
    for key, value in message.items():
        if type(value) is not str:
            check_json(value, f"{place}.{key}")
    return message


def _call(call: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """Return a tool call with its arguments as an object: OpenAI sends JSON, and chat templates write it."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    arguments = parsed_json(function["arguments"], f"{place}.function.arguments")
    if not isinstance(arguments, Mapping):
        raise RowError(f"{place}.function.arguments must be an object, not {kind(arguments)}")
    return {**call, "function": {**function, "arguments": arguments}}


def check_marks(turn: Mapping[str, Any], place: str) -> None:
    """Check what a turn says about its own training: `weight` is a factor of its loss, `train` says whether it counts,
    `keep_reasoning` whether its reasoning trace is kept.

    Raises RowError.
    """
    weight, train = turn.get("weight"), turn.get("train")
    if weight is not None and number(weight, f"{place}.weight") < 0:
        raise RowError(f"{place}.weight must not be negative, as {weight} is")
    if weight is not None and weight > HEAVIEST:
        raise RowError(f"{place}.weight must not be more than {HEAVIEST:,.0f}, as {weight:g} is")
    for key in ("train", "keep_reasoning"):
        if not isinstance(turn.get(key), bool | None):
            raise RowError(f"{place}.{key} must be true or false, not {kind(turn[key])}")
    if weight is not None and train is not None and bool(weight) != train:
        raise RowError(f"{place}: weight {weight} and train {str(train).lower()} contradict each other")
    if (weight or train) and turn.get("role", "assistant") != "assistant":
        raise RowError(f"{place}: only a turn of the assistant can be trained, not one of the {turn['role']}")


def check_order(messages: Sequence[Message], place: str) -> None:
    """Check that a system turn comes first only, and that a tool turn answers an assistant.

    Whether two turns of one role may follow each other is left to the model's chat template. A tool turn need not
    follow `tool_calls`, since many data sets write the call into the assistant's text.

    Raises RowError for the first turn that is out of order.
    """
    before = ""
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "system" and index:
            raise RowError(f"{place}[{index}]: a system turn can only be the first")
        if role == "tool" and before not in ("assistant", "tool"):
            raise RowError(f"{place}[{index}]: a tool turn must follow an assistant turn, not {before or 'come first'}")
        before = role


def to_messages(value: Any, place: str) -> list[Message]:
    """Return a column's list of {role, content} turns, without null keys.

    Raises RowError for the first turn that can't be used, or for an empty list.
    """
    turns = turns_in(value, place)
    messages = [dict(turn) if _is_plain(turn) else _message(turn, f"{place}[{i}]") for i, turn in enumerate(turns)]
    check_order(messages, place)
    return messages


def _is_plain(turn: Any) -> bool:
    """Whether a turn has a role and a text and nothing else: most have, and nothing more is to be checked in those."""
    if type(turn) is not dict or len(turn) != 2 or turn.get("role") not in ROLES:
        return False
    text = turn.get("content")
    # What begins with white space or a control character may be empty; `filled` looks closer.
    return type(text) is str and text[:1] > " " and not text[0].isspace()


def trainable(messages: list[Message], place: str) -> list[Message]:
    """Return `messages` if an assistant turn ends them, as supervised learning needs.

    Raises RowError.
    """
    last = messages[-1]["role"]
    if last != "assistant":
        if not any(message["role"] == "assistant" for message in messages):
            raise RowError(f"{place} has no assistant turn to learn from")
        raise RowError(f"{place} ends with the {last}; the last turn must be the assistant's")
    return messages


def tools_in(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return `{"tools": [...]}` from the optional column `tools`, a list or a JSON string of one.

    Nothing is returned for an empty list: chat templates that ask only `tools is not none` would announce no tools.

    Raises RowError if it is neither.
    """
    value = row.get("tools")
    if isinstance(value, str):
        value = parsed_json(value, "column 'tools'") if value.strip() else None
    if value is None:
        return {}
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError(f"column 'tools' must be a list of objects, not {kind(value)}")
    if value is row["tools"]:  # not read from JSON just now
        check_json(value, "column 'tools'")
    return {"tools": value} if value else {}


def margin_in(row: Mapping[str, Any]) -> dict[str, float]:
    """Return `{"margin": ...}` from the optional column `margin`: by how much the better answer is to win.

    Raises RowError if it is no finite number.
    """
    value = row.get("margin")
    return {} if value is None else {"margin": number(value, "column 'margin'")}


def number(value: Any, place: str) -> float:
    """Return `value` if it is a finite number.

    Raises RowError, which begins with `place`.
    """
    largest = sys.float_info.max
    if isinstance(value, bool) or not isinstance(value, int | float) or not -largest <= value <= largest:
        shown = repr(value) if isinstance(value, float) else kind(value)
        raise RowError(f"{place} must be a finite number, not {shown}")
    return float(value)


def parsed_json(text: str, place: str) -> Any:
    """Return the JSON value that `text` spells.

    Raises RowError, which begins with `place`.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as exc:
        raise RowError(f"{place} is not JSON: {exc.msg} at column {exc.colno}") from None
    except (ValueError, RecursionError) as exc:  # a number of too many digits; brackets nested too deeply
        raise RowError(f"{place} is not readable JSON: {exc}") from None
    if has_surrogates(text) and (half := lone_surrogate(value)):
        raise RowError(f"{place} has a lone surrogate ({half}), which is no character")
    return value


def check_json(value: Any, place: str) -> None:
    """Raise RowError, which begins with `place`, if `value` holds something that JSON can't write, such as a date."""
    try:
        json.dumps(value)
    except TypeError:
        raise RowError(f"{place} holds {_unwritable(value)}, which JSON can't write") from None
    except (ValueError, RecursionError) as exc:  # a list that holds itself
        raise RowError(f"{place} can't be written as JSON: {exc}") from None


def _unwritable(value: Any) -> str:
    """Return the kind of the first thing in `value` that JSON can't write."""
    found = [value]
    for item in found:
        if isinstance(item, dict):
            odd = next((key for key in item if not isinstance(key, str | int | float | None)), None)
            if odd is not None:
                return f"{kind(odd)} as a key"
            found += item.values()
        elif isinstance(item, list | tuple):
            found += item
        elif not isinstance(item, str | int | float | None):
            return kind(item)
    return kind(value)


def as_prompt(value: Any, name: str) -> str | list[Message]:
    """Return a prompt: a non-empty string, or messages that wait for the assistant.

    Raises RowError.
    """
    if not isinstance(value, list | tuple):
        return filled(value, f"column {name!r}")
    return awaiting(to_messages(value, name), name)


def awaiting(messages: list[Message], place: str) -> list[Message]:
    """Return `messages` if the assistant is the next to speak.

    Raises RowError.
    """
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        last = f"the {messages[-1]['role']}" if messages else "nothing"
        raise RowError(f"{place} ends with {last}; a prompt must end with the user or a tool")
    return messages


def as_answer(value: Any, name: str) -> str | list[Message]:
    """Return an answer: a non-empty string, or messages (or a single one) that are one assistant turn.

    Raises UnlearnableError for an answer without a word, RowError for what is none.
    """
    check_says_something(value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        return filled(value, f"column {name!r}")
    return answering(to_messages(value, name), name)


def check_says_something(answer: Any) -> None:
    """Raise UnlearnableError for an answer without a word; of a list of turns, the last one is the answer."""
    if isinstance(answer, list | tuple):
        answer = answer[-1] if answer else ""
    if isinstance(answer, Mapping):
        if answer.get("tool_calls") or answer.get("role", answer.get("from")) not in ("assistant", "gpt"):
            return
        answer = answer.get("content", answer.get("value"))
    if isinstance(answer, str) and not answer.strip():
        raise UnlearnableError(EMPTY)


def answering(messages: list[Message], place: str) -> list[Message]:
    """Return `messages` if they are one assistant turn.

    More turns are refused: each token of an answer counts as the model's, and what a user, a tool or the template
    writes between two of its turns is not. Raises RowError.
    """
    roles = [message["role"] for message in messages]
    if roles != ["assistant"]:
        raise RowError(
            f"{place} must be one assistant turn, not {', '.join(roles)}: all its tokens count as the model's own"
        )
    return messages


def differing(pair: dict[str, Any]) -> dict[str, Any]:
    """Return `pair` if its answers differ.

    Raises UnlearnableError.
    """
    if pair["chosen"] == pair["rejected"]:
        raise UnlearnableError(EQUAL)
    return pair


def aligned(prompt: str | list[Message], **answers: str | list[Message]) -> dict[str, Any]:
    """Return the columns as strings if all of them are, else all as messages: trainers take no mixture."""
    if all(isinstance(value, str) for value in (prompt, *answers.values())):
        return {"prompt": prompt, **answers}
    columns: dict[str, Any] = {"prompt": said("user", prompt)}
    return columns | {name: said("assistant", answer) for name, answer in answers.items()}


def said(role: str, value: str | list[Message]) -> list[Message]:
    """Return `value` as messages: a string becomes one turn of `role`."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value
