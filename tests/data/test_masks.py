"""What is trained: checked by decoding the labels, for templates with and without generation marks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llmkit.data import masks
from llmkit.data.masks import IGNORED
from llmkit.data.shapes import RowError
from llmkit.errors import SetupError

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# Drops the reasoning of every turn but the last, as several reasoning models' templates do.
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def conversation(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def trained_text(tokenizer: PreTrainedTokenizerFast, labels: list[int]) -> list[str]:
    """Decode each run of trained tokens."""
    runs: list[list[int]] = [[]]
    for label in labels:
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs if run]


def learnt(tokenizer: PreTrainedTokenizerFast, example: dict[str, Any]) -> tuple[list[int], list[int]]:
    tokens = masks.conversation(tokenizer, example, stops(tokenizer))
    return tokens["input_ids"], tokens["labels"]


def stops(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    assert tokenizer.eos_token_id is not None
    return frozenset({tokenizer.eos_token_id})


@pytest.mark.parametrize("template", [None, MARKED], ids=["by prefix", "marked"])
def test_every_assistant_turn_with_its_stop_token_is_trained(
    tokenizer: PreTrainedTokenizerFast, template: str | None
) -> None:
    tokenizer.chat_template = template or tokenizer.chat_template
    example = conversation("hi", "hello there", "what is it?", "it is four")
    ids, labels = learnt(tokenizer, example)
    assert trained_text(tokenizer, labels) == ["hello there<|im_end|>", "it is four<|im_end|>"]
    whole = tokenizer.apply_chat_template(example["messages"], tokenize=True, return_dict=True)
    assert ids == whole["input_ids"]


words = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1, max_size=20).map(
    lambda text: f"a{text}b"
)


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(words, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0))
def test_any_text_is_masked_exactly(bpe: Any, turns: list[str]) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = UNMARKED
    _, labels = learnt(tokenizer, conversation(*turns))
    assert trained_text(tokenizer, labels) == [f"{answer}<|im_end|>" for answer in turns[1::2]]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = FORGETFUL
    example = conversation("hi", "<think>so</think>yes", "and?", "no")
    with pytest.raises(RowError, match="message 2 differently once more messages follow"):
        learnt(tokenizer, example)


def test_a_template_whose_turns_end_in_a_token_that_does_not_stop_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.eos_token = "<|pad|>"
    with pytest.raises(SetupError, match="would learn never to stop") as caught:
        learnt(tokenizer, conversation("hi", "hello"))
    assert "eos_token" in str(caught.value.remedy)


def test_no_template_says_how_to_give_one(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    with pytest.raises(SetupError, match="no chat template") as caught:
        learnt(tokenizer, conversation("hi", "hello"))
    assert "chat_template: template.jinja" in str(caught.value.remedy)


def test_a_conversation_that_begins_with_the_assistant_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    example = {"messages": [{"role": "assistant", "content": "hello"}]}
    with pytest.raises(RowError, match="begins with the assistant"):
        learnt(tokenizer, example)


def test_a_completion_is_trained_with_the_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = masks.completion(tokenizer, {"prompt": "two plus two is", "completion": " four"}, stops(tokenizer))
    assert trained_text(tokenizer, tokens["labels"]) == [" four<|im_end|>"]
    assert tokenizer.decode(tokens["input_ids"]) == "two plus two is four<|im_end|>"


def test_every_token_of_text_is_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = masks.text(tokenizer, {"text": "yes no"}, stops(tokenizer))
    assert tokens["labels"] == tokens["input_ids"]
    assert tokens["input_ids"][-1] == tokenizer.eos_token_id


def test_plain_text_needs_an_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    with pytest.raises(SetupError, match="no end token, so the model would learn never to stop"):
        masks.text(tokenizer, {"text": "yes no"}, frozenset())
