"""The account of memory, worked out by hand for a model of round numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.methods import _chunked_head
from llmkit.model import batches, decoding, likelihood
from llmkit.planning import logits, memory
from llmkit.planning.case import Case
from llmkit.planning.footprint import Footprint, Kept
from llmkit.planning.hardware import CATALOGUE, Hardware
from llmkit.planning.memory import HOLES, PARTS, PROCESS, Estimate, estimate, fits, footprint
from llmkit.planning.sharding import Sharding
from llmkit.planning.size import ModelSize
from llmkit.recipe.recipe import Recipe

CPU, GPU = CATALOGUE["cpu"], CATALOGUE["a100-80gb"]

# 10 layers of hidden 100, a vocabulary of 1,000; a layer keeps 2,000 bytes a token and 4 a pair, the ends 50 a token.
FULL = Footprint(
    frozen=0,
    trained=1_000_000,
    packed=0,
    unpacked=0,
    largest=100_000,
    layers=10,
    hidden=100,
    vocabulary=1000,
    cache=400,
    layer=Kept(2000, 4, 10),
    ends=Kept(50),
)
ADAPTED = replace(FULL, frozen=1_000_000, trained=20_000)
PACKED = replace(ADAPTED, packed=800_000, unpacked=40_000)
LORA: dict[str, Any] = {"adapter": {"type": "lora"}}
NF4: dict[str, Any] = {**LORA, "quantization": {"type": "nf4"}}


def recipe(method: str = "sft", training: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    kinds = {"sft": "messages", "grpo": "prompt", "kto": "unpaired"}
    made: dict[str, Any] = {
        "model": {"name": "a/model", "dtype": "float32"},
        "data": {"train": [{"path": "rows.jsonl", "format": kinds.get(method, "preference")}]},
        "method": {"type": method},
        "training": {"gradient_accumulation_steps": 1, "bf16": False, "fp16": False, **(training or {})},
        **sections,
    }
    if method == "grpo":
        made["rewards"] = [{"type": "exact_match"}]
    return Recipe.model_validate(made)


def counted(
    asked: Recipe,
    model: Footprint,
    batch: int = 2,
    length: int = 10,
    *,
    hardware: Hardware = CPU,
    checkpointed: bool = False,
    sharding: Sharding | None = None,
) -> Estimate:
    case = Case(asked, hardware, None, lambda *_: model)
    found = estimate(case, batch, checkpointed=checkpointed, sharding=sharding, length=length)
    assert found is not None
    assert set(found.parts) == set(PARTS)
    return found


# --- States ----------------------------------------------------------------------------------------------------------


def test_full_training_holds_weights_gradients_and_two_moments() -> None:
    found = counted(recipe(), FULL)
    names = ("weights", "gradients", "optimizer", "adapter", "quantized_weights", "reference")
    assert [found.parts[name] for name in names] == [4_000_000, 4_000_000, 8_000_000, 0, 0, 0]
    assert found.exact == {"weights", "adapter", "gradients", "optimizer", "reference"}


def test_an_adapter_is_trained_and_the_base_only_held() -> None:
    parts = counted(recipe(**LORA), ADAPTED).parts
    names = ("weights", "adapter", "gradients", "optimizer")
    assert [parts[name] for name in names] == [4_000_000, 80_000, 80_000, 160_000]


@pytest.mark.parametrize(
    ("quantization", "size"),
    [
        # Half a byte, and for each 64 weights a scale of one byte, for each 256 of which there are four bytes.
        ({"type": "nf4"}, 800_000 * 0.5 + 12_500 + 12_500 * 4 / 256),
        ({"type": "nf4", "bnb_4bit_use_double_quant": False}, 800_000 * 0.5 + 12_500 * 4),
        ({"type": "int8"}, 800_000 + 8_000 * 4),
    ],
)
def test_packed_weights_with_their_scales(quantization: dict[str, Any], size: float) -> None:
    found = counted(recipe(**LORA, quantization=quantization), PACKED)
    assert found.parts["quantized_weights"] == round(size)
    assert found.parts["weights"] == 200_000 * 4
    assert "quantized_weights" in found.exact


@pytest.mark.parametrize(
    ("optim", "size"),
    [
        ("adamw_torch_fused", 8_000_000),
        ("adamw_torch", 8_000_000),
        ("sgd", 0),
        ("lion_32bit", 4_000_000),
        ("ademamix", 12_000_000),
        ("adamw_8bit", 2_000_000 * (1 + 4 / 256)),
        ("galore_adamw", 8_000_000),
        ("adafactor", 8_000_000 / 100),
    ],
)
def test_states_by_optimizer(optim: str, size: float) -> None:
    found = counted(recipe(training={"optim": optim}), FULL)
    assert found.parts["optimizer"] == size
    assert ("optimizer" in found.exact) == (optim not in ("adamw_8bit", "galore_adamw", "adafactor"))


def test_a_reference_is_a_copy_only_of_a_full_model() -> None:
    assert counted(recipe("dpo"), FULL).parts["reference"] == 4_000_000
    assert counted(recipe("dpo", **LORA), ADAPTED).parts["reference"] == 0
    assert counted(recipe("dpo", {"precompute_ref_log_probs": True}), FULL).parts["reference"] == 0


# --- Activations and logits ------------------------------------------------------------------------------------------


def test_activations_by_hand() -> None:
    # 10 layers x (20 tokens x (2000 + 10 x 4) + 10), and 20 x 50.
    assert counted(recipe(), FULL).parts["activations"] == 10 * (20 * 2040 + 10) + 1000
    # The inputs of 10 layers in float32, one layer, and the ends.
    assert counted(recipe(), FULL, checkpointed=True).parts["activations"] == 10 * 20 * 400 + 20 * 2040 + 10 + 1000


def test_pairs_are_two_sequences() -> None:
    def kept(method: str) -> int:
        return counted(recipe(method, **LORA), replace(ADAPTED, layer=Kept(2000, 4))).parts["activations"]

    assert kept("dpo") == kept("reward") == 2 * kept("sft") == 2 * kept("kto")


CAPPED = replace(ADAPTED, plain_head=False)


@pytest.mark.parametrize(
    ("method", "model", "hardware", "size"),
    [
        # 2 x 9 positions, three times, and the gradient of their hidden states.
        ("sft", ADAPTED, CPU, 3 * 18 * 1000 * 4 + 18 * 100 * 4),
        ("dpo", ADAPTED, CPU, 3 * 36 * 1000 * 4 + 36 * 100 * 4),
        # Log-probabilities, their gradient, that of the logits; TRL's head in torch: 8.25 tiles of 36 positions.
        ("sft", CAPPED, CPU, 18 * 1000 * 3 * 4),
        ("dpo", CAPPED, CPU, 36 * 1000 * 4 * 8.25),
        # TRL's kernels: a tile, and the gradient of the hidden states.
        ("sft", ADAPTED, GPU, 18 * 1000 * 4 + 18 * 100 * 4),
        ("dpo", CAPPED, GPU, 36 * 1000 * 4 + 36 * 100 * 4),
        # Trainers without a fused head, on any device.
        ("orpo", ADAPTED, GPU, 36 * 1000 * 3 * 4),
        ("simpo", ADAPTED, CPU, 36 * 1000 * 3 * 4),
        ("reward", replace(ADAPTED, vocabulary=0), CPU, 0),
    ],
)
def test_logits(method: str, model: Footprint, hardware: Hardware, size: float) -> None:
    assert counted(recipe(method, **LORA), model, hardware=hardware).parts["logits"] == round(size)


def test_a_trained_head_has_a_gradient_before_anything_else() -> None:
    frozen = counted(recipe(**LORA), ADAPTED).parts["logits"]
    assert counted(recipe(), FULL).parts["logits"] == frozen + 1000 * 100 * 4


def test_chunks_and_tiles_are_bounded() -> None:
    wide = replace(ADAPTED, vocabulary=100_000)
    assert counted(recipe(**LORA), wide, 64, 1024, hardware=GPU).parts["logits"] == 4 * (4096 * 32768 + 64 * 1023 * 100)
    assert counted(recipe("dpo", **LORA), replace(wide, plain_head=False), 64, 1024).parts["logits"] == 2**27 * 33
    # 2^25 bytes are 83 tokens.
    hidden = 64 * 1023 * 100 * 4
    assert counted(recipe(**LORA), wide, 64, 1024).parts["logits"] == 3 * 83 * 100_000 * 4 + hidden


def test_answers_alone_are_scored_and_their_keys_and_values_kept() -> None:
    asked = recipe("grpo", {"max_completion_length": 4, "num_generations": 2}, **LORA)
    parts = counted(asked, ADAPTED).parts
    assert parts["logits"] == 3 * 8 * 1000 * 4 + 8 * 100 * 4
    # 2 completions x 10 tokens x 400 elements, and one of 10 layers twice while it grows.
    assert parts["kv_cache"] == 2 * 10 * 400 * 4 * 1.1
    accumulated = asked.training.kwargs() | {"gradient_accumulation_steps": 3}
    assert counted(recipe("grpo", accumulated, **LORA), ADAPTED).parts["kv_cache"] == 3 * parts["kv_cache"]


# --- Peaks -----------------------------------------------------------------------------------------------------------


def test_gradients_come_as_activations_go_unless_batches_are_accumulated() -> None:
    one, two = (counted(recipe(training={"gradient_accumulation_steps": n}), FULL) for n in (1, 2))
    parts = one.parts
    held = PROCESS + 12_000_000 + parts["workspace"]
    assert one.peaks["train"] == held + max(parts["activations"] + parts["logits"], parts["gradients"])
    assert two.peaks["train"] == held + parts["activations"] + parts["logits"] + parts["gradients"]
    # 409,100 bytes of activations, with holes of a fifth between them.
    assert parts["workspace"] == round(0.2 * parts["activations"])


def test_the_last_gradient_of_large_embeddings_comes_on_top_on_a_cpu() -> None:
    # 10M elements are 40 MB, which glibc maps by itself: both gradients of the one matrix, and their sum.
    large = replace(FULL, largest=10_000_000, vocabulary=0)
    found = counted(recipe(), large)
    assert found.peaks["train"] == (
        PROCESS + 12_000_000 + found.parts["workspace"] + found.parts["activations"] + 3 * 40_000_000
    )
    assert counted(recipe(), large, hardware=GPU).peaks["train"] < found.peaks["train"] - PROCESS - 80_000_000


def test_the_head_and_a_layer_that_is_computed_again_do_not_meet() -> None:
    few, many = (counted(recipe(), replace(FULL, vocabulary=v, trained=1), checkpointed=True) for v in (1, 1000))
    layer = 20 * 2040 + 10
    above = [found.peaks["train"] - PROCESS - 12 - found.parts["workspace"] for found in (few, many)]
    assert above[0] == few.parts["activations"]
    assert above[1] == many.parts["activations"] - layer + many.parts["logits"]


def test_other_phases() -> None:
    evaluation = [
        {"type": "perplexity", "batch_size": 4},
        {"type": "exact_match", "batch_size": 2, "max_new_tokens": 8},
    ]
    found = counted(recipe(**LORA, evaluation=evaluation, export=[{"type": "merged"}]), ADAPTED)
    held = PROCESS + 4_080_000 + 160_000
    assert found.peaks["load"] == PROCESS + 4_080_000
    assert found.peaks["sample"] == 0
    # Perplexity of 40 tokens: logits and two copies; answers: 2 x (512 + 8) tokens of cache, prompts in one layer.
    answers = 2 * 520 * 400 * 4 + 2 * 512 * (2000 + 512 * 4) + 10
    assert found.peaks["evaluate"] == held + max(40 * 1000 * 12, answers)
    # The base again, in float32.
    assert found.peaks["save"] == held + 4_000_000
    assert found.peak == max(found.peaks.values())


def test_sizes_that_the_code_chooses_are_those_of_the_code() -> None:
    assert (memory.READ_TOKENS, memory.ANSWERED_ROWS) == (batches.TOKENS, decoding.ROWS)
    assert (logits.TRAINED_CHUNK_BYTES, logits.FEWEST) == (_chunked_head.CHUNK_BYTES, _chunked_head.FEWEST)
    assert (memory.ANSWERS_ROOM, logits.CHUNK_BYTES) == (decoding.LEAST_ROOM, likelihood.CHUNK_BYTES)
    found = counted(recipe(**LORA, evaluation=[{"type": "perplexity"}]), ADAPTED)
    # 2,048 tokens against a vocabulary of 1,000 are 8 MB, three times; one layer of them takes less.
    assert found.peaks["evaluate"] - PROCESS - 4_240_000 == 3 * 2048 * 1000 * 4


def test_a_cpu_reads_packed_weights_from_a_file_that_stays_mapped() -> None:
    cpu, gpu = (counted(recipe(**NF4), PACKED, hardware=hardware) for hardware in (CPU, GPU))
    # The largest packed weight is unpacked to compute with it.
    assert gpu.parts["workspace"] == 40_000 * 4
    assert cpu.parts["workspace"] == 40_000 * 4 + 800_000 * 4 + round(HOLES * cpu.parts["activations"])
    assert gpu.parts["process"] == 0


def test_loops_over_weights_take_a_copy_on_gpus() -> None:
    asked = recipe(training={"optim": "adamw_torch"})
    assert counted(asked, FULL, hardware=GPU).parts["workspace"] == 4_000_000
    assert counted(asked, FULL).parts["workspace"] == counted(recipe(), FULL).parts["workspace"]


# --- Several devices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "weights", "gradients", "optimizer"),
    [("ddp", 1, 1, 1), ("zero1", 1, 1, 4), ("zero2", 1, 4, 4), ("zero3", 4, 4, 4), ("fsdp", 4, 4, 4)],
)
def test_sharding_divides(kind: Any, weights: int, gradients: int, optimizer: int) -> None:
    alone = counted(recipe(), FULL, hardware=GPU).parts
    parts = counted(recipe(), FULL, hardware=GPU, sharding=Sharding(kind, 4)).parts
    for name, divisor in (("weights", weights), ("gradients", gradients), ("optimizer", optimizer)):
        assert parts[name] * divisor == alone[name]
    assert parts["activations"] == alone["activations"]
    assert parts["workspace"] > 0, "buffers that are sent"


# --- The guess -------------------------------------------------------------------------------------------------------


def test_a_model_that_cannot_be_looked_at_is_guessed_by_its_size() -> None:
    size = ModelSize(1_000_000_000, exact=False, source="by its name")
    case = Case(recipe(**LORA), GPU, size, lambda *_: None)
    guessed = footprint(case)
    assert guessed is not None
    assert (guessed.exact, guessed.frozen, guessed.trained) == (False, 10**9, 2 * 10**7)
    found = estimate(case, 1, checkpointed=False)
    assert found is not None
    assert found.exact == frozenset()
    assert footprint(Case(recipe(), GPU, None)) is None
    assert not fits(Case(recipe(), GPU, None), 1, checkpointed=True)


def test_what_is_looked_at_goes_before_the_size_and_gets_the_planned_types() -> None:
    asked: list[Any] = []

    def look(*arguments: Any) -> Footprint:
        asked.append(arguments)
        return ADAPTED

    size = ModelSize(10**12, exact=False, source="by its name")
    case = Case(recipe(model={"name": "m"}, training={"bf16": True}, **LORA), GPU, size, look)
    assert footprint(case) is ADAPTED
    assert asked == [("bfloat16", "bfloat16", "sdpa")]


@given(st.integers(1, 64), st.integers(2, 4096), st.booleans())
def test_more_rows_and_tokens_never_take_less(batch: int, length: int, checkpointed: bool) -> None:
    small = counted(recipe(), FULL, batch, length, checkpointed=checkpointed).peak
    assert small <= counted(recipe(), FULL, batch + 1, length, checkpointed=checkpointed).peak
    assert small <= counted(recipe(), FULL, batch, length + 1, checkpointed=checkpointed).peak
