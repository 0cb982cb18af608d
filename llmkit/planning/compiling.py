"""The decision on compiling the model's layers: only where a run is long enough to repay it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from llmkit.planning.hardware import Hardware
from llmkit.planning.plan import Decision

KEY = "training.torch_compile"

COST = 120.0
"""Seconds that compiling takes on two CPU cores (SmolLM2-135M with LoRA; 42 with the artefacts of an earlier run)."""

GAIN = 0.08
"""How many more tokens a second a compiled model trains at least, as a share: 8 to 20% there."""

MARGIN = 2.0
"""A run has to be this many times as long as it takes to repay the cost: both figures are one machine's."""


def repaid_after() -> float:
    """Return the seconds of training, uncompiled, after which compiling has cost nothing."""
    return COST * (1 + GAIN) / GAIN


def compiler() -> str | None:
    """Return the C++ compiler that torch's inductor would call; None where it isn't installed."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"))


def missing(hardware: Hardware) -> str | None:
    """Say what compiling needs and this machine lacks; None where nothing is missing."""
    if hardware.kind == "cpu":
        if compiler() is None:
            return "there is no C++ compiler here (g++, or what CXX names)"
        if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
            return "Python's headers are not installed (python3-dev)"
        return None
    if hardware.kind == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


def worth_compiling(
    hardware: Hardware, *, seconds: float | None, quantized: bool = False, lacking: str | None = None
) -> Decision:
    """Decide on compiling for a run that trains for `seconds` uncompiled (None: nobody knows).

    `lacking` is what `missing` says. On CUDA and MPS no figures have been measured, so a recipe has to ask for it.
    """
    least = repaid_after() * MARGIN
    if lacking is not None:
        return Decision(KEY, False, f"{lacking}, so the layers can't be compiled")
    if hardware.kind != "cpu":
        return Decision(
            KEY, False, f"compiled layers are not measured on {hardware.kind}: `torch_compile: true` tries it"
        )
    if quantized:
        return Decision(KEY, False, "bitsandbytes' kernels are not compiled, and take most of the time")
    cost = f"compiling takes about {COST:.0f} s, once, and trains {GAIN:.0%} to 20% more tokens a second"
    if seconds is None:
        return Decision(KEY, False, f"{cost}; nobody knows how long this run will take")
    expected = f"{cost}; this run is expected to train for {_duration(seconds)}"
    if seconds < least:
        return Decision(KEY, False, f"{expected}, and it repays for sure from {_duration(least)} on")
    return Decision(KEY, True, f"{expected}, so it saves at least {_duration(_saved(seconds))}")


def _saved(seconds: float) -> float:
    return seconds * GAIN / (1 + GAIN) - COST


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
