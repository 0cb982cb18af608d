"""A recipe that works passes its rehearsal; one with a fault that shows late is told which, and where."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from llmkit.errors import DataError, RecipeError, RunError, SetupError
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.recipe import Recipe
from llmkit.runs.progress import Narrator
from llmkit.runs.proving.rehearsal_recipe import small_recipe
from llmkit.runs.proving.rehearsal_report import print_rehearsal
from llmkit.runs.proving.rehearsal_rows import FIRST, LAST, excerpts_of
from llmkit.runs.proving.rehearsal_stages import Rehearsal, Stage
from llmkit.runs.proving.rehearsal_trials import reach_weights
from llmkit.runs.proving.rehearsing import rehearse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Maker = Callable[..., Recipe]
EVALUATED = "evaluation=[{type: perplexity}, {type: exact_match, max_new_tokens: 4}]"


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def conversations(count: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"what is {i} plus {i % 5}?"},
                {"role": "assistant", "content": f"it is {i + i % 5}"},
            ]
        }
        for i in range(count)
    ]


def failure(found: Rehearsal) -> tuple[str, str, Stage]:
    """Return name, text and stage of the one failure."""
    assert [stage.name for stage in found.failures] == [found.failures[0].name], found.sentences()
    stage = found.failures[0]
    return stage.name, stage.said, stage


# --- Nothing wrong ---------------------------------------------------------------------------------------------------


def test_a_recipe_that_works_passes_every_stage(recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "none" / "runs"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    asked = recipe(
        EVALUATED,
        "export=[{type: merged}, {type: adapter}]",
        "training.eval_strategy=epoch",
        "training.save_strategy=epoch",
        "training.max_steps=500",
        "checkpoints.keep.best=1",
        "training.metric_for_best_model=loss",
        "limits.tokens=5",
    )
    console = Console(file=io.StringIO(), width=200)
    found = rehearse(asked, Narrator(Console(file=io.StringIO())), out=out)
    print_rehearsal(found, console)
    assert found.passed, found.sentences()
    assert [stage.name for stage in found.stages if stage.outcome != "skipped"] == [
        "check", "run folder", "plan", "disk", "rows", "model", "prepare", "build", "base: perplexity",
        "base: exact_match", "train", "evaluate", "checkpoint", "save", "tuned: perplexity", "tuned: exact_match",
        "export merged", "export adapter", "best checkpoint", "reload", "resume",
    ]  # fmt: skip
    assert found.stage("resume").said == "step 3 from checkpoint-2 is that of the run that was not stopped"
    # Nothing stays, and nothing was made where the run would be.
    assert not list(scratch.iterdir())
    assert not out.parent.exists()
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "nothing here would stop the run" in printed
    assert "export merged" in printed
    assert 0.5 < sum(stage.seconds for stage in found.stages) / found.seconds <= 1


def test_a_method_that_samples_passes_although_a_random_model_earns_nothing(grpo_file: Callable[..., Path]) -> None:
    rows = [{"prompt": f"{i} plus {i % 5} is", "answer": str(i + i % 5)} for i in range(80)]
    path = grpo_file("sums", rows, num_generations=16, max_completion_length=300, per_device_train_batch_size=32)
    found = rehearse(load_recipe(path, ["training.steps_per_generation=4"]))
    assert found.passed, found.sentences()
    assert found.stage("rewards").said == "exact_match on 80 of 80 rows"
    assert found.stage("resume").outcome == "passed"


# --- Planted faults --------------------------------------------------------------------------------------------------


def test_a_held_out_row_without_a_reference(grpo_file: Callable[..., Path], tmp_path: Path) -> None:
    """Of 300 rows one lacks what the metric compares with: neither among the first nor at the end."""
    rows = [{"prompt": f"{i} is", "answer": str(i)} for i in range(300)]
    del rows[200]["answer"]
    write(tmp_path / "held.jsonl", rows)
    path = grpo_file("sums", [{"prompt": f"and {i} is"} for i in range(30)])
    changes = (
        "rewards=[{type: length, max: 5, over: 5}]",
        "data.eval=[{path: held.jsonl, format: prompt}]",
        "evaluation=[{type: exact_match, max_new_tokens: 2}]",
    )
    name, text, stage = failure(rehearse(load_recipe(path, changes)))
    assert name == "base: exact_match", text
    assert text.startswith("held.jsonl:201: the row has no reference answer")
    assert isinstance(stage.error, DataError)


def test_disk_folder_and_a_function_that_fails_near_the_end(
    recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "many.jsonl", conversations(900))
    code = "def plain(row):\n    int(row['messages'][0]['content'].split()[2]) != 893 or 1 / 0\n    return row\n"
    (tmp_path / "rows.py").write_text(code, encoding="utf-8")
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    usage = SimpleNamespace(total=10**9, used=10**9 - 5, free=5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    asked = recipe("data.train=[{path: many.jsonl, format: messages, python: rows.py:plain}]")
    found = rehearse(asked, out=tmp_path / "file" / "runs")
    folder, disk, rows = found.failures
    assert (folder.name, disk.name, rows.name) == ("run folder", "disk", "rows")
    assert "can't be written" in folder.said
    assert disk.said.startswith("the run needs about 0.1 GB on the disk of")
    assert rows.said == "many.jsonl:894: rows.py:plain raised ZeroDivisionError: division by zero"
    assert {s.outcome for s in found.stages[found.stages.index(rows) + 1 :]} == {"skipped"}
    assert found.stage("train").said == "not reached"


def test_target_modules_that_are_not_there(recipe: Maker) -> None:
    name, text, _ = failure(rehearse(recipe("adapter.target_modules=[c_attn]")))
    assert name in ("plan", "build"), text
    assert "c_attn" in text
    assert "not found in the base model" in text


def test_a_reward_that_fails_on_a_row_near_the_end(grpo_file: Callable[..., Path], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"{i} is", "answer": str(i)} for i in range(400)]
    rows[391]["answer"] = "many"
    code = "def score(completion, row):\n    return float(row['answer']) * 0\n"
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    path = grpo_file("sums", rows)
    found = rehearse(load_recipe(path, ["rewards=[{type: python, function: 'mine.py:score'}]"]))
    name, text, stage = failure(found)
    assert name == "rewards", text
    assert text.startswith("sums.jsonl:392: reward `python` raised ValueError: could not convert string to float")
    assert isinstance(stage.error, RunError)
    assert found.sentences()[0].startswith("would have failed before training, at rewards:\n")


def test_an_export_that_can_not_be_made_and_a_tracker_that_fails(
    recipe: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from transformers.integrations import TensorBoardCallback

    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError("no key for the tracker")

    monkeypatch.setattr(TensorBoardCallback, "_init_summary_writer", fail)
    exports = "export=[{type: adapter}, {type: merged, dtype: float16, max_kl: 1.0e-12}]"
    found = rehearse(recipe(exports, "training.report_to=tensorboard"))
    tracker, export = found.failures
    assert tracker.name == "trackers"
    assert tracker.said == "`training.report_to`: TensorBoard can't be set up: PermissionError: no key for the tracker"
    assert (export.name, export.when) == ("export merged", "after training")
    assert "the merged model computes something else than the trained one" in export.said
    assert found.stage("export adapter").outcome == "passed"
    assert found.stage("resume").said == "not reached"
    printed = io.StringIO()
    print_rehearsal(found, Console(file=printed, width=120))
    assert "would have failed after training, at export merged:" in printed.getvalue()
    assert "2 of these would have gone wrong" in printed.getvalue()
    assert printed.getvalue().count("no key for the tracker") == 1
    assert export.said.startswith("the run folder/export/.merged.tmp: ")


def test_a_tracker_that_is_not_installed(recipe: Maker) -> None:
    name, text, stage = failure(rehearse(recipe("training.report_to=clearml")))
    assert name == "check"
    assert text.endswith("`training.report_to`: clearml is not installed\npip install clearml")
    assert isinstance(stage.error, SetupError)


@pytest.mark.parametrize(
    ("fails_if", "reason"),
    [("messages[0].role != 'system'", "a system turn comes first"), ("add_generation_prompt", "nobody is to answer")],
)
def test_a_chat_template_that_fails(
    recipe: Maker, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, fails_if: str, reason: str
) -> None:
    broken = f"{{% if {fails_if} %}}{{{{ raise_exception('{reason}') }}}}{{% endif %}}{tokenizer.chat_template}"
    (tmp_path / "broken.jinja").write_text(broken, encoding="utf-8")
    name, text, stage = failure(rehearse(recipe(EVALUATED, "model.chat_template=broken.jinja")))
    assert name in ("prepare", "base: exact_match"), text
    assert stage.when == "before training"
    assert reason in text


def test_a_metric_for_the_best_model_that_is_never_computed(recipe: Maker) -> None:
    named = ("training.eval_strategy=steps", "training.eval_steps=100", "training.metric_for_best_model=f1")
    name, text, stage = failure(rehearse(recipe(*named)))
    assert (name, stage.when) in (("checkpoint", "while training"), ("evaluate", "while training")), text
    assert "'eval_f1', which is not found in the evaluation metrics" in text


def test_a_best_checkpoint_without_any_score(recipe: Maker) -> None:
    found = rehearse(recipe("checkpoints.keep.best=1"))
    name, text, _ = failure(found)
    assert name in ("check", "best checkpoint"), text
    assert "best" in text


def test_held_out_rows_that_are_all_too_long(recipe: Maker, tmp_path: Path) -> None:
    long = [
        {
            "messages": [
                {"role": "user", "content": f"{i}: " + "what is it? " * 40},
                {"role": "assistant", "content": "it is four"},
            ]
        }
        for i in range(20)
    ]
    write(tmp_path / "long.jsonl", long)
    held = "data.eval=[{path: long.jsonl, format: messages}]"
    name, text, stage = failure(rehearse(recipe(EVALUATED, held, "training.max_length=64")))
    assert name == "prepare", text
    assert "long.jsonl" in text
    assert "longer than" in text
    assert "/train-" not in text
    assert isinstance(stage.error, DataError)


def test_a_checkpoint_that_forgets_the_optimizer(recipe: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Trainer

    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", lambda self, checkpoint: None)
    name, text, stage = failure(rehearse(recipe()))
    assert (name, stage.when) == ("resume", "when it is resumed"), text
    assert "does not end as one that was never stopped" in text
    assert "tensors differ" in text


def test_a_module_to_save_that_is_not_there(recipe: Maker) -> None:
    name, text, stage = failure(rehearse(recipe("adapter.modules_to_save=[lm_haed]")))
    assert name == "build", text
    assert "no module of this model is called 'lm_haed' (did you mean 'lm_head'?)" in text
    assert isinstance(stage.error, RecipeError)


def test_a_module_that_is_not_loaded_again(recipe: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT saves the module's weights, and others are what comes back."""
    from peft.utils import save_and_load

    original = save_and_load.load_peft_weights

    def without_head(*args: Any, **kwargs: Any) -> Any:
        return {name: value * ("lm_head" not in name) for name, value in original(*args, **kwargs).items()}

    monkeypatch.setattr("peft.peft_model.load_peft_weights", without_head)
    name, text, stage = failure(rehearse(recipe("adapter.modules_to_save=[lm_head]", "training.learning_rate=0.1")))
    assert (name, stage.when) == ("reload", "after training"), text
    assert "loaded from the run folder, computes something else" in text


def test_generation_settings_that_can_not_be_saved(recipe: Maker, tiny_folder: Path, tmp_path: Path) -> None:
    """transformers loads them with a warning, and refuses to write them into the first checkpoint."""
    shutil.copytree(tiny_folder, tmp_path / "real")
    settings = {"do_sample": False, "temperature": 0.7, "eos_token_id": 2}
    (tmp_path / "real" / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    name, text, stage = failure(rehearse(recipe("model.name=./real", "adapter=null")))
    assert (name, stage.when) == ("checkpoint", "while training"), text
    assert "temperature" in text


# --- What may be out of reach ----------------------------------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Model and file of what the hub's cache holds; the hub itself is out of reach."""
    held: set[tuple[str, str]] = set()

    def cached(name: str, file: str, **_: Any) -> str | None:
        return "/somewhere" if (name, file) in held else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    return held


def test_the_base_of_an_adapter_is_looked_for(recipe: Maker, tmp_path: Path, cache: set[tuple[str, str]]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "some/base", "peft_type": "LORA"}'
    )
    asked = recipe("model.name=./mine", "adapter={type: lora}")
    with pytest.raises(SetupError, match="the weights of some/base are not in the local cache"):
        reach_weights(asked)
    cache.add(("some/base", "model.safetensors"))
    reach_weights(asked)


def test_pickled_weights_that_the_recipe_allows_are_found(recipe: Maker, cache: set[tuple[str, str]]) -> None:
    cache.add(("some/model", "pytorch_model.bin"))
    with pytest.raises(SetupError, match="not in the local cache"):
        reach_weights(recipe("model.name=some/model"))
    reach_weights(recipe("model.name=some/model", "model.allow_pickle=[pytorch_model.bin]"))


# --- What is said ----------------------------------------------------------------------------------------------------


def test_code_is_announced_before_it_runs(recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(recipe: Recipe) -> None:
        raise SetupError("far enough")

    monkeypatch.setattr("llmkit.runs.proving.rehearsing.plan", stop)
    (tmp_path / "rows.py").write_text("def plain(row):\n    return row\n", encoding="utf-8")
    stream = io.StringIO()
    asked = recipe("data.train.0.python=rows.py:plain")
    found = rehearse(asked, Narrator(Console(file=stream, width=300)), out=tmp_path)
    assert [stage.name for stage in found.failures] == ["plan"]
    lines = stream.getvalue().splitlines()
    [place] = [place for place, line in enumerate(lines) if "runs code with your rights: plain of" in line]
    assert [lines[0].endswith("check"), lines[place + 1].endswith("run folder")] == [True, True]


def test_what_a_library_says_is_printed_without_secrets() -> None:
    said = "no answer from https://me:pass4word@hub/x"
    stages = (Stage("plan", "warned", said=said), Stage("trackers", "failed", said=said))
    stream = io.StringIO()
    print_rehearsal(Rehearsal(stages, 1.0), Console(file=stream, width=200))
    assert stream.getvalue().count("https://me:***@hub/x") == 2
    assert "pass4word" not in stream.getvalue()


# --- Rows and recipe -------------------------------------------------------------------------------------------------


def test_rows_are_the_first_the_longest_the_odd_and_the_last(recipe: Maker, tmp_path: Path) -> None:
    rows = conversations(2000)
    rows[700]["messages"][1]["content"] *= 30
    rows[901] = {"messages": rows[901]["messages"], "tools": []}
    write(tmp_path / "many.jsonl", rows)
    data, (found,) = excerpts_of(recipe("data.train=[{path: many.jsonl}]", "data.eval=0.01"), tmp_path)
    numbers = [int(place.rpartition(":")[2]) - 1 for place in found.places]
    assert numbers == sorted(set(numbers))
    assert numbers[:FIRST] == list(range(FIRST))
    assert numbers[-LAST:] == list(range(2000 - LAST, 2000))
    assert {700, 901} < set(numbers)
    assert found.whole
    assert found.read == 2000
    assert 100 < len(numbers) < 200
    # In between as well: sorted rows would look all alike otherwise.
    assert len([n for n in numbers if FIRST <= n < 2000 - LAST]) >= 30
    copied = [json.loads(line) for line in Path(data.train[0].path).read_text(encoding="utf-8").splitlines()]
    assert copied == [rows[number] for number in numbers]
    told = found.in_its_words(f"{data.train[0].path}:{numbers.index(700) + 1}: too long")
    assert told == "many.jsonl:701: too long"
    assert data.eval == 0.25


def test_a_long_file_is_read_for_a_while_and_at_its_end(
    recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "many.jsonl", conversations(3000))
    monkeypatch.setattr("llmkit.runs.proving.rehearsal_rows.SECONDS", 0.0)
    data, (found,) = excerpts_of(recipe("data.train=[{path: many.jsonl}]"), tmp_path)
    assert not found.whole
    assert found.places[-1] == "many.jsonl (row 1 from the end)"
    last = Path(data.train[0].path).read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last) == conversations(3000)[-1]


def test_what_the_planner_decided_for_the_real_model_stays(recipe: Maker, tmp_path: Path) -> None:
    from llmkit.runs.prepare import plan

    asked = recipe("training.gradient_checkpointing=true", "training.max_steps=9000", "training.save_steps=500")
    the_plan = plan(asked)
    small = small_recipe(asked, the_plan, tmp_path / "tiny", asked.data)
    given = small.training.kwargs()
    assert {key: given[key] for key in ("max_steps", "save_steps", "per_device_train_batch_size")} == {
        "max_steps": 3, "save_steps": 2, "per_device_train_batch_size": 2,
    }  # fmt: skip
    assert given["gradient_checkpointing"] is True
    assert given["optim"] == the_plan["training.optim"]
    assert small.model.dtype == the_plan["model.dtype"]
    assert small.folder == asked.folder
    assert json.loads(small.written)["model"]["name"] == str(tmp_path / "tiny")
