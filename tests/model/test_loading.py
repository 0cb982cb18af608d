"""Loading refuses weights of another kind of model than the method trains, and weights that are not whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmkit.errors import SetupError
from llmkit.model.loading import load_base, load_model, load_tokenizer
from llmkit.model.scores import load_reward_model
from llmkit.recipe.recipe import Recipe
from llmkit.runs.prepare import plan

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Maker = Callable[..., Recipe]
REWARD = ("method.type=reward", "data.train.0.format=preference")


def classifier(base: Path, folder: Path, labels: int) -> Path:
    """Save the tiny model as a classifier, with its tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_a_language_model_gets_a_head_and_its_pad_token(recipe: Maker, caplog: pytest.LogCaptureFixture) -> None:
    loaded = recipe(*REWARD)
    tokenizer = load_tokenizer(loaded)
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    model = load_model(loaded, plan(loaded), tokenizer)
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert model.score.weight.shape == (1, 32)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    assert "MISSING" not in caplog.text
    assert torch.equal(before, torch.random.get_rng_state()), "the head's seed is its own"


def test_a_reward_model_keeps_its_head(recipe: Maker, tiny_folder: Path, tmp_path: Path) -> None:
    folder = classifier(tiny_folder, tmp_path / "reward", 1)
    head = load_file(folder / "model.safetensors")["score.weight"]
    assert torch.equal(load_base(recipe(*REWARD, f"model.name={folder}"), dtype="float32").score.weight, head)


def test_a_classifier_is_no_language_model(recipe: Maker, tiny_folder: Path, tmp_path: Path) -> None:
    folder = classifier(tiny_folder, tmp_path / "reward", 1)
    with pytest.raises(SetupError, match="is a sequence classifier .* method 'sft' trains a language model"):
        load_base(recipe(f"model.name={folder}"), dtype="float32")


def test_a_classifier_with_several_labels_is_refused(recipe: Maker, tiny_folder: Path, tmp_path: Path) -> None:
    folder = classifier(tiny_folder, tmp_path / "three", 3)
    with pytest.raises(SetupError, match=r"`model\.name`: .* is a classifier with 3 labels"):
        load_base(recipe(*REWARD, f"model.name={folder}"), dtype="float32")


@pytest.mark.parametrize(
    ("overrides", "lost"), [((), "lm_head.weight"), (REWARD, "model.norm.weight")], ids=["sft", "reward"]
)
def test_missing_weights_are_refused(
    recipe: Maker, tiny_folder: Path, tmp_path: Path, overrides: tuple[str, ...], lost: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "part")
    tensors = load_file(folder / "model.safetensors")
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SetupError, match=f"lacks 1 of the weights, e.g. {lost}"):
        load_base(recipe(*overrides, f"model.name={folder}"), dtype="float32")


@pytest.mark.parametrize("overrides", [(), REWARD], ids=["sft", "reward"])
def test_tied_embeddings_are_not_missing(
    recipe: Maker, model: LlamaForCausalLM, tiny_folder: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    import transformers

    folder = shutil.copytree(tiny_folder, tmp_path / "tied")
    model.config.tie_word_embeddings = True
    transformers.LlamaForCausalLM(model.config).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    load_base(recipe(*overrides, f"model.name={folder}"), dtype="float32")


def test_a_trained_reward_model_without_its_head_is_refused(recipe: Maker, tiny_folder: Path, tmp_path: Path) -> None:
    """The head that is drawn for a language model is never drawn for a reward model that has lost its own."""
    folder = classifier(tiny_folder, tmp_path / "reward", 1)
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SetupError, match=r"e\.g\. score\.weight"):
        load_base(recipe(*REWARD, f"model.name={folder}"), dtype="float32")


@pytest.mark.parametrize(("task", "overrides"), [("CAUSAL_LM", REWARD), ("SEQ_CLS", ())])
def test_an_adapter_for_another_task_is_refused(
    recipe: Maker, tmp_path: Path, task: str, overrides: tuple[str, ...]
) -> None:
    (tmp_path / "adapter").mkdir()
    config = json.dumps({"task_type": task})
    (tmp_path / "adapter" / "adapter_config.json").write_text(config, encoding="utf-8")
    loaded = recipe(*overrides)
    with pytest.raises(SetupError, match=f"is an adapter for {task}"):
        load_model(loaded, plan(loaded), load_tokenizer(loaded), adapter=tmp_path / "adapter")


def test_a_pad_token_of_the_tokenizer_counts_for_an_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    folder = classifier(tiny_folder, tmp_path / "reward", 1)
    model, tokenizer = load_reward_model(folder)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert not model.training
    assert model.dtype == torch.float32
