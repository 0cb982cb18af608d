"""The reference, the KL term and the sampling engine: what is decided, and that the reason says what it costs."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from llmkit.planning.case import Case
from llmkit.planning.hardware import CATALOGUE, Hardware
from llmkit.planning.memory import estimate, state_bytes
from llmkit.planning.plan import Plan
from llmkit.planning.planner import plan
from llmkit.planning.reference import Reference, reference
from llmkit.planning.size import ModelSize
from llmkit.recipe.recipe import Recipe

CPU, GPU = CATALOGUE["cpu"], CATALOGUE["rtx4090"]
BILLION = ModelSize(1_000_000_000, exact=True, source="counted")


def recipe(config: str, *, full: bool = False, nf4: bool = False, **training: Any) -> Recipe:
    """A recipe whose method has the TRL config class `config`; only that name counts for the planner."""
    sections: dict[str, Any] = {
        "model": {"name": "a/model"},
        "data": {"train": [{"path": "rows.jsonl", "format": "messages"}]},
        "method": {"type": "sft"},
        **({} if full else {"adapter": {"type": "lora"}}),
        **({"quantization": {"type": "nf4"}} if nf4 else {}),
    }
    found = Recipe.model_validate(sections)
    type_of = type("Other", (type(found.method),), {"config": config})
    filled = found.training.model_copy()
    object.__setattr__(filled, "__pydantic_extra__", training)
    return found.model_copy(update={"method": type_of.model_construct(type="sft"), "training": filled})


def decide(config: str, hardware: Hardware = CPU, **options: Any) -> Plan:
    return plan(recipe(config, **options), hardware, BILLION)


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        ("SFTConfig", {}, Reference.NONE),
        ("ORPOConfig", {"full": True}, Reference.NONE),
        ("DPOConfig", {}, Reference.ADAPTER_OFF),
        ("DPOConfig", {"full": True}, Reference.COPY),
        ("DPOConfig", {"full": True, "precompute_ref_log_probs": True}, Reference.COMPUTED_ONCE),
        ("KTOConfig", {"full": True}, Reference.COPY),
        ("GRPOConfig", {"full": True}, Reference.NONE),
        ("GRPOConfig", {"full": True, "beta": 0.04}, Reference.COPY),
        ("GRPOConfig", {"beta": 0.04}, Reference.ADAPTER_OFF),
        ("RLOOConfig", {"full": True}, Reference.COPY),
        ("RLOOConfig", {"full": True, "beta": 0.0}, Reference.NONE),
    ],
)
def test_what_is_the_reference(config: str, options: dict[str, Any], expected: Reference) -> None:
    assert reference(Case(recipe(config, **options), CPU, BILLION)) is expected


def test_only_a_copy_takes_memory() -> None:
    def state(**options: Any) -> int:
        return state_bytes(Case(recipe("GRPOConfig", full=True, **options), CPU, BILLION)) or 0

    # float32 weights, gradients and two moments, and a copy of the weights where there is a KL term.
    assert state() == 16_000_000_000
    assert state(beta=0.04) == 20_000_000_000


def test_grpo_without_beta_says_that_nothing_holds_the_model_near_the_base() -> None:
    decided = {d.key: d for d in decide("GRPOConfig", full=True).decisions}
    assert decided["training.beta"].value == 0.0
    assert "no KL term" in decided["training.beta"].reason
    assert decided["method.reference"].value == "none"
    assert "saves 3.7 GiB" in decided["method.reference"].reason


def test_a_beta_of_the_recipe_stays_and_its_cost_is_said() -> None:
    decided = {d.key: d for d in decide("GRPOConfig", full=True, beta=0.04).decisions}
    assert "training.beta" not in decided
    assert "beta is 0.04" in decided["method.reference"].reason
    assert "3.7 GiB more" in decided["method.reference"].reason
    assert "no second copy" in next(
        d.reason for d in decide("GRPOConfig", beta=0.04).decisions if d.key == "method.reference"
    )


def test_methods_without_a_reference_get_no_word_about_it() -> None:
    keys = {d.key for d in decide("SFTConfig").decisions}
    assert not keys & {"method.reference", "training.beta", "training.use_vllm"}
    assert "training.use_vllm" not in {d.key for d in decide("DPOConfig").decisions}


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> bool:
    """Whether vLLM seems to be installed."""
    found, real = request.param, importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: (object() if found else None) if name == "vllm" else real(name, *a),
    )
    return bool(found)


CONTINUOUS = "training.use_transformers_continuous_batching"


@pytest.mark.parametrize(
    ("vllm", "hardware", "options", "use_vllm", "continuous"),
    [
        (True, GPU, {}, True, None),
        (True, CPU, {}, False, False),
        (True, GPU, {"nf4": True}, False, False),
        (False, GPU, {}, False, False),
        (False, GPU, {"bf16": False, "fp16": False}, False, True),
        (False, GPU, {"bf16": False, "fp16": False, "num_generations": 2}, False, False),
        (False, GPU, {"nf4": True}, False, False),
        (False, CPU, {}, False, False),
        (False, GPU, {"use_vllm": True}, None, None),
    ],
    indirect=["vllm"],
)
@pytest.mark.usefixtures("vllm")
def test_the_sampling_engine(
    hardware: Hardware, options: dict[str, Any], use_vllm: bool | None, continuous: bool | None
) -> None:
    decided = decide("GRPOConfig", hardware, **options)
    assert decided.get("training.use_vllm") is use_vllm
    assert decided.get(CONTINUOUS) is continuous


def test_a_pair_is_two_sequences() -> None:
    def kept(config: str) -> int:
        found = estimate(Case(recipe(config), CPU, BILLION), 2, checkpointed=False)
        assert found is not None
        return found.parts["activations"]

    assert kept("DPOConfig") == kept("RewardConfig") == 2 * kept("SFTConfig") == 2 * kept("KTOConfig")


def test_short_answers_take_little_memory() -> None:
    def kept(**training: Any) -> int:
        found = estimate(Case(recipe("GRPOConfig", **training), CPU, BILLION), 16, checkpointed=False)
        assert found is not None
        return found.parts["activations"]

    # 512 tokens of a prompt, and TRL's longest answer of 512 unless the recipe sets it.
    assert kept() == pytest.approx(2 * kept(max_completion_length=1), rel=0.01)
    assert kept(max_completion_length=512) == kept()


def test_a_step_of_grpo_has_four_prompts_or_more() -> None:
    training = decide("GRPOConfig", num_generations=6).section("training")
    sequences = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    assert sequences % 6 == 0
    assert sequences >= 24
