"""However the rows of a step are cut, filled and computed, it is the same step: loss, gradient norm, every gradient.

Each way goes through `prepare` and the trainer's own `train`, as `llmkit run` does; the reference is one padded batch
of eight. In float32, all have to agree to 1e-4.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from llmkit.methods._trained_tokens import TrainedTokensTrainer
from llmkit.model.compiling import compile_layers
from llmkit.planning.compiling import compiler
from llmkit.recipe.recipe import Recipe
from llmkit.runs.prepare import Prepared, prepare

Maker = Callable[..., Recipe]
TOLERANCE = 1e-4
WORDS = (3, 24, 9, 1, 16, 2, 40, 5)
"""Words of each row's answer: the trained tokens of the eight rows are as unequal as their lengths."""

FULL, LORA = "full", "lora"
ADAPTERS = {
    FULL: ("adapter=null",),
    # With its zero-initialized half, an adapter's other half would have no gradient to compare.
    LORA: ("adapter.r=4", "adapter.init_lora_weights=false"),
}
PLAIN = (
    "evaluation=[]",
    "data.eval=null",
    "model.dtype=float32",
    "model.attn_implementation=sdpa",
    "training.bf16=false",
    "training.gradient_checkpointing=false",
    "training.packing=false",
    "training.train_sampling_strategy=random",
    "training.max_length=256",
    "training.max_steps=1",
    "training.lr_scheduler_type=constant",
    "training.save_strategy=no",
    "training.max_grad_norm=1.0e9",
)


def batches(size: int, accumulated: int) -> tuple[str, ...]:
    """Return the settings of a step of `accumulated` batches of `size`."""
    return (
        f"training.per_device_train_batch_size={size}",
        f"training.gradient_accumulation_steps={accumulated}",
    )


WAYS = {
    "8 x 1 accumulated": batches(1, 8),
    "2 x 4 accumulated": batches(2, 4),
    "3 and 3 and 2": batches(3, 3),
    "packed": (*batches(8, 1), "training.packing=true"),
    "packed, accumulated": (*batches(1, 8), "training.packing=true"),
    "packed and flat": (*batches(8, 1), "training.packing=true", "training.padding_free=true"),
    "padding free": (*batches(8, 1), "training.padding_free=true"),
    "padding free, accumulated": (*batches(2, 4), "training.padding_free=true"),
    "padded to a multiple": (*batches(8, 1), "training.pad_to_multiple_of=32"),
    "grouped by length": (*batches(2, 4), "training.train_sampling_strategy=group_by_length"),
    "checkpointed": (*batches(2, 4), "training.gradient_checkpointing=true"),
    "eager": (*batches(2, 4), "model.attn_implementation=eager"),
    "eager and packed": (*batches(8, 1), "model.attn_implementation=eager", "training.packing=true"),
}


@dataclass(frozen=True)
class Step:
    """What one optimizer step of the trainer saw."""

    loss: float
    norm: float
    gradients: dict[str, torch.Tensor]

    def assert_equals(self, other: Step) -> None:
        """Compare the losses, the norms and each gradient; fails with the name of the first that differs."""
        assert self.loss == pytest.approx(other.loss, rel=TOLERANCE)
        assert self.norm == pytest.approx(other.norm, rel=TOLERANCE)
        assert self.gradients.keys() == other.gradients.keys()
        for name, gradient in other.gradients.items():
            torch.testing.assert_close(self.gradients[name], gradient, atol=TOLERANCE, rtol=TOLERANCE, msg=name)


class _Gradients(TrainerCallback):
    """Keeps the gradients that the optimizer is given."""

    def __init__(self) -> None:
        self.found: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **others: Any) -> None:
        named = model.named_parameters()
        self.found.append({name: p.grad.detach().clone() for name, p in named if p.grad is not None})


Change = Callable[[Prepared], None]


@pytest.fixture
def step(recipe: Maker, rows_file: Path) -> Callable[..., Step]:
    """Return what trains one step on the same eight rows, from the same weights, with the given settings."""
    rows = [
        {"messages": [{"role": "user", "content": f"what is {n}?"}, {"role": "assistant", "content": "yes four " * n}]}
        for n in WORDS
    ]
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def train(*overrides: str, change: Change = lambda prepared: None) -> Step:
        gradients = _Gradients()
        prepared = prepare(recipe(*PLAIN, *overrides), callbacks=(gradients,))
        fill(prepared.model)
        change(prepared)
        assert len(prepared.splits.train) == len(WORDS)
        for packed in prepared.trainer.packed.values():
            assert 1 < packed.sequences < len(WORDS)
        prepared.trainer.train()
        [logged] = [entry for entry in prepared.trainer.state.log_history if "loss" in entry]
        [found] = gradients.found
        return Step(logged["loss"], logged["grad_norm"], found)

    return train


def fill(model: torch.nn.Module) -> None:
    """Give what is trained the same values in every way, large enough for each of them to matter."""
    source = torch.Generator().manual_seed(5)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data.normal_(0.0, 0.2, generator=source)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_way_is_the_same_step(step: Callable[..., Step], adapter: str) -> None:
    expected = step(*ADAPTERS[adapter], *batches(8, 1))
    assert expected.loss > 1.0
    assert expected.norm > 0.1
    assert len(expected.gradients) == (21 if adapter == FULL else 28)
    assert all(gradient.abs().max() > 0 for gradient in expected.gradients.values())
    for overrides in WAYS.values():
        step(*ADAPTERS[adapter], *overrides).assert_equals(expected)


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_compiled_step_is_the_same(step: Callable[..., Step], adapter: str) -> None:
    # Each adapted matrix is some kernels for g++ to compile.
    settings = (*ADAPTERS[adapter], *(("adapter.target_modules=[q_proj, down_proj]",) if adapter == LORA else ()))
    expected = step(*settings, *batches(8, 1))
    compiled: list[int] = []

    def compile_it(prepared: Prepared) -> None:
        compiled.append(compile_layers(prepared.model))

    step(*settings, *batches(2, 4), change=compile_it).assert_equals(expected)
    assert compiled == [2]


def per_batch(prepared: Prepared) -> None:
    """Plant the wrong divisor: the mean of the batches' means, each with its own number of trained tokens."""
    trainer = prepared.trainer
    real = TrainedTokensTrainer.compute_loss

    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        return real(trainer, model, inputs, return_outputs, None) / trainer.args.gradient_accumulation_steps

    trainer.compute_loss = compute_loss


def without_positions(prepared: Prepared) -> None:
    """Plant the wrong mask: packed rows that see each other."""
    trainer = prepared.trainer
    real = trainer.data_collator

    def collate(examples: Any) -> Any:
        batch = real(examples)
        positions = batch["position_ids"]
        # The count of tokens goes by the positions: padding keeps its zeros.
        padding = (positions == 0) & (positions.roll(-1, 1) == 0)
        batch["position_ids"] = torch.arange(positions.shape[1]).expand_as(positions).masked_fill(padding, 0)
        return batch

    trainer.data_collator = collate


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [(batches(2, 4), per_batch), ((*batches(8, 1), "training.packing=true"), without_positions)],
    ids=["a divisor per batch", "rows that see each other"],
)
def test_a_planted_fault_is_noticed(step: Callable[..., Step], overrides: tuple[str, ...], fault: Change) -> None:
    expected = step(*ADAPTERS[FULL], *batches(8, 1))
    step(*ADAPTERS[FULL], *overrides).assert_equals(expected)
    with pytest.raises(AssertionError):
        step(*ADAPTERS[FULL], *overrides, change=fault).assert_equals(expected)


def test_a_gradient_that_goes_missing_is_noticed(step: Callable[..., Step]) -> None:
    expected = step(*ADAPTERS[FULL], *batches(8, 1))
    name = next(iter(expected.gradients))
    for wrong in (expected.gradients[name] * 1.01, None):
        changed = {key: value for key, value in (expected.gradients | {name: wrong}).items() if value is not None}
        with pytest.raises(AssertionError):
            Step(expected.loss, expected.norm, changed).assert_equals(expected)
