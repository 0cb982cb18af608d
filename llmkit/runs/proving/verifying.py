"""A run on disk against what it wrote down: data, code, weights, records, checkpoints and exports, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.errors import RecipeError, SetupError
from llmkit.planning.hardware import probe
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.recipe import Recipe
from llmkit.runs.folder import RunFolder, environment
from llmkit.runs.proving.checked import (
    CHECKPOINTS,
    ENVIRONMENT,
    EXPORTS,
    FAILED,
    INPUTS,
    MODEL,
    PARTS,
    RECORD,
    Checked,
    State,
    digest,
    file_checked,
)
from llmkit.runs.proving.differences import (
    TIMED,
    checkpoints_of,
    hardware_of,
    metric_lines,
    read_json,
    read_object,
    section_of,
    stage,
    versions_of,
)
from llmkit.runs.proving.inputs import inputs
from llmkit.runs.proving.records import SEAL, seal
from llmkit.runs.recovery.manifest import MANIFEST, faults

STARTED = ("packages", "python", "platform", "data", "seed", "folder")
"""Entries of lock.json that every run has."""


@dataclass(frozen=True)
class Verified:
    """Everything that a run names and keeps, and whether it is still the same."""

    folder: Path
    stage: str
    """How far the run has come."""

    checked: tuple[Checked, ...]
    lock: str
    """SHA-256 of lock.json, which everything else is compared with."""

    @property
    def failed(self) -> list[Checked]:
        """What has changed, or is no longer there."""
        return [found for found in self.checked if found.state in FAILED]

    @property
    def passed(self) -> bool:
        """Whether nothing has changed and nothing is missing; other versions are no failure."""
        return not self.failed


def verify(
    target: Path,
    narrate: Callable[[str], None] = lambda text: None,
    *,
    rows: bool = False,
    parts: Collection[str] = PARTS,
) -> Verified:
    """Hash everything again that the run in `target` names and keeps; an unfinished one as far as it goes.

    With `rows`, the rows are prepared again as well, which runs the recipe's own row functions. `parts` limits what is
    looked at. Raises SetupError if `target` is no run folder.
    """
    folder = RunFolder.open(target)
    path = folder.path / "lock.json"
    locked, sum_of_lock = read_json(path), digest(path)
    lock = locked if isinstance(locked, dict) else {}
    checked = [*_lock(lock)]
    recipe, doubt = _recipe(folder, lock)
    checked += doubt
    if lock:
        found = {
            RECORD: lambda: _record(folder, lock),
            INPUTS: lambda: inputs(lock, recipe, narrate, rows=rows),
            MODEL: lambda: _whole(MODEL, "model", folder, lock),
            CHECKPOINTS: lambda: _checkpoints(folder, lock),
            EXPORTS: lambda: _exports(folder, lock),
            ENVIRONMENT: lambda: _environment(folder, lock, recipe),
        }
        checked += [one for part in PARTS if part in parts for one in found[part]()]
    return Verified(folder.path, stage(folder), tuple(checked), sum_of_lock)


# --- the record ------------------------------------------------------------------------------------------------------


def _lock(lock: Mapping[str, Any]) -> Iterator[Checked]:
    lacking = [name for name in STARTED if name not in lock]
    if lacking:
        lost = (
            f"it has no {', '.join(lacking)}" if lock else "it is no JSON object, so there is nothing to compare with"
        )
        yield Checked(RECORD, "lock.json", "changed", lost)
    elif SEAL in lock:
        same = seal(lock) == lock[SEAL]
        yield Checked(
            RECORD, "lock.json", "same" if same else "changed", "" if same else "its entries don't fit its seal"
        )
    elif "files" in lock:
        yield Checked(RECORD, "lock.json", "changed", f"it has no {SEAL}")
    else:
        yield Checked(RECORD, "lock.json", "not recorded", "the run is from before locks were sealed")


def _recipe(folder: RunFolder, lock: Mapping[str, Any]) -> tuple[Recipe | None, list[Checked]]:
    """Return the run's recipe, and why there is none: what a changed one names is not touched."""
    path = folder.path / "recipe.yaml"
    written = section_of(lock, "files").get("recipe.yaml")
    if written is not None and digest(path) != written:
        return None, []  # the record says so
    try:
        # Relative paths still start where the run was started from.
        return load_recipe(path).placed(Path(str(lock.get("folder", folder.path)))), []
    except RecipeError as error:
        state: State = "changed" if written is None else "other version"
        return None, [Checked(RECORD, "recipe.yaml", state, f"this llmkit can't read it: {error.what}")]


def _record(folder: RunFolder, lock: Mapping[str, Any]) -> Iterator[Checked]:
    files = section_of(lock, "files")
    if "files" not in lock:
        yield Checked(
            RECORD, "recipe.yaml, plan.json, ...", "not recorded", "the lock has no hashes of the run's files"
        )
    for name, locked in files.items():
        if not name.endswith(f"/{MANIFEST}"):
            yield file_checked(RECORD, name, folder.path / name, locked)
    yield from _metrics(folder)
    yield from _scores(folder)


def _metrics(folder: RunFolder) -> Iterator[Checked]:
    """Check that each step was logged once and in order, with the figures that the newest checkpoint remembers."""
    lines = list(metric_lines(folder))
    if not lines:
        return
    what = "steps of metrics.jsonl"
    broken = [number for number, entry in enumerate(lines, start=1) if entry is None]
    if broken and broken != [len(lines)]:  # the last one may have been cut off by a kill
        yield Checked(RECORD, what, "changed", f"line {broken[0]} is not what a run writes")
        return
    steps = [entry["step"] for entry in lines if entry is not None and "loss" in entry]
    wrong = next((b for a, b in zip(steps, steps[1:], strict=False) if b <= a), None)
    if wrong is not None:
        yield Checked(RECORD, what, "changed", f"step {wrong} stands twice or out of order")
        return
    newest = next((path for path in reversed(checkpoints_of(folder)) if _history(path)), None)
    if newest is None:
        yield Checked(RECORD, what, "not recorded", f"{len(steps)} steps in order; no checkpoint to compare them with")
        return
    against = f"against {newest.name}"
    fault = _unlike(_history(newest), [entry for entry in lines if entry is not None])
    if fault is None:
        yield Checked(RECORD, f"{what} {against}", "same", f"{len(steps)} steps")
    else:
        yield Checked(RECORD, f"{what} {against}", "changed", fault)


def _history(checkpoint: Path) -> list[dict[str, Any]]:
    found = read_object(checkpoint / "trainer_state.json").get("log_history")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _unlike(history: list[dict[str, Any]], lines: list[dict[str, Any]]) -> str | None:
    """Return the first step of a checkpoint's history that metrics.jsonl has otherwise, in words."""
    logged = {entry["step"]: entry for entry in lines if "loss" in entry}
    for entry in history:
        if "loss" not in entry:
            continue
        step, there = entry.get("step"), logged.get(entry.get("step", -1))
        if there is None:
            return f"step {step} is not among them"
        for name, value in entry.items():
            if name != "total_flos" and not TIMED.search(name) and not _equal(there.get(name), value):
                return f"step {step} has {name} {there.get(name)}, and the checkpoint {value}"
    return None


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b or (a != a and b != b))  # a loss that was no number is none in both


def _scores(folder: RunFolder) -> Iterator[Checked]:
    path = folder.path / "evaluation.json"
    if not path.is_file():
        return
    entries = read_json(path)
    readable = isinstance(entries, list) and all(
        isinstance(entry, dict) and "evaluation" in entry and "metrics" in section_of(entry, "base")
        for entry in entries
    )
    if not readable:
        yield Checked(RECORD, "scores of evaluation.json", "changed", "they can't be read")


# --- what came out ---------------------------------------------------------------------------------------------------


def _whole(part: str, name: str, folder: RunFolder, lock: Mapping[str, Any]) -> Iterator[Checked]:
    """Compare a folder of the run with its manifest, and the manifest with the lock."""
    path, files = folder.path / name, section_of(lock, "files")
    locked = files.get(f"{name}/{MANIFEST}")
    if not path.is_dir():
        state: State = "missing" if locked is not None else "not recorded"
        yield Checked(part, name, state, "there is no such folder" if locked is not None else "it is not there yet")
        return
    if locked is None and not (path / MANIFEST).is_file():
        yield Checked(part, name, "not recorded", f"it has no {MANIFEST}, and the lock knows of none")
        return
    if locked is not None:
        manifest = file_checked(part, f"{name}/{MANIFEST}", path / MANIFEST, locked)
        if manifest.state != "same":
            yield manifest
    found = faults(path)
    yield Checked(part, name, "changed" if found else "same", "; ".join(found))


def _checkpoints(folder: RunFolder, lock: Mapping[str, Any]) -> Iterator[Checked]:
    """Compare each checkpoint with its manifest; which ones there should be is not recorded."""
    for path in checkpoints_of(folder):
        found = faults(path)
        if not found:
            yield Checked(CHECKPOINTS, path.name, "same")
        elif "files" not in lock and not (path / MANIFEST).is_file():
            yield Checked(CHECKPOINTS, path.name, "not recorded", f"it has no {MANIFEST}")
        else:
            yield Checked(CHECKPOINTS, path.name, "changed", "; ".join(found))


def _exports(folder: RunFolder, lock: Mapping[str, Any]) -> Iterator[Checked]:
    there = [path for path in (folder.path / "export").glob("*") if path.is_dir() and path.name[0] != "."]
    known = [str(Path(name).parent) for name in section_of(lock, "files") if name.startswith("export/")]
    for name in dict.fromkeys((*known, *(f"export/{path.name}" for path in sorted(there)))):
        yield from _whole(EXPORTS, name, folder, lock)


def _environment(folder: RunFolder, lock: Mapping[str, Any], recipe: Recipe | None) -> Iterator[Checked]:
    plan = read_object(folder.path / "plan.json")
    then = versions_of(lock) | hardware_of(section_of(plan, "hardware"))
    now = versions_of(environment())
    try:
        # One process drives one device.
        now |= hardware_of(asdict(replace(probe(recipe.hardware.device if recipe else "auto"), count=1)))
    except SetupError as error:
        yield Checked(ENVIRONMENT, "kind", "other version", error.what)
        then = versions_of(lock)
    others = [key for key, value in then.items() if now.get(key) != value]
    if len(others) < len(then):
        names = [key for key in then if key not in others]
        yield Checked(ENVIRONMENT, ", ".join(names), "same")
    for key in others:
        yield Checked(ENVIRONMENT, key, "other version", f"was {then[key]}, is {now.get(key, 'not there')}")
