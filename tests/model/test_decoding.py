from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from llmkit.model import decoding
from llmkit.model.decoding import batches
from llmkit.model.generation import generate, sample

BEGINNING = "what is two plus two? it is four yes no maybe the capital of France is Paris user assistant system "
ENDS = ["the capital", "yes", "what is two", "no maybe the capital of France is Paris", "of", "it is"]


@pytest.fixture
def prompts(tokenizer):
    """Prompts with a long beginning in common."""
    return [tokenizer(BEGINNING + text)["input_ids"] for text in ENDS]


@pytest.fixture
def passes(model):
    """Shapes of the tokens that go through the model."""
    shapes = []
    model.model.register_forward_pre_hook(lambda _, __, k: shapes.append(tuple(k["input_ids"].shape)), with_kwargs=True)
    return shapes


def alone(model, tokenizer, prompts, n):
    return [generate(model, tokenizer, [prompt], max_new_tokens=n, batch_size=1)[0] for prompt in prompts]


def common(prompts):
    same = 0
    while len({prompt[same] for prompt in prompts}) == 1:
        same += 1
    return same


def test_a_shared_beginning_is_read_once_and_the_answers_are_the_same(model, tokenizer, prompts, passes):
    expected = alone(model, tokenizer, prompts, 8)
    assert len(set(expected)) == len(expected), "the tiny model must answer differently for the test to mean anything"
    shared = common(prompts)
    passes.clear()
    assert generate(model, tokenizer, prompts, max_new_tokens=8, batch_size=6) == expected
    assert passes[:2] == [(1, shared), (6, max(map(len, prompts)) - shared)]
    assert passes[2:] == [(6, 1)] * 7
    assert generate(model, tokenizer, prompts[::-1], max_new_tokens=8, batch_size=4)[::-1] == expected


def test_equal_prompts_keep_a_token_of_their_own(model, tokenizer, prompts, passes):
    (expected,) = alone(model, tokenizer, prompts[:1], 4)
    passes.clear()
    assert generate(model, tokenizer, prompts[:1] * 5, max_new_tokens=4, batch_size=5) == [expected] * 5
    assert passes[:2] == [(1, len(prompts[0]) - 1), (5, 1)]


def test_a_beginning_that_saves_little_is_not_read_apart(model, tokenizer, prompts, passes):
    kept = decoding.WORTH_SHARING // 3
    few = [prompt[:kept] + prompt[-2:] for prompt in prompts[:4]]
    assert common(few) == kept
    generate(model, tokenizer, few[:3], max_new_tokens=1, batch_size=3)
    assert [rows for rows, _ in passes] == [3]
    generate(model, tokenizer, few * 2, max_new_tokens=1, batch_size=8)
    assert [rows for rows, _ in passes] == [3, 1, 8]


def test_rows_that_have_ended_are_computed_no_longer(model, tokenizer, prompts, passes):
    answers = sample(model, tokenizer, prompts, max_new_tokens=12, batch_size=1, temperature=1e-4)
    seen = [set(answer.tokens) for answer in answers]
    tokens = {token for answer in answers for token in answer.tokens[:6]}
    # A token that ends some answers early, and not all of them.
    stop = max(tokens, key=lambda token: min(sum(token in s for s in seen), 4))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    ended = [sample(model, tokenizer, [p], max_new_tokens=12, batch_size=1, temperature=1e-4)[0] for p in prompts]
    lengths = [len(answer.tokens) for answer in ended]
    assert len(set(lengths)) > 1
    passes.clear()
    together = generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=6)
    assert together == [answer.text for answer in ended]
    # One in four of 6 rows is one row: each leaves as soon as it has ended.
    steps = [rows for rows, width in passes if width == 1]
    assert steps == [sum(length > step for length in lengths) for step in range(1, max(lengths))]


def test_leaving_does_not_change_what_is_sampled_of_a_certain_model(model, tokenizer, prompts):
    model.generation_config.eos_token_id = list(range(3, 40))
    cold = {"max_new_tokens": 12, "temperature": 1e-4, "repetition_penalty": 1.2}
    one = sample(model, tokenizer, prompts, batch_size=1, **cold)
    assert sample(model, tokenizer, prompts, batch_size=6, **cold) == one
    assert len({len(answer.tokens) for answer in one}) > 1


def test_settings_that_count_from_the_first_new_token_are_left_to_one_call(model, tokenizer, prompts, passes):
    model.generation_config.eos_token_id = list(range(3, 200))
    found = sample(model, tokenizer, prompts, max_new_tokens=9, batch_size=6, min_new_tokens=7)
    assert all(len(answer.tokens) >= 8 for answer in found)
    assert {rows for rows, _ in passes} == {6}


def test_an_adapter_changes_the_shared_beginning_too(model, tokenizer, prompts):
    torch.manual_seed(1)
    lora = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    assert generate(lora, tokenizer, prompts, max_new_tokens=8, batch_size=6) == alone(lora, tokenizer, prompts, 8)


def test_sliding_windows_are_left_to_transformers(tokenizer, prompts):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.4}
    config = MistralConfig(
        vocab_size=len(tokenizer), num_attention_heads=4, num_key_value_heads=2, sliding_window=8, **size
    )
    model = MistralForCausalLM(config).eval()
    assert decoding._own_cache(model) is None
    assert generate(model, tokenizer, prompts, max_new_tokens=6, batch_size=6) == alone(model, tokenizer, prompts, 6)


def test_absolute_positions_skip_the_padding_behind_a_shared_beginning(tokenizer, prompts):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.4
    )
    model = GPT2LMHeadModel(config).eval()
    assert decoding._shared(model, prompts) == common(prompts)
    assert generate(model, tokenizer, prompts, max_new_tokens=6, batch_size=6) == alone(model, tokenizer, prompts, 6)


def test_what_has_not_been_shown_to_share_does_not(model, prompts):
    assert decoding._shared(model, prompts) > 0
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
    assert decoding._shared(model, prompts) == 0
    tuned = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert decoding._own_cache(tuned) is None


def test_batches_left_open_are_bounded_by_their_keys_and_values(model, monkeypatch):
    kept = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, their size, bytes
    assert decoding._room(model) == decoding.LEAST_ROOM // kept
    monkeypatch.setattr(decoding, "LEAST_ROOM", 0)
    assert model.get_memory_footprint() == 156_320
    assert decoding._room(model) == 2**14 // kept, "the power of two between a sixteenth and an eighth"
    model.get_memory_footprint = lambda: 160_000
    assert decoding._room(model) == 2**14 // kept, "an adapter changes nothing"
    monkeypatch.setattr(decoding, "LEAST_ROOM", kept * 60)
    model.get_memory_footprint = lambda: 0
    assert batches(model, [[1] * 10] * 6, 10, None) == [[0, 1, 2], [3, 4, 5]], "60 tokens are 3 prompts with answers"
    monkeypatch.setattr(decoding, "LEAST_ROOM", kept * 10**6)
    assert len(batches(model, [[1] * 10] * 100, 10, None)[0]) <= decoding.ROWS
    assert batches(model, [[1] * 900, *[[1] * 10] * 9], 10, None) == [[0], [*range(1, 10)]]
    assert batches(model, [[1] * 900, *[[1] * 10] * 9], 10, 10) == [[*range(10)]], "what is asked for is kept to"


def test_the_answers_are_the_same_whatever_the_batches(model, tokenizer, prompts):
    mixed = [*prompts, *(tokenizer(text)["input_ids"] for text in ENDS)]
    expected = alone(model, tokenizer, mixed, 8)
    for size in (None, 3, 5, 12):
        assert generate(model, tokenizer, mixed, max_new_tokens=8, batch_size=size) == expected
