"""What is a reasoning trace, and what is left where it is cut."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.data import reasoning
from llmkit.data.reasoning import ruled, trace_and_text
from llmkit.data.shapes import RowError, UnlearnableError


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


ASKED = {"role": "user", "content": "<think>is the user's own</think>"}
RESULT = {"role": "tool", "content": "24"}


def test_the_keys_are_those_of_transformers() -> None:
    from transformers.utils import chat_template_utils

    assert chat_template_utils._REASONING_FIELDS == reasoning.KEYS


@pytest.mark.parametrize(
    ("message", "trace", "text"),
    [
        (said("yes"), "", "yes"),
        (said("yes", reasoning_content="so"), "so", "yes"),
        (said("yes", thinking="so"), "so", "yes"),
        (said("yes", reasoning="so"), "so", "yes"),
        (said("yes", reasoning="b", reasoning_content="a"), "a", "yes"),
        (said("<think>\nso\n</think>\n\nyes\n"), "\nso\n", "yes\n"),
        (said("\n <think>so</think>yes"), "so", "yes"),
        (said("<think></think>yes"), "", "yes"),
        (said("<think>so</think>a<think>b</think>"), "so", "a<think>b</think>"),
        (said("say <think>so</think>"), "", "say <think>so</think>"),
        (said("<think>so"), "", "<think>so"),
        ({"role": "assistant", "tool_calls": [{}]}, "", ""),
    ],
)
def test_trace_and_text(message: dict[str, Any], trace: str, text: str) -> None:
    assert trace_and_text(message) == (trace, text)


TALK = [
    ASKED,
    said("<think>one</think>a"),
    ASKED,
    said("b", reasoning_content="two", tool_calls=[{}]),
    RESULT,
    said("<think>three</think>c"),
]


def test_kept_is_as_it_is() -> None:
    assert ruled(TALK, "keep") is TALK


def test_cut_everywhere() -> None:
    assert ruled(TALK, "cut") == [ASKED, said("a"), ASKED, said("b", tool_calls=[{}]), RESULT, said("c")]


def test_the_last_turn_is_all_that_follows_the_last_question() -> None:
    assert ruled(TALK, "last") == [ASKED, said("a"), *TALK[2:]]


def test_a_turn_may_say_otherwise() -> None:
    first, last = said("<think>one</think>a", keep_reasoning=True), said("<think>two</think>b", keep_reasoning=False)
    assert ruled([ASKED, first, ASKED, last], "cut") == [ASKED, first, ASKED, said("b", keep_reasoning=False)]
    assert ruled([ASKED, first, ASKED, last], "keep") == [ASKED, first, ASKED, said("b", keep_reasoning=False)]


@pytest.mark.parametrize("content", ["a</think>b", "<think>a", "<think>a</think>b<think>c</think>d", "say <think>"])
def test_what_to_cut_must_be_clear(content: str) -> None:
    with pytest.raises(RowError, match="message 2 has <think> or </think> where no reasoning begins or ends"):
        ruled([ASKED, said(content)], "cut")


def test_a_turn_of_which_nothing_is_left_teaches_nothing() -> None:
    with pytest.raises(UnlearnableError, match="^an answer is empty$"):
        ruled([ASKED, said("<think>a</think>\n")], "cut")
    call = said("<think>a</think>\n", tool_calls=[{}])
    assert ruled([ASKED, call], "cut") == [ASKED, said("", tool_calls=[{}])]
