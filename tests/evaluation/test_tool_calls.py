"""Tool calls: how they are read, in several models' ways of writing them, and how they are compared."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from trl import chat_template_utils

from llmkit.errors import DataError, SetupError
from llmkit.evaluation import tool_calls as module
from llmkit.evaluation._calls import UNREADABLE, Call, argument_validators, call_reader, marked_calls
from llmkit.evaluation.tool_calls import ToolCalls, compared
from llmkit.model.generation import Continuation

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "ping", "description": "Answers."}},
]
PARIS = Call("weather", {"city": "Paris"})
ROME = Call("weather", {"city": "Rome", "days": 2})
PING = Call("ping", {})


def written(call: Call) -> str:
    return f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': call.arguments})}\n</tool_call>"


def row(*calls: Call, text: str = "") -> dict[str, Any]:
    last: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        last["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in calls
        ]
    return {"messages": [{"role": "user", "content": "what is it?"}, last], "tools": TOOLS}


@pytest.fixture
def saying(tokenizer, subject, monkeypatch):
    """Return a maker of Subjects whose answers are given."""

    def make(answers, rows):
        said = [Continuation(tuple(tokenizer(text)["input_ids"]), text, stopped=True) for text in answers]
        monkeypatch.setattr(module, "sample", lambda *_, **__: said)
        return subject(rows)

    return make


# --- how they are read


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (written(PARIS), [PARIS]),
        (f"Let me see. {written(PARIS)}\n{written(ROME)}", [PARIS, ROME]),
        (written(PARIS).removesuffix("</tool_call>"), [PARIS]),  # the end mark was cut off
        (written(PARIS)[:-20], [UNREADABLE]),
        ("<tool_call>weather in Paris</tool_call>", [UNREADABLE]),
        ('<tool_call>{"name": "ping"}</tool_call>', [Call("ping", {})]),
        ('<tool_call>[{"name": "ping", "arguments": {}}]</tool_call>', [PING]),
        ('{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),  # Llama
        ('<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
        ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]', [PARIS]),  # Mistral
        ('[TOOL_CALLS][{"name": "ping", "arguments": {}}, {"name": "ping", "arguments": {}}]', [PING, PING]),
        ('```json\n{"name": "ping", "arguments": {}}\n```', [PING]),
        ('{"type": "function", "function": {"name": "ping", "arguments": "{}"}}', [PING]),  # OpenAI
        ('{"name": "weather", "arguments": "Paris"}', [Call("weather", "Paris")]),
        ('{"name": "Bob", "age": 5}', []),  # JSON, and no call
        ('[{"name": "ping", "arguments": {}}, {"city": "Paris"}]', []),
        ("It is sunny in Paris.", []),
        ("[]", []),
        ("", []),
    ],
)
def test_calls_without_a_known_template(text, expected):
    assert marked_calls(text) == expected


def read(tokenizer, prompt, text):
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    reader = call_reader(tokenizer)
    return reader(tokenizer(prompt)["input_ids"], Continuation(tuple(tokens), text, stopped=True), TOOLS)


def test_calls_of_a_template_that_trl_knows(tokenizer):
    tokenizer.chat_template = chat_template_utils.qwen2_5_chat_template
    before = dict(vars(tokenizer))
    start = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert read(tokenizer, start, f"{written(PARIS)}\n{written(ROME)}<|im_end|>") == [PARIS, ROME]
    assert read(tokenizer, start, "It is sunny.<|im_end|>") == []
    assert read(tokenizer, start, '{"name": "ping", "arguments": {}}<|im_end|>') == [], "no mark, no call"
    assert read(tokenizer, start, "<tool_call>\nweather\n</tool_call><|im_end|>") == [UNREADABLE]
    assert getattr(tokenizer, "response_template", None) == before.get("response_template"), "it would be saved"


def test_arguments_in_tags_have_the_types_of_the_schema(tokenizer):
    tokenizer.chat_template = chat_template_utils.glm4moe_chat_template
    text = (
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>7</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
    )
    assert marked_calls(text) == [UNREADABLE]
    assert read(tokenizer, "<|user|>\nhi<|assistant|>", text) == [Call("weather", {"city": "7", "days": 2})]


# --- how they are compared


@pytest.mark.parametrize(
    ("made", "wanted", "tool", "valid", "arguments", "whole"),
    [
        ([PARIS], [PARIS], 1, 1, 1, 1),
        ([ROME, PARIS], [PARIS, ROME], 1, 1, 1, 1),
        ([Call("weather", {"days": 2.0, "city": "Rome"})], [ROME], 1, 1, 1, 1),
        ([ROME], [PARIS], 1, 1, 0, 0),
        ([Call("weather", {"city": "Paris", "days": "2"})], [PARIS], 1, 0, 0, 0),
        ([Call("weather", {})], [PARIS], 1, 0, 0, 0),
        ([Call("weather", "Paris")], [PARIS], 1, 0, 0, 0),
        ([PING], [PARIS], 0, 1, 0, 0),
        ([Call("ping", {"city": "Paris"})], [PARIS], 0, 1, 1, 0),
        ([Call("forecast", {"city": "Paris"})], [PARIS], 0, 0, 1, 0),  # no such tool
        ([PARIS, PARIS], [PARIS], 0, 1, 0, 0),
        ([PARIS], [PARIS, ROME], 0, 1, 0, 0),
        ([PARIS, PING], [Call("ping", {"city": "Paris"}), Call("weather", {})], 1, 1, 1, 0),
        ([UNREADABLE], [PARIS], 0, 0, 0, 0),
        ([], [PARIS], 0, 0, 0, 0),
        ([], [], 1, 1, 1, 1),
        ([PING], [], 0, 1, 0, 0),
        ([UNREADABLE], [], 0, 0, 0, 0),
    ],
)
def test_compared_by_hand(made, wanted, tool, valid, arguments, whole):
    found = compared(made, wanted, argument_validators({"tools": TOOLS}))
    assert found == {
        "right_tool": tool,
        "valid_arguments": valid,
        "right_arguments": arguments,
        "right_call": whole,
    }


def test_score(saying):
    rows = [row(PARIS), row(PARIS), row(text="It is sunny."), row(ROME, PING)]
    answers = [written(PARIS), "Sunny, I think.", "Sunny!", written(PING) + written(ROME)]
    score = ToolCalls(type="tool_calls").score(saying(answers, rows))
    assert score.per_row["right_call"] == (1.0, 0.0, 1.0, 1.0)
    assert score.metrics == dict.fromkeys(("right_tool", "valid_arguments", "right_arguments", "right_call"), 0.75)
    assert [sample.answer for sample in score.samples] == answers
    assert score.samples[0].reference == '{"name": "weather", "arguments": {"city": "Paris"}}'
    assert score.samples[2].reference == "It is sunny."


def test_a_real_model_is_asked_with_its_template(subject):
    score = ToolCalls(type="tool_calls", max_new_tokens=6, limit=1).score(subject([row(PARIS), row(ROME)]))
    assert (score.rows, len(score.samples)) == (1, 1)
    assert score.samples[0].answer
    assert score.metrics["right_call"] == 0.0


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({**row(PARIS), "tools": None}, "no `tools`"),
        ({"prompt": "a", "answer": "b"}, "no assistant turn in `messages`"),
        ({**row(PARIS), "tools": [{"type": "function"}]}, "a tool in column 'tools' has no"),
        (
            {**row(PARIS), "tools": [{"function": {"name": "weather", "parameters": {"type": "dict"}}}]},
            "the parameters of tool 'weather': no valid JSON Schema",
        ),
        ({"messages": [{"role": "user", "content": "a"}], "tools": TOOLS}, "no assistant turn"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"id": 1}]}]},
            "a tool call of the last assistant turn has no `function` with a `name`",
        ),
    ],
)
def test_rows_that_can_not_be_compared(subject, monkeypatch, broken, message):
    monkeypatch.setattr(module, "sample", lambda *_, **__: pytest.fail("generated"))
    with pytest.raises(DataError, match=f"eval.jsonl:2: {message}"):
        ToolCalls(type="tool_calls").score(subject([row(PARIS), broken]))


def test_rows_without_any_call(subject):
    with pytest.raises(DataError, match="no row whose last assistant turn has `tool_calls`"):
        ToolCalls(type="tool_calls").score(subject([row(text="yes"), row(text="no")]))


def test_missing_package(subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(SetupError, match="pip install jsonschema"):
        ToolCalls(type="tool_calls").score(subject([row(PARIS)]))
