"""Whatever a model writes, a reward gives it a finite number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.recipe.spec import variants

ENTRY = {"question": "2 + 3 =", "answer": "5", "metadata": {}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "exact_match": ({}, {"answer": "5"}),
    "numeric": ({}, {"answer": "5"}),
    "math": ({"timeout": 1}, {"answer": r"\frac{1}{2}"}),
    "regex": ({"pattern": r"(?i)answer:\s*(\w+)"}, {}),
    "format": ({"partial": True}, {}),
    "json_schema": ({"json_schema": {"multipleOf": 0.1, "items": {"$ref": "#"}}, "fenced": True}, {}),
    "length": ({"max": 5, "over": 5}, {}),
    "language": ({"language": "en", "min_characters": 1}, {}),
    "reasoning_gym": ({}, {"task": "chain_sum", "entry": ENTRY}),
}
PACKAGES = {
    "math": "math_verify",
    "json_schema": "jsonschema",
    "language": "py3langid",
    "reasoning_gym": "reasoning_gym",
}

# Arbitrary text rarely holds what the rewards look for, so it is mixed with their marks.
MARKS = [
    "\\boxed{",
    "}",
    "####",
    "<answer>",
    "</answer>",
    "<think>",
    "answer is",
    "\\frac",
    "^",
    "$",
    "```json\n",
    "\n```",
]
VALUES = ["1,234", "-5", "1/0", "1e999", "{", "[", '"a":', "NaN", "\ud800", "\0", "²", "٣", "½", "9" * 50]
TEXT = st.one_of(
    st.text(alphabet=st.characters()),
    st.lists(st.one_of(st.sampled_from(MARKS + VALUES), st.text(max_size=3)), max_size=12).map("".join),
)


@cache
def made(name: str) -> tuple[Any, Mapping[str, Any]]:
    fields, row = CASES[name]
    pytest.importorskip(PACKAGES.get(name, "json"))
    reward: Any = variants("llmkit.rewards")[name](type=name, **fields)
    reward.check_setup(Path())
    reward.check_row(row)
    reward.set_up(Path())
    return reward, row


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXT)
def test_any_text_has_a_finite_score(name: str, text: str) -> None:
    reward, row = made(name)
    value = reward.score(text, row)
    assert type(value) is float
    assert math.isfinite(value)
    assert reward.score(text, row) == value
