from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import RecipeError
from llmkit.planning.case import Case
from llmkit.planning.checks import check
from llmkit.planning.hardware import CATALOGUE, GIB, Hardware
from llmkit.planning.memory import estimate, state_bytes
from llmkit.planning.plan import Plan
from llmkit.planning.planner import plan
from llmkit.planning.precision import WITHOUT_SDPA
from llmkit.planning.size import ModelSize
from llmkit.recipe import fields
from llmkit.recipe.recipe import Recipe

CPU = CATALOGUE["cpu"]
CPU_BF16 = replace(CPU, bf16=True)
LAPTOP = CATALOGUE["rtx3060-laptop"]
RTX4090 = CATALOGUE["rtx4090"]
T4 = CATALOGUE["t4"]
H100X8 = replace(CATALOGUE["h100-80gb"], count=8, cpu_cores=128)
FLASH = replace(RTX4090, attention=("flash_attention_2", "sdpa", "eager"))
M2 = CATALOGUE["m2"]
OLD_MAC = replace(M2, bf16=False)

BATCH, CHECKPOINTING = "training.per_device_train_batch_size", "training.gradient_checkpointing"

SETUPS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"adapter": {"type": "lora"}},
    "qlora": {"adapter": {"type": "lora"}, "quantization": {"type": "nf4"}},
    "int8": {"adapter": {"type": "lora"}, "quantization": {"type": "int8"}},
}


def billions(number: float) -> ModelSize:
    return ModelSize(round(number * 1e9), exact=False, source="by its name")


def recipe(setup: str = "full", **sections: Any) -> Recipe:
    base = {
        "model": {"name": "a/model"},
        "data": {"train": [{"path": "rows.jsonl", "format": "messages"}]},
        "method": {"type": "sft"},
    }
    return Recipe.model_validate({**base, **SETUPS[setup], **sections})


def with_config(config: str, setup: str, **training: Any) -> Recipe:
    """A recipe of a method that llmkit may not have yet: only the name of its TRL config class counts here."""
    found = recipe(setup)
    method = found.method.model_copy()
    type_of = type("Other", (type(method),), {"config": config})
    filled = found.training.model_copy(update=training)
    object.__setattr__(filled, "__pydantic_extra__", training)
    return found.model_copy(update={"method": type_of.model_construct(type="sft"), "training": filled})


def decide(setup: str, hardware: Hardware, size: ModelSize | None = None, **sections: Any) -> Plan:
    return plan(recipe(setup, **sections), hardware, size)


# State + activations of 4 rows, in GiB, against the 85% of the memory that a plan fills, for the close calls:
#   full 1.5B on 24 GiB: 22.4 of state fit the card, but not 20.4; full 7B on 80 GiB: 104.3 don't fit at all
#   full 0.5B on 24 GiB: 7.5 + 7.8 of 20.4, and 8 rows take 15.6; on 16 GiB (T4) 7.5 + 7.8 are more than 13.6
#   lora 0.5B on 24 GiB: 1.1 + 7.8 of 20.4; on 6 GiB 8.9 are more than 5.1, and checkpointed 8 rows take 1.1 + 1.1
#   lora 7B on 24 GiB: 15.1 + 31.7 of 20.4, checkpointed 8 rows 15.1 + 4.0; qlora 5.5 + 31.7; int8 8.6 + 31.7
#   lora 7B on 80 GiB: 15.1 + 31.7 of 68, and 8 rows take 63.4; qlora 70B checkpointed: 55 + 12 of 68
# setup, hardware, billions of parameters: dtype, attention, bf16, fp16, checkpointing, batch, accumulation
TABLE = [
    ("full", CPU, 0.1, "float32", "sdpa", False, False, False, 4, 2),
    ("full", CPU, 1.5, "float32", "sdpa", False, False, True, 1, 8),
    ("lora", CPU, 0.1, "float32", "sdpa", False, False, False, 4, 2),
    ("qlora", CPU, 0.1, "float32", "sdpa", False, False, False, 4, 2),
    ("int8", CPU, 0.1, "float32", "sdpa", False, False, False, 4, 2),
    ("full", CPU_BF16, 0.1, "float32", "sdpa", True, False, False, 8, 1),
    ("lora", CPU_BF16, 0.1, "bfloat16", "sdpa", False, False, False, 4, 2),
    ("qlora", CPU_BF16, 0.1, "bfloat16", "sdpa", False, False, False, 4, 2),
    ("int8", CPU_BF16, 0.1, "bfloat16", "sdpa", False, False, False, 4, 2),
    ("full", CPU_BF16, None, "float32", "sdpa", True, False, False, 8, 1),
    ("full", LAPTOP, 0.5, "float32", "sdpa", True, False, True, 1, 16),
    ("lora", LAPTOP, 0.5, "bfloat16", "sdpa", True, False, True, 8, 2),
    ("lora", LAPTOP, 1.5, "bfloat16", "sdpa", True, False, True, 4, 4),
    ("qlora", LAPTOP, 1.5, "bfloat16", "sdpa", True, False, True, 8, 2),
    ("qlora", LAPTOP, 3, "bfloat16", "sdpa", True, False, True, 8, 2),
    ("int8", LAPTOP, 3, "bfloat16", "sdpa", True, False, True, 4, 4),
    ("full", RTX4090, 0.5, "float32", "sdpa", True, False, False, 4, 4),
    ("full", RTX4090, 1.5, "float32", "sdpa", True, False, True, 1, 16),
    ("lora", RTX4090, 7, "bfloat16", "sdpa", True, False, True, 8, 2),
    ("qlora", RTX4090, 7, "bfloat16", "sdpa", True, False, True, 8, 2),
    ("int8", RTX4090, 7, "bfloat16", "sdpa", True, False, True, 8, 2),
    ("lora", RTX4090, None, "bfloat16", "sdpa", True, False, True, 2, 8),
    ("full", FLASH, 0.5, "float32", "sdpa", True, False, False, 4, 4),
    ("lora", FLASH, 0.5, "bfloat16", "flash_attention_2", True, False, False, 8, 2),
    ("full", H100X8, 7, "float32", "sdpa", True, False, True, 1, 2),
    ("full", H100X8, 1.5, "float32", "sdpa", True, False, False, 8, 1),
    ("lora", H100X8, 7, "bfloat16", "sdpa", True, False, False, 4, 1),
    ("qlora", H100X8, 70, "bfloat16", "sdpa", True, False, True, 4, 1),
    ("int8", H100X8, 7, "bfloat16", "sdpa", True, False, False, 4, 1),
    ("full", T4, 0.5, "float32", "sdpa", False, True, True, 8, 2),
    ("lora", T4, 1.5, "float16", "sdpa", False, True, True, 8, 2),
    ("qlora", T4, 7, "float16", "sdpa", False, True, True, 8, 2),
    ("int8", T4, 7, "float16", "sdpa", False, True, True, 8, 2),
    ("full", M2, 0.1, "float32", "sdpa", True, False, False, 8, 2),
    ("lora", M2, 1.5, "bfloat16", "sdpa", False, False, True, 8, 2),
    ("lora", OLD_MAC, 0.1, "float32", "sdpa", False, False, False, 8, 2),
]


@pytest.mark.parametrize(
    ("setup", "hardware", "size", "dtype", "attention", "bf16", "fp16", "checkpointing", "batch", "steps"), TABLE
)
def test_decisions(
    setup: str,
    hardware: Hardware,
    size: float | None,
    dtype: str,
    attention: str,
    bf16: bool,
    fp16: bool,
    checkpointing: bool,
    batch: int,
    steps: int,
) -> None:
    decided = decide(setup, hardware, billions(size) if size else None)
    assert decided["model.dtype"] == dtype
    assert decided["model.attn_implementation"] == attention
    training = decided.section("training")
    assert (training["bf16"], training["fp16"]) == (bf16, fp16)
    assert training["gradient_checkpointing"] is checkpointing
    assert training.get("gradient_checkpointing_kwargs") == ({"use_reentrant": False} if checkpointing else None)
    assert (training["per_device_train_batch_size"], training["gradient_accumulation_steps"]) == (batch, steps)
    assert training.get("use_cpu") == (True if hardware.kind == "cpu" else None)
    assert training.get("dataloader_pin_memory") == (None if hardware.kind == "cuda" else False)
    assert (training["logging_steps"], training["dataloader_num_workers"]) == (1, 0)
    assert training.get("learning_rate") == (None if setup == "full" else 2e-4)
    lora = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    assert decided.section("adapter") == ({} if setup == "full" else lora)
    nf4 = {"bnb_4bit_compute_dtype": dtype, "bnb_4bit_use_double_quant": True}
    assert decided.section("quantization") == (nf4 if setup == "qlora" else {})
    assert decided["hardware.device"] == hardware.kind
    assert decided["hardware.threads"] == hardware.cpu_cores // hardware.count


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("hardware", [CPU, RTX4090, T4, M2], ids=lambda h: h.name)
def test_training_decisions_are_fields_of_the_config(setup: str, hardware: Hardware) -> None:
    fields.check("SFTConfig", decide(setup, hardware, billions(7)).section("training"))
    fields.check("LoraConfig", decide(setup, hardware).section("adapter"))
    fields.check("BitsAndBytesConfig", decide(setup, hardware).section("quantization"))


def test_reasons_give_the_numbers() -> None:
    reasons = {d.key: d.reason for d in decide("full", RTX4090, billions(1.5)).decisions}
    checkpointing, batch = reasons["training.gradient_checkpointing"], reasons[BATCH]
    assert "22.4 GiB, 93% of the 24 GiB of each GPU, activations of 4 rows up to 13.5 GiB: " in checkpointing
    assert "does not fit" not in checkpointing + batch
    assert batch.endswith("; even one full row may not fit")
    assert reasons["training.gradient_accumulation_steps"] == "1 per device x 1 device x 16 = 16 sequences per step"
    assert "no bf16 units on this CPU" in {d.key: d.reason for d in decide("lora", CPU).decisions}["model.dtype"]
    assert "QLoRA" in {d.key: d.reason for d in decide("lora", CPU).decisions}["training.learning_rate"]


@pytest.mark.parametrize(
    ("setup", "parameters", "size"),
    [("full", 1.0, 16e9), ("lora", 1.0, 4e9 + 0.32e9), ("qlora", 1.0, 0.515869140625e9 + 0.32e9)],
)
def test_state_bytes_on_a_machine_without_bf16(setup: str, parameters: float, size: float) -> None:
    assert state_bytes(Case(recipe(setup), CPU, billions(parameters))) == round(size)


def test_state_bytes_with_a_reference_model_or_an_unknown_size() -> None:
    assert state_bytes(Case(with_config("DPOConfig", "full"), CPU, billions(1))) == 20e9
    assert state_bytes(Case(with_config("DPOConfig", "lora"), CPU, billions(1))) == 4.32e9
    assert state_bytes(Case(recipe(), CPU, None)) is None


@pytest.mark.parametrize(
    ("setup", "hardware", "size"),
    [("full", H100X8, 7), ("full", LAPTOP, 0.5), ("lora", RTX4090, 14), ("qlora", RTX4090, 70), ("full", CPU, 1.5)],
)
def test_a_state_that_does_not_fit_is_planned_as_small_as_can_be_and_said(
    setup: str, hardware: Hardware, size: float
) -> None:
    decided = decide(setup, hardware, billions(size))
    assert (decided[CHECKPOINTING], decided[BATCH]) == (True, 1)
    reasons = {d.key: d.reason for d in decided.decisions}
    assert all("(this does not fit)" in reasons[key] for key in (CHECKPOINTING, BATCH))


def test_reasons_of_batches() -> None:
    def reason(key: str, setup: str, hardware: Hardware, size: ModelSize | None, **training: Any) -> str:
        decided = decide(setup, hardware, size, training=training)
        return next(d.reason for d in decided.decisions if d.key == key)

    assert reason(BATCH, "lora", CPU, billions(0.05)) == "a CPU gains nothing from more"
    assert reason(BATCH, "lora", RTX4090, None) == "the size of the model is unknown"
    assert reason(BATCH, "lora", RTX4090, billions(7)).endswith("; the largest batch of 8, 4, 2, 1 that fits")
    one = reason(CHECKPOINTING, "lora", RTX4090, billions(7), per_device_train_batch_size=1)
    assert "activations of 1 row up to 7.9 GiB: " in one


# --- activations ----------------------------------------------------------------------------------------------------


def rows_bytes(setup: str, hardware: Hardware, parameters: int, **training: Any) -> tuple[int, int]:
    """Activations of one row, without and with checkpointing."""
    case = Case(recipe(setup, training=training), hardware, ModelSize(parameters, exact=True, source="x"))
    return kept(case, 1, checkpointed=False), kept(case, 1, checkpointed=True)


def kept(case: Case, batch: int, *, checkpointed: bool) -> int:
    found = estimate(case, batch, checkpointed=checkpointed)
    assert found is not None
    return found.parts["activations"]


LARGE = 12 * 32 * 4096**2  # hidden 4096 x 32 layers, as Llama-7B
SMALL = 12 * 28 * 1024**2  # hidden 1024 x 28 layers, the least number of layers


@pytest.mark.parametrize(
    ("setup", "hardware", "parameters", "layer", "kept"),
    [
        ("lora", RTX4090, LARGE, 60 * 4096, 2 * 4096 * 32),
        ("lora", RTX4090, SMALL, 60 * 1024, 2 * 1024 * 28),
        ("lora", RTX4090, SMALL // 4, 60 * 512, 2 * 512 * 28),
        ("full", RTX4090, SMALL, 60 * 1024, 4 * 1024 * 28),
        ("full", T4, SMALL, 60 * 1024, 4 * 1024 * 28),
        ("full", CPU, SMALL, 92 * 1024, 4 * 1024 * 28),
        ("full", CPU_BF16, SMALL, 60 * 1024, 4 * 1024 * 28),
        ("lora", M2, SMALL, 92 * 1024, 2 * 1024 * 28),
        ("lora", OLD_MAC, SMALL, 92 * 1024, 4 * 1024 * 28),
    ],
)
def test_activation_bytes(setup: str, hardware: Hardware, parameters: int, layer: int, kept: int) -> None:
    layers = 32 if parameters == LARGE else 28
    expected = (1024 * layer * layers, 1024 * (layer + kept))
    assert rows_bytes(setup, hardware, parameters) == pytest.approx(expected, rel=1e-6)


def test_activation_bytes_of_a_7b_by_hand() -> None:
    # 60 x 4096 x 32 = 7.5 MiB per token, x 1024 tokens = 7.5 GiB; checkpointed (60 + 2 x 32) x 4096 x 1024 = 496 MiB
    assert rows_bytes("lora", RTX4090, LARGE) == (15 * GIB // 2, 496 * 2**20)


def test_activation_bytes_follow_rows_and_tokens() -> None:
    row = rows_bytes("lora", RTX4090, LARGE)[0]
    case = Case(recipe("lora"), RTX4090, ModelSize(LARGE, exact=True, source="x"))
    assert kept(case, 8, checkpointed=False) == 8 * row
    assert rows_bytes("lora", RTX4090, LARGE, max_length=256)[0] == row // 4
    assert rows_bytes("lora", RTX4090, LARGE, max_length=None)[0] == row
    assert estimate(Case(recipe(), CPU, None), 8, checkpointed=False) is None


# Parameters, hidden x layers, bytes per token, layer and hidden measured with autocast (tensors that autograd saves
# for a layer of these proportions), and guessed / real hidden x layers. What counts is the product in the test.
MODELS: dict[str, tuple[int, int, float, float]] = {
    "SmolLM2-135M": (134_515_008, 576 * 30, 52.7, 1.03),
    "SmolLM2-360M": (361_821_120, 960 * 32, 52.7, 0.95),
    "Qwen2.5-0.5B": (494_032_768, 896 * 24, 74.1, 1.58),
    "Qwen2.5-1.5B": (1_543_714_304, 1536 * 28, 77.4, 1.40),
    "Mistral-7B": (7_241_732_096, 4096 * 32, 59, 1.08),
    "Qwen2.5-7B": (7_615_616_512, 3584 * 28, 72.9, 1.46),
    "Llama-3-70B": (70_553_706_496, 8192 * 80, 58.5, 0.99),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_guess_for_real_models_is_on_the_safe_side(name: str) -> None:
    parameters, product, measured, ratio = MODELS[name]
    guessed = rows_bytes("full", RTX4090, parameters)[0] / 1024
    assert guessed / 60 / product == pytest.approx(ratio, abs=0.01)
    assert 1 <= guessed / (measured * product) < 1.3


# --- report_to ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "value", "reason"),
    [(True, ["tensorboard"], "tensorboard is installed"), (False, "none", "tensorboard is not installed")],
)
def test_report_to(monkeypatch: pytest.MonkeyPatch, installed: bool, value: Any, reason: str) -> None:
    asked = recipe()
    spec = importlib.util.find_spec("json")
    monkeypatch.setattr(importlib.util, "find_spec", {"tensorboard": spec if installed else None}.__getitem__)
    found = next(d for d in plan(asked, CPU, None).decisions if d.key == "training.report_to")
    assert found.value == value
    assert reason in found.reason
    fields.check("SFTConfig", {"report_to": found.value})


def test_report_to_of_the_recipe_stays() -> None:
    assert decide("full", CPU, training={"report_to": "none"}).get("training.report_to") is None


# --- what the recipe sets counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "key", "value"),
    [
        ({"fp16": True}, "bf16", False),
        ({"bf16": True}, "fp16", False),
        ({"bf16": False}, "fp16", False),
        ({"gradient_checkpointing": True}, "gradient_checkpointing_kwargs", {"use_reentrant": False}),
        ({"gradient_checkpointing": False}, "gradient_checkpointing_kwargs", None),
        ({"activation_checkpointing": True}, "gradient_checkpointing_kwargs", {"use_reentrant": False}),
        ({"activation_checkpointing": True}, "gradient_checkpointing", None),
        ({"per_device_train_batch_size": 1}, "gradient_accumulation_steps", 16),
        ({"per_device_train_batch_size": 64}, "gradient_accumulation_steps", 1),
        ({"per_device_train_batch_size": 3}, "gradient_accumulation_steps", 6),
        ({"gradient_accumulation_steps": 1}, "per_device_train_batch_size", 8),
        ({"gradient_accumulation_steps": 4}, "per_device_train_batch_size", 4),
        ({"gradient_accumulation_steps": 99}, "per_device_train_batch_size", 1),
        ({"learning_rate": 0.5}, "learning_rate", None),
    ],
)
def test_training_keys_follow_the_recipe(training: dict[str, Any], key: str, value: Any) -> None:
    decided = decide("lora", RTX4090, billions(0.5), training=training)
    assert decided.section("training").get(key) == value
    assert not set(training) & set(decided.section("training"))


@pytest.mark.parametrize(
    ("hardware", "setup", "dtype", "bf16", "fp16"),
    [
        (CPU_BF16, "full", "bfloat16", False, False),
        (CPU_BF16, "lora", "float32", True, False),
        (RTX4090, "full", "bfloat16", True, False),
        (RTX4090, "lora", "float16", False, True),
        (RTX4090, "full", "float16", False, False),
        (T4, "lora", "bfloat16", False, True),
        (T4, "full", "bfloat16", False, False),
        (CPU, "lora", "bfloat16", False, False),
    ],
)
def test_mixed_precision_follows_the_dtype_of_the_recipe(
    hardware: Hardware, setup: str, dtype: str, bf16: bool, fp16: bool
) -> None:
    decided = decide(setup, hardware, model={"name": "m", "dtype": dtype})
    assert "model.dtype" not in {d.key for d in decided.decisions}
    assert (decided["training.bf16"], decided["training.fp16"]) == (bf16, fp16)


def test_adapter_and_quantization_keys_of_the_recipe_stay() -> None:
    decided = decide(
        "qlora",
        RTX4090,
        model={"name": "m", "dtype": "float32", "attn_implementation": "eager"},
        adapter={"type": "lora", "target_modules": ["q_proj"]},
        quantization={"type": "nf4", "bnb_4bit_use_double_quant": False},
    )
    assert decided.section("model") == {}
    assert decided.section("adapter") == {"task_type": "CAUSAL_LM"}
    assert decided.section("quantization") == {"bnb_4bit_compute_dtype": "float32"}


def test_experts_named_by_parameter_get_no_target_modules() -> None:
    decided = decide("lora", CPU, adapter={"type": "lora", "target_parameters": ["mlp.experts.gate_up_proj"]})
    assert decided.section("adapter") == {"task_type": "CAUSAL_LM"}


def test_device_is_the_one_that_was_found() -> None:
    assert decide("full", RTX4090)["hardware.device"] == "cuda"
    asked = plan(recipe(hardware={"device": "cpu"}), CPU, None)
    assert asked["hardware.device"] == "cpu"
    assert "the recipe asks for cpu" in asked.decisions[0].reason


# --- other methods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "rate", "task"),
    [
        ("DPOConfig", 1e-5, "CAUSAL_LM"),
        ("GRPOConfig", 1e-5, "CAUSAL_LM"),
        ("RewardConfig", None, "SEQ_CLS"),
        ("FutureConfig", None, "CAUSAL_LM"),
    ],
)
def test_rate_and_task_of_other_methods(config: str, rate: float | None, task: str) -> None:
    decided = plan(with_config(config, "lora"), CPU, None)
    assert decided.get("training.learning_rate") == rate
    assert decided["adapter.task_type"] == task
    assert plan(with_config(config, "full"), CPU, None).get("training.learning_rate") is None


@pytest.mark.parametrize("hardware", [CPU, RTX4090, H100X8], ids=lambda h: h.summary)
@pytest.mark.parametrize(
    "training",
    [{}, {"num_generations": 6}, {"num_generations": 5, "gradient_accumulation_steps": 3}, {"num_generations": 16}],
)
def test_grpo_batches_hold_whole_groups(hardware: Hardware, training: dict[str, Any]) -> None:
    decided = {**plan(with_config("GRPOConfig", "lora", **training), hardware, None).section("training"), **training}
    total = decided["per_device_train_batch_size"] * decided["gradient_accumulation_steps"] * hardware.count
    assert total % training.get("num_generations", 8) == 0


def test_kto_never_gets_a_batch_of_one() -> None:
    decided = plan(with_config("KTOConfig", "lora", gradient_accumulation_steps=64), CPU, None)
    assert decided["training.per_device_train_batch_size"] == 2


@pytest.mark.parametrize(
    ("family", "hardware", "setup", "expected"),
    [
        ("gemma2", CPU, "lora", "eager"),
        ("gemma2", RTX4090, "lora", "eager"),
        ("gemma2", FLASH, "lora", "flash_attention_2"),
        ("gemma2", FLASH, "full", "eager"),  # float32
        ("llama", CPU, "lora", "sdpa"),
        (None, CPU, "lora", "sdpa"),
    ],
)
def test_models_without_fused_attention(family: str | None, hardware: Hardware, setup: str, expected: str) -> None:
    size = replace(billions(2), family=family)
    assert decide(setup, hardware, size)["model.attn_implementation"] == expected


def test_the_list_of_models_without_fused_attention_is_that_of_the_installed_transformers() -> None:
    import transformers
    from transformers.models.auto.configuration_auto import model_type_to_module_name
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    models = Path(transformers.__file__).parent / "models"
    found = {
        family
        for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        for file in (models / model_type_to_module_name(family)).glob("modeling_*.py")
        if "_supports_sdpa = False" in file.read_text(encoding="utf-8")
    }
    assert found == WITHOUT_SDPA


# --- the plan itself ------------------------------------------------------------------------------------------------


def test_reading_a_plan() -> None:
    decided = decide("lora", CPU, billions(0.1))
    assert decided.get("training.logging_steps") == decided["training.logging_steps"] == 1
    assert decided["training.optim"] == "adamw_torch_fused"
    assert decided.get("training.weight_decay") is None, "the library decides"
    assert decided.get("training.weight_decay", "x") == "x"
    with pytest.raises(KeyError, match=r"training\.weight_decay"):
        decided["training.weight_decay"]
    assert decided.section("train") == {}
    keys = [d.key for d in decided.decisions]
    assert len(keys) == len(set(keys))


def test_plan_is_json() -> None:
    decided = decide("qlora", H100X8, billions(7))
    again = json.loads(json.dumps(decided.to_dict()))
    assert again == decided.to_dict()
    assert again["hardware"]["memory_bytes"] == 80 * GIB
    assert again["size"] == {"parameters": 7_000_000_000, "exact": False, "source": "by its name", "family": None}
    assert {"key", "value", "reason"} == set(again["decisions"][0])
    assert decide("full", CPU).to_dict()["size"] is None


def test_trl_default_that_the_planner_leaves_alone_is_still_the_fused_adamw() -> None:
    assert fields.describe("SFTConfig")["optim"].default == "adamw_torch_fused"


@pytest.mark.parametrize(("kind", "bits"), [("nf4", 4), ("int8", 8)])
def test_quantization_without_an_adapter_is_refused(kind: str, bits: int) -> None:
    with pytest.raises(RecipeError, match=f"{bits}-bit quantization together with full training") as caught:
        check(recipe(quantization={"type": kind}))
    assert "adapter: {type: lora}" in str(caught.value)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"bf16": True, "fp16": True}, "both true"),
        ({"gradient_accumulation_steps": 0}, "at least 1, not 0"),
        ({"per_device_train_batch_size": -1}, "at least 1, not -1"),
    ],
)
def test_impossible_training_is_refused(training: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(recipe(training=training))


@pytest.mark.parametrize("setup", SETUPS)
def test_possible_recipes_pass(setup: str) -> None:
    check(recipe(setup, training={"bf16": True, "fp16": False}))


HARDWARE = st.builds(
    Hardware,
    kind=st.sampled_from(["cpu", "cuda", "mps"]),
    name=st.just("x"),
    count=st.integers(1, 64),
    memory_bytes=st.integers(GIB, 200 * GIB),
    cpu_cores=st.integers(1, 256),
    bf16=st.booleans(),
    attention=st.sampled_from([("sdpa", "eager"), ("flash_attention_2", "sdpa", "eager")]),
)
SIZES = st.none() | st.builds(ModelSize, st.integers(1, 10**12), st.booleans(), st.just("x"))
TRAINING = st.fixed_dictionaries(
    {},
    optional={
        "bf16": st.booleans(),
        "fp16": st.booleans(),
        "gradient_checkpointing": st.booleans(),
        "per_device_train_batch_size": st.integers(1, 100),
        "gradient_accumulation_steps": st.integers(1, 100),
        "learning_rate": st.floats(1e-7, 1),
        "logging_steps": st.integers(1, 100),
    },
)
DTYPES = st.sampled_from([None, "float32", "bfloat16", "float16"])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SETUPS)), HARDWARE, SIZES, TRAINING, DTYPES)
def test_properties(
    setup: str, hardware: Hardware, size: ModelSize | None, training: dict[str, Any], dtype: str | None
) -> None:
    asked = recipe(setup, training=training, model={"name": "m", "dtype": dtype})
    decided = plan(asked, hardware, size)
    section = decided.section("training")
    assert not set(section) & set(training), "what the recipe sets is never decided"
    assert ("model.dtype" in {d.key for d in decided.decisions}) == (dtype is None)
    assert all(d.reason for d in decided.decisions)
    both = {**section, **training}
    if not (training.get("bf16") and training.get("fp16")):
        assert not (both["bf16"] and both["fp16"])
    assert not (section.get("bf16") and not hardware.bf16)
    assert not (section.get("fp16") and hardware.kind != "cuda")
    if "per_device_train_batch_size" not in training or "gradient_accumulation_steps" not in training:
        assert both["per_device_train_batch_size"] >= 1
        assert both["gradient_accumulation_steps"] >= 1
    json.dumps(decided.to_dict())
    assert plan(asked, hardware, size) == decided, "pure"


MEMORIES = st.integers(1, 2000).map(lambda tenths: tenths * GIB // 10)
PARAMETERS = st.floats(6, 12).map(lambda exponent: int(10**exponent))


def memory_plan(setup: str, hardware: Hardware, memory: int, parameters: int, **training: Any) -> tuple[bool, int]:
    size = ModelSize(parameters, exact=False, source="x")
    decided = plan(recipe(setup, training=training), replace(hardware, memory_bytes=memory), size)
    return training.get("gradient_checkpointing", decided.get(CHECKPOINTING)), decided[BATCH]


def assert_roomier(more: tuple[bool, int], less: tuple[bool, int]) -> None:
    assert less[0] or not more[0], "more room never turns checkpointing on"
    # Where it turns checkpointing off, four rows without are preferred to eight with it.
    assert more[1] >= (less[1] if more[0] == less[0] else 4)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(SETUPS)),
    HARDWARE,
    st.tuples(MEMORIES, MEMORIES),
    st.tuples(PARAMETERS, PARAMETERS),
    st.fixed_dictionaries({}, optional={"gradient_checkpointing": st.booleans(), "max_length": st.integers(1, 9999)}),
)
def test_more_memory_or_a_smaller_model_never_gets_a_smaller_plan(
    setup: str, hardware: Hardware, memories: tuple[int, int], sizes: tuple[int, int], training: dict[str, Any]
) -> None:
    (low, high), (small, large) = sorted(memories), sorted(sizes)
    tightest = memory_plan(setup, hardware, low, large, **training)
    assert_roomier(memory_plan(setup, hardware, high, large, **training), tightest)
    assert_roomier(memory_plan(setup, hardware, low, small, **training), tightest)


@given(st.sampled_from(sorted(SETUPS)), HARDWARE, st.integers(10**6, 10**12))
def test_checkpointing_never_keeps_more_than_it_saves(setup: str, hardware: Hardware, parameters: int) -> None:
    kept, checkpointed = rows_bytes(setup, hardware, parameters)
    assert checkpointed <= kept


@pytest.mark.parametrize(("length", "batch"), [(1024, 1), (512, 2), (256, 4), (64, 8)])
def test_a_cpu_takes_as_many_packed_sequences_as_fill_it(length: int, batch: int) -> None:
    found = decide("lora", CPU_BF16, billions(0.1), training={"packing": True, "max_length": length})
    assert (found[BATCH], found["training.gradient_accumulation_steps"]) == (batch, 8 // batch)
    reasons = {d.key: d.reason for d in found.decisions}
    assert f"a sequence filled with rows, up to {length:,} tokens" in reasons[BATCH]
    assert reasons["training.gradient_accumulation_steps"].endswith("8 sequences per step, each filled with rows")


def test_a_gpu_takes_as_many_packed_sequences_as_fit() -> None:
    plain = decide("lora", RTX4090, billions(1.5))
    packed = decide("lora", RTX4090, billions(1.5), training={"packing": True})
    assert packed[BATCH] == plain[BATCH]
    reasons = {d.key: d.reason for d in packed.decisions}
    assert reasons[BATCH].endswith("; each is a sequence filled with rows, up to 1,024 tokens")
    assert "filled" not in {d.key: d.reason for d in plain.decisions}[BATCH]
