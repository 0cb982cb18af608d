"""ORPO: a step written by hand, and what llmkit relies on of a trainer that TRL makes no promise for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from llmkit.data.splits import Row
from llmkit.errors import RecipeError
from llmkit.methods.base import Job
from llmkit.recipe.recipe import Recipe

Make = Callable[..., Job]
Pairs = tuple[Row, ...]
FOUR = "training.per_device_train_batch_size=4"
NF4 = ("quantization={type: nf4}", "quantization.bnb_4bit_compute_dtype=float32")
COLUMNS = ("input_ids", "attention_mask", "labels")


def mean_logp(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Return the mean log-probability of the answer's tokens; no padding, no batch."""
    logps_TV = torch.log_softmax(model(input_ids=torch.tensor([prompt + answer])).logits[0].float(), -1)
    return logps_TV[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None]).mean()


def by_hand(model: Any, rows: Pairs, beta: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, and the mean log-probabilities of both answers: arXiv:2403.07691, eqs. (6) and (7)."""
    chosen, rejected = (
        torch.stack([mean_logp(model, row.tokens["prompt_ids"], row.tokens[f"{name}_ids"]) for row in rows])
        for name in ("chosen", "rejected")
    )
    odds = [torch.log(p.exp() / (1 - p.exp())) for p in (chosen, rejected)]
    total, tokens = torch.tensor(0.0), 0
    for row in rows:
        ids = torch.tensor(row.tokens["prompt_ids"] + row.tokens["chosen_ids"])
        total = total + cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="sum")
        tokens += len(ids) - 1
    return total / tokens - beta * logsigmoid(odds[0] - odds[1]).mean(), chosen, rejected


def batch_of(trainer: Any) -> dict[str, Tensor]:
    return trainer.data_collator(list(trainer.train_dataset))


@pytest.mark.parametrize("adapter", ["adapter=null", "adapter.r=4"], ids=["full", "lora"])
def test_loss_equals_hand_written_step(make_job: Make, pairs: Pairs, adapter: str) -> None:
    job = make_job("orpo", adapter, FOUR, train=pairs)
    trainer = job.recipe.method.build_trainer(job)
    model = trainer.model.train()
    expected, chosen, rejected = by_hand(model, pairs)
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = trainer.compute_loss(model, batch_of(trainer))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    metrics = trainer._stored_metrics["train"]
    assert metrics["rewards/chosen"] == [pytest.approx(0.1 * chosen.mean().item(), abs=1e-5)]
    assert metrics["rewards/rejected"] == [pytest.approx(0.1 * rejected.mean().item(), abs=1e-5)]
    assert len(gradients) > 10
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("base", [(), NF4, ("adapter=null",)], ids=["lora", "qlora", "full"])
def test_it_trains(make_job: Make, pairs: Pairs, base: Any) -> None:
    held_out = ("training.eval_strategy=steps", "training.eval_steps=1")
    job = make_job(
        "orpo",
        *base,
        *held_out,
        FOUR,
        "training.max_steps=3",
        "training.gradient_checkpointing=true",
        train=pairs,
        held_out=pairs[:2],
    )
    trainer = job.recipe.method.build_trainer(job)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert any("eval_rewards/accuracies" in entry for entry in trainer.state.log_history)


def test_base_weights_stay_in_the_data_types_they_were_loaded_in(make_job: Make, pairs: Pairs) -> None:
    """TRL would cast embeddings, norms and LM head of a quantized base to float32."""
    half = ("model.dtype=bfloat16", "quantization={type: nf4}", "quantization.bnb_4bit_compute_dtype=bfloat16")
    job = make_job("orpo", *half, "training.max_steps=1", train=pairs)
    loaded = {name: p.dtype for name, p in job.model.named_parameters()}
    assert loaded["model.embed_tokens.weight"] == torch.bfloat16
    trainer = job.recipe.method.build_trainer(job)
    for name, parameter in trainer.model.named_parameters():
        bare = name.removeprefix("base_model.model.").replace(".base_layer", "")
        assert parameter.dtype == loaded.get(bare, torch.float32), name
    trainer.train()


def test_the_first_adapter_weights_follow_the_seed(make_job: Make, pairs: Pairs) -> None:
    def first(*overrides: str) -> Tensor:
        job = make_job("orpo", *overrides, train=pairs)
        named = dict(job.recipe.method.build_trainer(job).model.named_parameters())
        return next(p for name, p in named.items() if "lora_A" in name)

    assert torch.equal(first(), first())
    assert not torch.equal(first(), first("training.seed=1"))


def test_labels_are_the_answers_and_nothing_else(make_job: Make, pairs: Pairs) -> None:
    job = make_job("orpo", "training.max_length=4", train=pairs)
    trainer = job.recipe.method.build_trainer(job)
    for row, seen in zip(pairs, trainer.train_dataset, strict=True):
        for name in ("chosen", "rejected"):
            prompt, answer = row.tokens["prompt_ids"], row.tokens[f"{name}_ids"]
            assert seen[f"{name}_input_ids"] == prompt + answer, "neither cut nor ended again"
            assert seen[f"{name}_labels"] == [-100] * len(prompt) + answer
            assert seen[f"{name}_attention_mask"] == [1] * len(prompt + answer)


@pytest.mark.parametrize("method", ["orpo", "simpo"])
@pytest.mark.parametrize(
    "setting",
    ["generate_during_eval=true", "is_encoder_decoder=true", "max_completion_length=9", "remove_unused_columns=true"],
)
def test_fields_without_use_are_refused(recipe: Callable[..., Recipe], method: str, setting: str) -> None:
    the_recipe = recipe(f"method.type={method}", "data.train.0.format=preference", f"training.{setting}")
    with pytest.raises(RecipeError, match=f"`training.{setting.split('=')[0]}`: no use with method '{method}'"):
        the_recipe.method.check_recipe(the_recipe)


# --- What is relied on of trl.experimental -------------------------------------------------------------------------


def test_the_columns_are_those_that_trl_makes_of_text(make_job: Make, pairs: Pairs) -> None:
    from trl.experimental.orpo import ORPOTrainer

    job = make_job("orpo", train=pairs)
    trainer = job.recipe.method.build_trainer(job)
    tokenizer = job.tokenizer
    text = {"prompt": "the capital is", "chosen": " Paris", "rejected": " four"}
    theirs = ORPOTrainer.tokenize_row(trainer, text)
    prompt = tokenizer(text["prompt"]).input_ids
    tokens = {
        "prompt_ids": prompt,
        **{f"{n}_ids": tokenizer(text[n]).input_ids + [tokenizer.eos_token_id] for n in ("chosen", "rejected")},
    }
    from llmkit.methods._pairs_experimental import sequences

    [ours] = sequences([Row("by hand", {}, tokens)])
    assert ours == {key: theirs[key] for name in ("chosen", "rejected") for key in (f"{name}_{c}" for c in COLUMNS)}


def test_what_the_trainer_takes() -> None:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    taken = set(inspect.signature(ORPOTrainer.__init__).parameters)
    assert {"model", "args", "processing_class", "train_dataset", "eval_dataset", "callbacks"} <= taken
    assert list(inspect.signature(ORPOTrainer.tokenize_row).parameters) == ["self", "feature", "model"]
    assert {"beta", "max_length", "disable_dropout", "remove_unused_columns"} <= set(ORPOConfig.__dataclass_fields__)
    source = inspect.getsource(ORPOTrainer.__init__)
    assert "map(self.tokenize_row" in source, "rows no longer go through `tokenize_row`"
