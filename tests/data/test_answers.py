"""Where a prompt ends and an answer begins: what is learnt is what generation would write after what it is given."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llmkit.data import answers, masks
from llmkit.data.shapes import RowError, UnlearnableError
from llmkit.data.tokens import Rules
from llmkit.errors import SetupError

RULES = Rules()
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Announces the tools, and writes no call.
WITH_TOOLS = "{% if tools %}{{ tools[0]['name'] + '\n' }}{% endif %}" + CHATML
# The generation prompt opens a thought that the finished turn does not have.
THINKING = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
# No special token and no line break between prompt and answer: tokens may span the boundary.
GLUED = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ '<|im_end|>' }}{% endif %}"
    "{% endfor %}"
)


def asked(*turns: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def stops(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    assert tokenizer.eos_token_id is not None
    return frozenset({tokenizer.eos_token_id})


def one(found: list[Any]) -> Any:
    """Return the tokens of the only example, or raise why it has none."""
    (only,) = found
    if isinstance(only, RowError):
        raise only
    return only


def preference(tokenizer: PreTrainedTokenizerFast, example: dict[str, Any], rules: Rules = RULES) -> Any:
    return one(answers.preferences(tokenizer, [example], stops(tokenizer), rules))


def unpaired(tokenizer: PreTrainedTokenizerFast, example: dict[str, Any], rules: Rules = RULES) -> Any:
    return one(answers.unpaired(tokenizer, [example], stops(tokenizer), rules))


def prompt(tokenizer: PreTrainedTokenizerFast, example: dict[str, Any], rules: Rules = RULES) -> Any:
    return one(answers.prompts(tokenizer, [example], stops(tokenizer), rules))


def generation_sees(tokenizer: PreTrainedTokenizerFast, prompt: list[dict[str, Any]], tools: Any = None) -> list[int]:
    encoded = tokenizer.apply_chat_template(prompt, tools=tools, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def test_a_pair_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    example = {"prompt": asked("hi"), "chosen": said("it is four"), "rejected": said("no")}
    ids = preference(tokenizer, example)
    assert {name: tokenizer.decode(tokens) for name, tokens in ids.items()} == {
        "prompt_ids": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "chosen_ids": "it is four<|im_end|>",
        "rejected_ids": "no<|im_end|>",
    }


words = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1, max_size=20).map(
    lambda text: f"a{text}b"
)


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(words, min_size=1, max_size=5).filter(lambda t: len(t) % 2 == 1),
    pair=st.tuples(words, words).filter(lambda p: p[0] != p[1]),
    template=st.sampled_from([CHATML, GLUED]),
)
def test_any_text_is_split_where_generation_begins(
    bpe: Any, turns: list[str], pair: tuple[str, str], template: str
) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = template
    example = {"prompt": asked(*turns), "chosen": said(pair[0]), "rejected": said(pair[1])}
    ids = preference(tokenizer, example)
    assert ids["prompt_ids"] == generation_sees(tokenizer, asked(*turns))
    assert tokenizer.decode(ids["chosen_ids"]) == f"{pair[0]}<|im_end|>"
    assert tokenizer.decode(ids["rejected_ids"]) == f"{pair[1]}<|im_end|>"


@settings(max_examples=30, deadline=None)
@given(turns=st.lists(words, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0))
def test_an_answer_has_the_tokens_that_sft_trains_on(bpe: Any, turns: list[str]) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = CHATML
    whole = one(masks.conversations(tokenizer, [{"messages": asked(*turns)}], stops(tokenizer), RULES))
    example = {"prompt": asked(*turns[:-1]), "completion": said(turns[-1])}
    ids = unpaired(tokenizer, example)
    both = ids["prompt_ids"] + ids["completion_ids"]
    assert whole["input_ids"][: len(both)] == both
    assert whole["labels"][len(ids["prompt_ids"]) : len(both)] == ids["completion_ids"]
    # What the template writes behind the stop token is not learnt.
    assert set(whole["labels"][len(both) :]) <= {masks.IGNORED}


def test_where_a_token_spans_the_boundary_the_answer_is_tokenized_by_itself(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = GLUED
    joint = tokenizer("the capital", add_special_tokens=False)["input_ids"]
    prompt = tokenizer("the cap", add_special_tokens=False)["input_ids"]
    assert joint[: len(prompt)] != prompt  # or this test shows nothing
    ids = unpaired(tokenizer, {"prompt": asked("the cap"), "completion": said("ital")})
    assert ids["prompt_ids"] == prompt
    assert tokenizer.decode(ids["completion_ids"]) == "ital<|im_end|>"


def test_a_tokenizer_that_puts_a_space_first_adds_none_between_prompt_and_answer() -> None:
    """SentencePiece tokenizers begin each text with a space; only in the whole does the answer begin without one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["</s>", "▁hi", "▁", "Q", "it", "▁it", "▁Q", "hi"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Split("Q", "isolated")]
    )
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = GLUED.replace("<|im_end|>", "</s>")
    ids = unpaired(tokenizer, {"prompt": asked("hiQ"), "completion": said("it")})
    names = {name: tokenizer.convert_ids_to_tokens(tokens) for name, tokens in ids.items()}
    assert names == {"prompt_ids": ["▁hi", "Q"], "completion_ids": ["it", "</s>"]}


def test_strings_are_tokenized_apart_with_the_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    example = {"prompt": "the cap", "chosen": "ital", "rejected": "no"}
    ids = preference(tokenizer, example)
    assert ids["prompt_ids"] == tokenizer("the cap")["input_ids"]
    for name, text in (("chosen_ids", "ital"), ("rejected_ids", "no")):
        assert ids[name] == [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def test_a_plain_prompt_begins_with_the_start_token_and_answers_do_not(bpe: Any) -> None:
    from tokenizers import processors

    backend = copy.deepcopy(bpe)
    start = backend.token_to_id("<|im_start|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", bos_token="<|im_start|>")
    ids = preference(tokenizer, {"prompt": "a", "chosen": "b", "rejected": "c"})
    assert ids["prompt_ids"][0] == start
    assert start not in ids["prompt_ids"][1:] + ids["chosen_ids"] + ids["rejected_ids"]


def test_tools_reach_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = WITH_TOOLS
    tools = [{"name": "wave"}]
    example = {"prompt": asked("hi"), "chosen": said("yes"), "rejected": said("no"), "tools": tools}
    ids = preference(tokenizer, example)
    assert ids["prompt_ids"] == generation_sees(tokenizer, asked("hi"), tools)
    assert tokenizer.decode(ids["prompt_ids"]).startswith("wave\n")


@pytest.mark.parametrize("given", ["hi", asked("hi")], ids=["string", "messages"])
def test_a_prompt_alone(tokenizer: PreTrainedTokenizerFast, given: Any) -> None:
    expected = tokenizer(given)["input_ids"] if isinstance(given, str) else generation_sees(tokenizer, given)
    assert prompt(tokenizer, {"prompt": given, "answer": "5"}) == {"prompt_ids": expected}


def test_answers_of_the_same_tokens_teach_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML.replace("m['content']", "m['content'] | trim")
    example = {"prompt": asked("hi"), "chosen": said("yes"), "rejected": said("yes ")}
    with pytest.raises(UnlearnableError, match="^the answers have the same tokens$"):
        preference(tokenizer, example)


def test_an_answer_of_which_only_the_reasoning_was_there_is_empty_once_that_is_cut(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    example = {"prompt": asked("hi"), "completion": said("<think>so</think>\n")}
    assert tokenizer.decode(unpaired(tokenizer, example)["completion_ids"]) == "<think>so</think>\n<|im_end|>"
    with pytest.raises(UnlearnableError, match="^an answer is empty$"):
        unpaired(tokenizer, example, Rules(reasoning="cut"))


def test_reasoning_is_cut_from_the_prompt_and_the_answers_alike(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = asked("hi", "<think>so</think>yes", "and?")
    example = {"prompt": prompt, "chosen": said("<think>two</think>no"), "rejected": said("maybe")}
    cut = preference(tokenizer, example, Rules(reasoning="cut"))
    assert cut["prompt_ids"] == generation_sees(tokenizer, asked("hi", "yes", "and?"))
    assert tokenizer.decode(cut["chosen_ids"]) == "no<|im_end|>"
    last = preference(tokenizer, example, Rules(reasoning="last"))
    assert last["prompt_ids"] == cut["prompt_ids"]
    assert tokenizer.decode(last["chosen_ids"]) == "<think>two</think>no<|im_end|>"


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "wave", "arguments": {}}}]}


def test_a_template_that_loses_a_call_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RowError, match="leaves out the tool calls of a trained turn"):
        unpaired(tokenizer, {"prompt": asked("hi"), "completion": [CALL]})


def test_without_rules_an_answer_is_taken_as_it_comes(tokenizer: PreTrainedTokenizerFast) -> None:
    example = {"prompt": asked("hi"), "completion": [{**CALL, "content": "so"}]}
    ids = one(answers.unpaired(tokenizer, [example], stops(tokenizer), rules=None))
    assert tokenizer.decode(ids["completion_ids"]) == "so<|im_end|>"


@pytest.mark.parametrize("mark", [{"weight": 0.5}, {"weight": 0}, {"train": False}])
def test_an_answer_counts_as_a_whole(tokenizer: PreTrainedTokenizerFast, mark: dict[str, Any]) -> None:
    example = {"prompt": asked("hi"), "chosen": [{**said("yes")[0], **mark}], "rejected": said("no")}
    with pytest.raises(RowError, match="'chosen': an answer counts as a whole"):
        preference(tokenizer, example)


def test_a_batch_keeps_its_order_and_its_reasons(tokenizer: PreTrainedTokenizerFast) -> None:
    good = [
        {"prompt": asked("hi"), "chosen": said("yes"), "rejected": said("no")},
        {"prompt": "the cap", "chosen": "ital", "rejected": "no"},
    ]
    bad = {"prompt": asked("hi"), "chosen": said("yes"), "rejected": said("\ud800")}
    found = answers.preferences(tokenizer, [good[0], bad, good[1], bad, good[0]], stops(tokenizer), RULES)
    assert [isinstance(row, RowError) for row in found] == [False, True, False, True, False]
    assert found[0] == found[4] == preference(tokenizer, good[0])
    assert found[2] == preference(tokenizer, good[1])
    assert "lone surrogate" in str(found[1])


def test_a_template_that_opens_something_else_for_generation_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = THINKING
    example = {"prompt": asked("hi"), "chosen": said("yes"), "rejected": said("no")}
    with pytest.raises(RowError, match="renders the prompt differently once 'chosen' follows"):
        preference(tokenizer, example)
    # With the thought in the answer, both begin alike.
    example = {"prompt": asked("hi"), "chosen": said("<think>\nyes"), "rejected": said("<think>\nno")}
    ids = preference(tokenizer, example)
    assert tokenizer.decode(ids["chosen_ids"]) == "yes<|im_end|>"


def test_a_template_whose_turns_end_in_another_token_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = "<|pad|>"
    with pytest.raises(SetupError, match="would learn never to stop"):
        unpaired(tokenizer, {"prompt": asked("hi"), "completion": said("yes")})


def test_no_template_says_how_to_give_one(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    with pytest.raises(SetupError, match="no chat template"):
        prompt(tokenizer, {"prompt": asked("hi")})
