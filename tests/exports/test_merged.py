"""Merging: the copy computes what was trained, loads with from_pretrained alone, and a broken merge is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmkit.data.splits import Row
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
    assert again.generation_config.eos_token_id == trained.tokenizer.eos_token_id, "it stops where it was trained to"
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
    with pytest.raises(RunError, match="computes something else than the trained one: mean_kl is more"):
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


def test_pairs_and_prompts_are_compared_whole(trained: Trained, tmp_path: Path) -> None:
    rows = (
        Row("e:1", {}, {"prompt_ids": [5, 6], "chosen_ids": [7, 8, 2], "rejected_ids": [9, 2]}),
        Row("e:2", {}, {"prompt_ids": [5], "completion_ids": [9, 2]}),
        Row("e:3", {}, {"prompt_ids": [11, 12, 13]}),
    )
    whole = [Row("", {}, {"input_ids": ids}) for ids in ([5, 6, 7, 8, 2], [5, 6, 9, 2], [5, 9, 2], [11, 12, 13])]
    found = logits_of(trained.model, rows)
    assert [tuple(logits.shape) for logits in found] == [(n, len(trained.tokenizer)) for n in (5, 4, 3, 3)]
    assert compare(found, logits_of(trained.model, whole))["max_logit_difference"] == 0.0
    pairs = replace(trained, splits=replace(trained.splits, eval=rows))
    assert Merged(type="merged").export(pairs, tmp_path / "merged").checks["mean_kl"] < 1e-6


@pytest.fixture
def rewarding(recipe: Maker, rows_file: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Trained:
    """A reward model after 3 steps with an adapter."""
    line = {"prompt": [{"role": "user", "content": "what is it?"}]}
    answers = [{n: [{"role": "assistant", "content": f"{n} {i}"}] for n in ("chosen", "rejected")} for i in range(24)]
    rows_file.write_text("".join(json.dumps(line | answer) + "\n" for answer in answers), encoding="utf-8")
    overrides = ("method.type=reward", "data.train.0.format=preference", "training.save_strategy=no")
    prepared = prepare(recipe(*overrides, "training.learning_rate=5e-2", getattr(request, "param", "adapter.r=4")))
    prepared.trainer.train()
    prepared.trainer.save_model(str(tmp_path / "model"))
    return Trained(
        prepared.recipe, prepared.plan, prepared.model, prepared.tokenizer, prepared.splits, tmp_path / "model"
    )


@pytest.mark.parametrize("rewarding", ["adapter.r=4", "quantization.type=nf4"], ids=["lora", "nf4"], indirect=True)
def test_a_merged_reward_model_gives_the_scores_and_loads_alone(rewarding: Trained, tmp_path: Path) -> None:
    from llmkit.model.scores import load_reward_model, score_sequences

    done = Merged(type="merged").export(rewarding, tmp_path / "merged")
    assert set(done.checks) == {"max_score_difference", "score_difference"}
    assert done.checks["score_difference"] <= 1e-4
    config = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert config["pad_token_id"] == rewarding.tokenizer.pad_token_id, "transformers alone can score a padded batch"
    model, _ = load_reward_model(tmp_path / "merged")
    assert type(model).__name__ == "LlamaForSequenceClassification"
    sequences = [ids for row in rewarding.splits.eval for ids in row.sequences]
    expected = score_sequences(rewarding.model, sequences, batch_size=4)
    assert score_sequences(model, sequences, batch_size=4) == pytest.approx(expected, abs=1e-3)
    assert max(expected) - min(expected) > 0.1


@pytest.mark.parametrize("rewarding", ["quantization.type=int8"], indirect=True)
def test_the_trained_model_is_as_it_was_after_an_export(rewarding: Trained, tmp_path: Path) -> None:
    rows = rewarding.splits.eval[:1]
    before = logits_of(rewarding.model, rows)
    Merged(type="merged").export(rewarding, tmp_path / "merged")
    assert compare(before, logits_of(rewarding.model, rows))["max_score_difference"] == 0.0


def test_a_merged_reward_model_with_another_head_is_refused(
    rewarding: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = merged.merge

    def beheaded(trained: Trained) -> object:
        model = whole(trained)
        torch.nn.init.normal_(model.score.weight)
        return model

    monkeypatch.setattr(merged, "merge", beheaded)
    with pytest.raises(RunError, match="score_difference is more than 1e-04"):
        Merged(type="merged").export(rewarding, tmp_path / "merged")
    Merged(type="merged", max_score_difference=1e3).export(rewarding, tmp_path / "again")


def test_scores_are_compared_to_the_largest() -> None:
    scores, found = [torch.tensor([4.0]), torch.tensor([-1.0])], [torch.tensor([4.0]), torch.tensor([-1.5])]
    assert compare(scores, found) == {"max_score_difference": 0.5, "score_difference": 0.125}
    assert compare([torch.tensor([0.1])], [torch.tensor([0.3])])["score_difference"] == pytest.approx(0.2)
