"""`llmkit plan`: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.planning.size import model_size


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A recipe for a model that is known by its name alone: nothing of it is on this machine."""
    path = tmp_path / "large.yaml"
    path.write_text(
        "model: {name: meta-llama/Llama-3.2-1B}\n"
        "data: {train: [{path: made:orders, format: messages}]}\n"
        "method: {type: sft}\n"
        "training: {max_length: 512, per_device_train_batch_size: 2, gradient_accumulation_steps: 8}\n",
        encoding="utf-8",
    )
    return path


def bytes_of(said: str, part: str) -> float:
    """The size that a line of the output begins with, in bytes."""
    [(number, unit)] = re.findall(rf"^{part} +([\d,.]+) ([MG])iB", said, re.MULTILINE)
    return float(number.replace(",", "")) * {"M": 2**20, "G": 2**30}[unit]


def test_a_tiny_model_fits_and_is_counted(
    llmkit: Callable[..., Any], recipe_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    said = llmkit("plan", recipe_file, "--hardware", "cpu:2")
    assert said.code == 0, said
    assert "Fits: " in said.out
    assert re.search(r"^weights .* counted *$", said.out, re.MULTILINE)
    assert re.search(r"^activations .* estimated *$", said.out, re.MULTILINE)
    for heading in ("Memory while training", "Most at once, of 16.0 GiB", "Verdict", "Decisions"):
        assert f"\n{heading}\n" in said.out
    assert "GPUs" not in said.out
    # The base alone, without the adapter's.
    [parameters] = re.findall(r": ([\d,]+) parameters \(counted\)", said.out)
    size = model_size(str(tiny_folder), tmp_path)
    assert size is not None
    assert int(parameters.replace(",", "")) == size.parameters


def test_what_does_not_fit_ends_with_3_and_says_what_would(llmkit: Callable[..., Any], large: Path) -> None:
    said = llmkit("plan", large, "--hardware", "rtx3060-laptop")
    assert said.code == 3
    assert "Does not fit: " in said.out
    # 1,235,814,400 weights: 4 bytes each, the same for gradients, twice for Adam.
    assert bytes_of(said.out, "weights") == pytest.approx(4 * 1_235_814_400, rel=0.02)
    assert bytes_of(said.out, "gradients") == pytest.approx(4 * 1_235_814_400, rel=0.02)
    assert bytes_of(said.out, "optimizer") == pytest.approx(8 * 1_235_814_400, rel=0.02)
    first = re.search(r"^(--set .*)\n    fits: saves ", said.out, re.MULTILINE)
    assert first is not None
    edited = llmkit("plan", large, "--hardware", "rtx3060-laptop", *first[1].split())
    assert edited.code == 0, edited
    assert "Fits: " in edited.out


def test_several_gpus_are_compared_and_written_down(llmkit: Callable[..., Any], large: Path, tmp_path: Path) -> None:
    figures = tmp_path / "plan.json"
    for _ in range(2):  # its own file is written anew
        said = llmkit("plan", large, "--hardware", "a100-80gb:8", "--json", figures)
        assert said.code == 0, said
    assert re.findall(r"^(DDP|FSDP2|ZeRO-\d) ", said.out, re.MULTILINE) == [
        "DDP",
        "FSDP2",
        "ZeRO-1",
        "ZeRO-2",
        "ZeRO-3",
    ]
    values = json.loads(figures.read_text(encoding="utf-8"))
    assert values["plan_of"] == "large"
    assert values["fits"] is True
    parts = {way["type"]: way["memory"]["parts"] for way in values["ways"]}
    whole = 4 * 1_235_814_400
    assert {name: found["weights"] for name, found in parts.items()} == {
        "ddp": whole,
        "fsdp": whole // 8,
        "zero1": whole,
        "zero2": whole,
        "zero3": whole // 8,
    }
    assert {name: found["gradients"] for name, found in parts.items()} == {
        "ddp": whole,
        "fsdp": whole // 8,
        "zero1": whole,
        "zero2": whole // 8,
        "zero3": whole // 8,
    }
    assert {name: found["optimizer"] for name, found in parts.items()} == {
        "ddp": 2 * whole,
        **dict.fromkeys(("fsdp", "zero1", "zero2", "zero3"), 2 * whole // 8),
    }
    peaks = {way["type"]: way["memory"]["peak"] for way in values["ways"]}
    assert min(peaks, key=lambda name: peaks[name]) in ("fsdp", "zero3")
    assert max(peaks, key=lambda name: peaks[name]) == "ddp"


def test_a_file_of_something_else_is_not_overwritten(
    llmkit: Callable[..., Any], recipe_file: Path, rows_file: Path
) -> None:
    before = rows_file.read_text(encoding="utf-8")
    said = llmkit("plan", recipe_file, "--hardware", "cpu", "--json", rows_file)
    assert said.code == 2
    assert "is not overwritten" in said.err
    assert rows_file.read_text(encoding="utf-8") == before


def test_a_model_of_unknown_size_is_no_error(llmkit: Callable[..., Any], large: Path) -> None:
    said = llmkit("plan", large, "--hardware", "rtx4090", "--set", "model.name=some/model")
    assert said.code == 0
    assert "The size of the model is not known" in said.out
    assert "training.per_device_train_batch_size" not in said.err


def test_a_size_by_name_is_not_called_counted(llmkit: Callable[..., Any], large: Path) -> None:
    said = llmkit("plan", large, "--hardware", "rtx4090", "--set", "model.name=some/model-1B")
    assert "counted" not in said.out
    assert re.search(r"^weights .* estimated *$", said.out, re.MULTILINE)


def test_help_says_how_it_ends(llmkit: Callable[..., Any]) -> None:
    assert "ends with 3" in " ".join(llmkit("plan", "--help").out.split())
