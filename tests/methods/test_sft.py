"""SFT: the same numbers as a plain PyTorch loop, however the batch is cut, on every shape it accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from llmkit.recipe.recipe import Recipe
from llmkit.runs.prepare import Prepared, prepare
from llmkit.runs.progress import Narrator

Maker = Callable[..., Recipe]
PLAIN = (
    "training.max_grad_norm=0",
    "training.lr_scheduler_type=constant",
    "training.save_strategy=no",
    "evaluation=[]",
)


def trained(recipe: Recipe) -> tuple[Prepared, list[float]]:
    prepared = prepare(recipe)
    prepared.trainer.train()
    return prepared, [entry["loss"] for entry in prepared.trainer.state.log_history if "loss" in entry]


def plain_loop(recipe: Recipe, steps: int) -> tuple[torch.nn.Module, list[float]]:
    """Train the full model with nothing but PyTorch, on the batches of the trainer's loader."""
    prepared = prepare(recipe)
    args = prepared.trainer.args
    torch.manual_seed(args.seed)
    batches: list[dict[str, torch.Tensor]] = []
    loader = prepared.trainer.get_train_dataloader()
    for epoch in range(steps):
        loader.set_epoch(epoch)
        batches += list(loader)
    model = prepared.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    losses = []
    for batch in batches[:steps]:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


def test_steps_equal_a_plain_pytorch_loop(recipe: Maker) -> None:
    the_recipe = recipe("adapter=null", "training.max_steps=10", "training.learning_rate=1e-3", *PLAIN)
    prepared, losses = trained(the_recipe)
    model, expected = plain_loop(the_recipe, 10)
    assert losses == pytest.approx(expected, abs=1e-4)
    for (name, ours), theirs in zip(prepared.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0, msg=name)


@pytest.fixture
def uneven_rows(rows_file: Path) -> None:
    """Rows of very different lengths: where accumulation is done wrongly, their losses come out differently."""
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes " * (1 + 3 * (i % 4))}]}
        for i in range(16)
    ]
    rows_file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


@pytest.mark.usefixtures("uneven_rows")
@pytest.mark.parametrize("adapter", ["adapter=null", "adapter.r=4"], ids=["full", "lora"])
def test_accumulating_batches_equals_one_batch(recipe: Maker, adapter: str) -> None:
    common = (adapter, "data.eval=null", "training.max_steps=3", "training.max_grad_norm=1.0", *PLAIN[1:])
    whole, losses = trained(recipe(*common, "training.per_device_train_batch_size=8"))
    parts, split = trained(
        recipe(*common, "training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=4")
    )
    assert split == pytest.approx(losses, abs=1e-5)
    norms = [[e["grad_norm"] for e in p.trainer.state.log_history if "loss" in e] for p in (whole, parts)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def test_the_loss_at_trained_positions_is_trls(recipe: Maker) -> None:
    from trl import SFTTrainer

    prepared = prepare(recipe("training.save_strategy=no"))
    batch = next(iter(prepared.trainer.get_train_dataloader()))
    model = prepared.model.train()
    ours = prepared.trainer.compute_loss(model, dict(batch), num_items_in_batch=7)
    ours.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    theirs = SFTTrainer.compute_loss(prepared.trainer, model, dict(batch), num_items_in_batch=7)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert gradients
    for one, other in zip(gradients, (p.grad for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_head_sees_the_trained_positions_only(recipe: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(recipe("training.save_strategy=no"))
    batch = next(iter(prepared.trainer.get_train_dataloader()))
    head, seen = prepared.model.get_output_embeddings(), []
    monkeypatch.setattr(head, "forward", lambda hidden: seen.append(hidden) or torch.nn.Linear.forward(head, hidden))
    prepared.trainer.compute_loss(prepared.model.train(), dict(batch))
    assert [hidden.shape[:2].numel() for hidden in seen] == [int((batch["labels"][:, 1:] != -100).sum())]


def test_a_batch_that_trains_nothing_costs_nothing(recipe: Maker) -> None:
    prepared = prepare(recipe("training.save_strategy=no"))
    batch = next(iter(prepared.trainer.get_train_dataloader()))
    batch["labels"][:] = -100
    loss = prepared.trainer.compute_loss(prepared.model.train(), batch, num_items_in_batch=0)
    loss.backward()
    assert loss.item() == 0.0
    assert all(float(p.grad.abs().sum()) == 0.0 for p in prepared.model.parameters() if p.grad is not None)


def test_real_tokens_are_logged_without_padding(recipe: Maker) -> None:
    prepared, _ = trained(recipe("training.max_steps=1", "training.save_strategy=no"))
    entry = next(e for e in prepared.trainer.state.log_history if "loss" in e)
    lengths = [len(r.input_ids) for r in prepared.splits.train]
    assert 4 * min(lengths) <= entry["num_tokens"] <= 4 * max(lengths)
    assert 0 <= entry["mean_token_accuracy"] <= 1


@pytest.mark.parametrize(
    ("format_name", "row"),
    [
        ("prompt_completion", {"prompt": "two plus two is", "completion": " four"}),
        ("text", {"text": "the capital of France is Paris"}),
        ("alpaca", {"instruction": "say yes", "input": "", "output": "yes"}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}),
    ],
)
def test_every_accepted_format_trains(recipe: Maker, rows_file: Path, format_name: str, row: dict[str, Any]) -> None:
    rows_file.write_text((json.dumps(row) + "\n") * 8, encoding="utf-8")
    overrides = (f"data.train.0.format={format_name}", "data.eval=null", "training.max_steps=6")
    _, losses = trained(recipe(*overrides, "training.save_strategy=no", "training.learning_rate=2e-2"))
    assert losses[-1] < losses[0]


def test_evaluation_while_training_uses_the_held_out_rows(recipe: Maker) -> None:
    prepared, _ = trained(recipe("training.eval_strategy=steps", "training.eval_steps=1", "training.save_strategy=no"))
    found = [e["eval_loss"] for e in prepared.trainer.state.log_history if "eval_loss" in e]
    assert len(found) == 3
    assert all(loss > 0 for loss in found)


def test_an_adapter_on_a_quantized_base_goes_on_from_its_very_values(recipe: Maker, tmp_path: Path) -> None:
    from peft import load_peft_weights

    nf4 = ("quantization={type: nf4}", "quantization.bnb_4bit_compute_dtype=float32", "model.dtype=float32", *PLAIN)
    first = prepare(recipe(*nf4)).model
    torch.manual_seed(1)
    for name, parameter in first.named_parameters():
        if "lora_B" in name:
            # Values that bfloat16 would round.
            parameter.data = torch.randn_like(parameter, dtype=torch.float32) / 3
    first.save_pretrained(tmp_path / "adapter")
    saved = load_peft_weights(str(tmp_path / "adapter"), device="cpu")

    going_on = prepare(recipe(*nf4, f"model.name={tmp_path / 'adapter'}", "adapter={type: lora}")).model
    found = {n.replace(".default", ""): p for n, p in going_on.named_parameters() if p.requires_grad}
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name].detach(), saved[name]) for name in saved)


@pytest.mark.usefixtures("uneven_rows")
@pytest.mark.parametrize("adapter", ["adapter=null", "adapter.r=4"], ids=["full", "lora"])
def test_packed_steps_are_those_of_padded_batches(recipe: Maker, adapter: str) -> None:
    """All 16 rows are in every step: then it does not matter which of them share a sequence."""
    common = (adapter, "data.eval=null", "training.max_steps=3", "training.per_device_train_batch_size=16", *PLAIN)
    _, padded = trained(recipe(*common))
    packed, losses = trained(recipe(*common, "training.packing=true", "training.max_length=64"))
    assert packed.trainer.packed["train"].sequences < 16
    assert losses == pytest.approx(padded, abs=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_packed_rows_are_proven_apart_on_a_quantized_base(recipe: Maker, kind: str) -> None:
    prepared, losses = trained(recipe(f"quantization={{type: {kind}}}", "training.packing=true", *PLAIN))
    assert prepared.trainer.packed["train"].rows == len(prepared.splits.train)
    assert losses


def test_what_packing_did_is_said(recipe: Maker) -> None:
    said: list[str] = []
    narrator = Narrator()
    narrator.say = said.append  # type: ignore[method-assign]
    prepare(recipe("training.packing=true", "training.max_length=64", "training.save_strategy=no"), narrator=narrator)
    [line] = [line for line in said if "packed" in line]
    assert re.fullmatch(
        r"train: packed 18 rows into \d+ sequences of at most 64 tokens: \d+\.\d% padding instead of \d+\.\d%", line
    )


@pytest.mark.parametrize(
    "training",
    [("training.packing=true", "training.max_length=64"), ("training.padding_free=true",)],
    ids=["packing", "padding free"],
)
def test_a_loop_of_ones_own_computes_the_packed_run(recipe: Maker, training: tuple[str, ...]) -> None:
    """The loop of docs/custom_loop.md, on the batches of `prepare(...).loop()`."""
    page = (Path(__file__).parents[2] / "docs" / "custom_loop.md").read_text(encoding="utf-8")
    [source] = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def train(" in block]
    names: dict[str, Any] = {}
    exec(compile(source, "custom_loop.md", "exec"), names)
    the_recipe = recipe(*training, "training.max_steps=4", "training.gradient_accumulation_steps=2", *PLAIN[1:])
    _, losses = trained(the_recipe)
    assert names["train"](prepare(the_recipe)) == pytest.approx(losses, abs=1e-5)
