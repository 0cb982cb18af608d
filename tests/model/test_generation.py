from __future__ import annotations

import logging
import warnings

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import GenerationConfig

from llmkit.model import generation
from llmkit.model.decoding import generation_config
from llmkit.model.generation import generate, sample
from llmkit.model.loading import stop_ids

TEXTS = ["the capital", "yes", "what is two plus two? it is", "no maybe the capital of France is Paris", "of", "it is"]


@pytest.fixture
def prompts(tokenizer):
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def one_by_one(model, tokenizer, prompts, n):
    """Greedy decoding by argmax over the whole sequence: no cache, no padding, no transformers generate."""
    found = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(n):
            with torch.no_grad():
                token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
        found.append(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True))
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_batched_greedy_equals_argmax_of_each_prompt_alone(model, tokenizer, prompts, batch_size):
    expected = one_by_one(model, tokenizer, prompts, 12)
    assert len(set(expected)) == len(expected), "the tiny model must answer differently for the test to mean anything"
    assert generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=batch_size) == expected


def test_order_is_that_of_the_prompts_and_progress_is_told(model, tokenizer, prompts):
    done = []
    forward = generate(model, tokenizer, prompts, max_new_tokens=6, batch_size=4, on_done=done.append)
    backward = generate(model, tokenizer, prompts[::-1], max_new_tokens=6, batch_size=4)
    assert forward == backward[::-1]
    assert done == [4, 6]


def test_no_prompts_no_answers_and_an_empty_prompt_is_refused(model, tokenizer):
    assert generate(model, tokenizer, [], max_new_tokens=3, batch_size=2) == []
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, tokenizer, [[5], []], max_new_tokens=3, batch_size=2)


def test_modes_flags_tokenizer_and_random_state_are_put_back(model, tokenizer, prompts):
    model.train()
    model.model.layers[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    own = model.generation_config
    generate(model, tokenizer, prompts, max_new_tokens=3, batch_size=4, temperature=1.0)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert before["model.layers.0"]
    assert not before["model.layers.1.mlp"]
    assert torch.equal(torch.get_rng_state(), state)
    assert tokenizer.padding_side == "right"
    assert model.generation_config is own


def test_modes_are_put_back_after_an_error(model, tokenizer, prompts, monkeypatch):
    model.train()
    own = model.generation_config

    def fail(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(model, tokenizer, prompts, max_new_tokens=3, batch_size=4)
    assert model.training
    assert model.generation_config is own


def test_caches_although_config_and_checkpointing_say_otherwise(model, tokenizer, prompts):
    expected = generate(model, tokenizer, prompts, max_new_tokens=6, batch_size=6)
    model.config.use_cache = False
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    widths = []
    model.model.register_forward_pre_hook(lambda _, __, k: widths.append(k["input_ids"].shape[1]), with_kwargs=True)
    assert generate(model, tokenizer, prompts, max_new_tokens=6, batch_size=6) == expected
    assert widths == [max(map(len, prompts)), 1, 1, 1, 1, 1]
    assert model.is_activation_checkpointing
    assert model.config.use_cache is False


def test_training_works_after_generation(model, tokenizer, prompts):
    model.train()
    generate(model, tokenizer, prompts, max_new_tokens=3, batch_size=4)
    ids = torch.tensor([prompts[2]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_models_own_settings_do_not_leak_in(model, tokenizer, prompts):
    expected = generate(model, tokenizer, prompts, max_new_tokens=8, batch_size=4)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, no_repeat_ngram_size=1, max_length=4, top_k=3
    )
    assert generate(model, tokenizer, prompts, max_new_tokens=8, batch_size=4) == expected
    lora = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert generate(lora, tokenizer, prompts, max_new_tokens=8, batch_size=4) == expected
    assert lora.generation_config.repetition_penalty == 9.0
    assert lora.get_base_model().generation_config.repetition_penalty == 9.0


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_nothing_is_warned_of(model, tokenizer, prompts, temperature):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            generate(model, tokenizer, prompts, max_new_tokens=2, batch_size=4, temperature=temperature)
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == []


def test_the_tokenizers_end_token_stops_the_answer(model, tokenizer):
    prompt = tokenizer("it is")["input_ids"]
    with torch.no_grad():
        tokens = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    tokens = tokens[0, len(prompt) :].tolist()
    third = next(i for i, token in enumerate(tokens) if i >= 2 and token not in tokens[:i])
    # From here on the model says the end token where it said tokens[third].
    with torch.no_grad():
        weight = model.lm_head.weight
        weight[[tokenizer.eos_token_id, tokens[third]]] = weight[[tokens[third], tokenizer.eos_token_id]]
    long = tokenizer("the capital of France is")["input_ids"]
    both = generate(model, tokenizer, [prompt, long], max_new_tokens=8, batch_size=2)
    assert both[0] == tokenizer.decode(tokens[:third])
    assert both == one_by_one(model, tokenizer, [prompt, long], 8)


def test_the_models_end_tokens_stop_the_answer_too_and_padding_is_not_decoded(model, tokenizer):
    prompt = tokenizer("it is")["input_ids"]
    with torch.no_grad():
        tokens = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    tokens = tokens[0, len(prompt) :].tolist()
    model.generation_config.eos_token_id = [tokens[2], 4]
    tokenizer.pad_token = None
    assert stop_ids(tokenizer, model.generation_config) == {tokenizer.eos_token_id, tokens[2], 4}
    first = tokens.index(tokens[2])
    answer, _ = generate(model, tokenizer, [prompt, [9, 8, 7]], max_new_tokens=8, batch_size=2)
    assert answer == tokenizer.decode(tokens[:first])


def test_sampling_repeats_with_its_seed_only_and_is_from_the_whole_distribution(model, tokenizer, prompts):
    def sample(seed, temperature=1.0):
        return generate(model, tokenizer, prompts, max_new_tokens=8, batch_size=4, temperature=temperature, seed=seed)

    torch.manual_seed(0)
    first = sample(1)
    torch.manual_seed(99)
    assert sample(1) == first
    assert sample(2) != first
    assert sample(1, temperature=1e-4) == generate(model, tokenizer, prompts, max_new_tokens=8, batch_size=4)
    config = generation_config(generation._sampling(1.0), stop={2}, pad=0)
    assert (config.top_k, config.top_p, config.do_sample) == (0, 1.0, True)


def test_lora_answers_like_its_merged_model(model, tokenizer, prompts):
    plain = generate(model, tokenizer, prompts, max_new_tokens=8, batch_size=4)
    torch.manual_seed(1)
    lora = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).train()
    tuned = generate(lora, tokenizer, prompts, max_new_tokens=8, batch_size=4)
    assert lora.training
    with lora.disable_adapter():
        assert generate(lora, tokenizer, prompts, max_new_tokens=8, batch_size=4) == plain
    merged = lora.merge_and_unload()
    assert tuned == generate(merged, tokenizer, prompts, max_new_tokens=8, batch_size=4)
    assert tuned != plain


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_prompt_learning_answers_alike_in_any_batch(model, tokenizer, prompts, kind):
    torch.manual_seed(1)
    tuned = get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=3))
    done = []
    one = generate(tuned, tokenizer, prompts, max_new_tokens=6, batch_size=1)
    assert generate(tuned, tokenizer, prompts, max_new_tokens=6, batch_size=4, on_done=done.append) == one
    assert done[-1] == len(prompts)
    twice = generate(tuned, tokenizer, prompts * 2, max_new_tokens=6, batch_size=4)
    assert twice == one * 2


def test_a_sampled_continuation_says_how_it_ended(model, tokenizer):
    prompt = tokenizer("it is")["input_ids"]
    (cut,) = sample(model, tokenizer, [prompt], max_new_tokens=8, batch_size=1, temperature=1e-4)
    assert (len(cut.tokens), cut.stopped) == (8, False)
    assert cut.text == tokenizer.decode(cut.tokens)
    end = cut.tokens[3]
    first = cut.tokens.index(end)
    model.generation_config.eos_token_id = end
    longer = [*prompt, *prompt]
    both = sample(model, tokenizer, [prompt, longer], max_new_tokens=8, batch_size=2, temperature=1e-4)
    assert both[0].tokens == cut.tokens[: first + 1], "the end token is counted, the padding behind it is not"
    assert both[0].stopped
    assert both[0].text == tokenizer.decode(cut.tokens[:first])
    (last,) = sample(model, tokenizer, [prompt], max_new_tokens=first + 1, batch_size=1, temperature=1e-4)
    assert last.stopped, "an end token in the last place allowed is an end"


def test_samples_of_one_prompt_differ_and_are_those_of_generate(model, tokenizer, prompts):
    ids = [prompts[2]] * 6
    found = sample(model, tokenizer, ids, max_new_tokens=8, batch_size=3, seed=1)
    assert len({c.text for c in found}) > 3
    answers = generate(model, tokenizer, ids, max_new_tokens=8, batch_size=3, temperature=1.0, seed=1)
    assert [c.text for c in found] == answers
    greedy = generate(model, tokenizer, ids, max_new_tokens=8, batch_size=3)
    assert [c.text for c in sample(model, tokenizer, ids, max_new_tokens=8, batch_size=3, top_k=1)] == greedy
