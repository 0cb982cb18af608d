"""What may have changed when a run goes on, which decisions it goes on with, and what is said; nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmkit.errors import RecipeError, SetupError
from llmkit.planning.hardware import CATALOGUE, GIB, Hardware
from llmkit.planning.plan import Decision, Plan
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.recipe import Recipe
from llmkit.runs.folder import RunFolder, environment
from llmkit.runs.recovery.manifest import write_manifest
from llmkit.runs.recovery.resuming import as_planned, require_same_recipe, train_on

Maker = Callable[..., Recipe]
CPU = Hardware("cpu", "a CPU", 1, 16 * GIB, 8, bf16=True)
DECIDED: dict[str, Any] = {
    "hardware.device": "cpu",
    "hardware.threads": 8,
    "model.dtype": "float32",
    "model.attn_implementation": "sdpa",
    "adapter.target_modules": "all-linear",
    "training.use_cpu": True,
    "training.bf16": True,
    "training.gradient_accumulation_steps": 4,
    "training.train_sampling_strategy": "group_by_length",
    "training.logging_steps": 1,
    "training.dataloader_pin_memory": False,
}


def planned(hardware: Hardware = CPU, **changed: Any) -> Plan:
    """Return a plan with the decisions above, some of them other ones; a decision of None is left out."""
    values = {**DECIDED, **{key.replace("__", "."): value for key, value in changed.items()}}
    decisions = tuple(Decision(key, value, "a reason") for key, value in values.items() if value is not None)
    return Plan(hardware, None, decisions)


def run_of(recipe: Recipe, path: Path, plan: Plan | None = None) -> RunFolder:
    """Write what `--resume` looks at of a run with `recipe`."""
    path.mkdir()
    folder = RunFolder(path)
    folder.write_text("recipe.yaml", recipe.written)
    folder.write_json("plan.json", (plan or planned()).to_dict())
    folder.write_json("lock.json", {**environment(), "folder": str(recipe.folder)})
    return folder


def checkpoint(folder: RunFolder, step: int, epoch: float = 0.5) -> None:
    place = folder.checkpoints / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": epoch}))
    write_manifest(place)


# --- The recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ((), []),
        (("limits.hours=2", "stability.on_nan=skip"), ["limits.hours", "stability.on_nan"]),
        (("checkpoints.keep={last: 3, every: 10}",), ["checkpoints.keep.last", "checkpoints.keep.every"]),
        (("evaluation=[{type: perplexity}]", "export=[{type: merged}]"), ["evaluation", "export"]),
        (("training.logging_steps=5", "training.save_steps=2"), ["training.logging_steps", "training.save_steps"]),
        (("training.report_to=[tensorboard]", "training.run_name=mine"), ["training.report_to", "training.run_name"]),
        (("training.max_steps=9",), ["training.max_steps"]),
        # What was decided for a key that was left out, or what it stands for in the library, may be written down.
        (("training.bf16=true", "training.gradient_accumulation_steps=4"), None),
        (("training.seed=42", "model.dtype=float32", "adapter.target_modules=all-linear"), []),
        (("model.revision=null", "data.audit.rows=20000", "training.weight_decay=0.0"), []),
    ],
)
def test_what_changes_no_step_may_change_and_is_said(
    recipe: Maker, tmp_path: Path, overrides: tuple[str, ...], told: list[str] | None
) -> None:
    # The recipe of the fixture sets the accumulation itself.
    folder = run_of(recipe("training.gradient_accumulation_steps=4"), tmp_path / "run")
    said: list[str] = []
    require_same_recipe(folder, recipe("training.gradient_accumulation_steps=4", *overrides), said.append)
    keys = [line.split("`")[1] for line in said if line.startswith("`")]
    assert sorted(keys) == sorted(told or [])
    for line in said:
        assert "was " in line or "schedule" in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.learning_rate=1e-3", "`training.learning_rate`: was 0.01, is 0.001"),
        ("training.seed=7", "`training.seed`: was 42, is 7"),
        ("training.bf16=false", "`training.bf16`: was true, is false"),
        ("training.max_length=null", "`training.max_length`: was 1024, is null"),
        ("adapter.r=8", "`adapter.r`: was 4, is 8"),
        ("adapter=null", '`adapter`: was {"type": "lora", "r": 4}, is null'),
        ("method.type=dpo", '`method.type`: was "sft", is "dpo"'),
        ("data.train.0.format=text", '`data.train.0.format`: was "messages", is "text"'),
        ("data.eval=0.5", "`data.eval`: was 0.25, is 0.5"),
        ("model.revision=main", '`model.revision`: was null, is "main"'),
        ("hardware.device=auto", None),
        ("training.eval_strategy=steps", '`training.eval_strategy`: was "no", is "steps"'),
        ("training.warmup_steps=2", "`training.warmup_steps`: was 0, is 2"),
    ],
)
def test_what_changes_a_step_is_refused_with_its_place(
    recipe: Maker, tmp_path: Path, override: str, said: str | None
) -> None:
    folder = run_of(recipe(), tmp_path / "run")
    if said is None:  # the device is the one that was found then
        require_same_recipe(folder, recipe(override), lambda text: None)
        return
    with pytest.raises(RecipeError, match="the recipe differs from the one that .*run was started with") as caught:
        require_same_recipe(folder, recipe(override, "training.max_steps=99"), lambda text: None)
    assert f"--set {override}: {said}" in caught.value.what
    assert "max_steps" not in caught.value.what, "what may change is no reason"
    assert "training.max_steps" in str(caught.value.remedy)
    assert "limits" in str(caught.value.remedy)


def test_every_difference_is_told_with_its_line(recipe: Maker, recipe_file: Path, tmp_path: Path) -> None:
    folder = run_of(recipe(), tmp_path / "run")
    text = recipe_file.read_text().replace("learning_rate: 1.0e-2", "learning_rate: 3.0e-2").replace("r: 4", "r: 8")
    recipe_file.write_text("# A line more\n" + text)
    with pytest.raises(RecipeError) as caught:
        require_same_recipe(folder, load_recipe(recipe_file), lambda text: None)
    lines = caught.value.what.splitlines()[1:]
    numbers = {word: n for n, line in enumerate(recipe_file.read_text().splitlines(), 1) for word in line.split()}
    assert sorted(lines) == sorted(
        [
            f"  {recipe_file}:{numbers['learning_rate:']}: `training.learning_rate`: was 0.01, is 0.03",
            f"  {recipe_file}:{numbers['adapter:']}: `adapter.r`: was 4, is 8",
        ]
    )


def test_comments_and_the_order_of_keys_are_no_difference(recipe: Maker, recipe_file: Path, tmp_path: Path) -> None:
    folder = run_of(recipe(), tmp_path / "run")
    lines = recipe_file.read_text().splitlines()
    moved = [*lines[1:], "", "# the end", "stability: {on_nan: stop}"]
    recipe_file.write_text("\n".join(moved) + "\n")
    said: list[str] = []
    require_same_recipe(folder, load_recipe(recipe_file), said.append)
    assert said == []


def test_passwords_are_compared_and_told_as_the_run_folder_has_them(recipe: Maker, tmp_path: Path) -> None:
    def secret(path: str) -> Recipe:
        """Made in Python: a file with a password in it is refused."""
        plain = recipe()
        values = plain.model_dump(exclude_unset=True, mode="json")
        values["data"]["train"][0]["options"] = {"url": f"https://me:hunter2hunter2@host/{path}"}
        return Recipe.model_validate(values).placed(plain.folder, json.dumps(values))

    folder = run_of(secret("a"), tmp_path / "run")
    assert "hunter2" not in (folder.path / "recipe.yaml").read_text()
    require_same_recipe(folder, secret("a"), lambda text: None)
    with pytest.raises(RecipeError, match="data.train.0.options") as caught:
        require_same_recipe(folder, secret("b"), lambda text: None)
    assert "hunter2" not in caught.value.what.split(": `", 1)[1]


def test_fewer_steps_than_were_taken_are_refused(recipe: Maker, tmp_path: Path) -> None:
    folder = run_of(recipe("training.max_steps=9"), tmp_path / "run")
    checkpoint(folder, 4)
    require_same_recipe(folder, recipe("training.max_steps=4"), lambda text: None)
    with pytest.raises(RecipeError, match=r"`training.max_steps` is 3, and .*run has learnt for 4 steps already") as e:
        require_same_recipe(folder, recipe("training.max_steps=3"), lambda text: None)
    assert e.value.where == "--set training.max_steps=3"
    # A checkpoint that is damaged counts for nothing.
    checkpoint(folder, 8)
    (folder.checkpoints / "checkpoint-8" / "trainer_state.json").write_text("{")
    require_same_recipe(folder, recipe("training.max_steps=5"), lambda text: None)


def test_fewer_epochs_than_were_taken_are_refused(recipe: Maker, tmp_path: Path) -> None:
    epochs = ("training.max_steps=-1",)
    folder = run_of(recipe(*epochs, "training.num_train_epochs=4"), tmp_path / "run")
    checkpoint(folder, 12, epoch=2.5)
    require_same_recipe(folder, recipe(*epochs, "training.num_train_epochs=2.5"), lambda text: None)
    with pytest.raises(RecipeError, match=r"`training.num_train_epochs` is 2, and .* has learnt for 2.50 epochs"):
        require_same_recipe(folder, recipe(*epochs, "training.num_train_epochs=2"), lambda text: None)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ((), True),
        (("training.lr_scheduler_type=cosine",), True),
        (("training.lr_scheduler_type=constant",), False),
        (("training.lr_scheduler_type=constant_with_warmup", "training.warmup_steps=2"), False),
        (("training.lr_scheduler_type=constant_with_warmup", "training.warmup_steps=0.1"), True),
    ],
)
def test_a_schedule_that_depends_on_the_steps_is_told(
    recipe: Maker, tmp_path: Path, schedule: tuple[str, ...], told: bool
) -> None:
    folder = run_of(recipe(*schedule), tmp_path / "run")
    said: list[str] = []
    require_same_recipe(folder, recipe(*schedule, "training.max_steps=50"), said.append)
    assert any("schedule of the new number of steps" in line for line in said) == told
    assert any("`training.max_steps`: was 3, is 50 (--set training.max_steps=50)" in line for line in said)


# --- The plan --------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_as_it_was_planned(recipe: Maker, tmp_path: Path) -> None:
    folder = run_of(recipe(), tmp_path / "run", planned(training__torch_compile=True))
    said: list[str] = []
    other = planned(
        replace(CPU, cpu_cores=2, bf16=False, memory_bytes=4 * GIB),
        hardware__threads=2,
        training__bf16=False,
        training__gradient_accumulation_steps=16,
        training__logging_steps=None,  # set by the recipe now
        training__max_grad_norm=3.0,  # not decided then
    )
    found = as_planned(folder, other, said.append)
    assert found.hardware == other.hardware
    assert found["hardware.threads"] == 2
    assert found["training.bf16"] is True
    assert found["training.gradient_accumulation_steps"] == 4
    assert found["training.torch_compile"] is True
    assert found.get("training.logging_steps") is None
    assert found.get("training.max_grad_norm") is None
    assert any("started with 8 CPU threads, and going on with 2" in line and "last bits" in line for line in said)
    assert any("less memory" in line for line in said)
    assert any("bfloat16, which is slow here" in line for line in said)
    assert len(said) == 3


def test_on_the_same_machine_nothing_is_said(recipe: Maker, tmp_path: Path) -> None:
    folder = run_of(recipe(), tmp_path / "run")
    said: list[str] = []
    found = as_planned(folder, planned(), said.append)
    assert said == []
    assert {d.key: d.value for d in found.decisions} == DECIDED


def test_another_device_is_said_and_takes_its_own_decisions(recipe: Maker, tmp_path: Path) -> None:
    folder = run_of(recipe(), tmp_path / "run")
    said: list[str] = []
    gpu = planned(
        CATALOGUE["a100-80gb"],
        hardware__device="cuda",
        training__use_cpu=None,
        training__dataloader_pin_memory=None,
        training__use_liger_kernel=False,
        training__gradient_accumulation_steps=1,
    )
    found = as_planned(folder, gpu, said.append)
    assert found["hardware.device"] == "cuda"
    assert found.get("training.use_cpu") is None
    assert found.get("training.dataloader_pin_memory") is None
    assert found["training.use_liger_kernel"] is False
    assert found["training.gradient_accumulation_steps"] == 4
    (line,) = said
    assert "started on a CPU (cpu), and going on on NVIDIA A100-SXM4-80GB (cuda)" in line


def test_other_versions_are_said(recipe: Maker, tmp_path: Path) -> None:
    folder = run_of(recipe(), tmp_path / "run")
    packages = {**environment()["packages"], "torch": "1.0"}
    folder.update_lock(packages=packages)
    said: list[str] = []
    as_planned(folder, planned(), said.append)
    (line,) = said
    assert "torch 1.0 -> " in line


@pytest.mark.parametrize(
    ("decision", "hardware", "lacks"),
    [
        ({"model__attn_implementation": "flash_attention_2"}, CPU, "`flash_attention_2`"),
        ({"training__fp16": True}, CPU, "float16 with loss scaling"),
        ({"training__bf16": True}, replace(CATALOGUE["m2"], bf16=False), "bfloat16"),
        ({"model__dtype": "bfloat16", "training__bf16": False}, replace(CATALOGUE["m2"], bf16=False), "bfloat16"),
        ({"training__use_vllm": True}, CPU, "vLLM"),
    ],
)
def test_what_this_device_can_not_do_is_refused(
    recipe: Maker, tmp_path: Path, decision: dict[str, Any], hardware: Hardware, lacks: str
) -> None:
    folder = run_of(recipe(), tmp_path / "run", planned(**decision))
    with pytest.raises(SetupError, match="which is not to be had here") as caught:
        as_planned(folder, planned(hardware), lambda text: None)
    assert f"was planned with {lacks}, which" in caught.value.what
    assert "model.name" in str(caught.value.remedy)


# --- The training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("done", "trained"), [(2, True), (3, False), (4, False)])
def test_a_run_at_its_end_takes_no_step_more(tmp_path: Path, done: int, trained: bool) -> None:
    from transformers import TrainerState

    place = tmp_path / f"checkpoint-{done}"
    place.mkdir()
    TrainerState(global_step=done, max_steps=3).save_to_json(str(place / "trainer_state.json"))
    calls: list[str] = []
    trainer = SimpleNamespace(
        args=SimpleNamespace(load_best_model_at_end=False),
        control=None,
        state=None,
        callback_handler=SimpleNamespace(on_train_end=lambda args, state, control: calls.append("end")),
        get_train_dataloader=lambda: None,
        set_initial_training_values=lambda args, loader: (1, 5, 0, 0, 0, 0, 3),
        train=lambda resume_from_checkpoint=None: calls.append(f"train {resume_from_checkpoint}"),
        _load_from_checkpoint=lambda path: calls.append(f"load {path}"),
    )
    train_on(cast(Any, trainer), place)
    assert calls == ([f"train {place}"] if trained else [f"load {place}", "end"])
    assert trained or cast(Any, trainer.state).global_step == done
    calls.clear()
    train_on(cast(Any, trainer), None)
    assert calls == ["train None"]
