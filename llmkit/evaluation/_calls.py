"""Tool calls: those that a reference holds, and those that an answer makes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from llmkit.data.shapes import RowError
from llmkit.evaluation._json import Leaf, Place, in_answer, leaves, read_json
from llmkit.rewards.json_schema import build_validator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.model.generation import Continuation

# A call that the token limit cut off ends with the text.
MARKED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
# What Mistral and Llama write before the JSON, where it is no special token.
BEFORE_JSON = re.compile(r"\A\s*(?:\[TOOL_CALLS\]|<\|python_tag\|>)")


@dataclass(frozen=True)
class Call:
    """A tool's name and its arguments, an object if the call is right."""

    name: str
    arguments: Any

    @property
    def fields(self) -> dict[Place, Leaf]:
        """The arguments as `leaves`, which can be compared."""
        return leaves(self.arguments)


UNREADABLE = Call("", None)
"""Stands for a call that is marked as one and can't be read."""

ReadCalls = Callable[[list[int], "Continuation", Sequence[Any]], list[Call]]
"""Returns the calls in the continuation of a prompt (token ids), in which the tools were offered."""


def call_of(value: Any, absent: Any = None) -> Call | None:
    """Return the call in OpenAI's form (`{"function": {"name", "arguments"}}`) or without the wrapping; else None.

    Arguments may be called `parameters`, as by Llama, and be a JSON string, as by OpenAI; `absent` stands for those
    that are not there.
    """
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments", function.get("parameters", absent))
    if isinstance(arguments, str):
        with suppress(ValueError):  # a text stays a text, which no schema allows
            arguments = read_json(arguments)
    return Call(function["name"], arguments)


def reference_calls(example: Mapping[str, Any]) -> list[Call]:
    """Return the calls of the last assistant turn of `messages`, often none; raises RowError without such a turn."""
    said = [message for message in example.get("messages") or () if message["role"] == "assistant"]
    if not said:
        raise RowError("no assistant turn in `messages`, whose tool calls answers could be compared with")
    calls = [call_of(call, absent={}) for call in said[-1].get("tool_calls") or ()]
    found = [call for call in calls if call is not None]
    if len(found) < len(calls):
        raise RowError("a tool call of the last assistant turn has no `function` with a `name`")
    return found


def argument_validators(example: Mapping[str, Any]) -> dict[str, Any]:
    """Return jsonschema's validator of the arguments of each tool in `tools`, by the tool's name; raises RowError."""
    found = {}
    for tool in example.get("tools") or ():
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError("a tool in column 'tools' has no `function` with a `name`")
        try:
            # OpenAI: a tool without `parameters` takes none.
            found[function["name"]] = build_validator(function.get("parameters") or {"type": "object"})
        except ValueError as error:
            raise RowError(f"the parameters of tool {function['name']!r}: {error}") from error
    return found


def call_reader(tokenizer: PreTrainedTokenizerBase) -> ReadCalls:
    """Return what reads calls: transformers' parser, where it or TRL knows the chat template; else `marked_calls`."""
    from trl.chat_template_utils import add_response_schema

    template = getattr(tokenizer, "response_template", None)
    if template is None:
        # Not the tokenizer itself: what is set there is saved with it.
        stand_in: Any = SimpleNamespace(chat_template=tokenizer.chat_template)
        try:
            template = add_response_schema(stand_in).response_template
        except ValueError:
            return lambda prompt, answer, tools: marked_calls(answer.text)

    def read(prompt: list[int], answer: Continuation, tools: Sequence[Any]) -> list[Call]:
        try:
            said: Any = tokenizer.parse_response(list(answer.tokens), template, prefix=prompt, tools=list(tools))
        except (TypeError, ValueError, RecursionError):
            # As TRL does: no message of this template, e.g. a call that is no JSON, or brackets without an end.
            return marked_calls(answer.text)
        return [call_of(call, absent={}) or UNREADABLE for call in said.get("tool_calls") or ()]

    return read


def marked_calls(text: str) -> list[Call]:
    """Return the calls between <tool_call> marks; without marks, those that the whole answer spells as JSON.

    Without marks, an object is a call only if it has a name and arguments.
    """
    marked = MARKED.findall(text)
    if marked:
        return [call for part in marked for call in _calls(part, absent={}) or [UNREADABLE]]
    found = _calls(BEFORE_JSON.sub("", in_answer(text)))
    return found if all(call.arguments is not None for call in found) else []


def _calls(text: str, absent: Any = None) -> list[Call]:
    """Return the calls that JSON spells, one or a list of them; nothing where anything else is in it."""
    try:
        value = read_json(text)
    except ValueError:
        return []
    calls = [call_of(part, absent) for part in (value if isinstance(value, list) else [value])]
    found = [call for call in calls if call is not None]
    return found if len(found) == len(calls) else []
