"""Which turns are trained, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.data.shapes import RowError, UnlearnableError
from llmkit.data.turns import check_complete, spoken, weights

ASKED = {"role": "user", "content": "?"}


def said(**marks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "!", **marks}


@pytest.mark.parametrize(
    ("first", "second", "every", "last", "marked"),
    [
        ({}, {}, {1: 1, 3: 1}, {3: 1}, None),
        ({"train": True}, {}, {1: 1, 3: 1}, {3: 1}, {1: 1}),
        ({"train": False}, {}, {3: 1}, {3: 1}, None),
        ({}, {"train": False}, {1: 1}, None, None),
        ({"weight": 0}, {"weight": 1}, {3: 1}, {3: 1}, {3: 1}),
        ({"weight": 1}, {"weight": 0}, {1: 1}, None, {1: 1}),
        ({"weight": 0.5}, {}, {1: 0.5, 3: 1}, {3: 1}, {1: 0.5}),
        ({"weight": 2, "train": True}, {"weight": 3, "train": True}, {1: 2, 3: 3}, {3: 3}, {1: 2, 3: 3}),
        ({"weight": 2, "train": False}, {"train": True}, {3: 1}, {3: 1}, {3: 1}),
    ],
)
def test_weights(first: dict[str, Any], second: dict[str, Any], every: Any, last: Any, marked: Any) -> None:
    messages = [ASKED, said(**first), ASKED, said(**second)]
    for rule, expected in (("all", every), ("last", last), ("marked", marked)):
        if expected is None:
            with pytest.raises(UnlearnableError, match="^no turn is marked for training$"):
                weights(messages, rule)
        else:
            assert weights(messages, rule) == expected


def test_templates_do_not_see_llmkits_own_keys() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    marked = said(weight=0.5, train=True, keep_reasoning=True, name=None, tool_calls=[call])
    assert spoken([ASKED, marked]) == [ASKED, said(tool_calls=[call])]


def test_a_trace_goes_by_all_the_names_that_templates_read() -> None:
    for key in ("reasoning_content", "thinking", "reasoning"):
        (found,) = spoken([said(**{key: "so"})])
        assert (found["thinking"], found["reasoning_content"]) == ("so", "so")


@pytest.mark.parametrize(
    ("message", "rendered"),
    [
        (said(), "?!"),
        ({**said(), "content": " ! \n"}, "?!"),
        ({**said(), "content": "<think>\nso\n</think>!"}, "?<|begin thought|>so<|end thought|>!"),
        (said(reasoning_content="so\n"), "?so!"),
        (said(tool_calls=[{"function": {"name": "wave"}}]), "?![wave()]"),
        (said(tool_calls=[{"name": "wave"}]), "?![wave()]"),
        ({**said(), "content": "?!"}, "?!"),  # the model is given the `?`
    ],
)
def test_what_is_complete(message: dict[str, Any], rendered: str) -> None:
    check_complete(message, 2, rendered, (1, len(rendered)))


@pytest.mark.parametrize(
    ("message", "rendered", "reason"),
    [
        (said(reasoning_content="so"), "?!", "leaves out the reasoning of message 2, which is trained; cut it"),
        ({**said(), "content": "<think>so</think>!"}, "?!", "leaves out the reasoning of message 2"),
        (said(), "?so", "leaves out or changes the text of message 2"),
        (said(), "!so", "leaves out or changes the text of message 2"),
        (said(tool_calls=[{"function": {"name": "wave"}}]), "?!", "leaves out the tool calls of a trained turn; write"),
    ],
)
def test_what_is_not(message: dict[str, Any], rendered: str, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        check_complete(message, 2, rendered, (1, len(rendered)))
