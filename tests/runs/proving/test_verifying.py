"""`llmkit verify`: an untouched run passes, and each kind of damage is found and named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmkit.errors import SetupError
from llmkit.model.loading import converted_place
from llmkit.planning.hardware import Hardware
from llmkit.runs.folder import RunFolder, environment
from llmkit.runs.proving import inputs, verifying
from llmkit.runs.proving.checked import CHECKPOINTS, EXPORTS, INPUTS, MODEL, RECORD, Checked, digest
from llmkit.runs.proving.records import SEAL, record, seal, weight_files
from llmkit.runs.proving.verifying import verify
from llmkit.runs.recovery.manifest import MANIFEST, write_manifest

if TYPE_CHECKING:
    from conftest import Made

    from llmkit.recipe.recipe import Recipe


def flip(path: Path, *, at: float = 0.5) -> None:
    """Flip one bit, and leave size and times as they were."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@contextmanager
def put_back(path: Path) -> Iterator[None]:
    """Put a file (or its absence) back at the end, with its times."""
    content, times = (path.read_bytes(), path.stat()) if path.exists() else (None, None)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if content is not None and times is not None:
            path.write_bytes(content)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def failed(folder: Path, **options: Any) -> list[tuple[str, str, str]]:
    return [(one.part, one.what, one.state) for one in verify(folder, **options).failed]


# --- nothing has changed ---------------------------------------------------------------------------------------------


def test_an_untouched_run_passes_and_nothing_is_left_out(made: Made) -> None:
    found = verify(made.finished, rows=True)
    assert found.passed
    assert found.stage == "finished, 4 steps"
    assert {one.state for one in found.checked} == {"same"}
    whats = {one.what for one in found.checked}
    assert whats >= {
        "lock.json", "recipe.yaml", "resolved.yaml", "plan.json", "audit.json", "ledger.json", "metrics.jsonl",
        "evaluation.json", "steps of metrics.jsonl against checkpoint-4", "rows.jsonl", "rows.py",
        "base model: model.safetensors", "base model: config.json", "tokenizer", "chat template", "train rows",
        "eval rows", "model", "checkpoint-2", "checkpoint-4", "export/merged",
    }  # fmt: skip
    [versions] = [one.what for one in found.checked if one.part == "environment"]
    assert {"torch", "trl", "python", "platform", "kind", "name", "cpu_cores", "memory"} <= set(versions.split(", "))


def test_a_copy_of_a_run_passes(copied: Path) -> None:
    assert verify(copied).passed


def test_an_unfinished_run_is_verified_as_far_as_it_goes(made: Made) -> None:
    found = verify(made.cut, rows=True)
    assert found.passed
    assert found.stage == "unfinished: 2 of 4 steps logged, last checkpoint at step 2"
    states = {one.what: one.state for one in found.checked}
    assert states["checkpoint-2"] == states["recipe.yaml"] == states["train rows"] == "same"
    assert states["steps of metrics.jsonl against checkpoint-2"] == "same"
    assert states["model"] == "not recorded"
    flipped = made.cut / "checkpoints" / "checkpoint-2" / "optimizer.pt"
    with put_back(flipped):
        content = flipped.read_bytes()
        flipped.write_bytes(content[:-1])
        assert failed(made.cut) == [(CHECKPOINTS, "checkpoint-2", "changed")]


# --- damage in the run folder ----------------------------------------------------------------------------------------


def _rewritten(folder: Path) -> None:
    """Change the weights, and the manifest with them."""
    flip(folder / "model" / "adapter_model.safetensors")
    write_manifest(folder / "model")


def _no_manifest(folder: Path) -> None:
    flip(folder / "model" / "adapter_model.safetensors")
    (folder / "model" / MANIFEST).unlink()


def _loss(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    entry = json.loads(lines[2])
    lines[2] = json.dumps({**entry, "loss": entry["loss"] - 0.5})
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _lock(folder: Path) -> None:
    """Give the data file another hash, as if it had been another file."""
    lock = json.loads((folder / "lock.json").read_text(encoding="utf-8"))
    lock["seed"] = 43
    (folder / "lock.json").write_text(json.dumps(lock), encoding="utf-8")


HISTORY = "steps of metrics.jsonl against checkpoint-4"
DAMAGE: dict[str, tuple[Callable[[Path], object], set[tuple[str, str, str]]]] = {
    "a bit of the model": (
        lambda run: flip(run / "model" / "adapter_model.safetensors"),
        {(MODEL, "model", "changed")},
    ),
    "the model and its manifest": (_rewritten, {(MODEL, f"model/{MANIFEST}", "changed")}),
    "the model without manifest": (
        _no_manifest,
        {(MODEL, f"model/{MANIFEST}", "missing"), (MODEL, "model", "changed")},
    ),
    "no model": (lambda run: shutil.rmtree(run / "model"), {(MODEL, "model", "missing")}),
    "a bit of a checkpoint": (
        lambda run: flip(run / "checkpoints" / "checkpoint-2" / "optimizer.pt"),
        {(CHECKPOINTS, "checkpoint-2", "changed")},
    ),
    "a checkpoint's manifest": (
        lambda run: (run / "checkpoints" / "checkpoint-4" / MANIFEST).unlink(),
        {(CHECKPOINTS, "checkpoint-4", "changed")},
    ),
    "weights beside the export": (
        lambda run: (run / "export" / "merged" / "pytorch_model.bin").write_bytes(b"x"),
        {(EXPORTS, "export/merged", "changed")},
    ),
    "no export": (lambda run: shutil.rmtree(run / "export"), {(EXPORTS, "export/merged", "missing")}),
    "the recipe": (
        lambda run: replace(run / "recipe.yaml", "learning_rate: 1.0e-2", "learning_rate: 2.0e-2"),
        {(RECORD, "recipe.yaml", "changed")},
    ),
    "the recipe, unreadably": (
        lambda run: (run / "recipe.yaml").write_text("model: ["),
        {(RECORD, "recipe.yaml", "changed")},
    ),
    "the plan": (
        lambda run: replace(run / "plan.json", '"float32"', '"bfloat16"'),
        {(RECORD, "plan.json", "changed")},
    ),
    "the plan, cut off": (lambda run: (run / "plan.json").write_text("{"), {(RECORD, "plan.json", "changed")}),
    "a loss": (_loss, {(RECORD, "metrics.jsonl", "changed"), (RECORD, HISTORY, "changed")}),
    "scores, cut off": (
        lambda run: (run / "evaluation.json").write_text("[{"),
        {(RECORD, "evaluation.json", "changed"), (RECORD, "scores of evaluation.json", "changed")},
    ),
    "no scores": (lambda run: (run / "evaluation.json").unlink(), {(RECORD, "evaluation.json", "missing")}),
    "the lock": (_lock, {(RECORD, "lock.json", "changed")}),
    "the lock, cut off": (lambda run: (run / "lock.json").write_text("{"), {(RECORD, "lock.json", "changed")}),
    "the lock's seal": (
        lambda run: replace(run / "lock.json", f'"{SEAL}"', '"sael"'),
        {(RECORD, "lock.json", "changed")},
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(name: str, copied: Path) -> None:
    damage, expected = DAMAGE[name]
    damage(copied)
    assert set(failed(copied)) == expected


def test_any_bit_of_the_lock_is_found(copied: Path) -> None:
    whole = (copied / "lock.json").read_bytes()
    for place in range(20):
        flip(copied / "lock.json", at=place / 20)
        found = verify(copied, parts=())
        same_text = json.loads(whole) == _json(copied / "lock.json")  # a space for a line break says the same
        assert found.passed == same_text, place
        (copied / "lock.json").write_bytes(whole)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


# --- what the run was made from --------------------------------------------------------------------------------------

INPUT_DAMAGE: dict[str, tuple[str, Callable[[Path], object], list[tuple[str, str]]]] = {
    "a bit of the data": ("rows.jsonl", flip, [("rows.jsonl", "changed")]),
    "no data": ("rows.jsonl", Path.unlink, [("rows.jsonl", "missing")]),
    "the code": ("rows.py", lambda path: path.write_text("x = 1\n"), [("rows.py", "changed")]),
    "a bit of the weights": (
        "tiny/model.safetensors",
        lambda path: flip(path, at=0.9),
        [("base model: model.safetensors", "changed")],
    ),
    "no weights": ("tiny/model.safetensors", Path.unlink, [("base model", "missing")]),
    "more weights": (
        "tiny/model-2.safetensors",
        lambda path: path.write_bytes(b"x"),
        [("base model: model-2.safetensors", "changed")],
    ),
    "the base's config": (
        "tiny/config.json",
        lambda path: replace(path, '"rms_norm_eps": ', '"rms_norm_eps": 1'),
        [("base model: config.json", "changed")],
    ),
    "the template": (
        "tiny/chat_template.jinja",
        lambda path: path.write_text(path.read_text() + " "),
        [("chat template", "changed")],
    ),
    "the tokenizer": (
        "tiny/tokenizer.json",
        lambda path: replace(path, "<|pad|>", "<|bad|>"),
        [("tokenizer", "changed")],
    ),
    "the tokenizer, cut off": (
        "tiny/tokenizer.json",
        lambda path: path.write_text(path.read_text()[:100]),
        [("tokenizer", "changed")],
    ),
}


@pytest.mark.parametrize("name", INPUT_DAMAGE)
def test_changed_inputs_are_found_and_told_from_missing_ones(name: str, made: Made) -> None:
    file, damage, expected = INPUT_DAMAGE[name]
    with put_back(made.home / file):
        damage(made.home / file)
        assert [(what, state) for part, what, state in failed(made.finished)] == expected
    assert verify(made.finished, parts=(INPUTS,)).passed


def test_rows_that_would_be_read_otherwise_are_found_on_request(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, code and tokenizer are the same; what prepares the rows is not."""
    prepare = inputs.load_rows

    def fewer(*arguments: Any) -> Any:
        return prepare(arguments[0].model_copy(update={"training": _longer(arguments[0])}), *arguments[1:])

    monkeypatch.setattr(inputs, "load_rows", fewer)
    assert verify(made.finished, parts=(INPUTS,)).passed
    said: list[str] = []
    found = verify(made.finished, said.append, rows=True, parts=(INPUTS,))
    assert [(one.what, one.state) for one in found.failed] == [("train rows", "changed"), ("eval rows", "changed")]
    assert said[0] == "preparing the rows again"
    assert "runs code with your rights: plain of " in said[1]


def _longer(recipe: Any) -> Any:
    return recipe.training.model_copy(update={"seed": 7})


def test_a_new_file_in_a_folder_of_data_is_found(made: Made, tmp_path: Path) -> None:
    from llmkit.runs.folder import data_hashes

    (tmp_path / "corpus").mkdir()
    shutil.copy(made.home / "rows.jsonl", tmp_path / "corpus" / "a.jsonl")
    recipe = made.recipe("data.train.0={path: corpus, format: messages}").placed(tmp_path)
    lock = {"data": data_hashes(recipe), "folder": str(tmp_path)}
    assert [one.state for one in _inputs(lock, recipe)] == ["same", "not recorded"]
    shutil.copy(made.home / "rows.jsonl", tmp_path / "corpus" / "b.jsonl")
    assert ("corpus/b.jsonl", "changed") in [(one.what, one.state) for one in _inputs(lock, recipe)]


def _inputs(lock: dict[str, Any], recipe: Any) -> list[Checked]:
    return list(inputs.inputs(lock, recipe, lambda text: None, rows=False))


def test_made_rows_have_no_bytes_to_compare(made: Made) -> None:
    [found] = _inputs({"data": {"made:orders": None}, "folder": str(made.home)}, None)[:1]
    assert (found.what, found.state) == ("made:orders", "not recorded")
    assert "--rows" in found.detail


# --- other versions, and what is no run ------------------------------------------------------------------------------


def test_another_version_or_machine_is_told_and_is_no_failure(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    now = environment()
    monkeypatch.setattr(verifying, "environment", lambda: {**now, "packages": {**now["packages"], "torch": "9.9"}})
    monkeypatch.setattr(verifying, "probe", lambda device: Hardware("cpu", "another", 1, 2**34, 64, bf16=False))
    found = verify(made.finished)
    assert found.passed
    others = {one.what: one.detail for one in found.checked if one.state == "other version"}
    assert others["torch"] == f"was {now['packages']['torch']}, is 9.9"
    assert others["name"].endswith("is another")
    assert "trl" not in others


def test_a_device_that_is_gone_is_told(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(device: str) -> Hardware:
        raise SetupError("no CUDA device here")

    monkeypatch.setattr(verifying, "probe", gone)
    found = verify(made.finished)
    assert found.passed
    assert ("kind", "no CUDA device here") in [(one.what, one.detail) for one in found.checked]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SetupError, match="is not a run folder"):
        verify(tmp_path)


def test_a_run_from_before_locks_were_sealed_is_compared_as_far_as_it_can_be(copied: Path) -> None:
    lock = json.loads((copied / "lock.json").read_text(encoding="utf-8"))
    old = {name: value for name, value in lock.items() if name not in (SEAL, "files")}
    (copied / "lock.json").write_text(json.dumps(old), encoding="utf-8")
    (copied / "model" / MANIFEST).unlink()
    (copied / "checkpoints" / "checkpoint-2" / MANIFEST).unlink()
    states = {one.what: one.state for one in verify(copied).checked}
    assert states["lock.json"] == states["model"] == states["checkpoint-2"] == "not recorded"
    assert states["rows.jsonl"] == states["checkpoint-4"] == states[HISTORY] == "same"


# --- the steps -------------------------------------------------------------------------------------------------------


def steps(folder: Path, lines: list[dict[str, Any]], history: list[dict[str, Any]], cut: str = "") -> Checked:
    (folder / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines) + cut
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    state = {"log_history": history, "max_steps": 9}
    (folder / "checkpoints" / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    [found] = verifying._metrics(RunFolder(folder))
    return found


ONE, TWO = {"step": 1, "loss": 2.0, "grad_norm": float("nan")}, {"step": 2, "loss": 1.0, "total_flos": 7}
TIMED = {"step_time": 3.0, "time/score": 1.0, "tokens_per_second": 9.0}


@pytest.mark.parametrize(
    ("lines", "history", "cut", "state", "detail"),
    [
        ([ONE, TWO], [ONE, TWO], "", "same", "2 steps"),
        ([ONE, {**TWO, **TIMED}], [ONE, {**TWO, "step_time": 4.0}], "", "same", "2 steps"),
        ([ONE, TWO, {"step": 3, "loss": 0.5}], [ONE, TWO], '{"step": 4, "lo', "same", "3 steps"),
        ([ONE], [ONE, TWO], "", "changed", "step 2 is not among them"),
        ([ONE, {**TWO, "loss": 1.1}], [ONE, TWO], "", "changed", "step 2 has loss 1.1, and the checkpoint 1.0"),
        ([TWO, ONE], [ONE, TWO], "", "changed", "step 1 stands twice or out of order"),
        ([ONE, TWO, TWO], [ONE, TWO], "", "changed", "step 2 stands twice or out of order"),
        ([ONE, {"loss": 1.0}, TWO], [ONE, TWO], "", "changed", "line 2 is not what a run writes"),
        ([ONE, TWO], [], "", "not recorded", "2 steps in order; no checkpoint to compare them with"),
    ],
)
def test_steps_are_once_in_order_and_as_the_checkpoint_remembers(
    lines: list[dict[str, Any]], history: list[dict[str, Any]], cut: str, state: str, detail: str, tmp_path: Path
) -> None:
    found = steps(tmp_path, lines, history, cut)
    assert (found.state, found.detail) == (state, detail)


# --- what is recorded ------------------------------------------------------------------------------------------------


def test_the_seal_is_of_everything_else() -> None:
    lock = {"seed": 1, "files": {"a": "b"}}
    assert seal(lock) == seal({**lock, SEAL: "whatever"}) == seal(dict(reversed(lock.items())))
    assert seal(lock) != seal({**lock, "seed": 2})


def test_files_that_are_there_are_recorded_beside_those_that_were(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.write_text("a.json", "a")
    folder.update_lock(seed=1)
    record(folder, "a.json", "none.json")
    folder.write_text("b.json", "b")
    record(folder, "b.json")
    lock = folder.read_json("lock.json")
    assert list(lock["files"]) == ["a.json", "b.json"]
    assert lock["seed"] == 1


def test_the_files_of_an_adapter_to_go_on_from_are_recorded(made: Made) -> None:
    files = weight_files(made.recipe(f"model.name={made.finished / 'model'}", "adapter={type: lora}"))
    assert {"model.safetensors", "config.json", "adapter/adapter_model.safetensors"} <= set(files)
    assert files["model.safetensors"] == (made.home / "tiny" / "model.safetensors").resolve()


@pytest.fixture
def over_hub(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe that goes on from an adapter here, over a hub model that only the hub's cache names."""

    def cached(name: str, file: str, **_: Any) -> str | None:
        return "/somewhere/config.json" if (name, file) == ("some/base", "config.json") else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    adapter = Path(shutil.copytree(made.finished / "model", tmp_path / "mine"))
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "some/base"
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    recipe: Recipe = made.recipe(f"model.name={adapter}", "adapter={type: lora}")
    return recipe


def test_an_adapter_over_a_hub_model_is_compared_and_its_base_known_by_its_commit(
    over_hub: Recipe, made: Made, tmp_path: Path
) -> None:
    files = weight_files(over_hub)
    assert set(files) == {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    weights = {name: digest(path) for name, path in files.items()}
    lock = {"weights": weights, "commit": "c" * 40, "folder": str(made.home)}

    def states() -> dict[str, str]:
        found = _inputs(lock, over_hub)
        return {one.what.removeprefix("base model: "): one.state for one in found if "base model: " in one.what}

    assert states() == {"some/base": "same", **dict.fromkeys(files, "same")}
    flip(tmp_path / "mine" / "adapter_model.safetensors")
    assert states()["adapter/adapter_model.safetensors"] == "changed"
    lock["weights"] = {}  # as it once was
    assert states() == {"some/base": "same", str(tmp_path / "mine"): "not recorded"}


def test_a_gguf_file_is_compared_and_its_copy_as_far_as_there_is_one(made: Made, tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(b"weights")
    recipe = made.recipe("model.name=small.gguf").placed(tmp_path)
    copy = converted_place(tmp_path / "small.gguf")
    copy.mkdir(parents=True)
    (copy / "model.safetensors").write_bytes(b"converted")
    lock = {"weights": {name: digest(path) for name, path in weight_files(recipe).items()}}

    def states() -> dict[str, str]:
        found = inputs._weights(recipe, lock, lambda text: None)
        return {one.what.removeprefix("base model: "): one.state for one in found}

    assert states() == {"small.gguf": "same", "model.safetensors": "same"}
    (copy / "model.safetensors").write_bytes(b"convertex")
    assert states() == {"small.gguf": "same", "model.safetensors": "changed"}
    shutil.rmtree(copy)
    assert states() == {"small.gguf": "same", "model.safetensors": "not recorded"}
    (tmp_path / "small.gguf").write_bytes(b"weighty")
    assert states()["small.gguf"] == "changed"


@pytest.mark.parametrize(("cached", "state"), [("/somewhere/config.json", "same"), (None, "missing")])
def test_a_hub_model_is_known_by_its_commit(
    cached: str | None, state: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: cached)
    recipe = made.recipe("model.name=some/model")
    lock = {"weights": {}, "commit": "c" * 40, "folder": str(made.home)}
    states = {one.what: one.state for one in _inputs(lock, recipe)}
    assert states["base model: some/model"] == state
    assert states["tokenizer"] == "missing"
    states = {one.what: one.state for one in _inputs({**lock, "commit": None}, recipe)}
    assert states["base model: some/model"] == "not recorded"


def test_a_resumed_run_passes_and_is_the_straight_one(made: Made, tmp_path: Path) -> None:
    """The lock of the first session holds hashes of files that the second one writes again."""
    from llmkit.runs.proving.differences import compare
    from llmkit.runs.runner import run

    resumed = Path(shutil.copytree(made.cut, tmp_path / "run"))
    run(made.recipe(), out=resumed, resume=True)
    found = verify(resumed, rows=True)
    assert {one.state for one in found.checked} == {"same"}
    assert found.stage == "finished, 4 steps"
    straight = compare(made.finished, resumed)
    assert straight.entries == ()
    assert straight.parted == []
