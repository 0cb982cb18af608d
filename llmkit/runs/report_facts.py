"""What a report says of its runs in tables: what was run, its data, its cost, its environment, what runs differ in."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.data.ledger import Share
from llmkit.planning.hardware import GIB
from llmkit.runs.charts import number
from llmkit.runs.proving.differences import SECTIONS
from llmkit.runs.report_scores import NONE
from llmkit.runs.reported import Account, Reported

CELL = 120
"""Characters of a setting that are on the page."""

DIFFERENCES = 200
"""Settings and other things in which runs differ that are on the page."""

HASH = re.compile(r"\b[0-9a-f]{40}(?:[0-9a-f]{24})?\b")

Teller = Callable[[Reported], Iterator[tuple[str, str]]]
"""Yields names and values of a run."""


@dataclass(frozen=True)
class Facts:
    """A line of a table: a name, and a value for each run."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """Something in which runs differ, and who decided it where it is a setting."""

    section: str
    facts: Facts
    by: str


@dataclass(frozen=True)
class Meter:
    """Bytes of memory as planned and as measured, each also as a share of the machine's, in percent."""

    planned: str
    planned_share: float
    measured: str
    measured_share: float
    of: str


@dataclass(frozen=True)
class Source:
    """What became of the rows of one source."""

    run: int
    split: str
    name: str
    account: Account
    notes: str

    @property
    def share(self) -> float:
        """Rows kept, in percent."""
        return 100 * self.account.kept / self.account.read if self.account.read else 0.0


# --- what was run ----------------------------------------------------------------------------------------------------
# --- what was run ----------------------------------------------------------------------------------------------------


def table(runs: Sequence[Reported], tell: Teller) -> list[Facts]:
    """Return a line for each name that `tell` yields of one of the runs, with a value for each of them."""
    found = [dict(tell(run)) for run in runs]
    names = dict.fromkeys(name for values in found for name in values)
    return [Facts(name, tuple(values.get(name, NONE) for values in found)) for name in names]


def what_was_run(run: Reported) -> Iterator[tuple[str, str]]:
    """Yield what a reader asks for first."""
    yield "method", _method(run)
    yield "base model", _model(run)
    yield "data", _data(run)
    yield "training", ", ".join(_training(run))
    hardware = run.facts["hardware"]
    if "name" in hardware:
        many = f"{hardware['count']} × " if hardware.get("count", "1") != "1" else ""
        yield "hardware", f"{many}{hardware['name']}"
    if run.began:
        yield "started", run.began
    seconds = sum(one.seconds for one in run.sessions) if run.sessions else run.train_seconds
    if seconds:
        yield "took", spelled_time(seconds)


def name_of(run: Reported) -> str:
    """Return the name of a run's folder."""
    return run.path.name if run.path.name not in ("", "..") else run.path.resolve().name


def _method(run: Reported) -> str:
    parts = [run.value("method.type"), run.value("adapter.type") or "all weights", run.value("quantization.type")]
    rank = run.value("adapter.r")
    return " + ".join(str(part) for part in parts if part) + (f", r = {rank}" if rank else "")


def _model(run: Reported) -> str:
    size = run.plan.get("size")
    parameters = size.get("parameters") if isinstance(size, dict) else None
    counted = f", {_large(parameters)} parameters" if isinstance(parameters, int) else ""
    return f"{run.value('model.name') or NONE}{counted}"


def _large(count: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:,}"


def _data(run: Reported) -> str:
    train, held_out = run.ledger.train.values(), run.ledger.eval.values()
    kept, tokens = sum(one.kept for one in train), sum(one.tokens for one in train)
    others = sum(one.kept for one in held_out)
    if not train:
        return NONE
    many = next(iter(run.ledger.train)) if len(train) == 1 else f"{len(train)} sources"
    return f"{many}: {kept:,} rows, {tokens:,} tokens" + (f"; {others:,} rows held out" if others else "")


def _training(run: Reported) -> Iterator[str]:
    yield f"{run.last_step:,} step{'s' if run.last_step != 1 else ''}"
    epoch = run.last("epoch")
    if epoch is not None:
        yield f"{epoch:.3g} epoch{'s' if epoch != 1 else ''}"
    rate = run.value("training.learning_rate")
    if isinstance(rate, (int, float)):
        yield f"learning rate {number(rate)}"


def spelled_time(seconds: float) -> str:
    """Return a time as it is said: `3.2 s`, `1 min 47 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours:,} h {left} min" if hours else f"{minutes} min {rest} s"


# --- data ------------------------------------------------------------------------------------------------------------


def sources(index: int, run: Reported) -> Iterator[Source]:
    """Yield the sources of a run, each with what became of its rows."""
    for split, accounts in (("train", run.ledger.train), ("eval", run.ledger.eval)):
        for name, account in accounts.items():
            share = run.ledger.mix.get(name) if split == "train" else None
            yield Source(index, split, name, account, "; ".join(_notes(account, share)))


def _notes(account: Account, share: Share | None) -> Iterator[str]:
    for reason, count in sorted(account.dropped.items(), key=lambda item: -item[1]):
        yield f"{count:,} dropped: {reason}"
    if account.broken:
        yield f"{account.broken:,} broken"
    if account.truncated:
        yield f"{account.truncated:,} truncated"
    if account.split:
        yield f"{account.split:,} split into {account.pieces - (account.kept - account.split):,} pieces"
    for name, count in account.verdicts.items():
        yield f"{count:,} {name}"
    if share is not None:
        yield f"{share.row_share:.0%} of the mix"


def packed(run: Reported) -> Iterator[str]:
    """Yield what packing did, split by split."""
    for split, found in run.ledger.packed.items():
        if {"rows", "sequences", "capacity"} <= found.keys():
            rows, sequences, capacity = (found[name] for name in ("rows", "sequences", "capacity"))
            yield f"{split}: {rows} rows packed into {sequences} sequences of at most {capacity} tokens"


# --- plan and cost ---------------------------------------------------------------------------------------------------


def meter(run: Reported) -> Meter | None:
    """Return the memory as planned and as measured; None where the machine's is not known, or neither of them is."""
    hardware = run.plan.get("hardware")
    whole = hardware.get("memory_bytes") if isinstance(hardware, dict) else None
    planned = run.needs.memory if run.needs else None
    measured = max((one.peak_bytes for one in run.sessions if one.peak_bytes), default=None)
    if not isinstance(whole, int) or whole <= 0 or (planned is None and measured is None):
        return None
    shares = [round(min(100.0, 100 * (count or 0) / whole), 1) for count in (planned, measured)]
    return Meter(_bytes(planned), shares[0], _bytes(measured), shares[1], _bytes(whole))


def _bytes(count: int | None) -> str:
    if count is None:
        return NONE
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.0f} MiB"


def cost(run: Reported) -> Iterator[tuple[str, str]]:
    """Yield what a run took, beside what it was allowed to take."""
    if run.speed:
        yield "speed", run.speed.sentence()
    if run.train_seconds:
        yield "training", spelled_time(run.train_seconds)
    if run.sessions:
        sessions = f" in {len(run.sessions)} sessions" if len(run.sessions) > 1 else ""
        yield "whole run", spelled_time(sum(one.seconds for one in run.sessions)) + sessions
    hours = run.value("limits.hours")
    if isinstance(hours, (int, float)):
        yield "limit", f"{number(hours)} h for a session"
    tokens = run.last("num_tokens")
    if tokens:
        yield "tokens", f"{tokens:,.0f}"
    if run.needs and run.needs.disk:
        yield "disk, as planned", _bytes(run.needs.disk)


def decisions(run: Reported) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and reason of what the planner decided."""
    for decision in run.plan.get("decisions") or ():
        if isinstance(decision, dict) and {"key", "value", "reason"} <= decision.keys():
            value = decision["value"]
            spelled = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield str(decision["key"]), spelled, str(decision["reason"])


def inside(path: str) -> str:
    """Return the path of an export from the run folder on: the folder may have been moved."""
    parts = Path(path).parts
    if "export" not in parts:
        return path
    return "/".join(parts[len(parts) - 1 - parts[::-1].index("export") :])


# --- environment, differences, how to reproduce ----------------------------------------------------------------------


def section_facts(name: str) -> Teller:
    """Return what yields the entries of one section of what a run was made of."""

    def tell(run: Reported) -> Iterator[tuple[str, str]]:
        for key, value in run.facts[name].items():
            yield key, short(value)

    return tell


def short(text: str) -> str:
    """Return a value as a cell has it: hashes and long values are cut."""
    text = HASH.sub(lambda found: f"{found[0][:12]}…", text)
    return text if len(text) <= CELL else f"{text[: CELL - 1]}…"


def differences(runs: Sequence[Reported]) -> list[Difference]:
    """Return what is not the same in all runs; what somebody wrote comes before what follows from it."""
    found = []
    for section in SECTIONS:
        for key in dict.fromkeys(key for run in runs for key in run.facts[section]):
            values = [run.facts[section].get(key) for run in runs]
            if len(set(values)) > 1:
                cells = tuple(NONE if value is None else short(value.strip('"')) for value in values)
                by = _who(key, runs) if section == "settings" else ""
                found.append(Difference(section, Facts(key, cells), by))
    return sorted(found, key=lambda one: one.by not in ("recipe", ""))[:DIFFERENCES]


def _who(key: str, runs: Sequence[Reported]) -> str:
    deciders = dict.fromkeys(_kind(run.settings[key][1]) for run in runs if key in run.settings)
    return "recipe" if "recipe" in deciders else " / ".join(deciders)


def _kind(by: str) -> str:
    return "planner" if by.startswith("planner: ") else "library" if by.endswith(" default") else "recipe"


def commands(runs: Sequence[Reported]) -> Iterator[tuple[str, str]]:
    """Yield what to type next, and what it is for."""
    paths = [shlex.quote(str(run.path)) for run in runs]
    for path, run in zip(paths, runs, strict=True):
        if run.stage.startswith(("unfinished", "stopped")):
            more = " --set limits.tokens=null" if run.stage.startswith("stopped by limits.tokens") else ""
            yield (
                f"llmkit run {shlex.quote(str(run.path / 'recipe.yaml'))} --resume{more}",
                "goes on from the last checkpoint",
            )
        yield f"llmkit verify {path}", "is all that it was made from, and all that it wrote, still the same?"
        yield f"llmkit reproduce {path}", "runs it again by the same plan, and compares step by step"
    if len(paths) == 2:
        yield f"llmkit diff {' '.join(paths)}", "what they differ in, and the step at which their curves part"
