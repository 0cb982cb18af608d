"""A model, a data set or a run folder from elsewhere can't have files written, or read, where it says."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.sources import check_source, read_rows
from llmkit.errors import DataError, LlmkitError, SetupError
from llmkit.model.loading import load_tokenizer
from llmkit.model.sources import locate
from llmkit.recipe.recipe import Recipe, Source
from llmkit.runs.folder import RunFolder

Maker = Callable[..., Recipe]

LIBRARIES = ("user/.cache/huggingface/", "user/.cache/torch/", "user/.triton/", "user/.config/matplotlib/")
"""What the libraries below keep for themselves, in the user's home."""


def test_a_run_writes_into_its_folder_and_the_cache_alone(whole_run: Any) -> None:
    """The model's files name `../../outside` and `/etc/passwd` wherever a path can stand."""
    assert whole_run.code == 0, whole_run.said
    assert whole_run.changed == set()
    assert {name for name in whole_run.new if not name.startswith(LIBRARIES)} == set()
    assert not list((whole_run.home / "outside").iterdir())
    assert not [file for file in whole_run.folder.rglob("*") if file.is_symlink()]


def test_no_file_that_a_tokenizer_names_is_copied(whole_run: Any) -> None:
    first = Path("/etc/passwd").read_bytes().split(b"\n")[0]
    holding = [p for p in whole_run.folder.rglob("*") if p.is_file() and first in p.read_bytes()]
    assert holding == []


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vocab.txt", "model.safetensors", "chat_template.jinja", "tokenizer.model"])
def test_a_link_in_a_model_folder_is_refused(recipe: Maker, model_copy: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "private").write_text("private", encoding="utf-8")
    (model_copy / name).unlink(missing_ok=True)
    (model_copy / name).symlink_to(tmp_path / "private")
    made = recipe(f"model.name={model_copy}")
    with pytest.raises(SetupError, match=f"{name} is a link out of the model's folder"):
        locate(made.model, made.folder)


def test_a_folder_of_templates_that_is_a_link_is_refused(recipe: Maker, model_copy: Path, tmp_path: Path) -> None:
    made = recipe(f"model.name={model_copy}")
    templates = model_copy / "additional_chat_templates"
    templates.mkdir()
    (templates / "x.jinja").symlink_to("/etc/passwd")
    with pytest.raises(SetupError, match="x.jinja is a link out of"):
        locate(made.model, made.folder)
    shutil.rmtree(templates)
    templates.symlink_to("/etc")
    with pytest.raises(SetupError, match="additional_chat_templates is a link out of"):
        locate(made.model, made.folder)


def test_links_inside_and_those_of_the_hubs_cache_are_no_way_out(
    recipe: Maker, tiny_folder: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(tiny_folder.iterdir()):
        shutil.copy(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    (snapshot / "same.json").symlink_to("config.json")
    made = recipe(f"model.name={snapshot}")
    assert locate(made.model, made.folder).path == str(snapshot)
    (repository / "blobs" / "0").unlink()
    (repository / "blobs" / "0").symlink_to("/etc/passwd")
    with pytest.raises(SetupError, match="is a link out of"):
        locate(made.model, made.folder)


def test_a_link_to_itself(recipe: Maker, model_copy: Path) -> None:
    (model_copy / "loop.json").symlink_to("loop.json")
    made = recipe(f"model.name={model_copy}")
    with pytest.raises(SetupError, match=r"loop.json is a link out of"):
        locate(made.model, made.folder)


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a/b", "..", ""])
def test_the_name_of_a_template_is_no_path(
    recipe: Maker, model_copy: Path, edit: Callable[..., None], name: str
) -> None:
    """Each is a file when the model is saved; transformers refuses that then, after the training."""
    default = (model_copy / "chat_template.jinja").read_text(encoding="utf-8")
    (model_copy / "chat_template.jinja").unlink()
    templates = [{"name": "default", "template": default}, {"name": name, "template": "x"}]
    edit(model_copy / "tokenizer_config.json", chat_template=templates)
    with pytest.raises(SetupError, match="can't be the name of a file"):
        load_tokenizer(recipe(f"model.name={model_copy}"))


def test_a_plain_name_of_a_template_is_taken(recipe: Maker, model_copy: Path, edit: Callable[..., None]) -> None:
    default = (model_copy / "chat_template.jinja").read_text(encoding="utf-8")
    (model_copy / "chat_template.jinja").unlink()
    templates = [{"name": name, "template": default} for name in ("default", "tool_use")]
    edit(model_copy / "tokenizer_config.json", chat_template=templates)
    assert set(load_tokenizer(recipe(f"model.name={model_copy}")).chat_template) == {"default", "tool_use"}


@pytest.mark.parametrize("name", ["package:../x", "package:llmkit/../..", "package:os.path"])
def test_a_package_with_weights_is_one_name(recipe: Maker, name: str) -> None:
    made = recipe(f"model.name={name}")
    with pytest.raises(SetupError, match="is not installed"):
        locate(made.model, made.folder)


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_link_in_a_folder_of_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "private.jsonl").write_text('{"text": "private"}\n', encoding="utf-8")
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "good.jsonl").write_text('{"text": "good"}\n', encoding="utf-8")
    (folder / "again.jsonl").symlink_to("good.jsonl")
    assert len(list(read_rows(Source(path="rows", format="text"), tmp_path))) == 2
    (folder / "bad.jsonl").symlink_to(tmp_path / "private.jsonl")
    for act in (check_source, read_rows):
        with pytest.raises(DataError, match="bad.jsonl is a link out of the folder"):
            list(act(Source(path="rows", format="text"), tmp_path) or ())
    # The recipe itself may name any file.
    assert len(list(read_rows(Source(path="rows/bad.jsonl", format="text"), tmp_path))) == 1


@pytest.mark.parametrize("path", ["a/..", "../..", "..", "org/../../x", "org//x"])
def test_the_id_of_a_data_set_is_no_path(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises((DataError, SetupError)):
        list(read_rows(Source(path=path, format="text"), tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_are_not_unpacked(tmp_path: Path, kind: str) -> None:
    """So that no name in them is a path."""
    file = tmp_path / f"rows.{kind}"
    content = b'{"text": "x"}\n'
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("../../evil.jsonl", content)
    else:
        with tarfile.open(file, "w:gz" if kind == "tar.gz" else "w") as archive:
            info = tarfile.TarInfo("../../evil.jsonl")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match="can't read"):
        list(read_rows(Source(path=f"./{file.name}", format="text"), tmp_path))
    assert list(tmp_path.iterdir()) == [file]


# --- run folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "recipe.yaml").touch()
    (folder / "lock.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "name", ["model", "export", "metrics.jsonl", "checkpoints/checkpoint-2", "checkpoints/checkpoint-1/optimizer.pt"]
)
def test_a_link_in_a_run_folder_is_refused(run_folder: Path, tmp_path: Path, name: str) -> None:
    """A run that goes on would write through it."""
    (tmp_path / "elsewhere").mkdir()
    assert RunFolder.open(run_folder).path == run_folder
    (run_folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SetupError, match=f"{name} is a link to another place, and a run writes into"):
        RunFolder.open(run_folder)


def test_checkpoints_elsewhere_are_refused(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "checkpoints").rename(tmp_path / "elsewhere")
    (run_folder / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SetupError, match="checkpoints is a link"):
        RunFolder.open(run_folder)


def test_a_run_folder_may_be_a_link_as_a_whole(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run_folder)
    assert RunFolder.open(tmp_path / "link").path == tmp_path / "link"


def test_a_new_run_does_not_follow_a_link_into_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").touch()
    (tmp_path / "out").symlink_to(tmp_path / "home")
    with pytest.raises(LlmkitError, match="holds other files"):
        RunFolder.create(tmp_path / "out")


def test_what_a_run_saves_names_no_place_that_the_model_named(whole_run: Any) -> None:
    saved = whole_run.folder / "model"
    for file in (*saved.glob("*.json"), *(whole_run.folder / "export").rglob("*.json")):
        assert "outside" not in file.read_text(encoding="utf-8"), file
        assert "/etc/passwd" not in file.read_text(encoding="utf-8"), file
    config = json.loads((saved / "adapter_config.json").read_text(encoding="utf-8"))
    assert Path(config["base_model_name_or_path"]).resolve() == (whole_run.home / "model").resolve()
