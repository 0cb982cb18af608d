"""Checkpoints of a tiny run: whole, checked, pruned; what is damaged, and what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from llmkit.errors import RunError
from llmkit.recipe.recipe import Keep, Recipe
from llmkit.runs.prepare import Prepared, prepare
from llmkit.runs.recovery.checkpoints import Checkpoints, kept
from llmkit.runs.recovery.contents import Contents, contents_of, has_learnt
from llmkit.runs.recovery.manifest import faults, write_manifest
from llmkit.runs.recovery.resuming import train_on

Maker = Callable[..., Recipe]
EACH_STEP = ("training.save_steps=1", "training.save_strategy=steps", "training.bf16=false", "model.dtype=float32")


def started(recipe: Recipe, folder: Path, keep: Keep | None = None) -> tuple[Prepared, Checkpoints, list[str]]:
    """Return a prepared run whose checkpoints go to `folder`."""
    said: list[str] = []
    prepared = prepare(recipe, output_dir=folder)
    checkpoints = Checkpoints(folder, keep or Keep(), said.append)
    checkpoints.attach(prepared.trainer)
    return prepared, checkpoints, said


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


# --- What stays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        ({"last": 1}, {9}),
        ({"last": 2}, {8, 9}),
        ({"last": 1, "best": 1}, {3, 9}),
        ({"last": 1, "best": 2}, {3, 6, 9}),  # 6 and 4 scored the same: the newer one
        ({"last": 1, "every": 4}, {4, 8, 9}),
        ({"last": 3, "best": 2, "every": 5}, {3, 5, 6, 7, 8, 9}),
        ({"last": 99}, set(range(1, 10))),
    ],
)
def test_which_stay_is_worked_out_by_hand(keep: dict[str, int], stay: set[int]) -> None:
    scores = {3: -0.5, 4: -0.7, 6: -0.7, 7: -0.9, 11: 5.0}
    assert kept(range(1, 10), scores, Keep(**keep)) == stay


def test_a_run_keeps_its_last_and_its_best_checkpoints_whole(recipe: Maker, tmp_path: Path) -> None:
    out = tmp_path / "checkpoints"
    evaluated = ("training.eval_strategy=steps", "training.eval_steps=1", "training.load_best_model_at_end=true")
    # The loss of the held-out rows falls: where the highest is the best one, that is the first.
    upside_down = ("training.max_steps=5", "training.metric_for_best_model=loss", "training.greater_is_better=true")
    settings = recipe(*EACH_STEP, *evaluated, *upside_down)
    prepared, checkpoints, said = started(settings, out, Keep(last=1, best=1, every=2))
    checkpoints.also.append(lambda folder: (folder / "tokens.json").write_text('{"tokens": 5}') and None)
    prepared.trainer.train()
    checkpoints.wait()
    state = prepared.trainer.state
    losses = {e["step"]: e["eval_loss"] for e in state.log_history if "eval_loss" in e}
    best = max(losses, key=lambda step: losses[step])
    assert best == 1, "else this shows nothing"
    assert names(out) == sorted({f"checkpoint-{step}" for step in (2, 4, 5, best)})
    assert not (out / ".writing").exists()
    for path in out.glob("checkpoint-*"):
        assert faults(path) == []
        assert not (path / "training_args.bin").exists(), "a pickle"
        assert "tokens.json" in json.loads((path / "manifest.json").read_text())["files"]
        named = json.loads((path / "trainer_state.json").read_text())["best_model_checkpoint"]
        assert Path(named).parent == out
    assert state.best_model_checkpoint == str(out / f"checkpoint-{best}")
    # What transformers has loaded at the end.
    saved = load_file(out / f"checkpoint-{best}" / "adapter_model.safetensors")
    for name, tensor in saved.items():
        ours = prepared.model.get_parameter(name.replace(".weight", ".default.weight"))
        assert ours.detach().equal(tensor)
    assert checkpoints.last() == out / "checkpoint-5"
    assert said == []


def test_a_metric_that_is_not_computed_is_named(recipe: Maker, tmp_path: Path) -> None:
    evaluated = ("training.eval_strategy=steps", "training.eval_steps=1", "training.max_steps=1")
    prepared, checkpoints, _ = started(recipe(*EACH_STEP, *evaluated), tmp_path / "out", Keep(best=1))
    prepared.trainer.args.metric_for_best_model = "bleu"
    prepared.trainer._determine_best_metric = lambda metrics, trial: False
    with pytest.raises(RunError, match="keep.best`: evaluation while training gives no bleu") as caught:
        prepared.trainer.train()
    assert "loss" in str(caught.value.remedy)
    checkpoints.wait()


def test_where_the_best_step_was_not_saved_the_best_one_that_was_is_loaded(recipe: Maker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluated = ("training.eval_strategy=steps", "training.eval_steps=1", "training.load_best_model_at_end=true")
    settings = (*EACH_STEP, *evaluated, "training.save_steps=2", "training.max_steps=4")

    def scored(keep: Keep) -> Prepared:
        prepared, _, _ = started(recipe(*settings), out, keep)
        trainer: Any = prepared.trainer
        plain = trainer.evaluate

        def evaluate(*args: Any, **kwargs: Any) -> Any:
            loss = {1: 5.0, 2: 3.0, 3: 1.0, 4: 2.0}[trainer.state.global_step]
            return {**plain(*args, **kwargs), "eval_loss": loss}

        trainer.evaluate = evaluate
        return prepared

    def require_loaded(prepared: Prepared) -> None:
        assert prepared.trainer.state.best_model_checkpoint == str(out / "checkpoint-2")
        for name, tensor in load_file(out / "checkpoint-2" / "adapter_model.safetensors").items():
            ours = prepared.model.get_parameter(name.replace(".weight", ".default.weight"))
            assert ours.detach().equal(tensor)

    first = scored(Keep(last=1))
    first.trainer.train()
    assert first.trainer.state.best_global_step == 3, "else this shows nothing"
    assert names(out) == ["checkpoint-2", "checkpoint-4"]
    require_loaded(first)
    # The same where only the end is left.
    ended = scored(Keep(last=1))
    train_on(ended.trainer, out / "checkpoint-4")
    require_loaded(ended)


def test_a_resumed_run_has_had_its_first_evaluation_and_a_moved_one_knows_its_best(
    recipe: Maker, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluated = ("training.eval_strategy=steps", "training.eval_steps=2", "training.eval_on_start=true")
    prepared, checkpoints, _ = started(recipe(*EACH_STEP, *evaluated, "training.max_steps=2"), out, Keep(last=9))
    prepared.trainer.train()
    checkpoints.wait()
    # As if step 1 had been the best one of those that were saved, before the folder was moved.
    place = out / "checkpoint-2" / "trainer_state.json"
    state = json.loads(place.read_text())
    place.write_text(json.dumps({**state, "best_model_checkpoint": "/gone/checkpoint-1", "best_global_step": 99}))
    prepared, checkpoints, _ = started(recipe(*EACH_STEP, *evaluated, "training.max_steps=3"), out, Keep(last=9))
    prepared.trainer.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    checkpoints.wait()
    assert prepared.trainer.state.best_model_checkpoint == str(out / "checkpoint-1")
    entries = [entry["step"] for entry in prepared.trainer.state.log_history if "eval_loss" in entry]
    assert entries == [0, 2, 3]


# --- What is damaged -------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder of three checkpoints that are none of a model, each with its manifest."""
    for step in (2, 4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(bytes(100 + step))
        write_manifest(tmp_path / f"checkpoint-{step}")
    return tmp_path


def test_the_newest_whole_one_is_the_last(made: Path) -> None:
    said: list[str] = []
    (made / "checkpoint-5.backup").mkdir()
    (made / ".writing" / "checkpoint-12").mkdir(parents=True)
    assert Checkpoints(made, Keep(), said.append).last() == made / "checkpoint-10"
    assert said == []
    os.truncate(made / "checkpoint-10" / "model.safetensors", 50)
    checkpoints = Checkpoints(made, Keep(), said.append)
    assert checkpoints.last() == made / "checkpoint-4"
    assert said == [
        "checkpoint-10 is damaged, and the one before it is used: model.safetensors has 50 bytes instead of 110"
    ]
    assert checkpoints.last() == made / "checkpoint-4"
    assert len(said) == 1, "said once"
    assert (made / "checkpoint-10").is_dir()


def test_without_a_whole_one_there_is_no_last(made: Path) -> None:
    said: list[str] = []
    for step in (2, 4, 10):
        (made / f"checkpoint-{step}" / "manifest.json").unlink()
    assert Checkpoints(made, Keep(), said.append).last() is None
    assert len(said) == 3
    assert Checkpoints(made / "nothing", Keep(), said.append).last() is None


def test_what_a_kill_leaves_is_removed_and_a_damaged_one_is_replaced(recipe: Maker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = (*EACH_STEP, "training.max_steps=3")
    prepared, checkpoints, _ = started(recipe(*settings), out, Keep(last=9))
    prepared.trainer.train()
    checkpoints.wait()
    whole = (out / "checkpoint-3" / "adapter_model.safetensors").read_bytes()
    (out / "checkpoint-3" / "adapter_model.safetensors").write_bytes(whole[:-1])
    half = out / ".writing" / "checkpoint-3"
    half.mkdir(parents=True)
    (half / "adapter_model.safetensors").write_bytes(b"half of it")

    prepared, checkpoints, said = started(recipe(*settings), out, Keep(last=9))
    assert not (out / ".writing").exists()
    found = checkpoints.last()
    assert found == out / "checkpoint-2"
    assert "checkpoint-3 is damaged" in said[0]
    prepared.trainer.train(resume_from_checkpoint=str(found))
    # Once more at a step that has a checkpoint: a signal may come with the step that is saved anyway.
    prepared.trainer._save_checkpoint(prepared.model, trial=None)
    checkpoints.wait()
    assert checkpoints.last() == out / "checkpoint-3"
    assert faults(out / "checkpoint-3") == []
    assert (out / "checkpoint-3" / "adapter_model.safetensors").read_bytes() == whole
    assert names(out) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_a_checkpoint_that_is_replaced_is_only_removed_afterwards(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = made / ".writing" / "checkpoint-10"
    beside.mkdir(parents=True)
    (beside / "model.safetensors").write_bytes(b"new")

    def killed(path: Path, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmkit.runs.recovery.checkpoints.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        Checkpoints(made, Keep(), print)._put(beside)
    assert (made / "checkpoint-10" / "model.safetensors").read_bytes() == b"new"


# --- What was written is looked at -----------------------------------------------------------------------------------


def shortened(folder: Path, file: str) -> None:
    """Write the file again without its last tensor, as if the writer had lost it."""
    tensors = load_file(folder / file)
    tensors.popitem()
    save_file(tensors, folder / file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("adapter", "file", "damage"),
    [
        ("adapter.r=4", "adapter_model.safetensors", "lost"),
        ("adapter=null", "model.safetensors", "lost"),
        ("adapter.r=4", "adapter_model.safetensors", "cut"),
    ],
)
def test_a_checkpoint_that_lacks_something_is_never_put_in_its_place(
    recipe: Maker, tmp_path: Path, adapter: str, file: str, damage: str
) -> None:
    out = tmp_path / "out"
    prepared, checkpoints, _ = started(recipe(*EACH_STEP, adapter, "training.max_steps=3"), out)
    save = prepared.trainer._save

    def save_badly(output_dir: str, state_dict: Any = None) -> None:
        save(output_dir, state_dict)
        if output_dir.endswith("checkpoint-2"):
            if damage == "lost":
                shortened(Path(output_dir), file)
            else:
                os.truncate(Path(output_dir) / file, (Path(output_dir) / file).stat().st_size - 8)

    prepared.trainer._save = save_badly
    message = "1 of .* tensors are missing" if damage == "lost" else "can't be opened again"
    with pytest.raises(RunError, match=f"checkpoint-2 was not written as it should be: .*{message}"):
        prepared.trainer.train()  # told by the save of the third step
    checkpoints.wait()
    assert names(out) == ["checkpoint-1"]


def test_an_adapter_that_is_all_zero_stops_the_run(recipe: Maker, tmp_path: Path) -> None:
    prepared, checkpoints, _ = started(recipe(*EACH_STEP, "training.max_steps=2"), tmp_path / "out")
    contents = contents_of(prepared.trainer)
    assert contents.zero, "LoRA's B begins as zeros"
    assert all("lora_B" in name for name in contents.zero)
    step = prepared.trainer.create_optimizer

    def without_effect(model: Any = None) -> Any:
        optimizer = step(model)
        optimizer.step = lambda *args, **kwargs: None
        return optimizer

    prepared.trainer.create_optimizer = without_effect
    with pytest.raises(RunError, match="the adapter in checkpoint-1 is all zero: its gradients were not"):
        prepared.trainer.train()
    checkpoints.wait()
    assert names(tmp_path / "out") == []


def test_a_warm_up_that_begins_with_a_rate_of_zero_is_no_fault(recipe: Maker, tmp_path: Path) -> None:
    settings = ("training.max_steps=2", "training.warmup_steps=2", "training.lr_scheduler_type=linear")
    prepared, checkpoints, _ = started(recipe(*EACH_STEP, *settings), tmp_path / "out")
    prepared.trainer.train()
    checkpoints.wait()
    first = load_file(tmp_path / "out" / "checkpoint-1" / "adapter_model.safetensors")
    assert not any(tensor.any() for name, tensor in first.items() if "lora_B" in name), "else this shows nothing"
    assert has_learnt(prepared.trainer)
    assert names(tmp_path / "out") == ["checkpoint-1", "checkpoint-2"]


def test_tensors_under_other_names_are_counted(tmp_path: Path) -> None:
    import torch

    names = (frozenset({"a", "b"}), frozenset({"c"}))
    contents = Contents("model*.safetensors", names, {"a": (2, 3), "b": (2, 3), "c": (4,)}, trained=10)
    save_file({"a": torch.ones(2, 3), "c": torch.ones(4)}, tmp_path / "model.safetensors")
    contents.check(tmp_path, learnt=True)
    save_file({"joined": torch.ones(10)}, tmp_path / "model.safetensors")
    contents.check(tmp_path, learnt=True)
    save_file({"joined": torch.ones(9)}, tmp_path / "model.safetensors")
    with pytest.raises(RunError, match="it holds 9 numbers, and the model has 10"):
        contents.check(tmp_path, learnt=True)
    save_file({"b": torch.ones(3, 2), "c": torch.ones(4)}, tmp_path / "model.safetensors")
    with pytest.raises(RunError, match=r"b has the shape \(3, 2\), and the model's is \(2, 3\)"):
        contents.check(tmp_path, learnt=True)
    save_file({"b": torch.ones(2, 3), "c": torch.ones(4)}, tmp_path / "model.safetensors")
    (tmp_path / "optimizer.pt").write_bytes(b"PK\x03\x04 and no end")
    with pytest.raises(RunError, match="optimizer.pt is cut off"):
        contents.check(tmp_path, learnt=True)


def test_what_transformers_would_do_without_must_be_there(recipe: Maker, tmp_path: Path) -> None:
    prepared, checkpoints, _ = started(recipe(*EACH_STEP, "training.max_steps=2"), tmp_path / "out")
    files = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "carried.json")
    assert contents_of(prepared.trainer).state == files
    checkpoints.also.append(lambda folder: (folder / "optimizer.pt").unlink())
    with pytest.raises(RunError, match=r"checkpoint-1 was not written as it should be: optimizer.pt can't be found"):
        prepared.trainer.train()
    assert names(tmp_path / "out") == []


# --- What goes wrong beside ------------------------------------------------------------------------------------------


def test_what_goes_wrong_in_the_background_is_told_by_the_next_save(
    recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.runs.recovery import checkpoints as module

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_manifest", full)
    prepared, checkpoints, _ = started(recipe(*EACH_STEP, "training.max_steps=2"), tmp_path / "out")
    with pytest.raises(OSError, match="No space left on device"):
        prepared.trainer.train()
    checkpoints.wait()  # told once
    assert names(tmp_path / "out") == []


def test_the_error_of_the_last_save_is_told_by_waiting(
    recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Contents, "check", lambda self, folder, learnt: (_ for _ in ()).throw(RunError("broken")))
    prepared, checkpoints, _ = started(recipe(*EACH_STEP, "training.max_steps=1"), tmp_path / "out")
    prepared.trainer.train()
    with pytest.raises(RunError, match="broken"):
        checkpoints.wait()
    checkpoints.wait()


def test_a_moved_run_folder_still_knows_its_best_checkpoint(recipe: Maker, tmp_path: Path) -> None:
    before, out = tmp_path / "before", tmp_path / "out"
    evaluated = ("training.eval_strategy=steps", "training.eval_steps=1", "training.load_best_model_at_end=true")
    settings = (*EACH_STEP, *evaluated, "training.max_steps=3", "training.learning_rate=0.3")
    prepared, checkpoints, _ = started(recipe(*settings), before, Keep(last=9))
    prepared.trainer.train()
    checkpoints.wait()
    shutil.move(before, out)
    shutil.rmtree(out / "checkpoint-3")
    prepared, checkpoints, _ = started(recipe(*settings), out, Keep(last=9))
    prepared.trainer.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    checkpoints.wait()
    best = prepared.trainer.state.best_model_checkpoint
    assert best is not None
    assert Path(best).parent == out
