"""SimPO: a step written by hand, its own defaults, the other CPO losses, and what is relied on of trl.experimental."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from llmkit.data.splits import Row
from llmkit.errors import RecipeError
from llmkit.methods.base import Job
from llmkit.recipe.recipe import Recipe
from llmkit.runs.prepare import plan

Make = Callable[..., Job]
Pairs = tuple[Row, ...]
FOUR = "training.per_device_train_batch_size=4"
NF4 = ("quantization={type: nf4}", "quantization.bnb_4bit_compute_dtype=float32")


def token_logps(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Return log p(token | all before it) of each answer token; no padding, no batch."""
    logps_TV = torch.log_softmax(model(input_ids=torch.tensor([prompt + answer])).logits[0].float(), -1)
    return logps_TV[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])[:, 0]


def answers_of(model: Any, rows: Pairs, name: str) -> list[Tensor]:
    return [token_logps(model, row.tokens["prompt_ids"], row.tokens[f"{name}_ids"]) for row in rows]


def by_hand(model: Any, rows: Pairs, beta: float, gamma: float) -> Tensor:
    """Return the loss of arXiv:2405.14734, eq. (6), from the mean log-probabilities of both answers."""
    chosen, rejected = (
        torch.stack([logps.mean() for logps in answers_of(model, rows, name)]) for name in ("chosen", "rejected")
    )
    return -logsigmoid(beta * (chosen - rejected) - gamma).mean()


def batch_of(trainer: Any) -> dict[str, Tensor]:
    return trainer.data_collator(list(trainer.train_dataset))


@pytest.mark.parametrize("adapter", ["adapter=null", "adapter.r=4"], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("settings", "beta", "gamma"),
    [((), 2.0, 1.0), (("training.beta=2.5", "training.simpo_gamma=0.8"), 2.5, 0.8)],
    ids=["defaults", "set"],
)
def test_loss_equals_hand_written_step(
    make_job: Make, pairs: Pairs, adapter: str, settings: tuple[str, ...], beta: float, gamma: float
) -> None:
    job = make_job("simpo", adapter, *settings, FOUR, train=pairs)
    trainer = job.recipe.method.build_trainer(job)
    model = trainer.model.train()
    expected = by_hand(model, pairs, beta, gamma)
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = trainer.compute_loss(model, batch_of(trainer))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert len(gradients) > 10
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4, msg=name)


def test_cpo_alpha_adds_the_next_token_loss_of_the_better_answer(make_job: Make, pairs: Pairs) -> None:
    job = make_job("simpo", "training.cpo_alpha=0.5", FOUR, train=pairs)
    trainer = job.recipe.method.build_trainer(job)
    nll = -torch.cat(answers_of(trainer.model, pairs, "chosen")).mean()
    expected = by_hand(trainer.model, pairs, 2.0, 1.0) + 0.5 * nll
    assert trainer.compute_loss(trainer.model, batch_of(trainer)).item() == pytest.approx(expected.item(), abs=1e-5)


def test_another_loss_is_cpo_with_trls_own_defaults(make_job: Make, pairs: Pairs) -> None:
    job = make_job("simpo", "training.loss_type=sigmoid", FOUR, train=pairs)
    trainer = job.recipe.method.build_trainer(job)
    chosen, rejected = (answers_of(trainer.model, pairs, name) for name in ("chosen", "rejected"))
    margins = torch.stack([one.sum() - other.sum() for one, other in zip(chosen, rejected, strict=True)])
    expected = -logsigmoid(0.1 * margins).mean() - torch.cat(chosen).mean()
    assert trainer.compute_loss(trainer.model, batch_of(trainer)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_defaults_give_way_to_what_is_set(recipe: Callable[..., Recipe]) -> None:
    def planned(*overrides: str) -> dict[str, Any]:
        found = plan(recipe("data.train.0.format=preference", "data.eval=null", "method.type=simpo", *overrides))
        return {key: found.get(f"training.{key}") for key in ("loss_type", "cpo_alpha", "beta", "simpo_gamma")}

    published = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}
    assert planned() == published
    assert planned("training.beta=2.5") == {**published, "beta": None}
    assert planned("training.loss_type=hinge") == dict.fromkeys(published)
    assert planned("training.loss_type=alphapo", "training.alpha=0.25")["cpo_alpha"] == 0.0


@pytest.mark.parametrize("loss", ["simpo", "sigmoid", "hinge", "ipo", "alphapo"])
@pytest.mark.parametrize("base", [(), NF4, ("adapter=null",)], ids=["lora", "qlora", "full"])
def test_every_loss_trains(make_job: Make, pairs: Pairs, loss: str, base: Any) -> None:
    alpha = ("training.alpha=0.25",) if loss == "alphapo" else ()
    settings = (f"training.loss_type={loss}", "training.max_steps=3", "training.gradient_checkpointing=true", FOUR)
    job = make_job("simpo", *base, *settings, *alpha, train=pairs)
    trainer = job.recipe.method.build_trainer(job)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(math.isfinite(value) for value in losses)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["loss_type=sigmoid", "simpo_gamma=1.0"], "`training.simpo_gamma`: no effect on sigmoid"),
        (["loss_type=ipo", "label_smoothing=0.1"], "`training.label_smoothing`: no effect on ipo"),
        (["loss_type=alphapo", "alpha=0.25", "cpo_alpha=1.0"], "alphapo sets it to 0"),
        (["loss_type=alphapo"], "alphapo with `alpha` 0 is simpo"),
    ],
)
def test_settings_that_do_nothing_are_refused(recipe: Callable[..., Recipe], overrides: list[str], said: str) -> None:
    source = ("method.type=simpo", "data.train.0.format=preference")
    the_recipe = recipe(*source, *(f"training.{override}" for override in overrides))
    with pytest.raises(RecipeError, match=re.escape(said)):
        the_recipe.method.check_recipe(the_recipe)


# --- What is relied on of trl.experimental -------------------------------------------------------------------------


def test_what_the_trainer_takes() -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    taken = set(inspect.signature(CPOTrainer.__init__).parameters)
    assert {"model", "args", "processing_class", "train_dataset", "eval_dataset", "callbacks"} <= taken
    assert list(inspect.signature(CPOTrainer.tokenize_row).parameters) == ["self", "feature", "model"]
    assert "map(self.tokenize_row" in inspect.getsource(CPOTrainer.__init__)
    fields = CPOConfig.__dataclass_fields__
    assert fields["loss_type"].metadata["choices"] == ["sigmoid", "hinge", "ipo", "simpo", "alphapo"]
    assert {"beta", "simpo_gamma", "cpo_alpha", "alpha", "label_smoothing"} <= set(fields)


def test_published_defaults_are_not_cpo_configs_own() -> None:
    """If TRL takes the paper's values over, ours can go."""
    from llmkit.recipe import fields

    known = fields.describe("CPOConfig")
    assert (known["beta"].default, known["simpo_gamma"].default, known["cpo_alpha"].default) == (0.1, 0.5, 1.0)
