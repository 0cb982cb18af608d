"""A run folder as its report shows it: only what is in the folder, of a run that is finished or not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from llmkit.data.audit.findings import Finding
from llmkit.data.ledger import Share
from llmkit.data.lengths import Bin
from llmkit.runs.charts import Logged
from llmkit.runs.folder import RunFolder
from llmkit.runs.measuring import Measured
from llmkit.runs.needs import Needs
from llmkit.runs.proving.differences import facts_of, metric_lines, settings_of, stage
from llmkit.runs.sessions import SESSIONS_FILE, Session

T = TypeVar("T")

NOT_TESTED = "not tested"

WINDOW = 2**18
"""Bytes of a long file of samples that are read at its beginning, in its middle, and at its end."""

REGRESSIONS = 200
"""Regressions that are read; the file has all of them."""


# --- what the files hold ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A 95% interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Judged:
    """One metric of base and tuned model; None for what was not measured, or can't be told."""

    metric: str
    rows: int
    base: float | None = None
    tuned: float | None = None
    base_interval: Interval | None = None
    tuned_interval: Interval | None = None
    change: float | None = None
    change_interval: Interval | None = None
    verdict: str = NOT_TESTED
    test: str | None = None
    adjusted: float | None = None
    """The p-value, corrected for all metrics of the run."""
    fixed: int | None = None
    broken: int | None = None
    """Rows that only the tuned, or only the base model got right; for metrics of right and wrong."""


@dataclass(frozen=True)
class Answer:
    """What a model said to a prompt."""

    where: str
    prompt: str
    reference: str | None
    answer: str


@dataclass(frozen=True)
class Scores:
    """What one evaluation found of one model."""

    metrics: dict[str, float | None]
    rows: int
    samples: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """One entry of `evaluation.json`."""

    evaluation: dict[str, Any]
    base: Scores | None = None
    tuned: Scores | None = None
    statistics: tuple[Judged, ...] = ()

    @property
    def name(self) -> str:
        """The evaluation's type."""
        return str(self.evaluation.get("type", "?"))

    def judged(self) -> list[Judged]:
        """Return every metric that one of the models has, with what the statistics say where there are any."""
        known = {one.metric: one for one in self.statistics}
        base, tuned = (found.metrics if found else {} for found in (self.base, self.tuned))
        rows = max((found.rows for found in (self.base, self.tuned) if found), default=0)
        return [
            known.get(name) or _untested(name, rows, base.get(name), tuned.get(name))
            for name in dict.fromkeys((*base, *tuned))
        ]


def _untested(name: str, rows: int, base: float | None, tuned: float | None) -> Judged:
    change = tuned - base if base is not None and tuned is not None else None
    return Judged(name, rows, base, tuned, change=change)


@dataclass(frozen=True)
class Gate:
    """A gate as the recipe writes it."""

    text: str


@dataclass(frozen=True)
class Decided:
    """One gate of the recipe, and whether it held."""

    gate: Gate
    held: bool
    said: str

    @property
    def why(self) -> str:
        """What was said, without the gate itself and whether it held."""
        return self.said.removeprefix(f"{self.gate.text}: ").removeprefix("held, ").removeprefix("missed, ")


@dataclass(frozen=True)
class Regression:
    """A row that the base model got right, and the tuned one wrong; its number alone where nothing was generated."""

    metric: str
    row: int | None = None
    where: str = ""
    prompt: str = ""
    reference: str | None = None
    base: str | None = None
    tuned: str | None = None


@dataclass(frozen=True)
class Sampled:
    """A completion that was sampled while training."""

    step: int
    where: str
    prompt: str
    completion: str
    reward: float
    rewards: dict[str, float]


@dataclass(frozen=True)
class Account:
    """What became of the rows of a source, as the ledger has it."""

    read: int
    kept: int
    truncated: int = 0
    split: int = 0
    pieces: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    broken: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ledger:
    """The accounts by split and source, the mix, and into what rows were packed."""

    train: dict[str, Account] = field(default_factory=dict)
    eval: dict[str, Account] = field(default_factory=dict)
    mix: dict[str, Share] = field(default_factory=dict)
    packed: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Lengths:
    """Tokens of the training rows."""

    histogram: tuple[Bin, ...]
    tokens_per_row: dict[str, int] = field(default_factory=dict)
    trained_per_row: dict[str, int] = field(default_factory=dict)
    max_length: int | None = None


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and what its check measured."""

    type: str
    path: str
    checks: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reported:
    """All that is shown of a run."""

    path: Path
    stage: str
    """How far it has come, in words."""
    recipe: str
    plan: Mapping[str, Any]
    settings: Mapping[str, tuple[Any, str]]
    """The resolved values by key, and who decided each."""
    facts: Mapping[str, Mapping[str, str]]
    """What the run was made of, by section and key."""
    curves: Mapping[str, Logged]
    train_seconds: float | None
    """Seconds of training, over all sessions that came to their end."""
    evaluations: tuple[Evaluated, ...]
    gates: tuple[Decided, ...]
    regressions: tuple[Regression, ...]
    sampled: tuple[Sampled, ...]
    """Completions of the beginning, the middle and the end of training."""
    ledger: Ledger
    lengths: Lengths | None
    findings: tuple[Finding, ...] | None
    """None where the rows were not audited."""
    needs: Needs | None
    speed: Measured | None
    sessions: tuple[Session, ...]
    exports: tuple[Exported, ...]
    unread: tuple[str, ...]
    """Files that hold something else than llmkit writes; nothing of them is shown."""

    def value(self, key: str) -> Any:
        """Return the resolved value under a dotted key; None where there is none."""
        return self.settings.get(key, (None, ""))[0]

    @property
    def title(self) -> str:
        """What the first line of the recipe says, if it is a comment."""
        line = self.recipe.partition("\n")[0]
        return line.lstrip("#").strip() if line.startswith("#") else ""

    @property
    def began(self) -> str | None:
        """When it was first started, e.g. `2026-11-22 02:21`; None where that is not written down."""
        try:
            return f"{datetime.fromisoformat(self.sessions[0].began):%Y-%m-%d %H:%M}" if self.sessions else None
        except ValueError:
            return None

    @property
    def last_step(self) -> int:
        """The last step that was logged; 0 before the first one."""
        return max((logged.steps[-1] for logged in self.curves.values()), default=0)

    def last(self, figure: str) -> float | None:
        """Return the last value that was logged under a name."""
        found = self.curves.get(figure)
        return found.values[-1] if found else None


# --- reading ---------------------------------------------------------------------------------------------------------


def read_run(path: Path) -> Reported:
    """Read the run in the folder `path`; raises SetupError where it is none.

    A file that is missing is left out, and one that can't be read is named.
    """
    folder, unread = RunFolder.open(path), list[str]()
    curves, train_seconds = _curves(folder)
    facts = facts_of(folder)

    def json_file(name: str, kind: Any, missing: T) -> T:
        return _json_file(path / name, kind, missing, unread)

    def lines(name: str, kind: type[T], most: int | None = None) -> tuple[T, ...]:
        return tuple(_parsed(_lines(path / name), kind, most))

    return Reported(
        path=path,
        stage=stage(folder),
        recipe=(path / "recipe.yaml").read_text(encoding="utf-8", errors="replace"),
        plan=json_file("plan.json", dict[str, Any], {}),
        settings={key: (json.loads(value), by) for key, (value, by) in settings_of(folder).items()},
        facts=facts,
        curves=curves,
        train_seconds=train_seconds,
        evaluations=json_file("evaluation.json", tuple[Evaluated, ...], ()),
        gates=json_file("gates.json", tuple[Decided, ...], ()),
        regressions=lines("regressions.jsonl", Regression, REGRESSIONS),
        sampled=tuple(_parsed(_windows(path / "samples.jsonl"), Sampled)),
        ledger=json_file("ledger.json", Ledger, Ledger()),
        lengths=json_file("lengths.json", Lengths, None),
        findings=json_file("audit.json", tuple[Finding, ...], None),
        needs=json_file("needs.json", Needs, None),
        speed=json_file("speed.json", Measured, None),
        sessions=lines(SESSIONS_FILE, Session),
        exports=json_file("export.json", tuple[Exported, ...], ()),
        unread=tuple(unread),
    )


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _json_file(path: Path, kind: Any, missing: T, unread: list[str]) -> T:
    """Return what a JSON file holds as a `kind`; `missing` where there is none, or something else, then named."""
    if not path.is_file():
        return missing
    try:
        found: T = _adapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:  # no UTF-8, no JSON, or JSON of another shape
        unread.append(path.name)
        return missing
    return found


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as file:
            yield from file


def _windows(path: Path, size: int = WINDOW) -> Iterator[bytes]:
    """Yield the whole lines within `size` bytes at the beginning, in the middle and at the end; all of a short file."""
    total = path.stat().st_size if path.is_file() else 0
    if total <= 3 * size:
        yield from _lines(path)
        return
    with path.open("rb") as file:
        for start in (0, (total - size) // 2, total - size):
            # One byte before: a window that begins with a line keeps it.
            file.seek(max(0, start - 1))
            block = file.read(size + min(1, start))
            inner = block if not start else block.partition(b"\n")[2]
            yield from inner.rpartition(b"\n")[0].split(b"\n")


def _parsed(lines: Iterator[bytes], kind: Any, most: int | None = None) -> Iterator[Any]:
    """Yield those of the first `most` JSON lines that are a `kind`; a kill may have cut the last one off."""
    for index, line in enumerate(lines):
        if most is not None and index >= most:
            return
        try:
            yield _adapter(kind).validate_python(json.loads(line))
        except ValueError:
            continue


def _curves(folder: RunFolder) -> tuple[dict[str, Logged], float | None]:
    """Return every figure by its steps, and the seconds of training that the summaries of the sessions add up to."""
    found: dict[str, dict[int, float]] = {}
    seconds: list[float] = []
    for entry in metric_lines(folder):
        if entry is None:
            continue
        if "loss" not in entry and isinstance(entry.get("train_runtime"), (int, float)):
            seconds.append(entry["train_runtime"])
            # What sums a session up is no step, but says how far it came.
            entry = {name: entry[name] for name in ("step", "epoch") if name in entry}
        for name, value in entry.items():
            if name != "step" and isinstance(value, (int, float)):
                found.setdefault(name, {})[entry["step"]] = float(value)
    return {name: _in_order(points) for name, points in found.items()}, math.fsum(seconds) if seconds else None


def _in_order(points: Mapping[int, float]) -> Logged:
    steps = sorted(points)
    return Logged(steps, [points[step] for step in steps])
