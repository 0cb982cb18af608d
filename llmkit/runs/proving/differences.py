"""What two runs differ in: settings, bytes, versions, hardware, scores, and the step at which their curves part."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmkit.planning.hardware import GIB
from llmkit.runs.folder import RunFolder
from llmkit.runs.limits import STOPPED_FILE
from llmkit.runs.measuring import figure
from llmkit.runs.progress import HEADLINES

TIMED = re.compile(r"(_runtime|_per_second)$|^(step_time$|time/|profiling/)")
"""Logged figures that are times: no two runs have the same."""

SECTIONS = ("settings", "data", "code", "rows", "weights", "versions", "hardware")
"""What two runs are compared in, key by key."""

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


# --- what is compared ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One key in which two runs differ; None where a run doesn't have it."""

    section: str
    key: str
    a: str | None
    b: str | None
    by: str = ""
    """Who decided a setting: `recipe`, `planner` or `library`, of both runs where that differs."""


@dataclass(frozen=True)
class Curve:
    """One figure that two runs have logged, by step."""

    name: str
    a: Mapping[int, float]
    b: Mapping[int, float]

    @cached_property
    def steps(self) -> list[int]:
        """Steps that both have logged."""
        return sorted(self.a.keys() & self.b.keys())

    @cached_property
    def differences(self) -> dict[int, float]:
        """How far they are apart, by step, where they are; relative to the larger value or the curve's mean size."""
        sizes = [abs(points[step]) for points in (self.a, self.b) for step in self.steps]
        finite = [size for size in sizes if math.isfinite(size)]
        scale = sum(finite) / len(finite) if finite else 0.0
        found = {step: relative(self.a[step], self.b[step], scale) for step in self.steps}
        return {step: apart for step, apart in found.items() if apart}

    @property
    def largest(self) -> float:
        """The largest relative difference; 0 where the curves are the same."""
        return max(self.differences.values(), default=0.0)

    def parts(self, tolerance: float = 0.0) -> int | None:
        """Return the first step at which they are further apart than `tolerance`, or None."""
        return next((step for step, apart in self.differences.items() if apart > tolerance), None)


@dataclass(frozen=True)
class Scored:
    """One metric of two runs, as (A, B); None where a run has no such score."""

    name: str
    base: tuple[float | None, float | None]
    tuned: tuple[float | None, float | None]

    @property
    def same(self) -> bool:
        """Whether both runs have the very same values."""
        return self.base[0] == self.base[1] and self.tuned[0] == self.tuned[1]


@dataclass(frozen=True)
class Difference:
    """What two runs differ in, and what they have in common."""

    a: Path
    b: Path
    stages: tuple[str, str]
    """How far each has come."""

    entries: tuple[Entry, ...]
    equal: Mapping[str, int]
    """Number of keys that are the same, by section."""

    curves: Mapping[str, Curve]
    """Every figure that one of them logged while training, apart from times."""

    scores: tuple[Scored, ...]
    speeds: tuple[str | None, str | None]

    @property
    def headline(self) -> Curve | None:
        """The curve that training is about (the reward, else the loss), of those that both have."""
        return next((self.curves[key] for key, _ in HEADLINES if key in self.curves and self.curves[key].steps), None)

    @property
    def parted(self) -> list[Curve]:
        """The curves that are not the same at every step that both have, those that part first before the others."""
        found = [curve for curve in self.curves.values() if curve.differences]
        return sorted(found, key=lambda curve: (curve.parts(), curve.name))


def relative(a: float, b: float, scale: float = 0.0) -> float:
    """Return how far two values are apart, relative to the larger of them, or to `scale` if that is more."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b), scale)


def compare(a: Path, b: Path) -> Difference:
    """Compare the runs in two folders, finished or not; raises SetupError where one is no run folder."""
    one, two = RunFolder.open(a), RunFolder.open(b)
    facts, others = facts_of(one), facts_of(two)
    decided, differently = _decided_by(one), _decided_by(two)
    entries = [
        Entry(section, key, facts[section].get(key), others[section].get(key), _who(key, decided, differently))
        for section in SECTIONS
        for key in dict.fromkeys((*facts[section], *others[section]))
        if facts[section].get(key) != others[section].get(key)
    ]
    equal = {
        section: sum(others[section].get(key) == value for key, value in facts[section].items()) for section in SECTIONS
    }
    series, rest = series_of(one), series_of(two)
    names = dict.fromkeys((*series, *rest))
    curves = {name: Curve(name, series.get(name, {}), rest.get(name, {})) for name in names}
    return Difference(
        a, b, (stage(one), stage(two)), tuple(entries), equal, curves, _scores(one, two), (_speed(one), _speed(two))
    )


# --- reading a run ---------------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; None where it can't be read, or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # what is no UTF-8 or no JSON is a ValueError
        return None


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; an empty one where there is none."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def section_of(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the object under `name`; an empty one where there is none."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def metric_lines(folder: RunFolder) -> Iterator[dict[str, Any] | None]:
    """Yield the lines of metrics.jsonl; None for one that is no JSON object with a step (a kill cuts the last off)."""
    path = folder.path / "metrics.jsonl"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.removesuffix("\n").split("\n") if text else ():
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            found = None
        yield found if isinstance(found, dict) and isinstance(found.get("step"), int) else None


def series_of(folder: RunFolder) -> dict[str, dict[int, float]]:
    """Return every figure that was logged while training, by name and step; times and the summary are left out."""
    found: dict[str, dict[int, float]] = {}
    for entry in metric_lines(folder):
        # The summary at the end of a session counts that session alone.
        if entry is None or "train_runtime" in entry:
            continue
        for name, value in entry.items():
            if name != "step" and not TIMED.search(name) and isinstance(value, (int, float)):
                found.setdefault(name, {})[entry["step"]] = float(value)
    return found


def checkpoints_of(folder: RunFolder) -> list[Path]:
    """Return the folders of the checkpoints in the order of their steps."""
    found = [path for path in folder.checkpoints.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(checkpoint.name.rpartition("-")[2])


def stage(folder: RunFolder) -> str:
    """Say how far a run has come."""
    done = max((entry["step"] for entry in metric_lines(folder) if entry is not None), default=0)
    stopped = read_object(folder.path / STOPPED_FILE)
    if {"by", "step", "steps"} <= stopped.keys():
        return f"stopped by {stopped['by']} after step {stopped['step']:,} of {stopped['steps']:,}"
    newest = checkpoints_of(folder)[-1:]
    totals = [read_object(path / "trainer_state.json").get("max_steps") for path in newest]
    total = totals[0] if totals and isinstance(totals[0], int) else None
    if (folder.path / "evaluation.json").is_file():
        whole = total is None or done >= total
        return f"finished, {done:,} steps" if whole else f"ended after step {done:,} of {total:,}"
    of = f" of {total:,}" if total else ""
    kept = f", last checkpoint at step {step_of(newest[0]):,}" if newest else ", no checkpoint"
    return f"unfinished: {done:,}{of} steps logged{kept}" if done else "unfinished: nothing is trained yet"


# --- facts -----------------------------------------------------------------------------------------------------------


def facts_of(folder: RunFolder) -> dict[str, dict[str, str]]:
    """Return what a run was made of: a text for each key of each section."""
    lock, plan = read_object(folder.path / "lock.json"), read_object(folder.path / "plan.json")
    named = {key: lock[key] for key in ("tokenizer", "chat_template", "commit") if lock.get(key)}
    threads = {"threads": str(lock["threads"])} if "threads" in lock else {}
    return {
        "settings": {key: value for key, (value, _) in settings_of(folder).items()},
        "data": _texts({name: value for name, value in section_of(lock, "data").items() if value is not None}),
        "code": _texts(section_of(lock, "code")),
        "rows": _texts(section_of(lock, "rows")),
        "weights": _texts({**section_of(lock, "weights"), **named}),
        "versions": versions_of(lock),
        "hardware": hardware_of(section_of(plan, "hardware")) | threads,
    }


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in values.items()}


def settings_of(folder: RunFolder) -> dict[str, tuple[str, str]]:
    """Return the resolved settings of a run: value as JSON, and who decided it, by key."""
    path, found = folder.path / "resolved.yaml", {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.split("\n"):
        key, _, rest = line.partition(": ")
        try:
            _, end = json.JSONDecoder().raw_decode(rest)
        except json.JSONDecodeError:
            continue  # the rest of an override with a line break in it
        found[key] = rest[:end], rest[end:].removeprefix("  # ")
    return found


def versions_of(lock: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions that a lock holds, by package, with Python, platform and git commit."""
    found = {name: str(version) for name, version in section_of(lock, "packages").items() if version is not None}
    found |= {key: str(lock[key]) for key in ("python", "platform") if lock.get(key)}
    if lock.get("git"):
        found["git"] = str(lock["git"]) + ("" if lock.get("git_clean") else " with changes")
    return found


def hardware_of(hardware: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures of a machine as texts, from the `hardware` of plan.json."""
    found = {key: str(hardware[key]) for key in ("kind", "name", "count", "cpu_cores", "bf16") if key in hardware}
    memory = hardware.get("memory_bytes")
    return found | ({"memory": f"{memory / GIB:.1f} GiB"} if isinstance(memory, int) else {})


def _decided_by(folder: RunFolder) -> dict[str, str]:
    return {key: _kind_of(by) for key, (_, by) in settings_of(folder).items()}


def _kind_of(by: str) -> str:
    if by.startswith("planner: "):
        return "planner"
    return "library" if by.endswith(" default") else "recipe"


def _who(key: str, a: Mapping[str, str], b: Mapping[str, str]) -> str:
    return " / ".join(dict.fromkeys(decided[key] for decided in (a, b) if key in decided))


# --- results ---------------------------------------------------------------------------------------------------------


def metrics_of(folder: RunFolder) -> dict[str, dict[str, float]]:
    """Return the scores in evaluation.json: values of `base` and `tuned` by `evaluation.metric`."""
    found: dict[str, dict[str, float]] = {}
    listed = read_json(folder.path / "evaluation.json")
    for entry in listed if isinstance(listed, list) else ():
        if not isinstance(entry, dict):
            continue
        kind, known = section_of(entry, "evaluation").get("type", "?"), set(found)
        for model in ("base", "tuned"):
            for metric, value in section_of(section_of(entry, model), "metrics").items():
                name = f"{kind}.{metric}"
                while name in known:  # the same evaluation with other settings
                    name += "'"
                found.setdefault(name, {})[model] = value
    return found


def _scores(one: RunFolder, two: RunFolder) -> tuple[Scored, ...]:
    a, b = metrics_of(one), metrics_of(two)
    return tuple(
        Scored(
            name,
            (a.get(name, {}).get("base"), b.get(name, {}).get("base")),
            (a.get(name, {}).get("tuned"), b.get(name, {}).get("tuned")),
        )
        for name in dict.fromkeys((*a, *b))
    )


def _speed(folder: RunFolder) -> str | None:
    found = read_object(folder.path / "speed.json")
    if not {"per_second", "unit", "seconds_per_step"} <= found.keys():
        return None
    return f"{figure(found['per_second'])} {found['unit']}/s ({figure(found['seconds_per_step'])} s/step)"
