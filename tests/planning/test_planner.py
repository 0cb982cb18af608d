from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import RecipeError
from llmkit.planning.hardware import CATALOGUE, GIB, Hardware
from llmkit.planning.planner import Case, Plan, check, plan, state_bytes
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


# setup, hardware, billions of parameters: dtype, attention, bf16, fp16, checkpointing, batch, accumulation
TABLE = [
    ("full", CPU, 0.1, "float32", "sdpa", False, False, False, 8, 1),
    ("full", CPU, 1.5, "float32", "sdpa", False, False, True, 8, 1),
    ("lora", CPU, 0.1, "float32", "sdpa", False, False, False, 8, 1),
    ("qlora", CPU, 0.1, "float32", "sdpa", False, False, False, 8, 1),
    ("int8", CPU, 0.1, "float32", "sdpa", False, False, False, 8, 1),
    ("full", CPU_BF16, 0.1, "float32", "sdpa", True, False, False, 8, 1),
    ("lora", CPU_BF16, 0.1, "bfloat16", "sdpa", False, False, False, 8, 1),
    ("qlora", CPU_BF16, 0.1, "bfloat16", "sdpa", False, False, False, 8, 1),
    ("int8", CPU_BF16, 0.1, "bfloat16", "sdpa", False, False, False, 8, 1),
    ("full", CPU_BF16, None, "float32", "sdpa", True, False, False, 8, 1),
    ("full", LAPTOP, 0.5, "float32", "sdpa", True, False, True, 2, 8),
    ("lora", LAPTOP, 0.5, "bfloat16", "sdpa", True, False, False, 8, 2),
    ("lora", LAPTOP, 1.5, "bfloat16", "sdpa", True, False, True, 4, 4),
    ("qlora", LAPTOP, 1.5, "bfloat16", "sdpa", True, False, False, 8, 2),
    ("qlora", LAPTOP, 3, "bfloat16", "sdpa", True, False, True, 4, 4),
    ("int8", LAPTOP, 3, "bfloat16", "sdpa", True, False, True, 2, 8),
    ("full", RTX4090, 0.5, "float32", "sdpa", True, False, False, 8, 2),
    ("full", RTX4090, 1.5, "float32", "sdpa", True, False, True, 2, 8),
    ("lora", RTX4090, 7, "bfloat16", "sdpa", True, False, True, 2, 8),
    ("qlora", RTX4090, 7, "bfloat16", "sdpa", True, False, False, 8, 2),
    ("int8", RTX4090, 7, "bfloat16", "sdpa", True, False, False, 8, 2),
    ("lora", RTX4090, None, "bfloat16", "sdpa", True, False, True, 2, 8),
    ("full", FLASH, 0.5, "float32", "sdpa", True, False, False, 8, 2),
    ("lora", FLASH, 0.5, "bfloat16", "flash_attention_2", True, False, False, 8, 2),
    ("full", H100X8, 7, "float32", "sdpa", True, False, True, 2, 1),
    ("full", H100X8, 1.5, "float32", "sdpa", True, False, False, 8, 1),
    ("lora", H100X8, 7, "bfloat16", "sdpa", True, False, False, 8, 1),
    ("qlora", H100X8, 70, "bfloat16", "sdpa", True, False, True, 2, 1),
    ("int8", H100X8, 7, "bfloat16", "sdpa", True, False, False, 8, 1),
    ("full", T4, 0.5, "float32", "sdpa", False, True, True, 4, 4),
    ("lora", T4, 1.5, "float16", "sdpa", False, True, False, 8, 2),
    ("qlora", T4, 7, "float16", "sdpa", False, True, False, 8, 2),
    ("int8", T4, 7, "float16", "sdpa", False, True, True, 4, 4),
    ("full", M2, 0.1, "float32", "sdpa", True, False, False, 8, 2),
    ("lora", M2, 1.5, "bfloat16", "sdpa", False, False, False, 8, 2),
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
    checkpointing = reasons["training.gradient_checkpointing"]
    assert "22.4 GiB, 93% of the 24 GiB of each GPU" in checkpointing
    assert reasons["training.gradient_accumulation_steps"] == "2 per device x 1 device x 8 = 16 sequences per step"
    assert "no bf16 units on this CPU" in {d.key: d.reason for d in decide("lora", CPU).decisions}["model.dtype"]
    assert "QLoRA" in {d.key: d.reason for d in decide("lora", CPU).decisions}["training.learning_rate"]


@pytest.mark.parametrize(
    ("setup", "parameters", "size"),
    [("full", 1.0, 16e9), ("lora", 1.0, 4e9 + 0.32e9), ("qlora", 1.0, 0.5625e9 + 0.32e9), ("int8", 1.0, 1.3825e9)],
)
def test_state_bytes_on_a_machine_without_bf16(setup: str, parameters: float, size: float) -> None:
    assert state_bytes(Case(recipe(setup), CPU, billions(parameters))) == round(size)


def test_state_bytes_with_a_reference_model_or_an_unknown_size() -> None:
    assert state_bytes(Case(with_config("DPOConfig", "full"), CPU, billions(1))) == 20e9
    assert state_bytes(Case(with_config("DPOConfig", "lora"), CPU, billions(1))) == 4.32e9
    assert state_bytes(Case(recipe(), CPU, None)) is None


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


# --- the plan itself ------------------------------------------------------------------------------------------------


def test_reading_a_plan() -> None:
    decided = decide("lora", CPU, billions(0.1))
    assert decided.get("training.logging_steps") == decided["training.logging_steps"] == 1
    assert decided.get("training.optim") is None, "the library's default is the fused AdamW already"
    assert decided.get("training.optim", "x") == "x"
    with pytest.raises(KeyError, match=r"training\.optim"):
        decided["training.optim"]
    assert decided.section("train") == {}
    keys = [d.key for d in decided.decisions]
    assert len(keys) == len(set(keys))


def test_plan_is_json() -> None:
    decided = decide("qlora", H100X8, billions(7))
    again = json.loads(json.dumps(decided.to_dict()))
    assert again == decided.to_dict()
    assert again["hardware"]["memory_bytes"] == 80 * GIB
    assert again["size"] == {"parameters": 7_000_000_000, "exact": False, "source": "by its name"}
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
