"""Counts of a live model's matrices, each worked out from its shapes."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.model.matrices import matrices_of

# The tiny Llama: hidden 32, MLP 64, 4 query and 2 key heads of 8, 2 layers.
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64


def lora(model: Any, **settings: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **settings))


ADAPTER = 2 * (4 * (32 + 32) + 4 * (64 + 32))


def test_a_full_model_trains_every_matrix_and_its_head(model: Any) -> None:
    found = matrices_of(model)
    assert (found.frozen, found.trained) == (0, 2 * LAYER)
    assert (found.head, found.head_trained) == (32 * model.config.vocab_size, True)
    assert (found.layers, found.width) == (2, 32)


def test_an_adapter_is_trained_beside_frozen_matrices(model: Any) -> None:
    found = matrices_of(lora(model))
    assert (found.frozen, found.trained) == (2 * LAYER, ADAPTER)
    assert (found.head, found.head_trained) == (32 * model.config.vocab_size, False)


def test_an_idle_copy_of_the_adapter_does_not_count(model: Any) -> None:
    from peft import LoraConfig

    adapted = lora(model)
    adapted.add_adapter("ref", LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    assert (matrices_of(adapted).frozen, matrices_of(adapted).trained) == (2 * LAYER, ADAPTER)


def test_a_saved_module_replaces_the_original(model: Any) -> None:
    vocabulary = model.config.vocab_size
    adapted = matrices_of(lora(model, modules_to_save=["lm_head"]))
    assert (adapted.head, adapted.head_trained) == (32 * vocabulary, True)
    assert (adapted.frozen, adapted.trained) == (2 * LAYER, ADAPTER)


def test_a_tied_head_counts_once_and_embeddings_do_not(model: Any) -> None:
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    found = matrices_of(model)
    assert found.trained == 2 * LAYER
    assert found.head == 32 * model.config.vocab_size


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_packed_weights_count_unpacked(model: Any, kind: str) -> None:
    import bitsandbytes as bnb

    original = model.model.layers[0].mlp.gate_proj
    if kind == "nf4":
        packed: Any = bnb.nn.Linear4bit(32, 64, bias=False, quant_type="nf4")
    else:
        packed = bnb.nn.Linear8bitLt(32, 64, bias=False, has_fp16_weights=False)
    packed.load_state_dict(original.state_dict())
    packed = packed.to("cpu")
    packed.weight.requires_grad = False
    model.model.layers[0].mlp.gate_proj = packed
    if kind == "nf4":
        assert packed.weight.numel() == 32 * 64 // 2
    found = matrices_of(model)
    assert (found.frozen, found.trained) == (32 * 64, 2 * LAYER - 32 * 64)


def test_experts_count_by_the_share_that_a_token_sees() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    found = matrices_of(MixtralForCausalLM(config))
    attention = 16 * 16 + 2 * 16 * 8 + 16 * 16
    assert found.trained == attention + 4 * 16 + 2 * 3 * 16 * 24
    assert found.width == 16


def test_a_reward_model_has_no_head_over_the_vocabulary(model: Any) -> None:
    from transformers import LlamaForSequenceClassification

    model.config.num_labels = 1
    found = matrices_of(LlamaForSequenceClassification(model.config))
    assert (found.head, found.head_trained) == (0, False)
    assert found.trained == 2 * LAYER + 32


def test_only_attention_layers_attend(model: Any) -> None:
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert matrices_of(model).layers == 1
    model.config.layer_types = ["sliding_attention", "full_attention"]
    assert matrices_of(model).layers == 2
