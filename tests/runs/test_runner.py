"""One run end to end on a tiny model: what is in the folder, what is never overwritten, what resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from llmkit.errors import RecipeError, SetupError
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.recipe import Recipe
from llmkit.runs.runner import run

Maker = Callable[..., Recipe]
WHOLE = (
    "evaluation=[{type: perplexity}, {type: exact_match, max_new_tokens: 4}]",
    "export=[{type: merged}, {type: adapter}]",
)


def test_the_run_folder_holds_everything(recipe: Maker, recipe_file: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "run"
    result = run(recipe(*WHOLE), out=out)
    names = {p.name for p in out.iterdir()}
    assert names >= {
        "recipe.yaml", "resolved.yaml", "plan.json", "lock.json", "ledger.json", "metrics.jsonl", "checkpoints",
        "model", "evaluation.json", "export", "export.json", "log.txt",
    }  # fmt: skip
    assert not [n for n in out.rglob("*.tmp")]
    assert len(result.losses) == 3

    AutoModelForCausalLM.from_pretrained(out / "model")
    AutoModelForCausalLM.from_pretrained(out / "export" / "merged")
    AutoTokenizer.from_pretrained(out / "model")
    assert not list((out / "model").glob("*.bin"))

    lock = json.loads((out / "lock.json").read_text())
    assert lock["packages"]["trl"].startswith("1.16")
    assert lock["seed"] == 42
    assert [len(h) for h in lock["data"].values()] == [64]
    assert len(lock["tokenizer"]) == len(lock["chat_template"]) == 64
    assert list(lock["weights"]) == ["model.safetensors"]

    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics if "loss" in m] == [1, 2, 3]
    assert all(m["tokens_per_second"] > 0 for m in metrics if "loss" in m)

    scores = json.loads((out / "evaluation.json").read_text())
    assert [s["evaluation"]["type"] for s in scores] == ["perplexity", "exact_match"]
    assert scores[0]["tuned"]["metrics"]["loss"] < scores[0]["base"]["metrics"]["loss"]

    resolved = YAML(typ="safe").load((out / "resolved.yaml").read_text())
    assert resolved["training.learning_rate"] == 0.01
    assert resolved["training.weight_decay"] == 0.0
    again = load_recipe(out / "recipe.yaml")
    assert again.model_dump() == recipe(*WHOLE).model_dump()


def test_the_same_recipe_gives_the_same_run(recipe: Maker, tmp_path: Path) -> None:
    first = run(recipe("evaluation=[{type: perplexity}]"), out=tmp_path / "one")
    # Scoring the base before training must not move the random state that training starts from.
    second = run(recipe(), out=tmp_path / "two")
    assert first.losses == second.losses
    one, two = (r.folder / "model" / "adapter_model.safetensors" for r in (first, second))
    assert one.read_bytes() == two.read_bytes()


def test_a_run_is_never_overwritten(recipe: Maker, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text("mine")
    with pytest.raises(SetupError, match="holds another run, and llmkit never overwrites") as caught:
        run(recipe(), out=out)
    assert "--resume" in str(caught.value.remedy)
    assert (out / "recipe.yaml").read_text() == "mine"


def test_a_resumed_run_ends_with_the_same_weights(recipe: Maker, tmp_path: Path) -> None:
    settings = ("training.max_steps=4", "training.save_steps=2", "adapter.lora_dropout=0.1")
    straight = run(recipe(*settings), out=tmp_path / "straight")
    cut = tmp_path / "cut"
    run(recipe(*settings), out=cut)
    # As if it had been stopped after step 2.
    shutil.rmtree(cut / "checkpoints" / "checkpoint-4")
    shutil.rmtree(cut / "model")
    resumed = run(recipe(*settings), out=cut, resume=True)
    assert resumed.losses == straight.losses
    files = [f / "model" / "adapter_model.safetensors" for f in (straight.folder, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_changed_recipe_does_not_resume(recipe: Maker, tmp_path: Path) -> None:
    run(recipe(), out=tmp_path / "run")
    with pytest.raises(RecipeError, match="differs from the one"):
        run(recipe("training.learning_rate=1e-3"), out=tmp_path / "run", resume=True)


def test_training_goes_on_from_an_adapter_folder(recipe: Maker, tmp_path: Path) -> None:
    first = run(recipe("evaluation=[{type: perplexity}]"), out=tmp_path / "one")
    name = f"model.name={first.folder / 'model'}"
    second = run(recipe(name, "adapter={type: lora}", "evaluation=[{type: perplexity}]"), out=tmp_path / "two")
    assert second.base[0].metrics["loss"] == pytest.approx(first.tuned[0].metrics["loss"], rel=1e-5)
    assert second.tuned[0].metrics["loss"] < second.base[0].metrics["loss"]
    with pytest.raises(RecipeError, match="r can't be set, because training continues"):
        run(recipe(name, "adapter={type: lora, r: 8}"), out=tmp_path / "three")


def test_nothing_is_printed_by_the_libraries(recipe: Maker, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(recipe(*WHOLE), out=tmp_path / "run")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_full_training_saves_a_whole_model(recipe: Maker, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    result = run(recipe("adapter=null", "evaluation=[{type: perplexity}]"), out=tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(result.folder / "model")
    assert not hasattr(model, "peft_config")
    assert result.tuned[0].metrics["loss"] < result.base[0].metrics["loss"]


def test_tensorboard_files_go_to_the_run_folder(recipe: Maker, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(recipe("training.report_to=tensorboard"), out=tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_a_tracker_that_is_not_installed_is_named_before_anything_starts(recipe: Maker, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="mlflow is not installed") as caught:
        run(recipe("training.report_to=mlflow"), out=tmp_path / "run")
    assert caught.value.remedy == "pip install mlflow"
    assert not (tmp_path / "run").exists()
