"""Planted NaN and inf: where the run stops, what is untouched, what is written down, and what a normal run is like."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmkit.errors import RunError
from llmkit.recipe.recipe import Recipe, Stability
from llmkit.runs.folder import RunFolder
from llmkit.runs.prepare import prepare
from llmkit.runs.recovery.batches import rows_of
from llmkit.runs.recovery.nonfinite import MOST_OVERFLOWS, FiniteWatch, Found, Spikes, watch_finite

Maker = Callable[..., Recipe]
STEPS = ("training.max_steps=4", "training.logging_steps=1", "training.lr_scheduler_type=constant")
TWO = ("training.gradient_accumulation_steps=2", "training.per_device_train_batch_size=2")
SKIP = ("stability.on_nan=skip",)


@dataclass
class Session:
    """One trainer under the watch, and what came of it."""

    trainer: Any
    folder: RunFolder
    said: list[str]
    error: RunError | None = None

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.trainer.model.named_parameters() if p.requires_grad}

    def state(self) -> list[Tensor]:
        """All that the optimizer keeps."""
        kept = self.trainer.optimizer.state_dict()["state"]
        return [v.clone() for entry in kept.values() for v in entry.values() if isinstance(v, Tensor)]

    def logged(self, name: str) -> list[Any]:
        return [entry.get(name) for entry in self.trainer.state.log_history if "train_runtime" not in entry]

    def found(self, step: int) -> Any:
        return json.loads((self.folder.path / "nonfinite" / f"step-{step}.json").read_text())


def session(recipe: Recipe, out: Path, *, watch: bool = True) -> Session:
    out.mkdir(exist_ok=True)
    (out / "recipe.yaml").write_text("")
    folder, said = RunFolder(out), list[str]()
    trainer: Any = prepare(recipe, output_dir=folder.checkpoints).trainer
    trainer.args.restore_callback_states_from_checkpoint = True
    if watch:
        watch_finite(trainer, recipe.stability, folder, said.append, folder.last_checkpoint)
    return Session(trainer, folder, said)


def train(session: Session, checkpoint: str | None = None) -> Session:
    try:
        session.trainer.train(resume_from_checkpoint=checkpoint)
    except RunError as error:
        session.error = error
    return session


def poison(trainer: Any, steps: Iterable[int], batch: int = 0, value: float = math.nan) -> None:
    """Have a layer give `value` in one batch of each of these steps; the other batches are as they were."""
    layer = trainer.accelerator.unwrap_model(trainer.model).get_base_model().model.layers[0]
    plain, seen = trainer.compute_loss, [-1, 0]

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        step = trainer.state.global_step + 1
        seen[:] = [step, seen[1] + 1 if seen[0] == step else 0]
        return plain(*args, **kwargs)

    def spoil(module: Any, inputs: Any, output: Any) -> Any:
        if seen[0] not in steps or seen[1] != batch or not module.training:
            return output
        return (output[0] * value, *output[1:]) if isinstance(output, tuple) else output * value

    trainer.compute_loss = compute_loss
    layer.register_forward_hook(spoil)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# --- A normal run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["0.05", "0"])
def test_numbers_are_the_same_with_and_without_the_watch(recipe: Maker, tmp_path: Path, norm: str) -> None:
    mine = recipe(*STEPS, *TWO, "adapter.lora_dropout=0.1", f"training.max_grad_norm={norm}")
    plain = train(session(mine, tmp_path / "plain", watch=False))
    watched = train(session(mine, tmp_path / "watched"))
    for name in ("loss", "grad_norm", "learning_rate", "num_tokens", "mean_token_accuracy"):
        assert plain.logged(name) == watched.logged(name)
    assert max(plain.logged("grad_norm")) > 0.05  # so that clipping changes something
    assert same(plain.weights(), watched.weights())
    assert watched.said == []
    assert not (watched.folder.path / "nonfinite").exists()
    assert "skipped_steps" not in watched.trainer.state.log_history[-2]


# --- Stop ------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_nan_stops_before_the_weights_are_touched(recipe: Maker, tmp_path: Path) -> None:
    mine = recipe(*STEPS, *TWO, "training.save_steps=2", "training.save_strategy=steps")
    reference = train(session(recipe(*STEPS, *TWO, "training.max_steps=2"), tmp_path / "two"))
    bad = session(mine, tmp_path / "bad")
    poison(bad.trainer, [3], batch=1)
    train(bad)

    assert bad.error is not None
    assert "step 3: the loss is nan; the optimizer has not touched the weights" in bad.error.what
    assert bad.error.where == str(tmp_path / "bad" / "nonfinite" / "step-3.json")
    remedy = str(bad.error.remedy)
    assert f"The last good checkpoint is {tmp_path / 'bad' / 'checkpoints' / 'checkpoint-2'}." in remedy
    assert f"`llmkit run {tmp_path / 'bad' / 'recipe.yaml'} --resume --set stability.on_nan=skip`" in remedy
    assert "learning rate that is too high (0.01)" in remedy
    assert same(bad.weights(), reference.weights())

    found = bad.found(3)
    assert math.isfinite(found["losses"][0])
    assert found["losses"][1] == "nan"
    assert found["grad_norm"] == "nan"
    assert found["weights_finite"] is True
    assert found["parameters_not_finite"] >= len(found["first_parameters"]) > 0
    assert [(row["batch"], row["row"]) for row in found["rows"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(row["text"]["input_ids"].startswith("<|im_start|>user\nwhat is") for row in found["rows"])
    assert all(row["text"]["input_ids"].rstrip().endswith("<|im_end|>") for row in found["rows"])
    tensors = load_file(tmp_path / "bad" / "nonfinite" / found["tensors"])
    assert tensors["1.input_ids"].shape[0] == 2
    counted = [int((tensors[f"{row['batch']}.labels"][row["row"]] != -100).sum()) for row in found["rows"]]
    assert [row["trained_tokens"] for row in found["rows"]] == counted
    assert min(counted) > 0
    assert not list((tmp_path / "bad" / "nonfinite").glob(".*"))


def test_a_gradient_alone_is_enough_and_is_named_before_clipping_spreads_it(recipe: Maker, tmp_path: Path) -> None:
    bad = session(recipe(*STEPS), tmp_path / "bad")
    name, parameter = next((n, p) for n, p in bad.trainer.model.named_parameters() if p.requires_grad and "lora_B" in n)
    parameter.register_hook(lambda gradient: gradient * math.inf if bad.trainer.state.global_step == 1 else None)
    train(bad)
    assert bad.error is not None
    assert "step 2: the gradient norm is" in bad.error.what
    assert "There is no good checkpoint yet." in str(bad.error.remedy)
    found = bad.found(2)
    assert found["first_parameters"] == [name]
    assert found["parameters_not_finite"] == 1
    assert all(math.isfinite(loss) for loss in found["losses"])


def test_weights_that_a_step_has_ruined_are_not_saved(recipe: Maker, tmp_path: Path) -> None:
    bad = session(recipe(*STEPS, "training.save_steps=1"), tmp_path / "bad")
    bad.trainer.create_optimizer()
    for group in bad.trainer.optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 1e39  # what a learning rate far too high does, in one step

    train(bad)
    assert bad.error is not None
    assert "the update of step 1 has made weights that are no finite numbers" in bad.error.what
    assert "Resumed as it is, the run would end here again" in str(bad.error.remedy)
    assert list(bad.folder.checkpoints.glob("checkpoint-*")) == []
    assert bad.found(1)["weights_finite"] is False


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_weights_that_are_inf_stop_it_whatever_the_mode(recipe: Maker, tmp_path: Path, mode: str) -> None:
    bad = session(recipe(*STEPS, f"stability.on_nan={mode}"), tmp_path / "bad")
    next(p for n, p in bad.trainer.model.named_parameters() if "lora_A" in n).data[0, 0] = math.inf
    train(bad)
    assert bad.error is not None
    assert "because some weights already are no finite numbers" in bad.error.what
    assert "The base weights may be damaged" in str(bad.error.remedy)
    assert bad.trainer.state.global_step == 0


def test_a_checkpoint_with_ruined_weights_is_not_named_and_not_resumed_from(recipe: Maker, tmp_path: Path) -> None:
    bad = session(recipe(*STEPS), tmp_path / "bad")
    for step, value in ((2, 1.0), (4, math.inf), (6, math.nan)):
        place = bad.folder.checkpoints / f"checkpoint-{step}"
        place.mkdir(parents=True)
        save_file({"weight": torch.tensor([0.5, value])}, place / "adapter_model.safetensors")
        (place / "trainer_state.json").write_text("{}")
    poison(bad.trainer, [1])
    train(bad)
    assert bad.error is not None
    assert f"The last good checkpoint is {bad.folder.checkpoints / 'checkpoint-2'}." in str(bad.error.remedy)
    assert bad.folder.last_checkpoint() == bad.folder.checkpoints / "checkpoint-2"
    assert {path.name for path in (bad.folder.path / "nonfinite").glob("checkpoint-*")} == {
        "checkpoint-4",
        "checkpoint-6",
    }
    assert [line.split(" ")[0] for line in bad.said] == ["checkpoint-6", "checkpoint-4"]


@pytest.mark.parametrize("strategy", ["epoch", "best"])
def test_weights_are_looked_at_before_every_checkpoint(recipe: Maker, tmp_path: Path, strategy: str) -> None:
    from transformers import TrainerCallback

    class Spoil(TrainerCallback):
        """Spoils the weights after the step's end, where training goes on."""

        def on_log(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan)

    # An epoch is two steps here, and the first score is the best one there ever was.
    evaluated = ("training.eval_strategy=steps", "training.eval_steps=2", "training.metric_for_best_model=loss")
    sizes = ("training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=5")
    settings = (*STEPS, *sizes, *evaluated, f"training.save_strategy={strategy}")
    bad = session(recipe(*settings), tmp_path / "bad")
    bad.trainer.add_callback(Spoil())
    bad.trainer._determine_best_metric = lambda metrics, trial: True
    train(bad)
    assert bad.error is not None
    assert "the update of step 2 has made weights that are no finite numbers" in bad.error.what
    assert not list((tmp_path / "bad" / "checkpoints").glob("checkpoint-*"))


def test_a_checkpoint_that_could_not_be_finished_does_not_hide_a_nan(recipe: Maker, tmp_path: Path) -> None:
    bad = session(recipe(*STEPS, "training.save_strategy=no"), tmp_path / "bad", watch=False)
    errors = [OSError(28, "No space left on device")]

    def last() -> Path | None:
        if errors:
            raise errors.pop()
        return tmp_path / "checkpoint-0"

    watch_finite(bad.trainer, Stability(), bad.folder, bad.said.append, last)
    poison(bad.trainer, [2])
    train(bad)
    assert bad.error is not None
    assert "step 2: the loss is nan" in bad.error.what
    assert f"The last good checkpoint is {tmp_path / 'checkpoint-0'}." in str(bad.error.remedy)
    assert bad.said == ["the last checkpoint could not be finished: OSError: [Errno 28] No space left on device"]


# --- Skip ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "adafactor", "sgd"])
def test_a_skipped_step_moves_nothing(recipe: Maker, tmp_path: Path, optim: str) -> None:
    settings = (*STEPS, *TWO, *SKIP, "training.weight_decay=0.1", "training.save_strategy=no")
    bad = session(recipe(*settings, f"training.optim={optim}"), tmp_path / "bad")
    poison(bad.trainer, [2], batch=1)
    before: dict[int, Any] = {}
    step_of = bad.trainer.callback_handler.on_step_begin

    def remember(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        before[state.global_step + 1] = bad.weights(), bad.state()
        return step_of(args, state, control, **kwargs)

    bad.trainer.callback_handler.on_step_begin = remember
    train(bad)
    assert bad.error is None
    (weights_2, state_2), (weights_3, state_3), (weights_4, _) = before[2], before[3], before[4]
    assert same(weights_2, weights_3)
    assert len(state_2) == len(state_3)
    assert all(torch.equal(one, other) for one, other in zip(state_2, state_3, strict=True))
    assert not same(weights_3, weights_4)
    assert all(torch.isfinite(tensor).all() for tensor in bad.weights().values())
    assert bad.said == [
        "step 2: the loss is nan; the optimizer has not touched the weights, and this step is left out (1 of at most "
        f"10; its batch is in {tmp_path / 'bad' / 'nonfinite' / 'step-2.json'})"
    ]
    # A step that was left out has no loss, and the others are counted as they were.
    steps = bad.trainer.state.log_history[:4]
    assert ["loss" in entry for entry in steps] == [True, False, True, True]
    assert [entry.get("skipped_steps") for entry in steps] == [None, 1, 1, 1]
    assert all(math.isfinite(entry["grad_norm"]) for entry in steps if "grad_norm" in entry)
    assert math.isfinite(bad.trainer.state.log_history[-1]["train_loss"])


def test_the_mean_of_several_steps_leaves_the_skipped_one_out(recipe: Maker, tmp_path: Path) -> None:
    single = train(session(recipe(*STEPS, "training.max_steps=1"), tmp_path / "single"))
    bad = session(recipe(*STEPS, *SKIP, "training.max_steps=2", "training.logging_steps=2"), tmp_path / "bad")
    poison(bad.trainer, [2])
    train(bad)
    assert bad.logged("loss") == [pytest.approx(single.logged("loss")[0], rel=1e-6)]
    assert bad.logged("skipped_steps") == [1]


def test_skips_are_counted_over_the_whole_run(recipe: Maker, tmp_path: Path) -> None:
    settings = (*STEPS, *SKIP, "stability.max_skips=2", "training.save_steps=1", "training.max_steps=6")
    first = session(recipe(*settings), tmp_path / "run")
    poison(first.trainer, [2])
    first.trainer.add_callback(stop_after(3))
    train(first)
    assert first.error is None
    second = session(recipe(*settings), tmp_path / "run")
    poison(second.trainer, [4, 5])
    train(second, str(first.folder.checkpoints / "checkpoint-3"))
    assert second.error is not None
    assert "step 5: the loss is nan" in second.error.what
    assert "2 steps have been left out (`stability.max_skips`)" in second.error.what
    assert "--set stability.max_skips=4" in str(second.error.remedy)
    assert [line.partition("left out ")[2][:14] for line in second.said] == ["(2 of at most "]
    assert sorted(path.name for path in (first.folder.path / "nonfinite").glob("*.json")) == [
        "step-2.json", "step-4.json", "step-5.json",
    ]  # fmt: skip


def stop_after(step: int) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == step

    return Stop()


def test_only_so_many_batches_are_written(recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.runs.recovery.nonfinite.MOST_FILES", 2)
    bad = session(recipe(*STEPS, *SKIP, "training.save_strategy=no"), tmp_path / "bad")
    poison(bad.trainer, [1, 2, 3, 4])
    train(bad)
    assert bad.error is None
    assert len(bad.said) == 4
    assert [("not kept" in line) for line in bad.said] == [False, False, True, True]
    assert len(list((bad.folder.path / "nonfinite").iterdir())) == 4


def test_a_run_that_was_stopped_goes_on_without_that_batch(recipe: Maker, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    from llmkit.runs.runner import run

    class Poison(TrainerCallback):
        """Spoils what a layer gives in the third step."""

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            def spoil(module: Any, inputs: Any, output: Any) -> Any:
                if not module.training or state.global_step != 2:
                    return output
                return (output[0] * math.nan, *output[1:]) if isinstance(output, tuple) else output * math.nan

            model.get_base_model().model.layers[0].register_forward_hook(spoil)

    settings, out = (*STEPS, "training.save_steps=1"), tmp_path / "run"
    with pytest.raises(RunError, match="step 3: the loss is nan") as caught:
        run(recipe(*settings), out=out, callbacks=(Poison(),))
    assert "The last good checkpoint is" in str(caught.value.remedy)
    assert "checkpoint-2. To go on without this batch" in str(caught.value.remedy)
    assert "--resume --set stability.on_nan=skip" in str(caught.value.remedy)
    result = run(recipe(*settings, *SKIP), out=out, resume=True, callbacks=(Poison(),))
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in metrics if "train_runtime" not in line}
    assert ["loss" in steps[step] for step in (1, 2, 3, 4)] == [True, True, False, True]
    assert steps[4]["skipped_steps"] == 1
    assert len(result.losses) == 3
    assert all(map(math.isfinite, result.losses))


# --- Other methods, and float16 --------------------------------------------------------------------------------------


def test_pairs_are_written_with_their_answers(recipe: Maker, rows_file: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"what is {i}?", "chosen": f"it is {i}", "rejected": "no"} for i in range(8)]
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ("data.train.0.format=preference", "method.type=dpo", "data.eval=null", "data.train.0.path=rows.jsonl")
    bad = session(recipe(*STEPS, *settings, "training.per_device_train_batch_size=2"), tmp_path / "bad")
    poison(bad.trainer, [2])
    train(bad)
    assert bad.error is not None
    assert "step 2: the loss is nan" in bad.error.what
    texts = [row["text"]["input_ids"] for row in bad.found(2)["rows"]]
    assert len(texts) == 4
    assert all("it is" in text for text in texts[:2])
    assert all("no" in text for text in texts[2:])
    assert all(row["trained_tokens"] > 0 for row in bad.found(2)["rows"])


def test_sampled_answers_are_written(grpo_file: Callable[..., Path], tmp_path: Path) -> None:
    from llmkit.recipe.loading import load_recipe

    path = grpo_file("rl", [{"prompt": f"what is {i}?", "answer": str(i)} for i in range(8)], max_completion_length=4)
    bad = session(load_recipe(path, ("stability.on_nan=skip", "training.save_strategy=no")), tmp_path / "bad")
    poison(bad.trainer, [2])
    # Answers are sampled in eval mode, so the poison is in the step that learns from them alone.
    train(bad)
    assert bad.error is None
    assert len(bad.said) == 1
    assert {"0.completion_ids", "0.advantages"} <= set(load_file(bad.folder.path / "nonfinite" / "step-2.safetensors"))
    row = bad.found(2)["rows"][0]
    assert "what is" in row["text"]["prompt_ids"]
    assert row["trained_tokens"] > 0


def scaled(folder: Path) -> tuple[FiniteWatch, Any]:
    """A watch over a model under a scaler, and the model."""
    model: Any = torch.nn.Linear(2, 1, bias=False)
    accelerator = type("Accelerator", (), {"scaler": object(), "unscale_gradients": lambda self: None})()
    state = type("State", (), {"global_step": 0})()
    args = type("Arguments", (), {"max_grad_norm": 1.0, "fp16": True, "learning_rate": 0.1})()
    trainer = type("Trainer", (), {"accelerator": accelerator, "state": state, "args": args, "model": model})()
    trainer._tr_loss, trainer.processing_class = torch.zeros(()), None
    return FiniteWatch(trainer, Stability(), RunFolder(folder), list[str]().append, lambda: None), model


def test_a_scaler_that_never_finds_its_scale_stops_the_run(tmp_path: Path) -> None:
    watch, model = scaled(tmp_path)

    def step(gradient: float) -> None:
        watch.begin()
        watch.saw({}, torch.tensor(1.0))
        model.weight.grad = torch.tensor([[gradient, 1.0]])
        watch.clip(model.parameters(), 1.0)

    for gradient in (*[math.inf] * MOST_OVERFLOWS, 1.0, *[math.inf] * MOST_OVERFLOWS):
        step(gradient)
    with pytest.raises(RunError, match="the gradient norm is inf"):
        step(math.inf)


def test_with_a_scaler_only_losses_count(tmp_path: Path) -> None:
    """float16 gradients overflow now and then, and the scaler leaves such a step out by itself."""
    watch, model = scaled(tmp_path)
    for loss, stops in ((1.0, False), (math.inf, True)):
        watch.begin()
        watch.saw({}, torch.tensor(loss))
        model.weight.grad = torch.tensor([[math.inf, 1.0]])
        if stops:
            with pytest.raises(RunError, match="the loss is inf") as caught:
                watch.clip(model.parameters(), 1.0)
            assert "float16 ends at 65,504" in str(caught.value.remedy)
        else:
            watch.clip(model.parameters(), 1.0)
            assert model.weight.grad is not None


# --- By hand ---------------------------------------------------------------------------------------------------------


def test_spikes_are_said_once_in_fifty_steps() -> None:
    spikes = Spikes()
    assert [spikes.seen(step, 100.0 if step == 5 else 1.0, 1.0) for step in range(1, 21)] == [None] * 20
    assert spikes.seen(21, 20.0, 1.0) is None
    said = spikes.seen(22, 20.1, 1.0)
    assert said is not None
    assert said.startswith("step 22: the gradient norm is 20.1, 20 times the usual 1; it was clipped to 1.")
    assert spikes.seen(23, 500.0, 1.0) is None
    assert [spikes.seen(step, 1.0, 1.0) for step in range(24, 72)] == [None] * 48
    assert "nothing clips it" in str(spikes.seen(72, 500.0, 0.0))
    silent = Spikes()  # groups of answers that teach nothing have no gradient
    assert [silent.seen(step, 0.0, 1.0) for step in range(30)] == [None] * 30
    assert silent.seen(31, 1.0, 1.0) is None
    assert silent.seen(32, math.inf, 1.0) is None


def test_rows_are_told_by_hand() -> None:
    class Letters:
        pad_token_id = 0

        def decode(self, ids: list[int]) -> str:
            return "".join(chr(96 + token) for token in ids)

    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 0], [0, 4, 0, 5]]),
        "position_ids": torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]]),
        "labels": torch.tensor([[-100, 2, 3, -100], [-100, -100, -100, -100]]),
        "advantages": torch.tensor([0.5, 0.5]),
        "use_cache": False,
    }
    assert rows_of(batch, Letters()) == [
        {"row": 0, "trained_tokens": 2, "text": {"input_ids": "abc"}},
        {"row": 1, "trained_tokens": 0, "text": {"input_ids": "d`e"}},
    ]
    answers = {"completion_ids": torch.tensor([[1, 0]]), "completion_mask": torch.tensor([[1, 1]])}
    assert rows_of(answers, Letters()) == [{"row": 0, "trained_tokens": 2, "text": {"completion_ids": "a"}}]
    assert rows_of({"labels": torch.tensor([1])}, Letters()) == []


def test_what_json_has_no_word_for_is_text() -> None:
    found = Found(3, [0.5, math.nan, math.inf], -math.inf, [f"p{i}" for i in range(12)], weights_finite=True)
    written = json.dumps(found.to_dict([]), allow_nan=False)
    assert '"losses": [0.5, "nan", "inf"], "grad_norm": "-inf", "parameters_not_finite": 12' in written
    assert '"p9"' in written
    assert '"p10"' not in written
