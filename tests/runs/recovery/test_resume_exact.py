"""N steps straight, and some of them with the rest after a resume: the same weights, the same logs, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.errors import RunError
from llmkit.recipe.recipe import Keep, Recipe
from llmkit.rewards.exact_match import ExactMatch
from llmkit.runs.prepare import prepare
from llmkit.runs.recovery.checkpoints import Checkpoints
from llmkit.runs.recovery.resuming import train_on
from llmkit.runs.runner import run

Maker = Callable[..., Recipe]

FLOAT32 = ("model.dtype=float32", "training.bf16=false", "data.eval=null")
STEPS = ("training.save_strategy=steps", "training.logging_steps=1")
FULL = ("adapter=null", "training.learning_rate=1e-3")
DROPOUT = ("adapter.lora_dropout=0.2",)
FOUR = ("training.max_steps=4",)
EPOCHS = ("training.max_steps=-1", "training.num_train_epochs=2")
GROUPS = ("training.num_generations=4", "training.per_device_train_batch_size=8", "training.max_completion_length=5")
TWICE = ("training.num_iterations=2", "training.max_steps=4")

ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "preference": lambda i: {"prompt": f"what is {i}?", "chosen": f" it is {i}", "rejected": " no" * (1 + i % 3)},
    "unpaired": lambda i: {"prompt": f"what is {i}?", "completion": f" it is {i}", "label": i % 3 > 0},
    "prompt": lambda i: {"prompt": f"what is {i}?", "answer": str(i)},
}


@dataclass(frozen=True)
class Case:
    """What is trained, and the step after which the second run goes on."""

    name: str
    format: str
    overrides: tuple[str, ...]
    at: int = 2


def sft(name: str, *overrides: str, at: int = 2) -> Case:
    return Case(name, "messages", overrides, at)


def pairs(name: str, method: str, *overrides: str, format_: str = "preference") -> Case:
    return Case(name, format_, (f"method.type={method}", *overrides, *FOUR))


def rl(name: str, method: str, *overrides: str, at: int) -> Case:
    reward = "rewards=[{type: exact_match}]"
    return Case(name, "prompt", (f"method={method}", reward, *GROUPS, *overrides), at)


CASES = [
    sft("full", *FULL, *FOUR),
    sft("lora with dropout", *DROPOUT, *FOUR, "training.warmup_steps=2", "training.lr_scheduler_type=cosine"),
    sft("packed", *DROPOUT, "training.packing=true", "training.max_length=96", "training.max_steps=6", at=4),
    # 24 rows: the file has come to its end, and is read again.
    sft("streamed", *DROPOUT, "training.max_steps=8", "data.train.0.streaming=true", "data.shuffle_buffer=5", at=5),
    pairs("dpo", "dpo", *DROPOUT),
    # Two batches of a generation, each learnt from twice: step 3 is in the middle.
    rl("grpo within a generation", "{type: grpo}", *TWICE, "training.steps_per_generation=2", at=3),
]
"""One of each kind of state that a checkpoint holds."""

MORE = [
    sft("nf4", *DROPOUT, *FOUR, "quantization.type=nf4"),
    sft("nf4 with an adapter in bfloat16", *DROPOUT, *FOUR, "quantization.type=nf4", "model.dtype=bfloat16"),
    sft("grouped by length in the second epoch", *DROPOUT, *EPOCHS, at=8),
    sft("at random in the second epoch", *DROPOUT, *EPOCHS, "training.train_sampling_strategy=random", at=8),
    sft("at the end of an epoch", *DROPOUT, *EPOCHS, at=6),
    sft("accumulated", *DROPOUT, *EPOCHS, "training.gradient_accumulation_steps=4", at=3),
    sft("between two logged steps", *DROPOUT, "training.max_steps=5", "training.logging_steps=3", at=2),
    sft("evaluated", *DROPOUT, *FOUR, "data.eval=0.25", "training.eval_strategy=steps", "training.eval_steps=1"),
    pairs(
        "dpo with a reference that moves",
        "dpo",
        *FULL,
        "training.sync_ref_model=true",
        "training.ref_model_sync_steps=1",
    ),  # fmt: skip  # noqa: E501
    pairs("dpo between two logged steps", "dpo", *DROPOUT, "training.logging_steps=3"),
    pairs("kto", "kto", *DROPOUT, format_="unpaired"),
    pairs("orpo", "orpo", *DROPOUT, "training.logging_steps=3"),
    pairs("simpo", "simpo", *DROPOUT),
    pairs("reward", "reward", *DROPOUT),
    rl("grpo", "{type: grpo}", *FOUR, "training.beta=0.1", at=2),
    rl("grpo in the second epoch", "{type: grpo}", *FOUR, "data.train.0.max_rows=4", at=3),
    rl("rloo within a generation", "{type: rloo}", *TWICE, *FULL, "training.beta=0.1", at=1),
]


@pytest.fixture
def the_recipe(recipe: Maker, rows_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], Recipe]:
    """Return what makes the recipe of a case, and writes its rows."""
    monkeypatch.setattr(ExactMatch, "score", lambda self, completion, row: sum(map(str.isalpha, completion)) / 10)

    def make(case: Case) -> Recipe:
        if case.format in ROWS:
            rows = [ROWS[case.format](i) for i in range(24)]
            rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        saved = f"training.save_steps={case.at}"
        return recipe(f"data.train.0.format={case.format}", *FLOAT32, *STEPS, saved, *case.overrides)

    return make


def trained(recipe: Recipe, folder: Path, *, resume: bool = False) -> Any:
    """Return the trainer after its run; with `resume` it goes on from the last checkpoint in `folder`."""
    trainer: Any = prepare(recipe, output_dir=folder).trainer
    checkpoints = Checkpoints(folder, Keep(last=99), pytest.fail)
    checkpoints.attach(trainer)
    found = checkpoints.last()
    assert (found is not None) == resume
    train_on(trainer, found)
    checkpoints.wait()
    return trainer


def logged(trainer: Any) -> list[dict[str, Any]]:
    """Return what was logged, without what a clock says and without the summary of the session."""
    entries = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    clock = ("time/", "step_time")
    return [
        {k: v for k, v in entry.items() if not (k.startswith(clock) or k.endswith(("_runtime", "_per_second")))}
        for entry in entries
    ]


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    found = {f"model.{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    reference = getattr(trainer, "ref_model", None)
    more = reference.state_dict().items() if reference is not None else ()
    return {**found, **{f"reference.{name}": tensor for name, tensor in more}}


def require_exact(straight: Any, resumed: Any) -> None:
    assert logged(resumed) == logged(straight)
    ours, theirs = weights(resumed), weights(straight)
    assert ours.keys() == theirs.keys()
    differing = [name for name, tensor in theirs.items() if not _same(tensor, ours[name])]
    assert not differing
    # What the next steps would have been: moments, schedule, random states.
    last = f"checkpoint-{straight.state.global_step}"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        one, other = (_loaded(Path(t.args.output_dir) / last / name) for t in (straight, resumed))
        assert _leaves(one) == _leaves(other), name


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor):
        return bool(one == other)
    return one.dtype == other.dtype and torch.equal(one, other)


def _loaded(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def _leaves(value: Any) -> Any:
    """Return nested values with tensors and arrays as bytes, so that `==` compares them bit by bit."""
    if isinstance(value, dict):
        return {key: _leaves(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_leaves(inner) for inner in value]
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return value.tobytes() if hasattr(value, "tobytes") else value


def compare(make: Callable[[Case], Recipe], case: Case, tmp_path: Path) -> Any:
    made = make(case)
    straight = trained(made, tmp_path / "straight")
    assert straight.state.global_step > case.at
    assert any(entry.get("grad_norm", 0) > 0 for entry in straight.state.log_history), "else nothing was learnt"
    name = f"checkpoint-{case.at}"
    shutil.copytree(tmp_path / "straight" / name, tmp_path / "cut" / name)
    resumed = trained(made, tmp_path / "cut", resume=True)
    require_exact(straight, resumed)
    return resumed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_resumed_run_ends_as_the_straight_one(the_recipe: Any, case: Case, tmp_path: Path) -> None:
    compare(the_recipe, case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE, ids=lambda case: case.name)
def test_so_does_every_other(the_recipe: Any, case: Case, tmp_path: Path) -> None:
    compare(the_recipe, case, tmp_path)


def test_the_comparison_would_see_a_difference(the_recipe: Any, tmp_path: Path) -> None:
    """Without the answers that were still to be learnt from, a generation is sampled anew."""
    case = CASES[-1]
    made = the_recipe(case)
    straight = trained(made, tmp_path / "straight")
    shutil.copytree(tmp_path / "straight" / "checkpoint-3", tmp_path / "cut" / "checkpoint-3")
    trainer: Any = prepare(made, output_dir=tmp_path / "cut").trainer
    Checkpoints(tmp_path / "cut", Keep(), pytest.fail).attach(trainer)
    load = trainer._load_from_checkpoint

    def forgetful(checkpoint: str, model: Any = None) -> None:
        load(checkpoint, model)
        trainer._buffered_inputs, trainer._step = None, 0

    trainer._load_from_checkpoint = forgetful
    train_on(trainer, tmp_path / "cut" / "checkpoint-3")
    assert logged(trainer) != logged(straight)
    assert any(not _same(tensor, weights(trainer)[name]) for name, tensor in weights(straight).items())


def test_steps_beyond_the_bound_on_the_divergence_count_on(the_recipe: Any, tmp_path: Path) -> None:
    made = the_recipe(rl("grpo", "{type: grpo, max_kl: 5}", "training.beta=0.1", *FOUR, at=2))
    trainer: Any = prepare(made, output_dir=tmp_path / "out").trainer
    trainer.state.log_history = [{"step": step, "loss": 0.0, "kl": 6.0} for step in (1, 2)]
    trainer.model.train()
    trainer._metrics["train"]["kl"] = [6.0]
    with pytest.raises(RunError, match="for 3 steps in a row"):
        trainer.log({"loss": 0.0})


# --- What may change -------------------------------------------------------------------------------------------------


def test_more_steps_follow_their_own_schedule_and_other_intervals_are_kept(the_recipe: Any, tmp_path: Path) -> None:
    case = sft("lora", "training.max_steps=4", "training.learning_rate=8e-3", "training.lr_scheduler_type=linear")
    trained(the_recipe(case), tmp_path / "run")
    more = ("training.max_steps=8", "training.save_steps=3", "training.logging_steps=5")
    longer = the_recipe(sft("longer", *case.overrides, *more))
    trainer = trained(longer, tmp_path / "run", resume=True)
    rates = {e["step"]: e["learning_rate"] for e in trainer.state.log_history if "learning_rate" in e}
    assert list(rates) == [1, 2, 3, 4, 5]
    # 4 steps fall to nothing in steps of 2e-3; from step 4 on, 8 steps do in steps of 1e-3.
    assert [round(rate, 9) for rate in rates.values()] == [8e-3, 6e-3, 4e-3, 2e-3, 4e-3]
    steps = sorted(int(path.name[11:]) for path in (tmp_path / "run").glob("checkpoint-*"))
    assert steps == [2, 4, 6, 8]


def test_a_run_that_is_at_its_end_takes_no_step_more(the_recipe: Any, tmp_path: Path) -> None:
    """transformers would: the end is in the middle of an epoch."""
    case = sft("lora", *DROPOUT, "training.max_steps=3")
    straight = trained(the_recipe(case), tmp_path / "run")
    again = trained(the_recipe(case), tmp_path / "run", resume=True)
    assert again.state.global_step == 3
    require_exact(straight, again)


# --- The run folder --------------------------------------------------------------------------------------------------


def test_a_run_folder_ends_as_that_of_the_straight_run(recipe: Maker, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    settings = ("training.max_steps=4", "training.save_steps=2", *DROPOUT, "training.report_to=tensorboard")
    straight = run(recipe(*settings), out=tmp_path / "straight")
    cut = tmp_path / "cut"
    run(recipe(*settings), out=cut)
    # As if it had been stopped after step 2.
    shutil.rmtree(cut / "checkpoints" / "checkpoint-4")
    shutil.rmtree(cut / "model")
    resumed = run(recipe(*settings), out=cut, resume=True)
    assert resumed.losses == straight.losses
    files = [folder / "model" / "adapter_model.safetensors" for folder in (straight.folder, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()

    def lines(folder: Path) -> list[dict[str, Any]]:
        read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        kept = ("step", "loss", "grad_norm", "learning_rate", "num_tokens", "mean_token_accuracy", "epoch")
        return [{name: entry[name] for name in kept if name in entry} for entry in read if "loss" in entry]

    assert lines(cut) == lines(straight.folder)
    assert [line["num_tokens"] for line in lines(cut)] == sorted({line["num_tokens"] for line in lines(cut)})
    sessions = list((cut / "tensorboard").glob("events.*"))
    assert len(sessions) == 2, "both in one folder, which tensorboard shows as one run"

    # At its end it is loaded, scored and saved again.
    whole = (cut / "metrics.jsonl").read_text()
    again = run(recipe(*settings), out=cut, resume=True)
    assert again.losses == straight.losses
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (cut / "metrics.jsonl").read_text() == whole
