from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM

from llmkit.model import likelihood
from llmkit.model.likelihood import log_probabilities


@pytest.fixture
def rows():
    """Rows of 1 to 40 tokens, and which of them are asked for: none of one row, the first of others."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i, length in enumerate([5, 40, 3, 17, 17, 28, 1]):
        ids = torch.randint(3, 300, (length,), generator=generator).tolist()
        made.append((ids, [(i + j) % 3 > 0 and i != 4 for j in range(length)]))
    return made


def by_hand(model, rows):
    found = []
    for ids, asked in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -len(ids) :].double()
        table = torch.log_softmax(logits, -1)
        picked = [i for i, wanted in enumerate(asked) if wanted and i > 0]
        found.append((float(sum(table[i - 1, ids[i]] for i in picked)), len(picked)))
    return found


def close(found, expected):
    assert [count for _, count in found] == [count for _, count in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3, None])
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_equals_the_table_of_all_logits_whatever_the_batches_and_chunks(model, rows, batch_size, chunk, monkeypatch):
    monkeypatch.setattr(likelihood, "CHUNK_BYTES", chunk * 4 * model.config.vocab_size)
    done = []
    close(log_probabilities(model, rows, batch_size=batch_size, on_done=done.append), by_hand(model, rows))
    assert done[-1] == len(rows)


def test_the_head_sees_what_is_asked_for_in_chunks_and_the_layers_compute_once(model, rows, monkeypatch):
    monkeypatch.setattr(likelihood, "CHUNK_BYTES", 8 * 4 * model.config.vocab_size)
    heads, layers = [], []
    model.lm_head.register_forward_pre_hook(lambda _, args: heads.append(tuple(args[0].shape[:2])))
    model.model.layers[0].register_forward_pre_hook(lambda *_: layers.append(1))
    asked = sum(count for _, count in log_probabilities(model, rows, batch_size=len(rows)))
    assert len(layers) == 1
    assert sum(count for _, count in heads) == asked
    assert max(heads) == (1, 8)
    log_probabilities(model, rows[4:5], batch_size=None)
    assert len(layers) == 1, "nothing is computed where nothing is asked for"


def test_padding_is_a_small_share(model, rows):
    shapes = []
    model.model.register_forward_pre_hook(lambda _, __, k: shapes.append(k["input_ids"].numel()), with_kwargs=True)
    many = rows * 60
    log_probabilities(model, many, batch_size=None)
    real = sum(len(ids) for ids, asked in many)
    assert sum(shapes) < 1.1 * real
    assert max(shapes) <= 2048


def test_capped_logits_stay_capped_in_every_chunk(tokenizer, rows, monkeypatch):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.4, final_logit_softcapping=2.0,
    )  # fmt: skip
    capped = Gemma2ForCausalLM(config).eval()
    monkeypatch.setattr(likelihood, "CHUNK_BYTES", 8 * 4 * len(tokenizer))
    expected = by_hand(capped, rows)
    close(log_probabilities(capped, rows, batch_size=None), expected)
    capped.config.final_logit_softcapping = None
    assert by_hand(capped, rows)[1][0] != pytest.approx(expected[1][0], abs=1)


@pytest.mark.parametrize("kind", [LoraConfig, PromptTuningConfig])
def test_the_model_is_as_before_and_adapters_count(model, rows, kind, monkeypatch):
    monkeypatch.setattr(likelihood, "CHUNK_BYTES", 8 * 4 * model.config.vocab_size)
    given = {"init_lora_weights": False} if kind is LoraConfig else {"num_virtual_tokens": 3}
    plain = by_hand(model, rows)
    tuned = get_peft_model(model, kind(task_type="CAUSAL_LM", **given)).train()
    own = tuned.get_base_model().model.forward
    found = log_probabilities(tuned, rows, batch_size=None)
    assert tuned.training
    assert tuned.get_base_model().model.forward == own
    assert "forward" not in vars(tuned.get_base_model().model)
    assert not tuned.get_base_model().model._forward_hooks
    close(found, by_hand(tuned.eval(), rows))
    assert found[1][0] != pytest.approx(plain[1][0], abs=1e-3)


def test_a_forward_that_others_have_replaced_is_put_back_after_an_error(model, rows):
    backbone = model.model
    own = backbone.forward
    backbone.forward = theirs = lambda *args, **kwargs: own(*args, **kwargs)
    close(log_probabilities(model, rows, batch_size=2), by_hand(model, rows))
    assert backbone.forward is theirs

    def fail(*_):
        raise RuntimeError("out of memory")

    model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        log_probabilities(model, rows, batch_size=2)
    assert backbone.forward is theirs
    assert not backbone._forward_hooks
