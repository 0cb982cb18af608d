"""What is counted without weights is what a real model has, and what a real forward pass keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from llmkit.model import footprint as counting
from llmkit.model.footprint import trace
from llmkit.planning.footprint import Footprint
from llmkit.recipe.recipe import Recipe

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "gemma2": ("Gemma2Config", {"head_dim": 16}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 32, "sliding_window_pattern": 3}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "phi3": ("Phi3Config", {}),
    "qwen3_moe": ("Qwen3MoeConfig", {**EXPERTS, "head_dim": 16}),
}
LORA: dict[str, Any] = {"adapter": {"type": "lora", "r": 4}}
Make = Callable[..., tuple[Recipe, nn.Module]]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """Return what saves a tiny model of an architecture, and returns a recipe for it with the model."""

    def make(name: str, **sections: Any) -> tuple[Recipe, nn.Module]:
        config_class, given = CONFIGS[name]
        config = getattr(transformers, config_class)(**{**SHAPE, **given})
        torch.manual_seed(0)
        kernel = "eager" if name == "gemma2" else "sdpa"  # transformers has no other for it
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=kernel)
        folder = tmp_path / name
        model.save_pretrained(folder)
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
        return recipe(str(folder), **sections), model

    return make


def recipe(name: str, **sections: Any) -> Recipe:
    base = {
        "model": {"name": name},
        "data": {"train": [{"path": "rows.jsonl", "format": "messages"}]},
        "method": {"type": "sft"},
    }
    return Recipe.model_validate({**base, **sections})


def adapted(model: nn.Module, r: int = 4) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM"))


def really_kept(model: nn.Module, rows: int, length: int, autocast: torch.dtype | None = None) -> int:
    """Bytes of the storages that autograd keeps in a real forward pass on padded rows, parameters left out."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, Any] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, -3:] = 0
    with (
        saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", dtype=autocast, enabled=bool(autocast)),
    ):
        output = bare.base_model(input_ids=torch.ones_like(mask), attention_mask=mask, use_cache=False)
    assert output is not None
    return sum(storage.nbytes() for storage in storages.values())


def counted(recipe: Recipe, *arguments: Any) -> Footprint:
    found = trace(recipe, *(arguments or ("float32", None, "sdpa")))
    assert found is not None
    return found


# --- Elements --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_elements_are_those_of_the_real_model_and_of_peft(made: Make, name: str) -> None:
    asked, model = made(name)
    full = counted(asked)
    assert (full.frozen, full.trained) == (0, sum(p.numel() for p in model.parameters()))
    assert full.largest == max(p.numel() for p in model.parameters())
    assert (full.layers, full.hidden, full.vocabulary) == (4, 64, 320)
    lora = counted(asked.model_copy(update={"adapter": recipe("x", **LORA).adapter}))
    whole = adapted(model)
    assert lora.trained == sum(p.numel() for p in whole.parameters() if p.requires_grad)
    assert lora.frozen == full.trained


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3"])
def test_keys_and_values_are_those_of_a_real_cache(made: Make, name: str) -> None:
    asked, model = made(name)
    with torch.no_grad():
        cache = model(input_ids=torch.ones(1, 16, dtype=torch.long), use_cache=True).past_key_values
    assert counted(asked).cache * 16 == sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)


def test_what_is_packed_is_what_bitsandbytes_packs(made: Make) -> None:
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    asked, model = made("tied", **LORA, quantization={"type": "nf4"})
    config = BitsAndBytesConfig(load_in_4bit=True)
    packed = AutoModelForCausalLM.from_pretrained(asked.model.name, quantization_config=config, device_map={"": "cpu"})
    # Two to a byte.
    real = [2 * m.weight.numel() for m in packed.modules() if isinstance(m, Linear4bit)]
    found = counted(asked)
    assert (found.packed, found.unpacked) == (sum(real), max(real))
    assert found.frozen == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("dtype", "quantization", "width"),
    [("float32", None, 4), ("bfloat16", None, 4), ("bfloat16", "nf4", 2), ("float32", "nf4", 4)],
)
def test_bytes_of_an_adapter_weight(made: Make, dtype: str, quantization: str | None, width: int) -> None:
    """PEFT holds adapters in float32; TRL casts those on a quantized base to bfloat16."""
    asked, _ = made("tied", **LORA, **({"quantization": {"type": quantization}} if quantization else {}))
    assert counted(asked, dtype, None, "sdpa").trained_bytes == width


def test_a_reward_model_has_a_head_of_one_score_and_no_vocabulary(made: Make) -> None:
    asked, model = made("tied", method={"type": "reward"}, data={"train": [{"path": "x", "format": "preference"}]})
    found = counted(asked)
    assert found.vocabulary == 0
    assert found.trained == sum(p.numel() for p in model.model.parameters()) + 64


# --- What is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "qwen3_moe"])
@pytest.mark.parametrize("setup", ["full", "lora"])
def test_kept_bytes_are_those_of_a_real_forward_pass(made: Make, name: str, setup: str) -> None:
    asked, model = made(name, **(LORA if setup == "lora" else {}))
    found = counted(asked)
    whole = adapted(model) if setup == "lora" else model
    for rows, length in ((2, 96), (3, 160)):
        real = really_kept(whole.train(), rows, length)
        assert found.kept(rows, length) == pytest.approx(real, rel=0.01), (rows, length)


def test_experts_are_looked_at_in_bfloat16_and_scaled(made: Make) -> None:
    asked, model = made("qwen3_moe")
    half = really_kept(model.to(torch.bfloat16).train(), 2, 128)
    assert counted(asked, "bfloat16", None, "sdpa").kept(2, 128) == pytest.approx(half, rel=0.01)
    assert counted(asked).kept(2, 128) == pytest.approx(2 * counted(asked, "bfloat16", None, "sdpa").kept(2, 128))


@pytest.mark.parametrize("setup", ["full", "lora"])
def test_kept_bytes_with_autocast(made: Make, setup: str) -> None:
    asked, model = made("tied", **(LORA if setup == "lora" else {}))
    found = counted(asked, "float32", "bfloat16", "sdpa")
    whole = adapted(model) if setup == "lora" else model
    real = really_kept(whole.train(), 2, 128, torch.bfloat16)
    assert found.kept(2, 128) == pytest.approx(real, rel=0.01)
    assert found.kept(2, 128) < counted(asked).kept(2, 128)


def test_written_out_attention_keeps_pairs_and_an_unmasked_kernel_none(made: Make) -> None:
    asked, _ = made("llama")
    eager, fused, flash = (counted(asked, "float32", None, k) for k in ("eager", "sdpa", "flash_attention_2"))
    # The mask as float32; for 4 heads the weights before and after the softmax, too.
    assert fused.layer.pair == 4.0
    assert eager.layer.pair >= 4 * 4
    assert flash.layer.pair == 0.0
    assert flash.kept(2, 128) * 2 == pytest.approx(flash.kept(2, 256), rel=0.01), "linear in the length"


def test_int8_layers_keep_their_inputs(made: Make) -> None:
    plain, _ = made("llama", adapter={"type": "lora", "r": 4, "target_modules": ["q_proj"]})
    int8 = plain.model_copy(update={"quantization": recipe("x", **LORA, quantization={"type": "int8"}).quantization})
    # o, gate/up and down; q, k and v have one input, which the adapter of q keeps: 64 + 64 + 128 numbers a token.
    extra = counted(int8).layer.token - counted(plain).layer.token
    assert 0 < extra <= 4 * (64 + 64 + 128)


# --- Where it comes from ---------------------------------------------------------------------------------------------


def test_a_second_look_takes_no_model(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, _ = made("llama", **LORA)
    first = counted(asked)
    monkeypatch.setattr(counting, "_count", None)
    assert counted(asked) == first
    assert Footprint.from_dict(json.loads(json.dumps(first.to_dict()))) == first
    with pytest.raises(TypeError):
        counted(asked, "bfloat16", None, "sdpa")


def test_a_known_model_needs_no_files() -> None:
    found = counted(recipe("HuggingFaceTB/SmolLM2-135M-Instruct"))
    assert found.trained == 134_515_008
    assert (found.layers, found.hidden, found.vocabulary) == (30, 576, 49152)


def test_unknown_models_are_left_to_the_guess() -> None:
    assert trace(recipe("nobody/no-such-model-7B"), "float32", None, "sdpa") is None
    assert trace(recipe("./no/such/folder"), "float32", None, "sdpa") is None
