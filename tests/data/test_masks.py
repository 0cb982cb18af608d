"""What is trained: checked by decoding the labels, for templates with and without generation marks."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llmkit.data import masks
from llmkit.data.masks import IGNORED
from llmkit.data.shapes import RowError, UnlearnableError
from llmkit.data.spans import end_remedy
from llmkit.data.tokens import Rules
from llmkit.errors import SetupError

RULES = Rules()
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURN = "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
ASKING = "{{ '<|im_start|>assistant\n' }}"
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


def row(tokenizer: PreTrainedTokenizerFast, example: dict[str, Any], rules: Rules = RULES) -> dict[str, list[Any]]:
    """Return the tokens of one conversation, or raise why it has none."""
    (found,) = masks.conversations(tokenizer, [example], stops(tokenizer), rules)
    return masks.raised(found)


def learnt(tokenizer: PreTrainedTokenizerFast, example: dict[str, Any]) -> tuple[list[int], list[int]]:
    tokens = row(tokenizer, example)
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
    assert "ends with the token '<|im_end|>'" in str(caught.value.remedy)
    assert "model: {eos_token: '<|im_end|>'}" in str(caught.value.remedy)


CONTENT_ONLY = MARKED.replace(
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}", "{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>' }}"
)


@pytest.mark.parametrize("template", [CONTENT_ONLY, UNMARKED])
def test_the_token_that_ends_a_turn_is_named_wherever_it_stands(
    tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    tokenizer.chat_template = template
    tokenizer.eos_token = "<|pad|>"
    with pytest.raises(SetupError) as caught:
        learnt(tokenizer, conversation("hi", "hello", "and?", "yes"))
    assert "model: {eos_token: '<|im_end|>'}" in str(caught.value.remedy)


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_a_template_without_an_end_token_is_told_to_write_one(
    tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    tokenizer.chat_template = template.replace("<|im_end|>", "")
    with pytest.raises(SetupError, match="would learn never to stop") as caught:
        learnt(tokenizer, conversation("hi", "hello", "and?", "yes"))
    assert "writes no end token: add {{ eos_token }} after the assistant's content" in str(caught.value.remedy)
    assert "im_end" not in str(caught.value.remedy)


def test_the_next_turn_s_beginning_is_no_end(tokenizer: PreTrainedTokenizerFast) -> None:
    asks = "{% if add_generation_prompt %}" + ASKING + "{% endif %}"
    assert asks in CONTENT_ONLY != MARKED
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    for template in (CONTENT_ONLY, CONTENT_ONLY.replace(asks, "")):
        tokenizer.chat_template = template.replace("<|im_end|>", "")
        with pytest.raises(SetupError) as caught:
            learnt(tokenizer, conversation("hi", "hello", "and?", "yes"))
        assert "writes no end token" in str(caught.value.remedy)


def test_what_ends_a_turn() -> None:
    assert "model: {eos_token: '</s>'}" in end_remedy("yes</s>\n", {"</s>", "<s>"})
    assert "add {{ eos_token }}" in end_remedy("yes</turn>", {"</s>", "<s>"})
    assert "Make '</s>' a token of the tokenizer" in end_remedy("yes</s>", {"<s>"}, ("</s>",))
    assert "`model.eos_token`" in end_remedy("yes", ())


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
    example = {"prompt": "two plus two is", "completion": " four"}
    (tokens,) = masks.completions(tokenizer, [example], stops(tokenizer), RULES)
    assert not isinstance(tokens, RowError)
    assert trained_text(tokenizer, tokens["labels"]) == [" four<|im_end|>"]
    assert tokenizer.decode(tokens["input_ids"]) == "two plus two is four<|im_end|>"


def test_every_token_of_text_is_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    (tokens,) = masks.texts(tokenizer, [{"text": "yes no"}], stops(tokenizer), RULES)
    assert not isinstance(tokens, RowError)
    assert tokens["labels"] == tokens["input_ids"]
    assert tokens["input_ids"][-1] == tokenizer.eos_token_id


def test_plain_text_needs_an_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    with pytest.raises(SetupError, match="no end token, so the model would learn never to stop"):
        masks.texts(tokenizer, [{"text": "yes no"}], frozenset(), RULES)


# --- which turns, and how much ---------------------------------------------------------------------------------------


FOUR = ("hi", "hello there", "what is it?", "it is four")


@pytest.mark.parametrize("template", [UNMARKED, MARKED], ids=["by prefix", "marked"])
def test_only_the_last_turn(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    tokenizer.chat_template = template
    last = row(tokenizer, conversation(*FOUR), Rules(train_on="last"))
    assert trained_text(tokenizer, last["labels"]) == ["it is four<|im_end|>"]
    assert last["input_ids"] == row(tokenizer, conversation(*FOUR))["input_ids"]


@pytest.mark.parametrize("template", [UNMARKED, MARKED], ids=["by prefix", "marked"])
def test_marked_turns_with_their_weights(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    tokenizer.chat_template = template
    example = conversation(*FOUR, "and?", "maybe")
    example["messages"][1]["weight"] = 0.25
    example["messages"][3]["train"] = True
    found = row(tokenizer, example, Rules(train_on="marked"))
    assert trained_text(tokenizer, found["labels"]) == ["hello there<|im_end|>", "it is four<|im_end|>"]
    first, second = (len(tokenizer(f"{text}<|im_end|>")["input_ids"]) for text in ("hello there", "it is four"))
    pairs = list(zip(found["loss_weights"], found["labels"], strict=True))
    assert [weight for weight, label in pairs if label != IGNORED] == [0.25] * first + [1.0] * second
    assert {weight for weight, label in pairs if label == IGNORED} == {0.0}


@pytest.mark.parametrize("weight", [0, 1, 0.0, 1.0])
def test_weights_of_0_and_1_need_no_column(tokenizer: PreTrainedTokenizerFast, weight: float) -> None:
    example = conversation(*FOUR)
    example["messages"][1]["weight"] = weight
    found = row(tokenizer, example)
    assert set(found) == {"input_ids", "labels"}
    assert trained_text(tokenizer, found["labels"]) == ["hello there<|im_end|>"] * int(weight) + [
        "it is four<|im_end|>"
    ]


def test_a_row_without_a_trained_turn_teaches_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UnlearnableError, match="^no turn is marked for training$"):
        row(tokenizer, conversation(*FOUR), Rules(train_on="marked"))


def test_the_last_turn_is_trained_where_earlier_ones_are_rewritten(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = FORGETFUL
    example = conversation("hi", "<think>so</think>yes", "and?", "<think>no</think>no")
    found = row(tokenizer, example, Rules(train_on="last"))
    assert trained_text(tokenizer, found["labels"]) == ["<think>no</think>no<|im_end|>"]
    assert "<think>so" not in tokenizer.decode(found["input_ids"])


def with_turn(turn: str) -> str:
    """Return the marked template with another way to render what the assistant says."""
    assert TURN in MARKED
    return MARKED.replace(TURN, turn)


def test_marks_around_what_a_template_leaves_out_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    """Its own marks say that the shortened turn is trained: the model would learn not to think."""
    shortened = "(m['content'] if loop.last else m['content'].split('</think>')[-1])"
    tokenizer.chat_template = with_turn(TURN.replace("m['content']", shortened))
    example = conversation("hi", "<think>so</think>yes", "and?", "<think>no</think>no")
    with pytest.raises(RowError, match="leaves out the reasoning of message 2, which is trained"):
        row(tokenizer, example)
    cut = row(tokenizer, example, Rules(reasoning="cut"))
    assert trained_text(tokenizer, cut["labels"]) == ["yes<|im_end|>", "no<|im_end|>"]


# --- marks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", ["", "<|im_start|>", "<|im_start|>assistant", "<|im_start|>assistant\n"])
def test_a_header_within_the_marks_is_not_trained(tokenizer: PreTrainedTokenizerFast, outside: str) -> None:
    """The model is given the header, whichever part of it the marks enclose."""
    expected = learnt(tokenizer, conversation(*FOUR))
    inside = "<|im_start|>assistant\n".removeprefix(outside)
    said = "{% generation %}{{ '" + inside + "' + m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}" + outside + said + "{% else %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert learnt(tokenizer, conversation(*FOUR)) == expected


@pytest.mark.parametrize(
    "turn",
    [
        "{% generation %}{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
        "{% generation %}{% endgeneration %}" + TURN,
        TURN.replace(" + '<|im_end|>' }}", " }}{% endgeneration %}{% generation %}{{ '<|im_end|>' }}"),
    ],
    ids=["content only", "empty mark", "two that touch"],
)
def test_marks_are_led_on_to_the_stop_token_and_joined(tokenizer: PreTrainedTokenizerFast, turn: str) -> None:
    expected = learnt(tokenizer, conversation(*FOUR))
    tokenizer.chat_template = with_turn(turn)
    assert learnt(tokenizer, conversation(*FOUR)) == expected


def test_marks_that_begin_elsewhere_than_generation_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = MARKED.replace(ASKING, ASKING + "so")
    assert tokenizer.chat_template != MARKED
    with pytest.raises(RowError, match="asks for message 2 with .*so', and renders what stands before it differently"):
        learnt(tokenizer, conversation(*FOUR))


def test_marks_that_do_not_tell_turns_apart_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = with_turn(TURN + " " + TURN)
    with pytest.raises(RowError, match="marks 4 pieces of 2 turns of the assistant"):
        learnt(tokenizer, conversation(*FOUR))


def test_an_answer_ends_with_the_first_stop_token(tokenizer: PreTrainedTokenizerFast) -> None:
    """Phi-3 ends the last turn and then the text: generation stops at the first."""
    tokenizer.chat_template = UNMARKED + "{% if not add_generation_prompt %}{{ '<|pad|>' }}{% endif %}"
    both = frozenset(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|pad|>"]))
    (found,) = masks.conversations(tokenizer, [conversation("hi", "hello")], both, RULES)
    assert not isinstance(found, RowError)
    assert trained_text(tokenizer, found["labels"]) == ["hello<|im_end|>"]
    # Where only the second one stops, the first is a token like any other.
    only = frozenset(tokenizer.convert_tokens_to_ids(["<|pad|>"]))
    (found,) = masks.conversations(tokenizer, [conversation("hi", "hello")], only, RULES)
    assert not isinstance(found, RowError)
    assert trained_text(tokenizer, found["labels"]) == ["hello<|im_end|>\n<|pad|>"]


def test_a_stop_token_that_the_tokenizer_reads_as_others_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    """`r` is a token, but at the end of `four` it is read as a part of another one."""
    (r,) = tokenizer("r", add_special_tokens=False)["input_ids"]
    tokenizer.chat_template = UNMARKED.replace("<|im_end|>", " four")
    assert tokenizer(" four", add_special_tokens=False)["input_ids"][-1] != r  # or this test shows nothing
    with pytest.raises(SetupError, match="reads the end of an answer, .*, as other tokens than the one"):
        masks.conversations(tokenizer, [conversation("hi", "hello")], frozenset({r}), RULES)


# --- offsets ---------------------------------------------------------------------------------------------------------


def test_tokens_within_by_hand() -> None:
    #          "ab"    "🙂" in three   "c"     spaces  "d"
    offsets = [(0, 2), (2, 3), (2, 3), (2, 3), (3, 4), (6, 6), (6, 7)]
    assert masks.tokens_within(offsets, 2, 3) == (1, 4)
    assert masks.tokens_within(offsets, 2, 4) == (1, 5)
    assert masks.tokens_within(offsets, 4, 7) == (5, 7)  # two spaces, trimmed to nothing at their end
    assert masks.tokens_within(offsets, 3, 6) == (4, 6)
    assert masks.tokens_within(offsets, 6, 7) == (6, 7)  # the spaces stand before
    assert masks.tokens_within(offsets, 1, 4) == (1, 5)  # "ab" spans the border
    assert masks.tokens_within(offsets, 0, 1) == (0, 0)


def test_spaces_are_trained_where_the_tokenizer_trims_offsets(bpe: Any) -> None:
    """Llama 3's tokenizer does: a token of spaces has no characters left, and indentation would never be learnt."""
    from tokenizers import processors

    backend = copy.deepcopy(bpe)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = UNMARKED
    answer = "if yes:\n        maybe  \n  "
    encoded = tokenizer(answer, return_offsets_mapping=True)
    assert any(start == end for start, end in encoded["offset_mapping"])  # or this test shows nothing
    _, labels = learnt(tokenizer, conversation("   hi   ", answer))
    assert trained_text(tokenizer, labels) == [f"{answer}<|im_end|>"]


@pytest.mark.parametrize(
    "answer", ["🙂", "é", "e\u0301", "👩‍👩‍👧", "안녕", " \u2028\t x" + " " * 300 + "y", "\u0000\ufeffa"]
)
@pytest.mark.parametrize("template", [UNMARKED, MARKED], ids=["by prefix", "marked"])
def test_a_character_of_several_tokens_is_trained_whole(
    tokenizer: PreTrainedTokenizerFast, answer: str, template: str
) -> None:
    tokenizer.chat_template = template
    _, labels = learnt(tokenizer, conversation(answer, answer))
    assert trained_text(tokenizer, labels) == [f"{answer}<|im_end|>"]


def test_byte_fallback_is_trained_whole() -> None:
    """SentencePiece tokenizers write a character that they don't know as its bytes, and a space before the text."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    names = ["<unk>", "</s>", "▁", "a", "b", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] if m['role'] == 'assistant' else 'b' + m['content'] + 'b' }}"
        "{% if m['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
    )
    ids, labels = learnt(tokenizer, conversation("🙂", "a 🙂 é"))
    trained = [token for token in labels if token != IGNORED]
    assert tokenizer.convert_ids_to_tokens(trained)[0] == "a"
    assert len(trained) == 3 + 4 + 2 + 1  # a and two spaces, four bytes, two bytes, the end
    assert len(ids) == len(trained) + 7  # a space, b, four bytes, b


pieces = st.one_of(
    st.characters(codec="utf-8", exclude_characters="<|>"),
    st.sampled_from([" ", "\n", "\t", "🙂", "é", "e\u0301", "\u200d", "👩", "안", "\u00a0", "    ", " " * 200]),
)
lively = st.lists(pieces, max_size=30).map("".join)


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(st.tuples(lively, lively.map(lambda text: f"a{text}")), min_size=1, max_size=4),
    system=st.none() | lively,
    template=st.sampled_from([UNMARKED, MARKED]),
    trims=st.booleans(),
)
def test_what_is_decoded_is_what_the_assistant_said(
    bpe: Any, turns: list[tuple[str, str]], system: str | None, template: str, trims: bool
) -> None:
    from tokenizers import processors

    backend = copy.deepcopy(bpe)
    if trims:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = template
    example = conversation(*(text for turn in turns for text in turn))
    if system is not None:
        example["messages"].insert(0, {"role": "system", "content": system})
    ids, labels = learnt(tokenizer, example)
    assert trained_text(tokenizer, labels) == [f"{said}<|im_end|>" for _, said in turns]
    whole = tokenizer.apply_chat_template(example["messages"], tokenize=True, return_dict=True)
    assert ids == whole["input_ids"]
    # Nothing between the turns is lost either: all tokens decode to the whole text.
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(example["messages"], tokenize=False)


@settings(max_examples=30, deadline=None)
@given(turns=st.lists(st.lists(lively.map(lambda text: f"a{text}"), min_size=2, max_size=4), min_size=1, max_size=5))
def test_a_batch_gives_what_its_rows_give_alone(bpe: Any, turns: list[list[str]]) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = UNMARKED
    examples = [conversation(*texts[: len(texts) // 2 * 2]) for texts in turns]
    together = masks.conversations(tokenizer, examples, stops(tokenizer), RULES)
    assert together == [row(tokenizer, example) for example in examples]


def test_a_huge_row_costs_what_its_length_says(tokenizer: PreTrainedTokenizerFast) -> None:
    """Masks are found by bisection: 400 turns over 100,000 tokens would be 40 million comparisons one by one."""
    tokenizer.chat_template = MARKED
    (ids, offsets) = [0] * 200_000, [(i, i + 1) for i in range(200_000)]
    stop = stops(tokenizer)
    (end,) = stop
    spans = tuple((i, i + 100) for i in range(0, 200_000, 200))
    for _, behind in spans:
        ids[behind - 1] = end
    one = masks._Masked("x" * 200_000, spans, (1.0,) * len(spans))
    started = time.process_time()
    found = masks._labelled(one, ids, offsets, stop, str)
    assert time.process_time() - started < 0.5
    assert sum(label != IGNORED for label in found["labels"]) == 100_000


def test_a_tokenizer_without_offsets_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    class Slow(type(tokenizer)):  # type: ignore[misc]
        is_fast = False

    tokenizer.__class__ = Slow
    with pytest.raises(SetupError, match="Slow does not say which characters a token stands for"):
        learnt(tokenizer, conversation("hi", "hello"))
