"""KTO: a step written by hand, the mismatched answers of its KL term, and the balance of good and bad rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llmkit.data.splits import Row
from llmkit.errors import DataError, RecipeError
from llmkit.methods.base import Job
from llmkit.methods.kto import advice, mismatched
from llmkit.recipe.recipe import Recipe

Make = Callable[..., Job]
Answers = tuple[Row, ...]
FOUR = "training.per_device_train_batch_size=4"
NF4 = ("quantization={type: nf4}", "quantization.bnb_4bit_compute_dtype=float32")


def logp(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Return log p(answer | prompt), summed over its tokens; no padding, no batch."""
    ids = torch.tensor([prompt + answer])
    logps_TV = torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)
    return logps_TV[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None]).sum()


def logps(model: Any, rows: list[dict[str, Any]], answer: str) -> Tensor:
    return torch.stack([logp(model, row["prompt_ids"], row[answer]) for row in rows])


def by_hand(policy: Any, reference: Callable[[list[dict[str, Any]], str], Tensor], rows: list[dict[str, Any]]) -> Any:
    """Return loss, KL and log ratios of one batch, from arXiv:2402.01306 with beta 0.1 and both weights 1."""
    ratio = logps(policy, rows, "completion_ids") - reference(rows, "completion_ids")
    kl = (logps(policy, rows, "KL_completion_ids") - reference(rows, "KL_completion_ids")).mean().detach().clamp(min=0)
    good = torch.tensor([row["label"] for row in rows])
    value = torch.where(good, torch.sigmoid(0.1 * (ratio - kl)), torch.sigmoid(0.1 * (kl - ratio)))
    return (1 - value).mean(), kl, ratio, good


def moved(model: Any, rows: list[dict[str, Any]]) -> Any:
    """Make the mismatched answers likelier than the reference finds them: the KL term is above 0, where it counts."""
    (-logps(model, rows, "KL_completion_ids").mean()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.02 * parameter.grad / parameter.grad.norm().clamp(min=1e-9))
    model.zero_grad()
    return model


@pytest.mark.parametrize("adapter", ["adapter=null", "adapter.r=4"], ids=["full", "lora"])
def test_loss_equals_hand_written_step(make_job: Make, answers: Answers, adapter: str) -> None:
    job = make_job("kto", adapter, FOUR, train=answers)
    start = make_job("kto", "adapter=null", train=answers).model
    trainer = job.recipe.method.build_trainer(job)
    rows = list(trainer.train_dataset)
    model = moved(trainer.model, rows).train()

    def reference(rows: list[dict[str, Any]], name: str) -> Tensor:
        with torch.no_grad():
            return logps(start, rows, name)

    expected, kl, ratio, good = by_hand(model, reference, rows)
    assert kl > 0.01, "the clamp would hide the KL term"
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = trainer.compute_loss(model, trainer.data_collator(rows))
    loss.backward()

    metrics = trainer._metrics["train"]
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert metrics["kl"][-1] == pytest.approx(kl.item(), abs=1e-4)
    assert metrics["rewards/chosen"][-1] == pytest.approx(0.1 * ratio[good].mean().item(), abs=1e-5)
    assert metrics["rewards/rejected"][-1] == pytest.approx(0.1 * ratio[~good].mean().item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("count", "batch", "expected"),
    [
        (4, 4, [3, 0, 1, 2]),
        (4, 2, [1, 0, 3, 2]),
        (5, 3, [2, 0, 1, 4, 3]),
        (4, 3, [2, 0, 1, 2]),  # alone in the last batch: the answer of the row before it
        (5, 4, [3, 0, 1, 2, 3]),
    ],
)
def test_answers_are_rotated_within_batches(count: int, batch: int, expected: list[int]) -> None:
    assert mismatched([[i] for i in range(count)], batch) == [[i] for i in expected]


@pytest.mark.parametrize("batch", [2, 3, 4, 7])
@pytest.mark.parametrize("count", [2, 3, 5, 8, 13])
def test_no_row_meets_its_own_answer(count: int, batch: int) -> None:
    found = mismatched([[i] for i in range(count)], batch)
    assert len(found) == count
    assert all(other != [i] for i, other in enumerate(found))


def test_whole_batches_are_rotated_as_trl_does() -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"completion_ids": [[i] for i in range(8)]})

    def theirs(examples: dict[str, Any]) -> dict[str, Any]:  # trl 1.16, KTOTrainer._prepare_dataset
        examples["KL_completion_ids"] = [examples["completion_ids"][-1]] + examples["completion_ids"][:-1]
        return examples

    expected = rows.map(theirs, batched=True, batch_size=4)["KL_completion_ids"]
    assert mismatched(rows["completion_ids"][:], 4) == expected[:]


def test_one_row_has_no_mismatched_answer(make_job: Make, answers: Answers) -> None:
    job = make_job("kto", FOUR, train=answers[:1])
    with pytest.raises(DataError, match="there is one row"):
        job.recipe.method.build_trainer(job)
    alone = make_job("kto", FOUR, "training.loss_type=apo_zero_unpaired", train=answers[:1])
    assert alone.recipe.method.build_trainer(alone).train_dataset.column_names == [
        *("prompt_ids", "completion_ids", "label"),
    ]


def test_rows_are_shuffled_once_by_the_seed_and_then_read_in_order(make_job: Make, answers: Answers) -> None:
    def order(*overrides: str) -> list[list[int]]:
        trainer = (job := make_job("kto", FOUR, *overrides, train=answers * 3)).recipe.method.build_trainer(job)
        batches = [batch["input_ids"] for batch in trainer.get_train_dataloader()]
        expected = [row["prompt_ids"] + row["completion_ids"] for row in trainer.train_dataset]
        read = [ids for batch in batches for ids in batch.tolist()]
        assert [row[: len(ids)] for row, ids in zip(read, expected, strict=True)] == expected
        return expected

    given = [row.tokens["prompt_ids"] + row.tokens["completion_ids"] for row in answers * 3]
    first = order()
    assert first != given
    assert sorted(first) == sorted(given)
    assert order() == first
    assert order("training.seed=1") != first


@pytest.mark.parametrize("base", [(), NF4, ("adapter=null",)], ids=["lora", "qlora", "full"])
def test_it_trains(make_job: Make, answers: Answers, base: Any) -> None:
    settings = (FOUR, "training.max_steps=3", "training.gradient_checkpointing=true")
    job = make_job("kto", *base, *settings, train=answers)
    trainer = job.recipe.method.build_trainer(job)
    assert (trainer.ref_model is None) == (job.recipe.adapter is not None)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entries[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert entries[-1]["loss"] < entries[0]["loss"]
    tokens = sum(len(row.tokens["prompt_ids"] + row.tokens["completion_ids"]) for row in answers)
    assert entries[0]["num_tokens"] == tokens


@pytest.mark.usefixtures("fresh_cache")
def test_reference_log_probabilities_are_computed_once(make_job: Make, answers: Answers) -> None:
    def build(*overrides: str) -> tuple[Any, int]:
        forwards: list[None] = []
        job = make_job("kto", FOUR, "training.precompute_ref_log_probs=true", *overrides, train=answers)
        job.model.model.register_forward_hook(lambda *_: forwards.append(None))
        return job.recipe.method.build_trainer(job), len(forwards)

    first, forwards = build()
    assert forwards == 2, "the rows and their mismatched twins"
    second, forwards = build("training.learning_rate=1e-3")
    assert forwards == 0
    assert second.train_dataset.to_list() == first.train_dataset.to_list()
    _, forwards = build("training.seed=1")
    assert forwards == 2, "another order, so other mismatched answers"
    plain = (job := make_job("kto", FOUR, train=answers)).recipe.method.build_trainer(job)
    losses = [
        t.compute_loss(moved(t.model, list(t.train_dataset)), t.data_collator(list(t.train_dataset)))
        for t in (second, plain)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)


def test_held_out_rows_are_evaluated_while_training(make_job: Make, answers: Answers) -> None:
    settings = ("training.eval_strategy=steps", "training.eval_steps=1", "training.max_steps=1", FOUR)
    job = make_job("kto", *settings, train=answers, held_out=answers[:2])
    trainer = job.recipe.method.build_trainer(job)
    trainer.train()
    assert any("eval_rewards/margins" in entry for entry in trainer.state.log_history)


def rows_of(good: int, bad: int) -> list[Row]:
    return [Row("by hand", {"label": label}) for label in [True] * good + [False] * bad]


def test_unbalanced_rows_are_said_with_the_weights_that_balance_them(make_job: Make, answers: Answers) -> None:
    [line] = advice(rows_of(180, 60), 1.0, 1.0)
    assert line == (
        "180 good and 60 bad rows with weights 1 and 1: set training.desirable_weight between 0.33 and 0.44, or "
        "training.undesirable_weight between 2.25 and 3.00 (arXiv:2402.01306, eq. 8)"
    )
    said: list[str] = []
    job = make_job("kto", FOUR, train=(*answers, answers[1], answers[3]), narrate=said.append)
    job.recipe.method.build_trainer(job)
    assert [line[:24] for line in said] == ["2 good and 4 bad rows wi"]


@pytest.mark.parametrize(
    ("good", "bad", "weights", "fits"),
    [
        (100, 100, (1.0, 1.0), True),
        (180, 60, (0.33, 1.0), True),
        (180, 60, (0.44, 1.0), True),
        (180, 60, (0.45, 1.0), False),
        (180, 60, (1.0, 3.0), True),
        (180, 60, (1.0, 2.25), True),
        (60, 180, (1.0, 1.0), False),
        (60, 180, (4.0, 1.0), True),
        (100, 100, (1.0, 0.0), False),
    ],
)
def test_weights_that_balance_the_rows_are_not_told_off(
    good: int, bad: int, weights: tuple[float, float], fits: bool
) -> None:
    assert (advice(rows_of(good, bad), *weights) == []) == fits


def test_rows_of_one_kind_are_said() -> None:
    assert advice(rows_of(3, 0), 1.0, 1.0) == ["all 3 rows are good: KTO has nothing to tell apart"]
    assert advice(rows_of(0, 2), 1.0, 1.0) == ["all 2 rows are bad: KTO has nothing to tell apart"]


KTO = ("method.type=kto", "data.train.0.format=unpaired")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["per_device_train_batch_size=1"], "a batch of 1 has none"),
        (["train_sampling_strategy=group_by_length"], "mismatched pairs are made once"),
        (["sync_ref_model=true"], "the reference is the base below it"),
    ],
)
def test_what_the_mismatched_pairs_can_not_come_from_is_refused(
    recipe: Callable[..., Recipe], overrides: list[str], said: str
) -> None:
    the_recipe = recipe(*KTO, *(f"training.{override}" for override in overrides))
    with pytest.raises(RecipeError, match=re.escape(said)):
        the_recipe.method.check_recipe(the_recipe)


def test_a_loss_without_a_kl_term_takes_any_batch(recipe: Callable[..., Recipe]) -> None:
    alone = ("training.loss_type=apo_zero_unpaired", "training.per_device_train_batch_size=1")
    the_recipe = recipe(*KTO, *alone, "training.train_sampling_strategy=random")
    the_recipe.method.check_recipe(the_recipe)
