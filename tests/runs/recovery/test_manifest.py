"""The manifest: whatever is done to a file of the folder is told, by its name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.runs.recovery.manifest import MANIFEST, faults, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three files, one of them in a folder of its own, with its manifest."""
    made = tmp_path / "checkpoint-3"
    (made / "ref").mkdir(parents=True)
    for name, size in (("model.safetensors", 1000), ("optimizer.pt", 2000), ("ref/adapter_model.safetensors", 300)):
        (made / name).write_bytes(bytes(number % 251 for number in range(size)))
    write_manifest(made)
    # As if it had been written a while ago: hashes of such files are remembered by the process.
    for path in made.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return made


def test_a_whole_folder_has_no_faults_and_its_manifest_names_every_file(folder: Path) -> None:
    assert faults(folder) == []
    files = json.loads((folder / MANIFEST).read_text())["files"]
    assert set(files) == {"model.safetensors", "optimizer.pt", "ref/adapter_model.safetensors"}
    assert files["optimizer.pt"]["bytes"] == 2000
    assert len(files["optimizer.pt"]["sha256"]) == 64
    (folder / "README.md").write_text("a note of mine")
    assert faults(folder) == []


def flip_a_bit(folder: Path) -> None:
    path = folder / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[1234] ^= 1
    path.write_bytes(content)


def cut_off(folder: Path) -> None:
    os.truncate(folder / "ref" / "adapter_model.safetensors", 299)


def link_away(folder: Path) -> None:
    path = folder / "model.safetensors"
    (folder.parent / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(folder.parent / "elsewhere")


def name_a_file_outside(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../../../etc/passwd"] = {"bytes": 1, "sha256": "0" * 64}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_bit, "optimizer.pt has changed"),
        (cut_off, "ref/adapter_model.safetensors has 299 bytes instead of 300"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"evil"), "pytorch_model.bin was added"),
        (lambda folder: (folder / "ref" / "more.safetensors").write_bytes(b""), "ref/more.safetensors was added"),
        (link_away, "model.safetensors is a link"),
        (name_a_file_outside, "names ../../../etc/passwd, which is not in the folder"),
        (lambda folder: (folder / MANIFEST).unlink(), "it has no manifest.json: it was not finished"),
        (lambda folder: (folder / MANIFEST).write_text('{"files": {"optimizer'), "manifest.json can't be read"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "manifest.json can't be read"),
        (lambda folder: (folder / MANIFEST).write_text('{"files": []}'), "manifest.json can't be read"),
        (lambda folder: (folder / MANIFEST).write_bytes(b"\xff"), "manifest.json can't be read"),
    ],
)
def test_each_damage_is_one_sentence(folder: Path, damage: Callable[[Path], object], said: str) -> None:
    assert faults(folder) == []
    damage(folder)
    (fault,) = faults(folder)
    assert said in fault


def test_every_fault_is_told(folder: Path) -> None:
    flip_a_bit(folder)
    cut_off(folder)
    (folder / "model.safetensors").unlink()
    assert len(faults(folder)) == 3


def test_a_block_that_the_disk_can_not_read_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("llmkit.runs.recovery.manifest.file_hash", unreadable)
    assert "model.safetensors can't be read: Input/output error" in faults(folder)


def test_the_disk_has_everything_before_the_manifest_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "one.pt").write_bytes(b"1")
    (tmp_path / "inner" / "two.pt").write_bytes(b"2")
    synced: list[str] = []
    fsync = os.fsync

    def noted(opened: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{opened}"))
        fsync(opened)

    monkeypatch.setattr(os, "fsync", noted)
    write_manifest(tmp_path)
    expected = {tmp_path / name for name in ("one.pt", "inner/two.pt", MANIFEST, "inner", "")}
    assert set(map(Path, synced)) == expected
    assert Path(synced[-1]) == tmp_path, "the folder's own list of names comes last"
