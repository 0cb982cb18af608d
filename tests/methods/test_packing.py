"""Packing: loss and gradients of a packed batch are those of its rows alone, and what leaks is refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from llmkit.errors import RecipeError, SetupError
from llmkit.methods._packed import TokenCollator, real_tokens
from llmkit.methods._trained_tokens import TrainedTokensTrainer
from llmkit.recipe.recipe import Recipe

VOCABULARY = 97
CAPACITY = 48
LENGTHS = (40, 3, 17, 2, 29, 8, 48, 5, 11, 2, 23)
"""Very different ones: packed into sequences of 48 tokens, one of them by itself, some of four rows."""


def rows(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[dict[str, Any]]:
    """Random rows; about half of the tokens are trained, the last always, and the first of every third row."""
    source = torch.Generator().manual_seed(seed)
    found = []
    for number, length in enumerate(lengths):
        ids = torch.randint(3, VOCABULARY, (length,), generator=source).tolist()
        trained = (torch.rand(length, generator=source) < 0.5).tolist()
        trained[-1], trained[0] = True, number % 3 == 0
        found.append({"input_ids": ids, "labels": [i if t else -100 for i, t in zip(ids, trained, strict=True)]})
    return found


def build(kind: str, attention: str = "sdpa", **options: Any) -> Any:
    """Return a random tiny model whose weights are large enough for every token to depend on all before it."""
    import transformers

    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**{**common, **options}, attn_implementation=attention)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


SLIDING = {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}
MIXED = ["sliding_attention", "full_attention"]
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
ARCHITECTURES = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mistral-sliding": ("Mistral", {"sliding_window": 4}),
    "qwen2-sliding": ("Qwen2", SLIDING),
    "gemma3-mixed": (
        "Gemma3Text",
        {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt2-absolute": ("GPT2", {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, **NO_DROPOUT}),
    "mixtral-experts": ("Mixtral", EXPERTS),
}


@pytest.fixture
def make(tokenizer: Any, tmp_path: Path) -> Callable[..., TrainedTokensTrainer]:
    """Return a maker of trainers in float32 without dropout, schedule or clipping."""
    from trl import SFTConfig

    def trainer(
        model: Any, data: Sequence[dict[str, Any]], *, held_out: Any = None, peft: Any = None, **training: Any
    ) -> TrainedTokensTrainer:
        plain = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
        plain |= {"max_length": CAPACITY, "save_strategy": "no", "max_grad_norm": 0.0, "logging_steps": 1}
        plain |= {"lr_scheduler_type": "constant", "disable_tqdm": True, "learning_rate": 1e-2}
        return TrainedTokensTrainer(
            model=model,
            args=SFTConfig(output_dir=str(tmp_path / "out"), **{**plain, **training}),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(list(data)),
            eval_dataset=Dataset.from_list(list(held_out)) if held_out else None,
            peft_config=peft,
        )

    return trainer


def one_by_one(model: Any, data: Sequence[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of rows that go through the model one at a time, with nothing but PyTorch."""
    model.zero_grad()
    count = sum(label != -100 for row in data for label in row["labels"][1:])
    total = 0.0
    for row in data:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum") / count
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def batches(trainer: TrainedTokensTrainer) -> list[dict[str, torch.Tensor]]:
    return list(trainer.get_train_dataloader())


def step(trainer: TrainedTokensTrainer, accumulated: Sequence[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of one optimizer step over these batches, as the trainer computes them."""
    trainer.model.zero_grad()
    count = trainer._get_num_items_in_batch(list(accumulated), trainer.args.device)
    total = 0.0
    for batch in accumulated:
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
        loss.backward()
        total += loss.item()
    return total, gradients(trainer.model)


def assert_equal(ours: tuple[float, Any], expected: tuple[float, Any], tolerance: float = 1e-5) -> None:
    assert ours[0] == pytest.approx(expected[0], abs=tolerance)
    assert ours[1].keys() == expected[1].keys()
    assert ours[1]
    for name, gradient in expected[1].items():
        torch.testing.assert_close(ours[1][name], gradient, atol=tolerance, rtol=tolerance, msg=name)


def difference(one: tuple[float, Any], other: tuple[float, Any]) -> float:
    return max(float((one[1][name] - gradient).abs().max()) for name, gradient in other[1].items())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_packed_step_is_that_of_its_rows_alone(make: Any, name: str, attention: str) -> None:
    kind, options = ARCHITECTURES[name]
    data = rows()
    # Batches of two packed sequences, the last of one; the step accumulates them all.
    trainer = make(build(kind, attention, **options), data, packing=True, per_device_train_batch_size=2)
    assert 1 < len(trainer.train_dataset) < len(data)
    found = batches(trainer)
    assert len(found) > 1
    assert_equal(step(trainer, found), one_by_one(trainer.model, data))


@pytest.mark.parametrize("layout", ["side by side", "flat", "padding free", "padded"])
def test_all_layouts_are_the_same_step(make: Any, layout: str) -> None:
    training = {
        "side by side": {"packing": True},
        "flat": {"packing": True, "padding_free": True},
        "padding free": {"padding_free": True, "max_length": None},
        "padded": {},
    }[layout]
    trainer = make(build("Llama"), rows(), per_device_train_batch_size=3, pad_to_multiple_of=8, **training)
    found = batches(trainer)
    assert ("attention_mask" in found[0]) == (layout == "padded")
    assert (found[0]["input_ids"].shape[0] == 1) == (layout in ("flat", "padding free"))
    assert sum(int(real_tokens(batch)) for batch in found) == sum(LENGTHS)
    assert_equal(step(trainer, found), one_by_one(trainer.model, rows()))


def test_lora_gradients_are_those_of_the_rows_alone(make: Any) -> None:
    from peft import LoraConfig

    peft = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    trainer = make(build("Qwen2"), rows(), packing=True, per_device_train_batch_size=2, peft=peft)
    found = step(trainer, batches(trainer))
    assert all("lora" in name for name in found[1])
    assert_equal(found, one_by_one(trainer.model, rows()))


def test_accumulating_packed_batches_trains_as_one_batch(make: Any) -> None:
    histories = []
    for size, accumulated in ((8, 1), (2, 4)):
        training = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 2}
        trainer = make(build("Llama"), rows(LENGTHS * 4), packing=True, learning_rate=1e-3, **training)
        trainer.train()
        histories.append([e["loss"] for e in trainer.state.log_history if "loss" in e])
    assert len(histories[0]) == 2
    assert histories[0] == pytest.approx(histories[1], abs=1e-5)


# --- Tests that these can fail --------------------------------------------------------------------------------------


def spoiled(batch: dict[str, Any], without: str) -> dict[str, Any]:
    """Return the batch as it would be if the rows' beginnings were forgotten."""
    batch = dict(batch)
    if without == "positions":
        del batch["position_ids"]
    else:
        batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    return batch


@pytest.mark.parametrize("without", ["positions", "lengths"])
def test_without_the_rows_beginnings_they_leak(make: Any, without: str) -> None:
    trainer = make(build("Llama"), rows(), packing=True, per_device_train_batch_size=2)
    expected = one_by_one(trainer.model.eval(), rows())
    leaking = step(trainer, [spoiled(batch, without) for batch in batches(trainer)])
    assert abs(leaking[0] - expected[0]) > 1e-3
    assert difference(leaking, expected) > 1e-3


def test_the_mask_that_trl_would_pass_leaks(make: Any) -> None:
    """Why packed batches have no attention mask: with one of ones, transformers doesn't look at the positions."""
    trainer = make(build("Llama"), rows(), packing=True, per_device_train_batch_size=2)
    masked = [{**batch, "attention_mask": torch.ones_like(batch["input_ids"])} for batch in batches(trainer)]
    assert difference(step(trainer, masked), one_by_one(trainer.model, rows())) > 1e-3


def test_a_first_label_at_a_boundary_would_be_noticed(make: Any) -> None:
    trainer = make(build("Llama"), rows(), packing=True, per_device_train_batch_size=2)
    found = batches(trainer)
    for batch in found:
        begins = batch["position_ids"] == 0
        assert (batch["labels"][begins] == -100).all()
        batch["labels"][begins] = batch["input_ids"][begins]
    assert abs(step(trainer, found)[0] - one_by_one(trainer.model, rows())[0]) > 1e-3


# --- The proof before step one --------------------------------------------------------------------------------------

MIXING = {
    "mamba": ("Mamba", "eager", {"state_size": 8}),
    "convolution": ("Lfm2", "sdpa", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "alibi": ("Bloom", "eager", {"n_layer": 2, "n_head": 4}),
}


@pytest.mark.parametrize("training", [{"packing": True}, {"padding_free": True, "max_length": None}], ids=str)
@pytest.mark.parametrize("name", MIXING)
def test_a_model_that_mixes_rows_is_refused(make: Any, name: str, training: dict[str, Any]) -> None:
    kind, attention, options = MIXING[name]
    with pytest.raises(SetupError, match="does not keep rows of one sequence apart") as caught:
        make(build(kind, attention, **options), rows(), per_device_train_batch_size=2, **training)
    # transformers itself refuses convolutions where it is told the boundaries, and says why.
    told = "`causal_conv1d`" if name == "convolution" and "padding_free" in training else r"by 0?\.?\d\S* of their size"
    assert re.search(told, str(caught.value))
    assert "training.packing" in str(caught.value.remedy)


def test_a_model_that_mixes_rows_may_be_trained_on_padded_ones(make: Any) -> None:
    kind, attention, options = MIXING["convolution"]
    make(build(kind, attention, **options), rows(), per_device_train_batch_size=2)


@pytest.mark.parametrize("initializer_range", [0.2, 0.02])
def test_positions_that_go_missing_are_noticed_before_training(
    make: Any, monkeypatch: pytest.MonkeyPatch, initializer_range: float
) -> None:
    """Also with weights as small as those of a new model, where rows hardly look at each other."""
    real = TokenCollator.torch_call

    def forgetful(self: TokenCollator, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return spoiled(real(self, examples), "positions")

    monkeypatch.setattr(TokenCollator, "torch_call", forgetful)
    with pytest.raises(SetupError, match="does not keep rows of one sequence apart"):
        make(build("Llama", initializer_range=initializer_range), rows(), packing=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_proof_holds_in_16_bits_and_leaves_no_trace(make: Any, dtype: torch.dtype) -> None:
    model = build("Llama").to(dtype).train()
    state = torch.get_rng_state()
    trainer = make(model, rows(), packing=True)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    from llmkit.methods._packed import check_isolation

    check_isolation(trainer, trainer.train_dataset.dataset)
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.model.training
    assert all(p.grad is None for p in trainer.model.parameters())


def test_flex_attention_is_refused_on_cpus() -> None:
    from types import SimpleNamespace

    from llmkit.methods.sft import _check_kernel

    model = SimpleNamespace(config=SimpleNamespace(_attn_implementation="flex_attention"), device=torch.device("cpu"))
    job: Any = SimpleNamespace(model=model)
    with pytest.raises(SetupError, match="no backward pass on CPUs"):
        _check_kernel(job, SimpleNamespace(packing=True, padding_free=False))  # type: ignore[arg-type]
    _check_kernel(job, SimpleNamespace(packing=False, padding_free=False))  # type: ignore[arg-type]


# --- Nothing lost, nothing twice ------------------------------------------------------------------------------------


def trained_tokens(data: Sequence[dict[str, Any]]) -> Counter[tuple[int, ...]]:
    """Count each row by what it trains and what stands before it: the first token has nothing before it."""
    return Counter(tuple(row["input_ids"]) + (-1,) + tuple(row["labels"][1:]) for row in data)


def unpacked(found: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
    """Take batches apart into rows by their positions; padding (single tokens at position 0) is left out."""
    taken: list[dict[str, Any]] = []
    for batch in found:
        for ids, labels, positions in zip(
            *(batch[name].tolist() for name in ("input_ids", "labels", "position_ids")), strict=True
        ):
            begins = [place for place, position in enumerate(positions) if position == 0] + [len(ids)]
            for start, end in zip(begins, begins[1:], strict=False):
                taken.append({"input_ids": ids[start:end], "labels": labels[start:end]})
    return [row for row in taken if len(row["input_ids"]) > 1]


@pytest.mark.parametrize("training", [{}, {"padding_free": True}, {"shuffle_dataset": True}], ids=str)
def test_every_trained_token_occurs_once_per_epoch(make: Any, training: dict[str, Any]) -> None:
    data = rows(LENGTHS * 5)
    trainer = make(build("Llama"), data, packing=True, per_device_train_batch_size=3, **training)
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append(list(loader))
        assert trained_tokens(unpacked(epochs[-1])) == trained_tokens(data)
    assert any(not torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(*epochs, strict=True))


def test_what_was_packed_is_told(make: Any) -> None:
    trainer = make(build("Llama"), rows(), packing=True, per_device_train_batch_size=2, held_out=rows((9, 30)))
    train, held_out = trainer.packed["train"], trainer.packed["eval"]
    assert (train.rows, train.tokens, train.capacity) == (len(LENGTHS), sum(LENGTHS), CAPACITY)
    assert train.sequences == len(trainer.train_dataset) == 4
    assert train.padding < train.unpacked_padding
    assert (held_out.rows, held_out.sequences) == (2, 1)
    assert make(build("Llama"), rows(), packing=True, eval_packing=False, held_out=rows((9, 30))).packed.keys() == {
        "train"
    }


def test_logged_tokens_are_the_real_ones(make: Any) -> None:
    for training in ({}, {"loss_type": "dft"}):
        trainer = make(build("Llama"), rows(), packing=True, per_device_train_batch_size=4, max_steps=1, **training)
        trainer.train()
        assert next(e for e in trainer.state.log_history if "loss" in e)["num_tokens"] == sum(LENGTHS)


@pytest.mark.parametrize("eval_packing", [None, True, False])
def test_the_loss_of_held_out_rows_is_that_of_the_rows_alone(make: Any, eval_packing: bool | None) -> None:
    held_out = rows((9, 30, 5), seed=4)
    training = {"eval_packing": eval_packing, "per_device_eval_batch_size": 4}
    trainer = make(build("Llama"), rows(), packing=True, held_out=held_out, **training)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(one_by_one(trainer.model, held_out)[0], abs=1e-5)


def test_a_resumed_packed_run_is_bit_exact(make: Any, tmp_path: Path) -> None:
    training = {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 4}
    training |= {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "cosine", "shuffle_dataset": True}
    straight = make(build("Llama", attention_dropout=0.1), rows(LENGTHS * 3), **training)
    straight.train()
    resumed = make(build("Llama", attention_dropout=0.1), rows(LENGTHS * 3), **training)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (straight, resumed)]
    assert losses[0][2:] == losses[1][2:]
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


# --- A loop of one's own ---------------------------------------------------------------------------------------------


def test_the_loop_of_the_docs_takes_packed_batches(make: Any) -> None:
    """The page's step, on packed batches: `model(**batch)` with the labels taken out."""
    page = (Path(__file__).parents[2] / "docs" / "custom_loop.md").read_text(encoding="utf-8")
    assert re.search(r"model\(\*\*batch, use_cache=False\)", page)
    trainer = make(build("Llama"), rows(), packing=True, per_device_train_batch_size=2)
    found = batches(trainer)
    tokens = sum((b["labels"][:, 1:] != -100).sum() for b in found)
    total = torch.zeros(())
    for batch in found:
        labels = batch.pop("labels")[:, 1:]
        logits = trainer.model(**batch, use_cache=False).logits[:, :-1].float()
        nll = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        (nll / tokens).backward()
        total += nll.detach() / tokens
    assert_equal((float(total), gradients(trainer.model)), one_by_one(trainer.model, rows()))


# --- What a recipe may ask for --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("training.packing=true", "training.packing_strategy=wrapped"), "lets each see the rest of its sequence"),
        (("training.packing=true", "training.packing_strategy=bfd_split"), "`data.overflow: drop` is what happens"),
        (("training.packing=true", "training.max_length=null"), "and that is null"),
        (("training.eval_packing=true",), "without `training.packing`"),
    ],
)
def test_other_ways_of_packing_are_refused(
    recipe: Callable[..., Recipe], overrides: tuple[str, ...], message: str
) -> None:
    the_recipe = recipe(*overrides)
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        the_recipe.method.check_recipe(the_recipe)
    assert caught.value.where == f"--set {overrides[-1]}"
    assert caught.value.remedy


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.packing=true",),
        ("training.packing=true", "training.packing_strategy=bfd_split", "data.overflow=split"),
        ("training.packing=true", "training.eval_packing=false"),
        ("training.packing_strategy=wrapped",),
        ("training.padding_free=true",),
    ],
    ids=str,
)
def test_what_keeps_rows_apart_is_accepted(recipe: Callable[..., Recipe], overrides: tuple[str, ...]) -> None:
    the_recipe = recipe(*overrides)
    the_recipe.method.check_recipe(the_recipe)
