"""One run end to end on a tiny model: what is in the folder, what is never overwritten, what resumes."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from ruamel.yaml import YAML

from llmkit.errors import DataError, RecipeError, SetupError
from llmkit.evaluation.base import Score, Subject
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.recipe import Recipe
from llmkit.runs.progress import Narrator
from llmkit.runs.runner import run

Maker = Callable[..., Recipe]
WHOLE = (
    "evaluation=[{type: perplexity}, {type: exact_match, max_new_tokens: 4}]",
    "export=[{type: merged}, {type: adapter}]",
)


@pytest.fixture
def rl(recipe: Maker, rows_file: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """Return a maker of GRPO recipes of 4 steps whose reward counts letters."""
    from llmkit.rewards.exact_match import ExactMatch

    rows = [{"prompt": f"{i} is", "answer": str(i)} for i in range(24)]
    rows_file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    monkeypatch.setattr(ExactMatch, "score", lambda self, completion, row: sum(c.isalpha() for c in completion) / 10)
    return lambda *overrides: recipe(
        "data.train.0.format=prompt",
        "method.type=grpo",
        "rewards=[{type: exact_match}]",
        "training.num_generations=4",
        "training.per_device_train_batch_size=8",
        "training.max_completion_length=6",
        "training.max_steps=4",
        *overrides,
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
    assert set(lock["weights"]) == {"model.safetensors", "config.json", "generation_config.json"}

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


def test_changed_data_does_not_resume(recipe: Maker, rows_file: Path, tmp_path: Path) -> None:
    run(recipe(), out=tmp_path / "run")
    with rows_file.open("a", encoding="utf-8") as file:
        file.write(rows_file.read_text(encoding="utf-8").splitlines()[0] + "\n")
    with pytest.raises(DataError, match=r"the data has changed since .*: rows\.jsonl"):
        run(recipe(), out=tmp_path / "run", resume=True)


def test_other_rows_of_the_same_files_do_not_resume(
    recipe: Maker, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe and the files are the same, and a module that the row function imports is another one."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "words_of_mine.py").write_text("ENDING = '!'\n", encoding="utf-8")
    lines = ["from words_of_mine import ENDING", "def loud(row):", "    row['messages'][1]['content'] += ENDING"]
    (rows_file.parent / "rows.py").write_text("\n".join([*lines, "    return row", ""]), encoding="utf-8")
    mine = recipe("data.train=[{path: rows.jsonl, python: rows.py:loud}]")
    run(mine, out=tmp_path / "run")
    monkeypatch.setattr(sys.modules["words_of_mine"], "ENDING", "?")
    with pytest.raises(DataError, match="the train and eval rows are not those that .* was started with"):
        run(mine, out=tmp_path / "run", resume=True)


def test_what_became_of_the_rows_is_on_disk(recipe: Maker, rows_file: Path, tmp_path: Path) -> None:
    with rows_file.open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    run(recipe("data.broken=0.1", "training.packing=true", "training.max_length=128"), out=tmp_path / "run")
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text(encoding="utf-8"))
    assert ledger["train"]["rows.jsonl"]["broken"] == 1
    assert ledger["packed"]["train"]["rows"] == ledger["train"]["rows.jsonl"]["kept"]
    (line,) = (tmp_path / "run" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["where"] == "rows.jsonl:25"
    assert isinstance(json.loads((tmp_path / "run" / "audit.json").read_text(encoding="utf-8")), list)


def test_autocast_of_training_does_not_colour_the_scores(recipe: Maker, tmp_path: Path) -> None:
    """accelerate leaves the model wrapped: base would be scored in float32 and tuned in bfloat16."""
    from llmkit.runs.reopen import evaluate

    settings = (
        "model.dtype=float32",
        "training.bf16=true",
        "evaluation=[{type: perplexity}]",
        "export=[{type: merged}]",
    )
    result = run(recipe(*settings), out=tmp_path / "run")
    assert result.exported[0].checks["mean_kl"] < 1e-6
    again = evaluate(result.folder)["tuned"][0].metrics["loss"]
    assert result.tuned[0].metrics["loss"] == pytest.approx(again, rel=1e-6)


def test_several_processes_are_refused(recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SetupError, match="started as 2 processes, and runs in one so far"):
        run(recipe(), out=tmp_path / "run")


def test_a_refused_run_leaves_its_folder_free(recipe: Maker, rows_file: Path, tmp_path: Path) -> None:
    good = rows_file.read_text(encoding="utf-8")
    rows_file.write_text(good + "not JSON\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:25: not JSON"):
        run(recipe(), out=tmp_path / "run")
    rows_file.write_text(good, encoding="utf-8")
    assert run(recipe(), out=tmp_path / "run").losses


def test_an_initialisation_that_rewrites_packed_weights_is_refused(recipe: Maker, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="init_lora_weights: pissa` rewrites the base weights"):
        run(recipe("quantization.type=nf4", "adapter.init_lora_weights=pissa"), out=tmp_path / "run")


def test_sampled_completions_are_kept_and_shown(rl: Maker, tmp_path: Path) -> None:
    said = io.StringIO()
    result = run(rl(), out=tmp_path / "run", narrator=Narrator(Console(file=said, width=1000)), watch=True)
    kept = [json.loads(line) for line in (result.folder / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in kept] == [step for step in (1, 2, 3, 4) for _ in range(4)]
    shown = said.getvalue()
    assert shown.count("reward ") >= 16
    assert f"step 4 · {kept[-1]['where']} · reward {kept[-1]['reward']:.3g}" in shown
    rewards = [json.loads(line)["reward"] for line in (result.folder / "metrics.jsonl").read_text().splitlines()[:4]]
    assert f"trained 4 steps, reward {rewards[0]:.4f} -> {rewards[-1]:.4f}" in shown


def test_sampled_completions_are_not_shown_unasked(rl: Maker, tmp_path: Path) -> None:
    said = io.StringIO()
    run(rl(), out=tmp_path / "run", narrator=Narrator(Console(file=said, width=1000)))
    assert "step 1 · rows.jsonl" not in said.getvalue()


def test_a_resumed_run_samples_each_step_once(rl: Maker, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(rl("training.save_steps=2"), out=out)
    straight = (out / "samples.jsonl").read_text()
    shutil.rmtree(out / "checkpoints" / "checkpoint-4")
    run(rl("training.save_steps=2"), out=out, resume=True)
    assert (out / "samples.jsonl").read_text() == straight


def test_the_reference_of_a_continued_adapter_is_not_saved(rl: Maker, tmp_path: Path) -> None:
    run(rl(), out=tmp_path / "first")
    settings = (f"model.name={tmp_path / 'first' / 'model'}", "adapter={type: lora}", "training.beta=0.1")
    run(rl(*settings, "export=[{type: adapter}]"), out=tmp_path / "second")
    assert not [path for path in (tmp_path / "second").rglob("ref") if "checkpoints" not in path.parts]


def test_tuned_scores_are_given_those_of_the_base(
    recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.evaluation.perplexity import Perplexity

    given = []
    score = Perplexity.score

    def noted(self: Perplexity, subject: Subject) -> Score:
        given.append(subject.base)
        return score(self, subject)

    monkeypatch.setattr(Perplexity, "score", noted)
    result = run(recipe("evaluation=[{type: perplexity}]"), out=tmp_path / "run")
    assert given == [None, result.base[0]]
