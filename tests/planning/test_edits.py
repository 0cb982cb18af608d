"""Edits that save memory: each is a recipe that loads, planned again; what fits comes first, the cheapest ahead.

Most tests put a small model of memory in place of `estimate`, so that every figure can be worked out by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmkit.planning import edits
from llmkit.planning.case import Case
from llmkit.planning.edits import Edit, Planned, edited, ranked, room
from llmkit.planning.hardware import CATALOGUE, GIB, Hardware
from llmkit.planning.memory import USABLE, Estimate
from llmkit.planning.precision import dtype
from llmkit.planning.sharding import Sharding
from llmkit.planning.size import ModelSize
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.recipe import Recipe

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
BILLION = ModelSize(10**9, exact=True, source="by hand")
GPU = CATALOGUE["rtx4090"]


def gpu(gib: float, count: int = 1) -> Hardware:
    """A GPU of which `gib` may be filled."""
    return replace(GPU, memory_bytes=math.ceil(gib * GIB / USABLE), count=count)


def by_hand(
    case: Case, batch: int, *, checkpointed: bool, sharding: Sharding | None = None, **_: Any
) -> Estimate | None:
    """A model of 2^30 parameters: 1 GiB per byte of weight; 1 GiB of activations per row of 1,024 tokens."""
    if case.size is None:
        return None
    quantization, width = case.recipe.quantization, {"float32": 4, "bfloat16": 2, "float16": 2}[case.value(dtype)]
    weights = quantization.bits / 8 if quantization else width
    divisor = sharding.weights if sharding else 1
    optimizer = {"adamw_bnb_8bit": 2, "adafactor": 0}.get(case.given.get("training.optim", ""), 2 * width)
    trained = width + optimizer if case.full else 0.0
    row = (case.given.get("training.max_length") or 1024) / 1024
    activations = batch * row / (4 if checkpointed else 1)
    peak = round(GIB * ((weights + trained) / divisor + activations))
    return Estimate(parts={"weights": peak}, peaks={"train": peak}, exact=frozenset())


@pytest.fixture
def arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "estimate", by_hand)


@pytest.fixture
def case(recipe: Callable[..., Recipe], arithmetic: None) -> Callable[..., Case]:
    """Full training in float32, 4 rows of 1,024 tokens at once, nothing recomputed: 16 GiB of states, 4 of the rest."""

    def make(*overrides: str, hardware: Hardware = GPU) -> Case:
        fixed = ("adapter=null", "training.gradient_checkpointing=false", "training.max_length=1024")
        return Case(recipe(*fixed, *overrides), hardware, BILLION)

    return make


def named(found: tuple[Edit, ...]) -> dict[str, Edit]:
    """The edits by their last override; the learning rate that comes with an adapter does not count."""
    return {
        [override for override in edit.overrides if "learning_rate" not in override][-1]: edit
        for edit in found
        if edit.settings
    }


BATCH = ("training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=2")


def test_savings_are_those_of_planning_again(case: Callable[..., Case]) -> None:
    found = named(ranked(case(*BATCH, hardware=gpu(30))))
    assert {override: edit.saves / GIB for override, edit in found.items()} == {
        "model.dtype=bfloat16": 8,  # 16 -> 8 bytes a parameter
        "training.optim=adamw_bnb_8bit": 6,  # 8 -> 2
        "training.optim=adafactor": 8,  # 8 -> 0
        "training.gradient_accumulation_steps=4": 2,  # 4 -> 2 rows: the first that fits
        "training.gradient_checkpointing=true": 3,  # 4 -> 1
        "training.max_length=512": 2,  # 4 -> 2
        "adapter.type=lora": 14,  # 16 -> 2 bytes: frozen weights are planned in bfloat16
        "quantization.type=nf4": 15.5,
        "quantization.type=int8": 15,
    }
    assert all(edit.peak == 20 * GIB - edit.saves for edit in found.values())
    assert all(edit.fits for edit in found.values())


def test_what_fits_comes_first_and_the_cheapest_ahead(case: Callable[..., Case]) -> None:
    found = ranked(case(*BATCH, hardware=gpu(15)))
    fitting = [edit for edit in found if edit.fits]
    assert list(named(tuple(fitting))) == [
        "model.dtype=bfloat16",
        "training.optim=adafactor",
        "training.optim=adamw_bnb_8bit",
        "adapter.type=lora",
        "quantization.type=int8",
        "quantization.type=nf4",
    ]
    assert [edit.slower for edit in fitting] == sorted(edit.slower for edit in fitting)
    assert list(found[: len(fitting)]) == fitting
    others = found[len(fitting) :]
    assert [edit.saves for edit in others] == sorted((edit.saves for edit in others), reverse=True)


def test_a_ladder_stops_at_the_first_step_that_fits(case: Callable[..., Case]) -> None:
    enough = named(ranked(case(*BATCH, hardware=gpu(18.5))))
    assert "training.gradient_accumulation_steps=4" in enough
    tighter = named(ranked(case(*BATCH, hardware=gpu(17.5))))
    assert "training.gradient_accumulation_steps=8" in tighter
    assert tighter["training.gradient_accumulation_steps=8"].settings["training.per_device_train_batch_size"] == 1


def test_the_global_batch_stays(case: Callable[..., Case]) -> None:
    for gib in (18.5, 17.5, 15):
        for edit in ranked(case(*BATCH, hardware=gpu(gib))):
            if "training.gradient_accumulation_steps" in edit.settings:
                size = edit.settings["training.per_device_train_batch_size"]
                assert size * edit.settings["training.gradient_accumulation_steps"] == 8


def test_two_together_where_none_is_enough(case: Callable[..., Case]) -> None:
    # 20 GiB now; in nf4 with LoRA 4.5, of which 4 are activations.
    found = ranked(case(*BATCH, "training.max_length=1024", hardware=gpu(3)))
    together = [edit for edit in found if edit.fits]
    assert together
    assert not any(edit.fits for edit in ranked(case(*BATCH, hardware=gpu(3)))[len(together) :])
    # LoRA in bfloat16 (2 GiB) and one row at a time (1) are enough, and slow nothing down.
    keys = {"adapter.type", "training.learning_rate", "training.per_device_train_batch_size"}
    [best] = [edit for edit in together if set(edit.settings) - {"training.gradient_accumulation_steps"} == keys]
    assert best.settings["training.per_device_train_batch_size"] == 1
    assert (best.peak, best.slower) == (3 * GIB, 1)
    assert "; " in best.why
    assert [edit.slower for edit in together] == sorted(edit.slower for edit in together)


def test_together_no_more_is_taken_than_is_needed(case: Callable[..., Case]) -> None:
    found = [edit for edit in ranked(case(*BATCH, hardware=gpu(4))) if edit.fits]
    milder = [e for e in found if set(e.settings) >= {"adapter.type", "training.per_device_train_batch_size"}]
    # 2 GiB of weights leave room for two rows.
    assert {
        e.settings["training.per_device_train_batch_size"] for e in milder if "quantization.type" not in e.settings
    } == {2}


def test_three_together_where_two_are_not_enough(case: Callable[..., Case]) -> None:
    # Of 4 GiB of activations, a quarter of the length leaves 1, and recomputing or one row at a time 0.25 of that.
    found = [edit for edit in ranked(case(*BATCH, hardware=gpu(0.8))) if edit.fits]
    assert found
    for edit in found:
        assert edit.settings["quantization.type"] == "nf4"
        assert edit.why.count("; ") == 2
        assert 0.5 * GIB < edit.peak <= 0.8 * GIB


def test_nothing_is_claimed_where_nothing_helps(case: Callable[..., Case]) -> None:
    found = ranked(case(*BATCH, hardware=gpu(0.2)))
    assert found
    assert not any(edit.fits for edit in found)


def test_what_saves_nothing_is_left_out(case: Callable[..., Case]) -> None:
    # Adapters' optimizer states are nothing in this arithmetic.
    found = named(ranked(case(*BATCH, "adapter={type: lora}", hardware=gpu(30))))
    assert not any("training.optim" in override for override in found)


@pytest.mark.parametrize(
    ("overrides", "hardware", "absent"),
    [
        (("model.dtype=bfloat16",), GPU, "model.dtype"),
        ((), CATALOGUE["t4"], "model.dtype"),  # no bf16 units
        (("training.gradient_checkpointing=true",), GPU, "training.gradient_checkpointing"),
        (("training.optim=adamw_bnb_8bit",), GPU, "adamw_bnb_8bit"),
        (("adapter={type: lora}",), GPU, "adapter.type"),
        (("adapter={type: lora}", "quantization={type: nf4}"), GPU, "quantization.type"),
        (("adapter={type: lora}", "quantization={type: int8}"), GPU, "quantization.type=int8"),
        ((), CATALOGUE["m2"], "quantization.type"),  # bitsandbytes has no kernels there
        ((), CATALOGUE["m2"], "adamw_bnb_8bit"),
        (("training.per_device_train_batch_size=1",), GPU, "training.per_device_train_batch_size"),
        (("training.max_length=128",), GPU, "training.max_length"),
        ((), GPU, "training.num_generations"),  # SFT samples nothing
        ((), GPU, "training.precompute_ref_log_probs"),
    ],
)
def test_what_a_recipe_has_or_its_hardware_refuses_is_left_out(
    case: Callable[..., Case], overrides: tuple[str, ...], hardware: Hardware, absent: str
) -> None:
    found = ranked(case(*overrides, hardware=replace(hardware, memory_bytes=30 * GIB)))
    assert found
    assert not any(override.startswith(absent) or absent in override for e in found for override in e.overrides)


def test_from_8_bits_to_4(case: Callable[..., Case]) -> None:
    found = named(ranked(case("adapter={type: lora}", "quantization={type: int8}", *BATCH)))
    assert found["quantization.type=nf4"].saves == GIB // 2


def test_an_adapter_gets_ten_times_the_learning_rate(case: Callable[..., Case]) -> None:
    [edit] = [
        e
        for e in ranked(case("training.learning_rate=3e-5", *BATCH))
        if dict(e.settings).keys() == {"adapter.type", "training.learning_rate"}
    ]
    assert edit.settings["training.learning_rate"] == 3e-4


def test_the_newer_name_of_checkpointing_is_kept(recipe: Callable[..., Recipe], arithmetic: None) -> None:
    it = recipe("training.activation_checkpointing=false", "training.max_length=1024")
    found = named(ranked(Case(it, gpu(30), BILLION)))
    assert "training.activation_checkpointing=true" in found
    assert "training.gradient_checkpointing=true" not in found


def test_an_optimizer_costs_more_time_on_a_cpu_and_less_per_token(case: Callable[..., Case]) -> None:
    cpu = replace(CATALOGUE["cpu"], memory_bytes=64 * GIB)
    few = named(ranked(case(*BATCH, hardware=cpu)))["training.optim=adamw_bnb_8bit"].slower
    many = named(ranked(case(BATCH[0], "training.gradient_accumulation_steps=20", hardware=cpu)))
    # 8 rows of 1,024 tokens: 115 ns against 6 x 8,192 / 100 = 492 ns.
    assert few == pytest.approx(1 + 115 / 491.52)
    assert many["training.optim=adamw_bnb_8bit"].slower == pytest.approx(1 + (few - 1) / 10)
    assert named(ranked(case(*BATCH)))["training.optim=adamw_bnb_8bit"].slower == 1


def test_small_batches_are_slow_where_they_do_not_fill_the_device(case: Callable[..., Case]) -> None:
    long = named(ranked(case(*BATCH, hardware=gpu(17.5))))["training.gradient_accumulation_steps=8"]
    assert long.slower == 1  # one row of 1,024 tokens
    short = named(ranked(case(*BATCH, "training.max_length=256", hardware=gpu(16.3))))
    assert short["training.gradient_accumulation_steps=8"].slower == pytest.approx(1.52, abs=0.01)  # of 256
    # Rows that were too few already lose from there: two of 256 to one.
    few = ("training.per_device_train_batch_size=2", "training.max_length=256")
    [edit] = [e for e in ranked(case(*few)) if "training.per_device_train_batch_size" in e.settings]
    assert edit.slower == pytest.approx(2**0.3)


def test_several_gpus_may_divide_the_states(case: Callable[..., Case]) -> None:
    found = [edit for edit in ranked(case(*BATCH, hardware=gpu(8, count=8))) if not edit.settings]
    assert [edit.why.split()[0] for edit in found] == ["FSDP2", "ZeRO-3"]
    assert all(edit.peak == 6 * GIB and edit.fits for edit in found)  # 16 / 8 of states, 4 of activations
    assert all(edit.overrides == () for edit in found)
    packed = ranked(case("adapter={type: lora}", "quantization={type: int8}", hardware=gpu(8, count=8)))
    assert all(edit.settings for edit in packed)


def test_a_model_of_unknown_size_has_no_edits(recipe: Callable[..., Recipe], arithmetic: None) -> None:
    assert ranked(Case(recipe(), GPU, None)) == ()


def test_an_edited_recipe_is_traced_by_itself(recipe: Callable[..., Recipe], arithmetic: None) -> None:
    traced: list[Recipe] = []

    def tracer(one: Recipe) -> None:
        traced.append(one)

    it = recipe("adapter=null", "training.max_length=1024")
    ranked(Case(it, gpu(30), BILLION), tracer)
    assert {one.quantization.type if one.quantization else None for one in traced} == {None, "nf4", "int8"}


def test_the_real_estimate_is_what_decides(recipe: Callable[..., Recipe]) -> None:
    it = recipe("adapter=null", "training.max_length=512")
    case = Case(it, GPU, ModelSize(7 * 10**9, exact=False, source="by its name"))
    before = Planned(case).estimate()
    assert before is not None
    assert before.peak >= 7e9 * 16 > room(case)  # weights, gradients and two moments in 4 bytes
    found = ranked(case)
    lora = named(found)["adapter.type=lora"]
    assert lora.fits
    assert lora.peak == before.peak - lora.saves < 7e9 * 2 * 1.5
    assert [edit.fits for edit in found] == sorted((edit.fits for edit in found), reverse=True)


def test_evaluations_may_take_fewer_rows_at_once(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scored(case: Case, batch: int, **_: Any) -> Estimate:
        rows = max(getattr(evaluation, "batch_size", None) or 1 for evaluation in case.recipe.evaluation)
        return Estimate(parts={}, peaks={"train": GIB, "evaluate": rows * GIB}, exact=frozenset())

    monkeypatch.setattr(edits, "estimate", scored)
    it = recipe("evaluation=[{type: perplexity, batch_size: 8}, {type: exact_match, batch_size: 2}]")
    [edit] = ranked(Case(it, gpu(5), BILLION))
    assert edit.overrides == ("evaluation.0.batch_size=4",)
    [edit] = ranked(Case(it, gpu(1), BILLION))
    assert edit.overrides == ("evaluation.0.batch_size=1", "evaluation.1.batch_size=1")
    assert edited(it, edit.settings).evaluation[1].batch_size == 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_edit_of_a_shipped_recipe_can_be_set(path: Path, arithmetic: None) -> None:
    """`--set` makes the same recipe as the edit does, and nothing refuses it."""
    recipe = load_recipe(path)
    found: dict[tuple[str, ...], Edit] = {}
    for machine in ("cpu", "rtx4090", "t4"):
        for gib in (0.9, 3, 60):
            hardware = replace(CATALOGUE[machine], memory_bytes=math.ceil(gib * GIB / USABLE))
            found |= {edit.overrides: edit for edit in ranked(Case(recipe, hardware, BILLION))}
    assert found
    single = {overrides: edit for overrides, edit in found.items() if len(overrides) <= 3}
    for overrides, edit in single.items():
        there = load_recipe(path, overrides)
        there.method.check_recipe(there)
        mine = edited(recipe, edit.settings)
        assert mine is not None
        assert there.model_dump() == mine.model_dump()
        assert there.folder == mine.folder
