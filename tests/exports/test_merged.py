"""Merging: the copy computes what was trained, loads with from_pretrained alone, and a broken merge is noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmkit.errors import RunError
from llmkit.exports import merged
from llmkit.exports.base import Trained
from llmkit.exports.merged import Merged, compare, logits_of
from llmkit.recipe.recipe import Recipe
from llmkit.runs.prepare import prepare

Maker = Callable[..., Recipe]


@pytest.fixture
def trained(recipe: Maker, tmp_path: Path) -> Trained:
    prepared = prepare(recipe("training.save_strategy=no", "training.learning_rate=5e-2"))
    prepared.trainer.train()
    prepared.trainer.save_model(str(tmp_path / "model"))
    return Trained(
        prepared.recipe, prepared.plan, prepared.model, prepared.tokenizer, prepared.splits, tmp_path / "model"
    )


def test_the_merged_model_equals_the_adapter_and_loads_alone(trained: Trained, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = Merged(type="merged").export(trained, tmp_path / "merged")
    assert done.checks["mean_kl"] < 1e-6
    assert done.checks["top1_agreement"] == 1.0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("adapter*"))
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token == "<|im_end|>"
    rows = trained.splits.eval[:2]
    difference = compare(logits_of(trained.model, rows), logits_of(again, rows))
    assert difference["max_logit_difference"] < 1e-3


def test_the_tuned_model_is_not_the_base(trained: Trained) -> None:
    """Without this, every comparison here could hold because training changed nothing."""
    from peft import PeftModel

    rows = trained.splits.eval[:2]
    tuned = logits_of(trained.model, rows)
    assert isinstance(trained.model, PeftModel)
    with trained.model.disable_adapter():
        base = logits_of(trained.model, rows)
    assert compare(tuned, base)["mean_kl"] > 1e-3


def test_a_merge_that_loses_one_matrix_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = merged.merge

    def lossy(trained: Trained) -> object:
        model = whole(trained)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.zero_()
        return model

    monkeypatch.setattr(merged, "merge", lossy)
    with pytest.raises(RunError, match="computes something else than the trained one: mean KL"):
        Merged(type="merged").export(trained, tmp_path / "merged")


def test_a_cast_to_16_bits_has_its_own_tolerance(trained: Trained, tmp_path: Path) -> None:
    done = Merged(type="merged", dtype="bfloat16", max_kl=1.0).export(trained, tmp_path / "merged")
    assert done.checks["mean_kl"] > 1e-8
    with pytest.raises(RunError, match="more than 1e-09"):
        Merged(type="merged", dtype="bfloat16", max_kl=1e-9).export(trained, tmp_path / "again")


def test_compare_is_what_it_says() -> None:
    p, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, float(torch.log(torch.tensor(3.0)))]])
    found = compare([p], [q])
    # KL(½,½ || ¼,¾) = ½ ln 2 + ½ ln ⅔ = ½ ln 4/3
    assert found["mean_kl"] == pytest.approx(0.14384, abs=1e-5)
    assert found["max_logit_difference"] == pytest.approx(1.0986, abs=1e-4)
    assert compare([p], [p])["mean_kl"] == 0.0
