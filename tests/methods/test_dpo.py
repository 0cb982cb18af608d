"""DPO: loss, rewards and gradients of a step written by hand; the reference, its cache, and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from llmkit.data.splits import Row
from llmkit.errors import RecipeError
from llmkit.methods.base import Job
from llmkit.recipe.recipe import Recipe

Make = Callable[..., Job]
Pairs = tuple[Row, ...]
NF4 = ("quantization={type: nf4}", "quantization.bnb_4bit_compute_dtype=float32")
LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
    *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)


# --- A step, written by hand ---------------------------------------------------------------------------------------


def token_logps(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Return log p(token | all before it) of each answer token; no padding, no batch."""
    ids = torch.tensor([prompt + answer])
    logps_TV = torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)
    return logps_TV[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])[:, 0]


def logps(model: Any, rows: Pairs, name: str) -> Tensor:
    return torch.stack([token_logps(model, r.tokens["prompt_ids"], r.tokens[f"{name}_ids"]).sum() for r in rows])


def ratios(policy: Any, reference: dict[str, Tensor], rows: Pairs) -> tuple[Tensor, Tensor]:
    chosen, rejected = (logps(policy, rows, name) - reference[name] for name in ("chosen", "rejected"))
    return chosen, rejected


def lengths(rows: Pairs, name: str) -> Tensor:
    return torch.tensor([float(len(row.tokens[f"{name}_ids"])) for row in rows])


def by_hand(loss: str, policy: Any, reference: dict[str, Tensor], rows: Pairs, beta: float = 0.1) -> Tensor:
    """Return the mean loss of a batch, from the papers."""
    chosen, rejected = ratios(policy, reference, rows)
    margin = chosen - rejected
    if loss == "sigmoid":
        return -logsigmoid(beta * margin).mean()
    if loss == "hinge":
        return relu(1 - beta * margin).mean()
    if loss == "ipo":
        per_token = chosen / lengths(rows, "chosen") - rejected / lengths(rows, "rejected")
        return ((per_token - 1 / (2 * beta)) ** 2).mean()
    if loss == "sft":
        tokens = [token_logps(policy, r.tokens["prompt_ids"], r.tokens["chosen_ids"]) for r in rows]
        return -torch.cat(tokens).mean()
    assert loss == "apo_zero"
    return ((1 - torch.sigmoid(beta * chosen)) + torch.sigmoid(beta * rejected)).mean()


def perturbed(model: Any) -> Any:
    """Move the trained weights away from the reference: where both are equal, every margin is zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def reference_of(job: Job, rows: Pairs) -> dict[str, Tensor]:
    """Return the reference's log-probabilities, before anything is built or trained."""
    with torch.no_grad():
        return {name: logps(job.model, rows, name) for name in ("chosen", "rejected")}


def batch_of(trainer: Any) -> dict[str, Tensor]:
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])


def latest(trainer: Any, name: str) -> float:
    return trainer._metrics["train"][name][-1]


@pytest.mark.parametrize("adapter", ["adapter=null", "adapter.r=4"], ids=["full", "lora"])
def test_loss_equals_hand_written_step(make_job: Make, pairs: Pairs, adapter: str) -> None:
    job = make_job("dpo", adapter, "training.per_device_train_batch_size=4", train=pairs)
    reference = reference_of(job, pairs)
    trainer = job.recipe.method.build_trainer(job)
    model = perturbed(trainer.model).train()

    chosen, rejected = (0.1 * ratio for ratio in ratios(model, reference, pairs))
    expected = -logsigmoid(chosen - rejected).mean()
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = trainer.compute_loss(model, batch_of(trainer))
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(loss.item() - math.log(2)) > 1e-2
    assert latest(trainer, "rewards/chosen") == pytest.approx(chosen.mean().item(), abs=1e-5)
    assert latest(trainer, "rewards/rejected") == pytest.approx(rejected.mean().item(), abs=1e-5)
    assert latest(trainer, "rewards/margins") == pytest.approx((chosen - rejected).mean().item(), abs=1e-5)
    assert latest(trainer, "rewards/accuracies") == pytest.approx((chosen > rejected).float().mean().item())
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    assert len(found) > 10
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, gradients[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_and_the_plain_ones_equal_their_formula(make_job: Make, pairs: Pairs, loss: str) -> None:
    smoothing = ("training.label_smoothing=0.1",) if loss in ("exo_pair", "robust") else ()
    settings = (f"training.loss_type={loss}", "training.per_device_train_batch_size=4", "training.max_steps=1")
    job = make_job("dpo", *settings, *smoothing, train=pairs)
    reference = reference_of(job, pairs)
    trainer = job.recipe.method.build_trainer(job)
    perturbed(trainer.model)
    if loss in ("sigmoid", "hinge", "ipo", "sft", "apo_zero"):
        found = trainer.compute_loss(trainer.model, batch_of(trainer))
        assert found.item() == pytest.approx(by_hand(loss, trainer.model, reference, pairs).item(), rel=1e-5)
    before = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
    trainer.train()
    after = [p for p in trainer.model.parameters() if p.requires_grad]
    assert math.isfinite(trainer.state.log_history[0]["loss"])
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_mix_is_the_weighted_sum_of_its_losses(make_job: Make, pairs: Pairs) -> None:
    mix = ("training.loss_type=[sigmoid, sft]", "training.loss_weights=[1.0, 0.5]")
    job = make_job("dpo", *mix, "training.per_device_train_batch_size=4", train=pairs)
    reference = reference_of(job, pairs)
    trainer = job.recipe.method.build_trainer(job)
    model = perturbed(trainer.model)
    parts = [by_hand(loss, model, reference, pairs) for loss in ("sigmoid", "sft")]
    expected = parts[0] + 0.5 * parts[1]
    assert trainer.compute_loss(model, batch_of(trainer)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_accumulating_batches_equals_one_batch(make_job: Make, pairs: Pairs) -> None:
    def losses(size: int, steps: int) -> list[float]:
        common = ("adapter=null", "training.max_steps=3", "training.learning_rate=1e-3")
        cut = (f"training.per_device_train_batch_size={size}", f"training.gradient_accumulation_steps={steps}")
        trainer = (job := make_job("dpo", *common, *cut, train=pairs)).recipe.method.build_trainer(job)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert losses(1, 4) == pytest.approx(losses(4, 1), abs=1e-5)


def test_rows_are_trained_as_they_are_and_their_real_tokens_counted(make_job: Make, pairs: Pairs) -> None:
    job = make_job("dpo", "training.max_steps=1", "training.per_device_train_batch_size=4", train=pairs)
    trainer = job.recipe.method.build_trainer(job)
    assert trainer.train_dataset.to_list() == [row.tokens for row in pairs]
    batch = batch_of(trainer)
    for row, ids, mask in zip(pairs, batch["input_ids"], batch["completion_mask"], strict=False):
        assert ids[mask.bool()].tolist() == row.tokens["chosen_ids"]
    trainer.train()
    tokens = sum(
        2 * len(r.tokens["prompt_ids"]) + len(r.tokens["chosen_ids"] + r.tokens["rejected_ids"]) for r in pairs
    )
    assert trainer.state.log_history[0]["num_tokens"] == tokens


# --- The reference -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [(), NF4], ids=["lora", "qlora"])
def test_with_an_adapter_the_reference_is_the_base_and_no_copy(make_job: Make, pairs: Pairs, base: Any) -> None:
    job = make_job("dpo", *base, "training.gradient_checkpointing=true", "training.max_steps=2", train=pairs)
    reference = reference_of(job, pairs)
    trainer = job.recipe.method.build_trainer(job)
    assert trainer.ref_model is None
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters() if p.requires_grad)
    trainer.train()
    first, second = (e["loss"] for e in trainer.state.log_history if "loss" in e)
    assert first == pytest.approx(math.log(2), abs=1e-6)
    assert second < first
    found = torch.cat(trainer.compute_ref_log_probs(trainer.model, batch_of(trainer)))
    torch.testing.assert_close(found, torch.cat([*reference.values()]), atol=1e-4, rtol=0)


def test_a_full_model_is_compared_with_a_frozen_copy_of_the_recipes_model(make_job: Make, pairs: Pairs) -> None:
    job = make_job("dpo", "adapter=null", "training.max_steps=2", "training.learning_rate=1e-2", train=pairs)
    start = {name: p.detach().clone() for name, p in job.model.named_parameters()}
    trainer = job.recipe.method.build_trainer(job)
    trainer.train()
    assert trainer.ref_model is not trainer.model
    for name, parameter in trainer.ref_model.named_parameters():
        torch.testing.assert_close(parameter, start[name], atol=0, rtol=0)
    assert any(not torch.equal(p, start[name]) for name, p in trainer.model.named_parameters())


def test_the_copy_is_loaded_as_the_recipe_says(make_job: Make, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmkit.methods import _pairs

    asked: list[Any] = []
    load = _pairs.load_base
    monkeypatch.setattr(_pairs, "load_base", lambda recipe, **how: asked.append((recipe, how)) or load(recipe, **how))
    job = make_job("dpo", "adapter=null", train=pairs)
    job.recipe.method.build_trainer(job)
    assert asked == [(job.recipe, {"dtype": "float32", "attn_implementation": "sdpa"})]


@pytest.mark.parametrize("base", [(), NF4], ids=["lora", "qlora"])
def test_a_continued_adapter_is_compared_with_its_own_start(
    make_job: Make, pairs: Pairs, tmp_path: Path, base: Any
) -> None:
    from safetensors.torch import load_file

    first = make_job("dpo", *base, train=pairs)
    trainer = first.recipe.method.build_trainer(first)
    perturbed(trainer.model).save_pretrained(tmp_path / "adapter")
    first.tokenizer.save_pretrained(tmp_path / "adapter")

    continued = (f"model.name={tmp_path / 'adapter'}", "adapter={type: lora}", "training.max_steps=2")
    job = make_job("dpo", *base, *continued, train=pairs)
    trainer = job.recipe.method.build_trainer(job)
    assert job.adapted
    assert trainer.ref_model is None
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, tensor in saved.items():
        ours = trainer.model.get_parameter(name.replace(".weight", ".default.weight"))
        torch.testing.assert_close(ours.detach(), tensor, atol=0, rtol=0)
    trainer.train()
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "ref").exists()
    assert load_file(tmp_path / "saved" / "adapter_model.safetensors").keys() == saved.keys()


@pytest.mark.parametrize("start", ["base", "adapter"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(
    make_job: Make, pairs: Pairs, tmp_path: Path, start: str
) -> None:
    settings = ["training.learning_rate=1e-2", "training.save_strategy=steps", "training.save_steps=2"]
    if start == "adapter":
        first = make_job("dpo", train=pairs)
        perturbed(first.recipe.method.build_trainer(first).model).save_pretrained(tmp_path / "adapter")
        settings += [f"model.name={tmp_path / 'adapter'}", "adapter={type: lora}"]

    def build() -> Any:
        job = make_job("dpo", *settings, "training.max_steps=4", train=pairs)
        return job.recipe.method.build_trainer(job)

    (straight := build()).train()
    (resumed := build()).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert not (tmp_path / "out" / "checkpoint-2" / "ref").exists()
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (straight, resumed)]
    assert losses[0] == losses[1]
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


# --- Log-probabilities computed once -------------------------------------------------------------------------------


class Counted:
    """Builds trainers with precomputed reference log-probabilities, and counts the forward passes that this takes."""

    def __init__(self, make_job: Make) -> None:
        self.make_job, self.said = make_job, []

    def build(self, *overrides: str, train: Pairs, change: Callable[[Any], None] = lambda model: None) -> Any:
        job = self.make_job(
            "dpo", "training.precompute_ref_log_probs=true", *overrides, train=train, narrate=self.said.append
        )
        change(job.model)
        self.forwards = 0
        job.model.model.register_forward_hook(self.count)
        return job.recipe.method.build_trainer(job)

    def count(self, *_: Any) -> None:
        self.forwards += 1


@pytest.mark.parametrize("adapter", ["adapter=null", "adapter.r=4"], ids=["full", "lora"])
def test_reference_log_probabilities_are_computed_once(
    make_job: Make, pairs: Pairs, adapter: str, fresh_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = Counted(make_job)
    settings = (adapter, "training.per_device_train_batch_size=2", "training.max_steps=1")
    first = counted.build(*settings, train=pairs)
    assert counted.forwards == 2
    assert first.ref_model is None
    second = counted.build(*settings, train=pairs)
    assert counted.forwards == 0
    assert counted.said == [
        "computing the reference's log-probabilities of 4 train rows, once",
        f"the reference's log-probabilities of 4 train rows are in {fresh_cache / 'reference'}",
    ]
    assert "Computing reference" not in capsys.readouterr().err

    job = make_job("dpo", adapter, train=pairs)
    expected = reference_of(job, pairs)
    for trainer in (first, second):
        batch = batch_of(trainer)
        for name in ("chosen", "rejected"):
            torch.testing.assert_close(batch[f"ref_{name}_logps"], expected[name], atol=1e-4, rtol=0)
    second.train()
    assert second.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.usefixtures("fresh_cache")
def test_the_cache_depends_on_what_the_values_depend_on(make_job: Make, pairs: Pairs) -> None:
    counted = Counted(make_job)
    counted.build(train=pairs)

    def nudge(model: Any) -> None:
        model.lm_head.weight.data[0, 0] += 1e-3

    for name, trainer in (
        ("rows", lambda: counted.build(train=pairs[1:])),
        ("order", lambda: counted.build(train=pairs[::-1])),
        ("weights", lambda: counted.build(train=pairs, change=nudge)),
        ("data type", lambda: counted.build("model.dtype=bfloat16", train=pairs)),
        ("autocast", lambda: counted.build("training.bf16=true", train=pairs)),
        ("attention", lambda: counted.build("model.attn_implementation=eager", train=pairs)),
        ("ld_alpha", lambda: counted.build("training.ld_alpha=0.5", train=pairs)),
    ):
        trainer()
        assert counted.forwards > 0, name
    # Neither the loss nor the adapter over the reference changes what the reference says, nor does training them all.
    counted.build("training.beta=0.5", "training.loss_type=ipo", "adapter.r=8", "training.seed=3", train=pairs)
    assert counted.forwards == 0
    counted.build("adapter=null", train=pairs)
    assert counted.forwards == 0


def test_held_out_rows_are_evaluated_while_training(make_job: Make, pairs: Pairs) -> None:
    settings = ("training.eval_strategy=steps", "training.eval_steps=1", "training.max_steps=1")
    job = make_job("dpo", *settings, "training.precompute_ref_log_probs=true", train=pairs[:3], held_out=pairs[3:])
    trainer = job.recipe.method.build_trainer(job)
    trainer.train()
    assert any("eval_rewards/accuracies" in entry for entry in trainer.state.log_history)
    off = make_job("dpo", train=pairs[:3], held_out=pairs[3:])
    assert off.recipe.method.build_trainer(off).eval_dataset is None


# --- What is refused -----------------------------------------------------------------------------------------------

DPO = ("method.type=dpo", "data.train.0.format=preference")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["loss_type=exo_pair"], "exo_pair takes the logarithm of `label_smoothing`, which is 0"),
        (["loss_type=robust", "label_smoothing=0.5"], "at least 0 and less than 0.5, not 0.5"),
        (["label_smoothing=0.1"], "`training.label_smoothing`: no effect on sigmoid"),
        (["discopop_tau=0.1"], "`training.discopop_tau`: no effect on sigmoid"),
        (["loss_type=[sigmoid, sft]", "loss_weights=[1.0]"], "1 weights for 2 losses (sigmoid, sft)"),
        (["loss_weights=[1.0, 2.0]"], "2 weights for 1 losses (sigmoid)"),
        (["loss_weights=[one]"], "weights are numbers, not ['one']"),
        (["loss_type=[]"], "the list is empty"),
        (["loss_type=[sft, sft]"], "a loss is named twice"),
        (["f_divergence_type=forward_kl", "loss_type=[sigmoid, aot]"], "forward_kl is not defined for aot"),
        (["f_alpha_divergence_coef=0.5"], "no effect with f_divergence_type reverse_kl"),
        (["loss_type=aot", "use_weighting=true"], "`training.use_weighting`: aot losses sort the pairs"),
        (["sync_ref_model=true"], "with an adapter, the reference is the base below it"),
        (["ref_model_sync_steps=8"], "no effect without `training.sync_ref_model: true`"),
        (["precompute_ref_batch_size=8"], "no effect without `training.precompute_ref_log_probs: true`"),
        (["padding_free=true"], "TRL 1.16 ignores it for DPO"),
    ],
)
def test_settings_that_would_fail_or_do_nothing_are_refused(
    recipe: Callable[..., Recipe], overrides: list[str], said: str
) -> None:
    the_recipe = recipe(*DPO, *(f"training.{override}" for override in overrides))
    with pytest.raises(RecipeError, match=re.escape(said)) as caught:
        the_recipe.method.check_recipe(the_recipe)
    assert caught.value.remedy
    assert "--set training." in str(caught.value)


def test_a_moving_reference_is_refused_where_its_values_are_kept(recipe: Callable[..., Recipe]) -> None:
    moving = ("adapter=null", "training.sync_ref_model=true")
    the_recipe = recipe(*DPO, *moving, "training.precompute_ref_log_probs=true")
    with pytest.raises(RecipeError, match="the reference moves"):
        the_recipe.method.check_recipe(the_recipe)
    allowed = recipe(*DPO, *moving)
    allowed.method.check_recipe(allowed)


@pytest.mark.parametrize(
    ("setting", "said"),
    [("init_lora_weights=pissa_niter_4", "rewrites the base weights"), ("bias=all", "trains the base's own biases")],
)
def test_adapters_that_change_the_base_are_refused(recipe: Callable[..., Recipe], setting: str, said: str) -> None:
    the_recipe = recipe(*DPO, f"adapter.{setting}")
    with pytest.raises(RecipeError, match=said):
        the_recipe.method.check_recipe(the_recipe)


def test_an_adapter_that_rewrites_the_base_would_be_compared_with_something_else(
    make_job: Make, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why it is refused: with PiSSA, the model with its adapter off is no longer the base."""
    from llmkit.methods.dpo import Dpo

    monkeypatch.setattr(Dpo, "check_recipe", lambda self, recipe: None)
    job = make_job("dpo", "adapter.init_lora_weights=pissa", train=pairs)
    reference = reference_of(job, pairs)
    trainer = job.recipe.method.build_trainer(job)
    found = trainer.compute_ref_log_probs(trainer.model, batch_of(trainer))[0]
    assert (found - reference["chosen"]).abs().max() > 0.1


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_accepted_with_what_it_needs(recipe: Callable[..., Recipe], loss: str) -> None:
    needs = {"exo_pair": ("training.label_smoothing=0.001",), "discopop": ("training.discopop_tau=0.1",)}
    the_recipe = recipe(*DPO, f"training.loss_type={loss}", *needs.get(loss, ()))
    the_recipe.method.check_recipe(the_recipe)


def test_the_choices_are_all_of_trls_losses() -> None:
    from llmkit.recipe import fields

    assert set(fields.describe("DPOConfig")["loss_type"].choices) == set(LOSSES)
