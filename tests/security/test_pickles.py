"""No pickle is loaded unless the recipe names it, and no code in one is run even then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.readers import DataFile, read_file
from llmkit.data.sources import check_source, read_rows
from llmkit.errors import DataError, SetupError
from llmkit.model.loading import load_base
from llmkit.model.sources import locate
from llmkit.recipe.recipe import Recipe, Source
from llmkit.runs.folder import pickles_explained

Maker = Callable[..., Recipe]

UNPICKLERS = (
    "pickle.", "dill.", "cloudpickle.", "joblib.", "shelve.", "torch.load", "torch.jit.load", "torch.package.",
    "numpy.load", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "marshal.load",
)  # fmt: skip
MAY_UNPICKLE = {
    # Reads what the trainer's process writes to its standard input.
    ("rewards/_sandbox_child.py", "marshal.load"),
}


def test_llmkit_itself_unpickles_nothing(calls: list[Any]) -> None:
    found = {(call.file, call.name) for call in calls if call.name.startswith(UNPICKLERS)}
    assert {pair for pair in found if not pair[1].endswith((".dumps", ".dump"))} <= MAY_UNPICKLE


def test_the_search_finds_what_it_looks_for(calls: list[Any]) -> None:
    assert ("rewards/_sandbox_child.py", "marshal.load") in {(call.file, call.name) for call in calls}


# --- models ----------------------------------------------------------------------------------------------------------


def test_pickled_weights_are_refused_and_not_run_even_when_they_are_named(
    recipe: Maker, model_copy: Path, mine: Any
) -> None:
    (model_copy / "model.safetensors").unlink()
    mine.armed(model_copy / "pytorch_model.bin", torch_file=True)
    named = f"model.name={model_copy}"
    with pytest.raises(SetupError, match=r"only pickled weights \(pytorch_model.bin\), and loading those can run code"):
        load_base(recipe(named), dtype="float32")
    with pytest.raises(SetupError, match="holds something else than numbers: loading it could run code"):
        load_base(recipe(named, "model.allow_pickle=[pytorch_model.bin]"), dtype="float32")
    assert not mine.went_off


def test_honest_pickled_weights_that_are_named_are_loaded(recipe: Maker, model_copy: Path) -> None:
    import torch
    from safetensors.torch import load_file

    weights = load_file(model_copy / "model.safetensors")
    torch.save(weights, model_copy / "pytorch_model.bin")
    (model_copy / "model.safetensors").unlink()
    made = recipe(f"model.name={model_copy}", "model.allow_pickle=[pytorch_model.bin]")
    found = load_base(made, dtype="float32").state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def test_pickled_adapters_are_refused(recipe: Maker, tiny_folder: Path, tmp_path: Path, mine: Any) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"base_model_name_or_path": str(tiny_folder), "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    mine.armed(folder / "adapter_model.bin", torch_file=True)
    made = recipe(f"model.name={folder}")
    with pytest.raises(SetupError, match=r"only pickled weights \(adapter_model.bin\)"):
        locate(made.model, made.folder)
    made = recipe(f"model.name={folder}", "model.allow_pickle=[adapter_model.bin]")
    assert locate(made.model, made.folder).adapter == folder
    assert not mine.went_off


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../elsewhere.safetensors", "/etc/x.safetensors", 3])
def test_an_index_names_safetensors_files_beside_it_alone(
    recipe: Maker, model_copy: Path, mine: Any, shard: Any
) -> None:
    """transformers goes by the names in the index, whatever `use_safetensors` says."""
    (model_copy / "model.safetensors").rename(model_copy / "model-00001-of-00001.safetensors")
    mine.armed(model_copy / "pytorch_model.bin", torch_file=True)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (model_copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(SetupError, match="which is no safetensors file beside it"):
        load_base(recipe(f"model.name={model_copy}"), dtype="float32")
    assert not mine.went_off


def test_a_config_can_not_name_pickled_weights(
    recipe: Maker, model_copy: Path, mine: Any, edit: Callable[..., None]
) -> None:
    """transformers 5.23 takes this name before it looks for safetensors."""
    mine.armed(model_copy / "adapter_model.bin", torch_file=True)
    edit(model_copy / "config.json", transformers_weights="adapter_model.bin")
    with pytest.raises(SetupError, match=r"names pickled weights \(adapter_model.bin\)"):
        load_base(recipe(f"model.name={model_copy}"), dtype="float32")
    assert not mine.went_off


def test_pickles_beside_the_weights_of_a_whole_run_stay_what_they_are(whole_run: Any) -> None:
    assert whole_run.code == 0, whole_run.said
    assert not whole_run.went_off


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(whole_run: Any) -> Path:
    return whole_run.folder / "checkpoints" / "checkpoint-1"


def test_a_checkpoint_with_code_in_it_is_refused(recipe: Maker, checkpoint: Path, tmp_path: Path, mine: Any) -> None:
    """Also where the manifest of the checkpoint was written anew: the Trainer is given the folder itself."""
    from llmkit.runs.prepare import prepare

    trainer = prepare(recipe("training.save_strategy=no"), output_dir=tmp_path / "out").trainer
    for number, (planted, instead_of) in enumerate(
        [
            ("optimizer.pt", "optimizer.pt"),
            ("scheduler.pt", "scheduler.pt"),
            ("rng_state.pth", "rng_state.pth"),
            ("adapter_model.bin", "adapter_model.safetensors"),
        ]
    ):
        folder = shutil.copytree(checkpoint, tmp_path / str(number) / "checkpoint-1")
        (folder / instead_of).unlink()
        mine.armed(folder / planted, torch_file=True)
        with pytest.raises(SetupError, match="holds something else than numbers"), pickles_explained(folder):
            trainer.train(resume_from_checkpoint=str(folder))
        assert not mine.went_off, planted
    # What the Trainer writes beside them, and never reads.
    folder = shutil.copytree(checkpoint, tmp_path / "arguments" / "checkpoint-1")
    mine.armed(folder / "training_args.bin", torch_file=True)
    trainer.train(resume_from_checkpoint=str(folder))
    assert trainer.state.global_step == 3
    assert not mine.went_off


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".npy", ".npz", ".pt", ".bin", ".arrow", ".joblib", ".h5"])
def test_data_of_other_kinds_are_refused(tmp_path: Path, mine: Any, suffix: str) -> None:
    mine.armed(tmp_path / f"rows{suffix}")
    for path in (f"./rows{suffix}", f"{tmp_path}/rows{suffix}"):
        with pytest.raises(DataError, match=f"can't read {suffix}; data files are"):
            check_source(Source(path=path), tmp_path)
    assert not mine.went_off


def test_a_parquet_file_can_not_bring_a_pickled_type(tmp_path: Path, mine: Any) -> None:
    """pyarrow used to unpickle extension types of this name (CVE-2023-47248)."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    marks = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": mine.pickled()}
    schema = arrow.schema([arrow.field("text", arrow.string(), metadata=marks)])
    parquet.write_table(arrow.table({"text": ["a"]}, schema), tmp_path / "rows.parquet")
    found = list(read_file(DataFile(tmp_path / "rows.parquet", "rows.parquet")))
    assert found == [("rows.parquet[0]", {"text": "a"})]
    assert not mine.went_off


def test_the_kept_rows_can_not_bring_a_pickled_type(tmp_path: Path, mine: Any) -> None:
    import pyarrow as arrow
    from datasets import Dataset

    marks = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": mine.pickled()}
    schema = arrow.schema([arrow.field("text", arrow.string(), metadata=marks)])
    with arrow.ipc.new_stream(str(tmp_path / "rows.arrow"), schema) as stream:
        stream.write_table(arrow.table({"text": ["a"]}, schema))
    assert Dataset.from_file(str(tmp_path / "rows.arrow"))[0] == {"text": "a"}
    assert not mine.went_off


@pytest.mark.parametrize("name", ["pandas", "arrow", "webdataset", "hdf5"])
def test_a_reader_of_datasets_is_no_data_set(
    tmp_path: Path, mine: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`load_dataset("pandas")` reads what lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    mine.armed(tmp_path / "train.pkl")
    with pytest.raises(DataError, match=f"'{name}' is how `datasets` calls a kind of file"):
        list(read_rows(Source(path=name, format="text"), tmp_path))
    assert not mine.went_off


# --- llmkit's cache --------------------------------------------------------------------------------------------------


def test_the_cache_holds_no_pickles(whole_run: Any) -> None:
    """Apart from what torch.compile keeps, which is code; docs/security.md says so."""
    kept = [file for file in whole_run.cache.rglob("*") if file.is_file() and "compiled" not in file.parts]
    assert kept
    assert {file.suffix for file in kept} <= {".arrow", ".json", ".safetensors", ".jinja"}
