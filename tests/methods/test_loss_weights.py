"""Loss weights: hand-computed losses and gradients, in every layout, and what can't be weighed is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from llmkit.errors import RecipeError, RunError
from llmkit.methods._trained_tokens import Scored, TrainedTokensTrainer, weighted_loss

ROWS = (
    {"input_ids": [7, 8, 9, 10], "labels": [-100, -100, 9, 10]},
    {"input_ids": [5, 6, 11, 12, 13, 14], "labels": [5, 6, 11, -100, 13, 14]},
    {"input_ids": [20, 21, 22], "labels": [-100, 21, 22]},
    {"input_ids": [30, 31, 32, 33, 34, 35, 36, 37], "labels": [-100] * 5 + [35, 36, 37]},
)
WEIGHTS = ([1.0, 1.0, 2.0, 2.0], [1.0] * 6, [1.0, 0.5, 0.25], [1.0, 1.0, 1.0, 1.0, 1.0, 3.0, 1.0, 0.1])
LAYOUTS = {
    "padded": {},
    "padded to a multiple": {"pad_to_multiple_of": 8},
    "packed": {"packing": True},
    "packed and flat": {"packing": True, "padding_free": True},
    "padding free": {"padding_free": True, "max_length": None},
}


def weighted(weights: Sequence[Sequence[float]] = WEIGHTS) -> list[dict[str, Any]]:
    return [{**row, "loss_weights": list(factors)} for row, factors in zip(ROWS, weights, strict=True)]


Make = Callable[..., TrainedTokensTrainer]


@pytest.fixture
def make(model: Any, tokenizer: Any, tmp_path: Path) -> Make:
    """Return a maker of trainers for a copy of the tiny model, in float32."""
    import copy

    from trl import SFTConfig

    def trainer(rows: Sequence[dict[str, Any]], *, held_out: Any = None, **training: Any) -> TrainedTokensTrainer:
        plain = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "max_length": 16}
        plain |= {"save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "per_device_train_batch_size": 4}
        return TrainedTokensTrainer(
            model=copy.deepcopy(model),
            args=SFTConfig(output_dir=str(tmp_path / "out"), **{**plain, **training}),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(list(rows)),
            eval_dataset=Dataset.from_list(list(held_out)) if held_out else None,
        )

    return trainer


def step(trainer: TrainedTokensTrainer, tokens: int | None = None) -> tuple[float, list[torch.Tensor]]:
    """Return loss and gradients of one step over all rows, its divisor counted by the trainer or given."""
    found = list(trainer.get_train_dataloader())
    count = trainer._get_num_items_in_batch(found, trainer.args.device) if tokens is None else tokens
    total = 0.0
    for batch in found:
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)
        loss.backward()
        total += loss.item()
    return total, [p.grad for p in trainer.model.parameters() if p.grad is not None]


def by_hand(model: Any, rows: Sequence[dict[str, Any]]) -> tuple[float, list[torch.Tensor]]:
    """Return sum(weight x -log p) / trained tokens, token by token, with its gradients."""
    terms, count = [], 0
    for row in rows:
        log_probs = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for place, (label, weight) in enumerate(zip(row["labels"], row["loss_weights"], strict=True)):
            if place and label != -100:
                terms.append(-weight * log_probs[place - 1, label])
                count += 1
    loss = torch.stack(terms).sum() / count
    model.zero_grad()
    loss.backward()
    return loss.item(), [p.grad for p in model.parameters() if p.grad is not None]


def assert_equal(ours: tuple[float, list[torch.Tensor]], expected: tuple[float, list[torch.Tensor]]) -> None:
    assert ours[0] == pytest.approx(expected[0], abs=1e-5)
    assert ours[1]
    for one, other in zip(ours[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_the_weighted_mean_by_hand() -> None:
    scored = Scored(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2.0, 0.5, 0.25]), torch.tensor([True, False, True]))
    assert weighted_loss(scored).item() == pytest.approx((2 + 1 + 1) / 3)
    assert weighted_loss(scored, 8).item() == pytest.approx(4 / 8)
    assert weighted_loss(scored._replace(weights=None)).item() == pytest.approx(7 / 3)
    assert weighted_loss(Scored(torch.zeros(0), None, torch.zeros(0))).item() == 0.0


@pytest.mark.parametrize("size", [4, 1], ids=["one batch", "accumulated"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradients_are_those_computed_by_hand(make: Make, layout: str, size: int) -> None:
    trainer = make(weighted(), per_device_train_batch_size=size, **LAYOUTS[layout])
    assert_equal(step(trainer), by_hand(trainer.model, weighted()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_one_change_no_bit(make: Make, layout: str) -> None:
    ones = [[1.0] * len(row["input_ids"]) for row in ROWS]
    plain, same = step(make(ROWS, **LAYOUTS[layout])), step(make(weighted(ones), **LAYOUTS[layout]))
    assert plain[0] == same[0]
    assert all(torch.equal(one, other) for one, other in zip(plain[1], same[1], strict=True))


def test_weights_change_what_is_learnt(make: Make) -> None:
    assert abs(step(make(ROWS))[0] - step(make(weighted()))[0]) > 1e-2


@pytest.mark.parametrize("training", [{}, {"packing": True}], ids=["padded", "packed"])
def test_a_row_of_weight_two_is_that_row_twice(make: Make, training: dict[str, Any]) -> None:
    twice = [[2.0 if number == 1 else 1.0] * len(row["input_ids"]) for number, row in enumerate(ROWS)]
    trained = sum(label != -100 for row in ROWS for label in row["labels"][1:])
    # The divisor of the weighted step counts the row once: with the same divisor the sums are the same.
    doubled = make([*ROWS, ROWS[1]], per_device_train_batch_size=5, **training)
    assert_equal(step(make(weighted(twice), **training)), step(doubled, tokens=trained))


def test_trls_fused_head_weighs_the_same(make: Make) -> None:
    """The path of CUDA devices; on a CPU, TRL's fused head takes its plain torch code."""
    trainer = make(weighted())
    batch = next(iter(trainer.get_train_dataloader()))
    loss = weighted_loss(trainer._score_fused(trainer.model, **batch))
    trainer.model.zero_grad()
    loss.backward()
    fused = loss.item(), [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
    assert_equal(fused, by_hand(trainer.model, weighted()))


def test_devices_with_a_fused_head_use_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmkit.methods import _trained_tokens

    trainer = make(weighted())
    expected = step(trainer)
    trainer.model.zero_grad()
    monkeypatch.setattr(_trained_tokens, "FUSED", ("cpu",))
    monkeypatch.setattr(trainer, "_score", lambda *_, **__: pytest.fail("the plain path was taken"))
    assert_equal(step(trainer), expected)


def test_weighted_training_logs_its_loss_and_plain_counts(make: Make) -> None:
    trainer = make(weighted(), max_steps=1, packing=True)
    expected = by_hand(trainer.model, weighted())[0]
    trainer.train()
    entry = next(e for e in trainer.state.log_history if "loss" in e)
    assert entry["loss"] == pytest.approx(expected, abs=1e-5)
    assert entry["num_tokens"] == sum(len(row["input_ids"]) for row in ROWS)
    assert 0 <= entry["mean_token_accuracy"] <= 1


def test_a_loss_while_training_is_weighted_as_the_training_is(make: Make) -> None:
    trainer = make(ROWS, held_out=weighted())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(by_hand(trainer.model, weighted())[0], abs=1e-5)


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("training", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}], ids=str)
def test_losses_without_weights_are_refused(make: Make, split: str, training: dict[str, Any]) -> None:
    given = (weighted(), None) if split == "train" else (ROWS, weighted())
    name = next(iter(training))
    with pytest.raises(RecipeError, match=f"`training.{name}: {training[name]}` can't weigh tokens"):
        make(given[0], held_out=given[1], **training)
    make(ROWS, **training)


def test_a_routers_own_loss_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM
    from trl import SFTConfig

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=2, bos_token_id=None, **sizes)
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(RecipeError, match="`training.router_aux_loss_coef` can't weigh"):
        TrainedTokensTrainer(
            model=MixtralForCausalLM(config),
            args=args,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(weighted()),
        )


def test_outputs_beside_a_weighted_loss_are_refused(make: Make) -> None:
    trainer = make(weighted())
    batch = next(iter(trainer.get_train_dataloader()))
    with pytest.raises(RunError, match="only the loss is computed"):
        trainer.compute_loss(trainer.model, batch, return_outputs=True)


def test_padding_weighs_nothing(make: Make) -> None:
    trainer = make(weighted(), pad_to_multiple_of=16)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["loss_weights"].shape == batch["input_ids"].shape == (4, 16)
    assert (batch["loss_weights"][batch["attention_mask"] == 0] == 0).all()
    assert batch["loss_weights"].sum().item() == pytest.approx(
        math.fsum(factor for row in WEIGHTS for factor in row), rel=1e-6
    )


@pytest.mark.parametrize("size", [4, 1], ids=["one batch", "accumulated"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_without_weights_counts_as_usual(make: Make, layout: str, size: int) -> None:
    """In batches of one row, some have no weights at all."""
    some = [None, WEIGHTS[1], WEIGHTS[2], None]
    ones = [given or [1.0] * len(row["input_ids"]) for given, row in zip(some, ROWS, strict=True)]
    rows = [{**row, "loss_weights": given} for row, given in zip(ROWS, some, strict=True)]
    trainer = make(rows, per_device_train_batch_size=size, **LAYOUTS[layout])
    assert_equal(step(trainer), by_hand(trainer.model, weighted(ones)))


def test_a_batch_of_rows_without_weights_has_ones() -> None:
    from llmkit.methods._packed import TokenCollator

    rows = [{**row, "loss_weights": None} for row in ROWS[:2]]
    batch = TokenCollator(pad_token_id=0)(rows)
    assert batch["loss_weights"].tolist() == [[1.0] * 4 + [0.0] * 2, [1.0] * 6]
