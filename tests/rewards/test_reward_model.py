"""The reward of a reward model: the scores of its training, for the tokens that it was trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.data.shapes import RowError
from llmkit.data.splits import Row
from llmkit.errors import RunError, SetupError
from llmkit.model.scores import score_sequences
from llmkit.recipe.recipe import Recipe
from llmkit.rewards.base import score_part
from llmkit.rewards.reward_model import RewardModel, token_ids
from llmkit.runs.prepare import Prepared, prepare

Maker = Callable[..., Recipe]
PROMPT = [{"role": "user", "content": "what is two plus two?"}]


def reward(path: Path | str, folder: Path = Path("."), **fields: Any) -> RewardModel:
    made = RewardModel(type="reward_model", path=str(path), **fields)
    made.set_up(folder)
    return made


@pytest.fixture
def trained(recipe: Maker, rows_file: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Prepared:
    """A reward model after 3 steps (by default with an adapter), saved in a folder laid out like a run's."""
    lines = [
        {
            "prompt": [{"role": "user", "content": f"what is {i} plus {i % 5}?"}],
            "chosen": [{"role": "assistant", "content": f"it is {i + i % 5}"}],
            "rejected": [{"role": "assistant", "content": "maybe " * (1 + i % 3)}],
        }
        for i in range(24)
    ]
    rows_file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    adapter = getattr(request, "param", "adapter.r=4")
    overrides = ("method.type=reward", "data.train.0.format=preference", "training.save_strategy=no", adapter)
    prepared = prepare(recipe(*overrides, "training.learning_rate=5e-2"))
    prepared.trainer.train()
    prepared.trainer.accelerator.unwrap_model(prepared.trainer.model, keep_fp32_wrapper=False)
    run = tmp_path / "runs" / "reward"
    prepared.trainer.save_model(str(run / "model"))
    prepared.tokenizer.save_pretrained(run / "model")
    (run / "recipe.yaml").write_text("", encoding="utf-8")
    return prepared


@pytest.mark.parametrize("trained", ["adapter.r=4", "adapter=null"], ids=["lora", "full"], indirect=True)
def test_scores_are_those_of_the_trainer_on_the_same_rows(trained: Prepared, tmp_path: Path) -> None:
    rows = trained.splits.eval
    examples = [row.example for row in rows for _ in range(2)]
    completions = [row.example[name][0]["content"] for row in rows for name in ("chosen", "rejected")]
    trainer = trained.trainer
    expected = []
    for row in rows:
        batch = trainer.data_collator([{"chosen_ids": row.sequences[0], "rejected_ids": row.sequences[1]}])
        with torch.no_grad():
            expected += trained.model.eval()(**batch).logits[:, 0].tolist()
    loaded = reward("runs/reward", tmp_path)
    assert loaded.scores(completions, examples) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) > len(rows)
    for size in (1, 5):
        again = reward(tmp_path / "runs" / "reward" / "model", batch_size=size)
        assert again.scores(completions, examples) == pytest.approx(expected, abs=1e-5)
    assert loaded.scores([], []) == []


def test_the_tokens_are_those_of_the_training(trained: Prepared) -> None:
    for row in trained.splits.eval:
        for ids, name in zip(row.sequences, ("chosen", "rejected"), strict=True):
            assert token_ids(trained.tokenizer, row.example, row.example[name][0]["content"]) == ids


def test_strings_and_empty_completions_are_scored(trained: Prepared, tmp_path: Path) -> None:
    tokenizer = trained.tokenizer
    end = tokenizer.eos_token_id
    ids = [*tokenizer("two plus two is")["input_ids"], *tokenizer(" four")["input_ids"], end]
    assert token_ids(tokenizer, {"prompt": "two plus two is"}, " four") == ids
    assert token_ids(tokenizer, {"prompt": "yes"}, "") == [*tokenizer("yes")["input_ids"], end]
    asked = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert token_ids(tokenizer, {"prompt": PROMPT}, "") == [*asked, end]
    loaded = reward("runs/reward", tmp_path)
    found = loaded.scores(["", " four"], [{"prompt": PROMPT}, {"prompt": "two plus two is"}])
    expected = score_sequences(trained.model, [[*asked, end], ids], batch_size=1)
    assert found == pytest.approx(expected, abs=1e-5)


def test_what_is_too_long_is_refused_and_not_cut(trained: Prepared, tmp_path: Path) -> None:
    rows = [Row("p.jsonl:1", {"prompt": PROMPT}), Row("p.jsonl:2", {"prompt": PROMPT})]
    loaded = reward("runs/reward", tmp_path, max_length=40)
    with pytest.raises(RunError, match=r"p\.jsonl:2: .* have \d+ tokens, and the reward model reads 40"):
        score_part(loaded, ["yes", "yes no maybe " * 20], rows)
    with pytest.raises(RunError, match="reads 256"):
        reward("runs/reward", tmp_path).scores(["yes " * 300], [{"prompt": PROMPT}])


def test_a_row_without_a_prompt_is_refused() -> None:
    with pytest.raises(RowError, match="no column 'prompt'"):
        RewardModel(type="reward_model", path="x/y").check_row({"text": "a"})


def refusal(path: Path | str, folder: Path) -> str:
    with pytest.raises(SetupError) as found:
        RewardModel(type="reward_model", path=str(path)).check_setup(folder)
    return str(found.value)


def test_what_gives_no_score_is_refused_before_anything_is_loaded(
    trained: Prepared, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RewardModel(type="reward_model", path="runs/reward").check_setup(tmp_path)
    RewardModel(type="reward_model", path="someone/reward-model").check_setup(tmp_path)
    assert "is no reward model, but LlamaForCausalLM: it gives no scores" in refusal(tiny_folder, tmp_path)
    for wrong in ("./runs/rewrad", "runs/rewrad", "../reward"):
        assert "recipe's folder" in refusal(wrong, tmp_path)
    assert f"no folder {tmp_path / 'runs' / 'rewrad'}" in refusal("runs/rewrad", tmp_path)
    (tmp_path / "there" / "models" / "reward").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "there")
    assert f"current folder: {tmp_path / 'there' / 'models' / 'reward'}" in refusal("models/reward", tmp_path)
    assert "neither a config.json nor an adapter_config.json" in refusal(tmp_path, tmp_path)
    model = tmp_path / "runs" / "reward" / "model"
    config = json.loads((model / "adapter_config.json").read_text(encoding="utf-8"))
    (model / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}), encoding="utf-8")
    assert "an adapter for CAUSAL_LM" in refusal("runs/reward", tmp_path)
    shutil.rmtree(model)
    assert "has no trained model yet" in refusal("runs/reward", tmp_path)


def test_a_classifier_with_several_labels_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "three"
    config = json.loads((tiny_folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["LlamaForSequenceClassification"]
    folder.mkdir()
    for labels, count in ((None, 2), ({"0": "a", "1": "b", "2": "c"}, 3)):
        (folder / "config.json").write_text(json.dumps({**config, "id2label": labels}), encoding="utf-8")
        assert f"a classifier with {count} labels" in refusal(folder, tmp_path)


def test_a_model_without_its_head_is_refused(trained: Prepared, tiny_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_folder, tmp_path / "headless")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "score"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(SetupError, match=r"lacks 1 of the weights, e\.g\. score\.weight"):
        reward(folder)
    file = tmp_path / "runs" / "reward" / "model" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "score" not in name}, file)
    with pytest.raises(SetupError, match="has no score head"):
        reward("runs/reward", tmp_path)


def test_what_can_not_be_found_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="the reward model nobody/nothing can't be loaded"):
        reward("nobody/nothing", tmp_path)
