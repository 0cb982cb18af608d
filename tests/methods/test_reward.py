"""Reward models: TRL's loss on llmkit's rows, a head that is trained, saved and never quantized, and what it learns."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from llmkit.data.splits import Row
from llmkit.errors import DataError, RecipeError
from llmkit.evaluation.base import Subject
from llmkit.evaluation.preference_accuracy import PreferenceAccuracy
from llmkit.methods.reward import pairs
from llmkit.model.heads import hold_head_in_float32
from llmkit.model.scores import load_reward_model, score_sequences
from llmkit.recipe.recipe import Recipe
from llmkit.runs.prepare import Prepared, prepare
from llmkit.runs.progress import Narrator

Maker = Callable[..., Recipe]
REWARD = ("method.type=reward", "data.train.0.format=preference", "training.save_strategy=no", "evaluation=[]")


def write_pairs(path: Path, count: int, **columns: Any) -> None:
    """Write pairs of answers of a few words; the better one has a `yes` among them, the other a `no`."""
    random_ = random.Random(0)
    lines = []
    for i in range(count):
        answers = {}
        for name, word in (("chosen", "yes"), ("rejected", "no")):
            words = random_.choices(["maybe", "the", "capital", "it", "is"], k=random_.randint(1, 5))
            words.insert(random_.randint(0, len(words)), word)
            answers[name] = " ".join(words)
        lines.append({"prompt": [{"role": "user", "content": f"what is {i}?"}], **answers, **columns})
    text = "".join(
        json.dumps({**x, **{k: [{"role": "assistant", "content": x[k]}] for k in answers}}) + "\n" for x in lines
    )
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def reward_recipe(recipe: Maker, rows_file: Path) -> Maker:
    """Return a loader of a recipe for a reward model on 24 pairs, 6 of them held out."""
    write_pairs(rows_file, 24)
    return lambda *overrides: recipe(*REWARD, *overrides)


def trained(recipe: Recipe) -> Prepared:
    prepared = prepare(recipe)
    prepared.trainer.train()
    prepared.trainer.accelerator.unwrap_model(prepared.trainer.model, keep_fp32_wrapper=False)
    return prepared


def scores_of(prepared: Prepared) -> list[float]:
    sequences = [ids for row in prepared.splits.eval for ids in row.sequences]
    return score_sequences(prepared.model, sequences, batch_size=4)


def test_rows_are_the_prompt_with_each_answer(reward_recipe: Maker) -> None:
    prepared = prepare(reward_recipe())
    row, example = prepared.splits.train[0], prepared.trainer.train_dataset[0]
    assert [example["chosen_ids"], example["rejected_ids"]] == row.sequences
    assert "margin" not in example
    text = prepared.tokenizer.decode(example["chosen_ids"])
    assert text.startswith("<|im_start|>user\nwhat is")
    assert text.endswith("<|im_end|>")
    assert len(prepared.trainer.train_dataset) == len(prepared.splits.train) == 18


@pytest.mark.parametrize("margin", [None, 0.5])
def test_the_loss_is_bradley_terrys(reward_recipe: Maker, rows_file: Path, margin: float | None) -> None:
    write_pairs(rows_file, 8, **({} if margin is None else {"margin": margin}))
    prepared = prepare(reward_recipe("data.eval=null", "adapter=null"))
    batch = next(iter(prepared.trainer.get_train_dataloader()))
    loss = prepared.trainer.compute_loss(prepared.model.eval(), dict(batch)).item()
    # One pass for each sequence, without padding.
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    alone = torch.tensor(score_sequences(prepared.model, ids, batch_size=1))
    chosen, rejected = alone.chunk(2)
    assert loss == pytest.approx(float(-logsigmoid(chosen - rejected - (margin or 0)).mean()), abs=1e-5)


def test_a_margin_in_some_rows_only_is_refused() -> None:
    tokens = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}
    with pytest.raises(DataError, match="e:2: the row has no `margin`"):
        pairs([Row("e:1", {"margin": 1.0}, tokens), Row("e:2", {}, tokens)])


def test_no_pair_is_dropped_behind_the_ledgers_back(reward_recipe: Maker) -> None:
    prepared = prepare(reward_recipe("training.max_length=24"))
    assert len(prepared.trainer.train_dataset) == len(prepared.splits.train) < 18
    assert max(row.longest for row in prepared.splits.train) <= 24
    assert prepared.trainer.args.max_length is None


def test_the_same_recipe_gives_the_same_head(reward_recipe: Maker) -> None:
    first, again, other = (
        prepare(reward_recipe("adapter=null", f"training.seed={seed}")).model.score.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "overrides",
    [
        ("adapter=null",),
        ("adapter.r=4",),
        ("adapter.r=4", "model.dtype=bfloat16"),
        ("quantization.type=nf4",),
        ("quantization.type=nf4", "model.dtype=bfloat16"),
    ],
    ids=["full", "lora", "lora-bf16", "nf4", "nf4-bf16"],
)
def test_the_head_learns_in_float32_and_comes_back_as_it_was(
    reward_recipe: Maker, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    recipe = reward_recipe(*overrides)
    before = prepare(recipe)
    heads = [p for n, p in before.model.named_parameters() if "score" in n.split(".") and p.requires_grad]
    assert [(h.dtype, tuple(h.shape)) for h in heads] == [(torch.float32, (1, 32))]
    prepared = trained(recipe)
    expected = scores_of(prepared)
    assert scores_of(before) != pytest.approx(expected, abs=1e-2), "training changed nothing"
    assert len(set(expected)) == len(expected), "scores in float32 do not tie"
    prepared.trainer.save_model(str(tmp_path / "model"))
    prepared.tokenizer.save_pretrained(tmp_path / "model")

    from llmkit.model.loading import load_model
    from llmkit.runs.reopen import _with_model

    if recipe.adapter is None:
        again = load_model(_with_model(recipe, tmp_path / "model"), prepared.plan, prepared.tokenizer)
    else:
        again = load_model(recipe, prepared.plan, prepared.tokenizer, adapter=tmp_path / "model")
    sequences = [ids for row in prepared.splits.eval for ids in row.sequences]
    # TRL trains an adapter over 4 bits in bfloat16, and PEFT loads it to compute in float32.
    rounding = 0.1 if "quantization.type=nf4" in overrides and "model.dtype=bfloat16" in overrides else 1e-5
    assert score_sequences(again, sequences, batch_size=3) == pytest.approx(expected, abs=rounding)
    assert torch.equal(*(model.score.weight for model in (again, prepared.model)))
    if overrides in (("adapter=null",), ("adapter.r=4",)):
        alone, _ = load_reward_model(tmp_path / "model")
        assert score_sequences(alone, sequences, batch_size=3) == pytest.approx(expected, abs=1e-5)


def test_a_head_quantized_by_a_list_of_ones_own_is_refused(reward_recipe: Maker) -> None:
    with pytest.raises(RecipeError, match="keeps the score head whole"):
        prepare(reward_recipe("quantization={type: nf4, llm_int8_skip_modules: [q_proj]}"))
    head = prepare(reward_recipe("quantization={type: nf4, llm_int8_skip_modules: [score]}")).model.score
    assert head.original_module.weight.dtype == torch.float32
    assert head.original_module.weight.shape[0] == 1


def test_the_head_of_a_16_bit_model_is_in_float32(reward_recipe: Maker) -> None:
    model = prepare(reward_recipe("adapter=null", "model.dtype=bfloat16")).model
    assert model.score.weight.dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_a_pad_token_that_ends_turns_is_said(
    reward_recipe: Maker, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Narrator, "say", lambda self, text: said.append(text))
    prepare(reward_recipe())
    assert not any("pad token" in line for line in said)
    folder = shutil.copytree(tiny_folder, tmp_path / "padless")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    prepare(reward_recipe(f"model.name={folder}"))
    assert any("the pad token is the end token" in line for line in said)


@pytest.mark.parametrize("adapter", ["adapter=null", "adapter.r=8"], ids=["full", "lora"])
def test_it_learns_which_answers_are_better(reward_recipe: Maker, rows_file: Path, adapter: str) -> None:
    write_pairs(rows_file, 240)
    steps = ("training.max_steps=80", "training.learning_rate=3e-3", "training.per_device_train_batch_size=16")
    prepared = prepare(reward_recipe(adapter, *steps))

    def accuracy() -> float:
        subject = Subject(prepared.model, prepared.tokenizer, prepared.splits.eval, seed=0)
        return PreferenceAccuracy(type="preference_accuracy").score(subject).metrics["preference_accuracy"]

    before = accuracy()
    prepared.trainer.train()
    assert before < 0.75
    assert accuracy() >= 0.9
    assert len(prepared.splits.eval) == 60


def test_the_head_computes_in_float32_whatever_autocast_says() -> None:
    import copy

    head = torch.nn.Module()
    head.score = torch.nn.Linear(8, 1, bias=False)
    hold_head_in_float32(head)
    hidden = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = copy.deepcopy(head).score(hidden.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, hidden.bfloat16().float() @ head.score.weight.T)
