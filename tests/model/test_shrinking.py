"""The small model has the modules, the vocabulary and the kinds of layers of the real one, and works as it does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llmkit.errors import SetupError
from llmkit.model import shrinking
from llmkit.model.shrinking import shrink
from llmkit.model.sources import locate
from llmkit.recipe.recipe import Recipe

SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 256}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i for i in range(32)],
    "long_factor": [2.0 + i for i in range(32)],
}
CONFIGS: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}, 2),
    "qwen2": ("Qwen2Config", {}, 2),
    "qwen3": ("Qwen3Config", {"head_dim": 64}, 2),
    "gemma2": ("Gemma2Config", {"head_dim": 128}, 4),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 128, "sliding_window": 32, "sliding_window_pattern": 3}, 6),
    "mistral": ("MistralConfig", {"sliding_window": None}, 2),
    "phi3": ("Phi3Config", {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 2048}, 2),
    "mixtral": ("MixtralConfig", {"num_local_experts": 8, "num_experts_per_tok": 2}, 2),
    # One dense layer, and then layers of experts.
    "qwen3_moe": ("Qwen3MoeConfig", {**EXPERTS, "head_dim": 64, "mlp_only_layers": [0]}, 3),
    "mamba": ("MambaConfig", {}, 2),
    "mamba2": ("Mamba2Config", {"num_heads": 16, "head_dim": 64, "n_groups": 4, "state_size": 32}, 2),
    # State-space layers, attention in every fourth of them, experts in every second: mamba+mlp, mamba+experts, and
    # attention (with an mlp) at 2, 6 and 10.
    "jamba": ("JambaConfig", {"attn_layer_period": 4, "attn_layer_offset": 2, "num_experts": 4}, 7),
}
NO_ATTENTION = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings")


@pytest.fixture
def real(tiny_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return what makes the folder of a real model of an architecture; of its weights there is only the name."""

    def make(name: str, **extra: Any) -> Path:
        config_class, given, _ = CONFIGS[name]
        folder = tmp_path / name
        folder.mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(tiny_folder / file, folder)
        shape = {k: v for k, v in SHAPE.items() if not (name.startswith("mamba") and k in NO_ATTENTION)}
        values = {"vocab_size": 320, **shape, **given, **extra}
        getattr(transformers, config_class)(**values, dtype="bfloat16").save_pretrained(folder)
        (folder / "model.safetensors").write_bytes(b"")
        return folder

    return make


def recipe(folder: Path | str, **sections: Any) -> Recipe:
    base = {
        "model": {"name": str(folder)},
        "data": {"train": [{"path": "rows.jsonl", "format": "messages"}]},
        "method": {"type": "sft"},
    }
    return Recipe.model_validate({**base, **sections})


def modules_of(config: Any) -> set[tuple[str, str]]:
    """Return name and class of each module that a model of `config` has, layers and experts without their numbers."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {(re.sub(r"\.\d+\b", ".n", name), type(module).__name__) for name, module in model.named_modules()}


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_real_model_but_small(real: Callable[..., Path], tmp_path: Path, name: str) -> None:
    folder = real(name)
    shrunk = shrink(recipe(folder), tmp_path / "small")
    whole, layers = transformers.AutoConfig.from_pretrained(folder), CONFIGS[name][2]
    model = AutoModelForCausalLM.from_pretrained(shrunk.folder)
    assert (shrunk.layers, shrunk.real_layers) == (layers, 12)
    assert modules_of(whole) == modules_of(model.config)
    assert shrunk.parameters == sum(p.numel() for p in model.parameters()) < 3_000_000
    assert model.dtype == torch.bfloat16
    same = ("model_type", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
    assert [getattr(model.config, key) for key in same] == [getattr(whole, key) for key in same]
    assert model.config.layer_types == whole.layer_types[:layers] if getattr(whole, "layer_types", None) else True

    ids = torch.arange(20)[None]
    model = model.float().eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        answer = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert answer.shape == (1, 24)
    # Answers depend on what is asked: an export that leaves something out shows.
    assert float(logits.std()) > 0.2
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, logits)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "jamba", "phi3"])
def test_an_adapter_finds_and_misses_what_it_would_in_the_real_one(
    real: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    from peft import LoraConfig, get_peft_model

    folder = real(name)
    small = AutoModelForCausalLM.from_pretrained(shrink(recipe(folder), tmp_path / "small").folder)
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))

    def adapted(model: Any, targets: Any) -> set[str]:
        made = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
        return {re.sub(r"\.\d+\b", ".n", key) for key, p in made.named_parameters() if p.requires_grad}

    assert adapted(small, "all-linear") == adapted(whole, "all-linear")
    with pytest.raises(ValueError, match="not found in the base model"):
        adapted(AutoModelForCausalLM.from_pretrained(tmp_path / "small" / "base"), ["c_attn"])


def test_generation_settings_and_template_are_the_real_ones(real: Callable[..., Path], tmp_path: Path) -> None:
    folder = real("llama")
    # What transformers refuses to save is left for the run to find.
    settings = {"do_sample": False, "temperature": 0.7, "eos_token_id": [2, 5], "max_length": 77}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    small = shrink(recipe(folder), tmp_path / "small").folder
    found = GenerationConfig.from_pretrained(small)
    assert {key: getattr(found, key) for key in settings} == settings
    one, other = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(small)
    assert (one.chat_template, one.eos_token) == (other.chat_template, other.eos_token)
    assert one.get_vocab() == other.get_vocab()


def test_all_layers_stay_where_the_adapter_counts_them(real: Callable[..., Path], tmp_path: Path) -> None:
    folder = real("llama")
    numbered = ("layers.11.self_attn.q_proj", {"layers_to_transform": [11]})
    for index, wanted in enumerate(numbered):
        given = wanted if isinstance(wanted, dict) else {"target_modules": [wanted]}
        shrunk = shrink(recipe(folder, adapter={"type": "lora", "r": 4, **given}), tmp_path / str(index))
        assert shrunk.layers == 12


def test_an_update_is_no_larger_than_its_matrix(real: Callable[..., Path], tmp_path: Path) -> None:
    """PiSSA takes as many singular values as the rank, so no matrix may have fewer."""
    from peft import LoraConfig, get_peft_model

    asked = recipe(real("qwen2"), adapter={"type": "lora", "r": 64, "init_lora_weights": "pissa"})
    model = AutoModelForCausalLM.from_pretrained(shrink(asked, tmp_path / "small").folder, dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=64, target_modules="all-linear", init_lora_weights="pissa"))


def test_it_can_be_quantized(real: Callable[..., Path], tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig

    small = shrink(recipe(real("llama")), tmp_path / "small").folder
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(small, quantization_config=config, device_map={"": "cpu"})
    assert sum(isinstance(module, Linear4bit) for module in model.modules()) == 2 * 7
    assert bool(model(input_ids=torch.arange(9)[None]).logits.isfinite().all())


def test_training_goes_on_from_a_small_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    get_peft_model(base, LoraConfig(r=3, target_modules=["v_proj"])).save_pretrained(tmp_path / "mine")
    asked = recipe(tmp_path / "mine", adapter={"type": "lora"})
    folder = shrink(asked, tmp_path / "small").folder
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["target_modules"]) == (3, ["v_proj"])
    model = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    PeftModel.from_pretrained(model, folder)


def test_nobody_is_asked_about_code_beside_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on the terminal where `trust_remote_code` is left open; the run's own conversion never does."""
    (tmp_path / "small.gguf").write_bytes(b"weights")
    given: list[Any] = []
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **options: given.append(options))
    asked = recipe(tmp_path / "small.gguf")
    shrinking._tokenizer(asked, locate(asked.model, asked.folder))
    assert given == [{"gguf_file": "small.gguf", "trust_remote_code": False}]


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="nobody/nothing"):
        shrink(recipe("nobody/nothing"), tmp_path / "small")


def test_what_can_not_be_made_small_says_so(
    real: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.model.shrinking.LARGEST", 1000)
    with pytest.raises(SetupError, match=r"no small model of .*llama.* can be made: it would have \d+ M parameters"):
        shrink(recipe(real("llama")), tmp_path / "small")
