"""Compiling is chosen where it repays, and what is missing for it is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.planning import compiling
from llmkit.planning.compiling import compiler, missing, repaid_after, worth_compiling
from llmkit.planning.hardware import CATALOGUE

CPU, CUDA, MPS = CATALOGUE["cpu"], CATALOGUE["t4"], CATALOGUE["m2"]


def test_the_break_even_by_hand() -> None:
    """A gain of 8% saves 1 - 1/1.08 of the time: 120 s are that of 1,620."""
    assert repaid_after() == pytest.approx(1620)
    saved = 1620 - 1620 / 1.08
    assert saved == pytest.approx(120)


def test_only_long_runs_are_compiled() -> None:
    assert worth_compiling(CPU, seconds=3239).value is False
    chosen = worth_compiling(CPU, seconds=3241)
    assert chosen.key == "training.torch_compile"
    assert chosen.value is True
    assert chosen.reason.endswith("expected to train for 54 min, so it saves at least 2 min")
    assert "10.0 h, so it saves at least 42 min" in worth_compiling(CPU, seconds=36_000).reason
    assert "train for 30 s, and it repays for sure from 54 min on" in worth_compiling(CPU, seconds=30).reason


@pytest.mark.parametrize(
    ("hardware", "options", "reason"),
    [
        (CPU, {"seconds": None}, "nobody knows how long"),
        (CPU, {"lacking": "there is no C++ compiler here"}, "no C++ compiler here, so the layers can't be compiled"),
        (CPU, {"quantized": True}, "bitsandbytes"),
        (CUDA, {}, "not measured on cuda"),
        (MPS, {}, "not measured on mps"),
    ],
)
def test_everything_else_is_left_uncompiled(hardware: object, options: dict[str, object], reason: str) -> None:
    decision = worth_compiling(hardware, **{"seconds": 1e6, **options})  # type: ignore[arg-type]
    assert decision.value is False
    assert reason in decision.reason


def test_the_compiler_is_the_one_that_inductor_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "own-cc"
    own.write_text("#!/bin/sh\n", encoding="utf-8")
    own.chmod(0o755)
    monkeypatch.setenv("CXX", str(own))
    assert compiler() == str(own)
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert compiler() is None
    assert "no C++ compiler" in str(missing(CPU))


def test_what_is_missing_depends_on_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiling, "compiler", lambda: "g++")
    monkeypatch.setattr(compiling.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "python3-dev" in str(missing(CPU))
    (tmp_path / "Python.h").touch()
    assert missing(CPU) is None
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    assert "Triton" in str(missing(CUDA))
    assert missing(replace(MPS)) is None
