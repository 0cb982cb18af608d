"""`llmkit reproduce`: the same run again is the same to the bit, and whatever is not is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState

from llmkit.errors import RecipeError, SetupError
from llmkit.planning.plan import Plan
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.recipe import Limits, Recipe
from llmkit.runs.limits import STOPPED_FILE
from llmkit.runs.proving import reproducing
from llmkit.runs.proving.differences import compare
from llmkit.runs.proving.reproducing import Reproduced, distance, judge, reproduce

if TYPE_CHECKING:
    from conftest import Made

Writer = Callable[..., Path]


# --- real runs -------------------------------------------------------------------------------------------------------


def test_a_run_is_reproduced_to_the_bit(copied: Path) -> None:
    found = reproduce(copied)
    assert (found.verdict, found.reasons, found.steps, found.exact) == ("identical", (), 4, True)
    assert found.difference.entries == ()
    assert found.difference.b == copied.parent / "run-again"
    assert found.weights is not None
    assert found.weights.same == {"adapter_model.safetensors": True}
    assert [score.name for score in found.difference.scores][:1] == ["perplexity.loss"]
    assert (copied.parent / "run-again" / "export" / "merged").is_dir()
    assert {"loss", "grad_norm", "learning_rate"} <= set(found.difference.curves)


def test_a_part_of_a_run_is_reproduced_by_its_own_plan_and_schedule(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was cut off; on this machine the planner would now decide otherwise, and the run's plan counts."""
    now = reproducing.plan

    def other(recipe: Any) -> Plan:
        the_plan = now(recipe)
        changed = [
            replace(one, value="eager") if one.key.endswith("attn_implementation") else one
            for one in the_plan.decisions
        ]
        return replace(the_plan, decisions=tuple(changed))

    monkeypatch.setattr(reproducing, "plan", other)
    found = reproduce(made.cut, tmp_path / "again", steps=2)
    assert (found.verdict, found.reasons, found.steps) == ("identical", (), 2)
    assert found.weights is not None
    assert found.weights.of == "checkpoints/checkpoint-2"
    assert found.weights.identical
    assert found.difference.scores == ()
    assert not (tmp_path / "again" / "export").exists()
    state = json.loads((tmp_path / "again" / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["max_steps"] == 4
    assert found.difference.stages[1] == "ended after step 2 of 4"


def noise(size: float) -> Callable[..., Any]:
    """Return a training step whose gradients are off by chance, relative to themselves."""
    import torch
    from transformers import Trainer

    step = Trainer.training_step
    chance = torch.Generator().manual_seed(1)

    def training_step(self: Trainer, model: Any, *arguments: Any, **options: Any) -> Any:
        loss = step(self, model, *arguments, **options)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= 1 + size * torch.randn(parameter.grad.shape, generator=chance)
        return loss

    return training_step


@pytest.mark.parametrize(("size", "verdict"), [(1e-6, "close"), (2.0, "different")])
def test_chance_that_no_seed_governs_is_found(
    size: float, verdict: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.Trainer.training_step", noise(size))
    found = reproduce(made.finished, tmp_path / "again", steps=3)
    assert found.verdict == verdict
    assert found.exact  # that is: something is wrong with it
    assert found.weights is None  # the run has no checkpoint of step 3
    assert found.difference.curves["grad_norm"].parts() == 1
    assert found.difference.curves["loss"].a[1] == found.difference.curves["loss"].b[1]
    if verdict == "different":
        assert any(reason.startswith("grad_norm is ") for reason in found.reasons)
    else:
        assert 0 < found.difference.curves["grad_norm"].largest < 1e-3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run, home: (home / "rows.jsonl").write_text("{}"), r"rows\.jsonl has changed"),
        (lambda run, home: (home / "rows.py").unlink(), r"rows\.py is missing"),
        (lambda run, home: (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0}'), r"metrics\.jsonl has changed"),
        (lambda run, home: shutil.rmtree(run / "model"), r"model is missing"),
    ],
)
def test_what_has_changed_is_not_reproduced(
    damage: Callable[[Path, Path], object], message: str, made: Made, copied: Path
) -> None:
    kept = {name: (made.home / name).read_text() for name in ("rows.jsonl", "rows.py")}
    try:
        damage(copied, made.home)
        with pytest.raises(SetupError, match=message) as caught:
            reproduce(copied)
    finally:
        for name, text in kept.items():
            (made.home / name).write_text(text)
    assert "llmkit verify" in str(caught.value.remedy)
    assert not (copied.parent / "run-again").exists()


def test_a_run_that_a_limit_ended_is_ended_at_its_step_whatever_the_hours(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A faster machine would take more steps in the hours, and a slower one fewer."""
    (copied / STOPPED_FILE).write_text(json.dumps({"by": "limits.hours", "step": 3}), encoding="utf-8")
    limited = replace_limits(load_recipe, Limits(hours=1e-9))
    started: list[tuple[Recipe, tuple[Any, ...]]] = []

    def run(recipe: Recipe, *, callbacks: tuple[Any, ...], **_: Any) -> Any:
        started.append((recipe, callbacks))
        return SimpleNamespace(folder=copied)

    monkeypatch.setattr(reproducing, "load_recipe", limited)
    monkeypatch.setattr(reproducing, "run", run)
    assert reproduce(copied, copied.parent / "again").difference.scores
    assert reproduce(copied, copied.parent / "again", steps=2).difference.scores == ()
    assert reproduce(copied, copied.parent / "again", steps=4).passed
    assert [ends_at(callback) for _, [callback] in started] == [3, 2, 3]
    assert [recipe.limits for recipe, _ in started] == [Limits()] * 3
    assert [bool(recipe.evaluation) for recipe, _ in started] == [True, False, False]


def replace_limits(load: Callable[[Path], Recipe], limits: Limits) -> Callable[[Path], Recipe]:
    return lambda path: load(path).model_copy(update={"limits": limits})


def ends_at(callback: TrainerCallback) -> int:
    """Return the first step after which a callback ends training."""
    for step in range(1, 10):
        control = TrainerControl()
        callback.on_step_end(cast("Any", None), TrainerState(global_step=step), control)
        if control.should_training_stop:
            return step
    return 0


def test_steps_are_counted_from_one(copied: Path) -> None:
    with pytest.raises(RecipeError, match="steps from 1 on"):
        reproduce(copied, steps=0)


# --- the verdict, by hand --------------------------------------------------------------------------------------------

STEP = {"step": 1, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1, "clip_ratio/low_min": 0.0}
CPU = {"hardware": {"kind": "cpu"}}


def judged(a: Path, b: Path, **options: Any) -> Reproduced:
    return judge(compare(a, b), **options)


@pytest.mark.parametrize(
    ("change", "verdict", "said"),
    [
        ({}, "identical", ""),
        ({"loss": 2.0000001}, "close", ""),
        ({"loss": 2.1}, "different", "loss is 2 at step 1, and 2.1 in the reproduction"),
        ({"grad_norm": float("nan")}, "different", "grad_norm is 1 at step 1, and nan"),
        ({"learning_rate": 0.1 + 1e-15}, "close", ""),
        ({"learning_rate": 0.1001}, "different", "learning_rate is 0.1 at step 1, and 0.1001"),
        ({"clip_ratio/low_min": 1.0}, "close", ""),
    ],
)
def test_verdicts_of_curves(change: dict[str, float], verdict: str, said: str, by_hand: Writer) -> None:
    found = judged(by_hand("a", STEP, plan=CPU), by_hand("b", {**STEP, **change}, plan=CPU))
    assert found.verdict == verdict
    assert said in " ".join(found.reasons)
    assert found.passed == (verdict != "different")


def test_the_tolerance_can_be_chosen(by_hand: Writer) -> None:
    a, b = by_hand("a", STEP), by_hand("b", {**STEP, "loss": 2.1})
    assert judged(a, b, tolerance=0.1).verdict == "close"
    assert judged(a, b, tolerance=0.01).verdict == "different"


def test_a_step_that_is_not_taken_again_is_different(by_hand: Writer) -> None:
    a, b = by_hand("a", STEP, {**STEP, "step": 2}), by_hand("b", STEP)
    assert judged(a, b).reasons == ("step 2 of the run was not logged again",)
    assert judged(a, b, steps=1).verdict == "identical"
    assert judged(b, a).verdict == "identical"  # an unfinished run
    assert judged(by_hand("c"), a).reasons == ("no step was logged by both",)


def test_scores_count_where_the_run_has_some(by_hand: Writer) -> None:
    def scored(value: float) -> list[Any]:
        return [{"evaluation": {"type": "f1"}, "base": {"metrics": {"f1": 0.5}}, "tuned": {"metrics": {"f1": value}}}]

    a, b = by_hand("a", STEP, evaluation=scored(0.8)), by_hand("b", STEP, evaluation=scored(0.7))
    none = by_hand("c", STEP)
    assert judged(a, b).reasons == ("f1.f1 of the tuned model is 0.8, and 0.7 in the reproduction",)
    assert judged(none, a).verdict == "close"
    assert judged(a, none).verdict == "different"
    assert judged(a, none, steps=1).verdict == "identical"


def test_limits_are_no_difference(by_hand: Writer) -> None:
    a = by_hand("a", STEP, plan=CPU, resolved="limits.hours: 1.0  # r.yaml:1\n", lock={"code": {"rewards.py": "1"}})
    b = by_hand("b", STEP, plan=CPU, resolved="limits: {}  # r.yaml:1\n", lock={"code": {"rewards.py": "2"}})
    for steps in (None, 1):
        found = judged(a, b, steps=steps)
        assert found.exact
        assert [entry.key for entry in found.difference.entries] == ["rewards.py"]


def test_other_inputs_are_no_reproduction_and_other_versions_lower_what_to_expect(by_hand: Writer) -> None:
    a = by_hand("a", STEP, plan=CPU, lock={"rows": {"train": "1"}, "packages": {"torch": "1"}})
    b = by_hand("b", STEP, plan=CPU, lock={"rows": {"train": "2"}, "packages": {"torch": "1"}})
    assert judged(a, b).reasons == ("rows: train is another one",)
    c = by_hand("c", STEP, plan=CPU, lock={"rows": {"train": "1"}, "packages": {"torch": "2"}})
    assert (judged(a, c).verdict, judged(a, c).exact) == ("identical", False)
    gpu = {"hardware": {"kind": "cuda"}}
    assert not judged(by_hand("d", STEP, plan=gpu), by_hand("e", STEP, plan=gpu)).exact


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_compared_by_bytes_and_by_distance(by_hand: Writer) -> None:
    import torch
    from safetensors.torch import save_file

    a, b = by_hand("a", STEP), by_hand("b", STEP)
    for folder, value in ((a, 3.0), (b, 3.3)):
        (folder / "model").mkdir()
        save_file(
            {"x": torch.tensor([value, 4.0]), "n": torch.zeros(2, dtype=torch.int64)},
            folder / "model" / "w.safetensors",
        )
    found = judged(a, b)
    assert found.verdict == "close"
    assert found.weights is not None
    assert found.weights.same == {"w.safetensors": False}
    assert found.weights.apart == pytest.approx(0.3 / 5)
    save_file({"y": torch.zeros(1)}, b / "model" / "w.safetensors")
    assert distance(a / "model", b / "model") is None
    (b / "model" / "w.safetensors").write_bytes(b"cut off")
    assert distance(a / "model", b / "model") is None
    (b / "model" / "w.safetensors").unlink()
    assert judged(a, b).verdict == "close"
