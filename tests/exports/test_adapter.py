"""The adapter export is whole, not zero, and loads over its base with from_pretrained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmkit.errors import RunError
from llmkit.exports.adapter import Adapter, check_adapter
from llmkit.exports.base import Trained
from llmkit.exports.merged import compare, logits_of
from llmkit.recipe.recipe import Recipe
from llmkit.runs.prepare import prepare


@pytest.fixture
def trained(recipe: Callable[..., Recipe], tmp_path: Path) -> Trained:
    prepared = prepare(recipe("training.save_strategy=no"))
    prepared.trainer.train()
    prepared.trainer.save_model(str(tmp_path / "model"))
    return Trained(
        prepared.recipe, prepared.plan, prepared.model, prepared.tokenizer, prepared.splits, tmp_path / "model"
    )


def test_it_loads_with_from_pretrained(trained: Trained, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    done = Adapter(type="adapter").export(trained, tmp_path / "adapter")
    assert done.checks["tensors"] == 28
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    rows = trained.splits.eval[:2]
    assert compare(logits_of(trained.model, rows), logits_of(again, rows))["mean_kl"] < 1e-9


def damage(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


def test_a_missing_tensor_is_noticed(trained: Trained) -> None:
    damage(trained.folder, lambda tensors: dict(list(tensors.items())[1:]))
    with pytest.raises(RunError, match="not whole: 27 of 28 tensors"):
        check_adapter(trained, trained.folder)


def test_a_misshapen_tensor_is_noticed(trained: Trained) -> None:
    damage(trained.folder, lambda tensors: {n: t[:1].clone() for n, t in tensors.items()})
    with pytest.raises(RunError, match="not whole"):
        check_adapter(trained, trained.folder)


def test_an_adapter_of_zeros_is_noticed(trained: Trained) -> None:
    damage(trained.folder, lambda tensors: {n: torch.zeros_like(t) for n, t in tensors.items()})
    with pytest.raises(RunError, match="zero: the run changed nothing"):
        check_adapter(trained, trained.folder)


def test_a_reward_model_is_saved_with_its_head(recipe: Callable[..., Recipe], rows_file: Path, tmp_path: Path) -> None:
    rows_file.write_text(
        "".join(f'{{"prompt": "{i} is", "chosen": " even", "rejected": " odd"}}\n' for i in range(24)), encoding="utf-8"
    )
    overrides = ("method.type=reward", "data.train.0.format=preference", "training.save_strategy=no")
    prepared = prepare(recipe(*overrides))
    prepared.trainer.train()
    prepared.trainer.save_model(str(tmp_path / "model"))
    trained = Trained(
        prepared.recipe, prepared.plan, prepared.model, prepared.tokenizer, prepared.splits, tmp_path / "model"
    )
    done = Adapter(type="adapter").export(trained, tmp_path / "adapter")
    assert done.checks["tensors"] == 29
    damage(trained.folder, lambda tensors: {n: t for n, t in tensors.items() if "score" not in n})
    with pytest.raises(RunError, match="not whole: 28 of 29 tensors"):
        check_adapter(trained, trained.folder)
