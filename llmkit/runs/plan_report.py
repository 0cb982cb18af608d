"""What `llmkit plan` finds out and prints: the bytes of a run by part and phase, and what would make it fit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llmkit.model.footprint import tracer
from llmkit.planning.batches import accumulation_steps
from llmkit.planning.case import Case
from llmkit.planning.edits import Edit, Planned, ranked, room
from llmkit.planning.hardware import GIB
from llmkit.planning.memory import USABLE, Estimate, footprint, longest
from llmkit.planning.sharding import Sharding, ways
from llmkit.runs.data_report import bar

if TYPE_CHECKING:
    from rich.console import Console

    from llmkit.planning.hardware import Hardware
    from llmkit.planning.plan import Plan
    from llmkit.recipe.recipe import Recipe

BEGINS = '{\n  "plan_of": '
"""How the files begin that `--json` writes."""

PHASES = ("load", "train", "sample", "evaluate", "save")
QUIET, HEAD = "dim", "bold"
BAR = 24
"""Width of the bar of a full device, in characters."""

SPARE = 5
"""Edits that are printed for a run that fits without any."""

STATES = ("weights", "quantized_weights", "adapter", "reference")
"""Parts that the tables of several GPUs call weights."""


@dataclass(frozen=True)
class Way:
    """One way of training on the GPUs that there are, and what each of them holds."""

    sharding: Sharding
    estimate: Estimate | None
    refusal: str | None
    """Why it does not work, or None."""


@dataclass(frozen=True)
class Outlook:
    """What a run needs on some hardware."""

    title: str
    case: Case
    plan: Plan
    estimate: Estimate | None
    """The memory of the run as it is; None for a model of unknown size."""

    ways: tuple[Way, ...]
    """The ways of training on several GPUs; none where there is one device."""

    edits: tuple[Edit, ...]

    @property
    def hardware(self) -> Hardware:
        """What the plan is for."""
        return self.case.hardware

    @property
    def fits(self) -> bool | None:
        """Whether the run fits as llmkit trains it; None where it can't be told."""
        return None if self.estimate is None else self.estimate.peak <= room(self.case)

    def to_json(self) -> str:
        """Return everything as JSON text; sizes in bytes."""
        found = {
            "plan_of": self.title,
            **self.plan.to_dict(),
            "fits": self.fits,
            "usable_bytes": room(self.case),
            "memory": _estimate_dict(self.estimate),
            "ways": [
                {"type": way.sharding.type, "refusal": way.refusal, "memory": _estimate_dict(way.estimate)}
                for way in self.ways
            ],
            "edits": [edit.to_dict() for edit in self.edits],
        }
        return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def _estimate_dict(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    parts, peaks = dict(found.parts), dict(found.peaks)
    return {"parts": parts, "exact": sorted(found.exact), "peaks": peaks, "peak": found.peak}


def look(recipe: Recipe, the_plan: Plan, title: str) -> Outlook:
    """Estimate what `recipe` needs as it is planned, under each way of sharing GPUs, and with each edit."""
    case = Case(recipe, the_plan.hardware, the_plan.size, tracer(recipe))
    planned = Planned(case)
    return Outlook(
        title=title,
        case=case,
        plan=the_plan,
        estimate=planned.estimate(),
        ways=tuple(_ways(planned)),
        edits=ranked(case, tracer),
    )


def _ways(planned: Planned) -> Iterator[Way]:
    case = planned.case
    if case.hardware.count == 1:
        return
    quantization = case.recipe.quantization
    storage = str(case.given.get("quantization.bnb_4bit_quant_storage", "uint8"))
    for sharding in ways(case.hardware.count):
        refusal = sharding.refusal(bits=quantization.bits if quantization else None, storage=storage)
        yield Way(sharding, None if refusal else planned.estimate(sharding), refusal)


# --- on a terminal ---------------------------------------------------------------------------------------------------


def print_outlook(found: Outlook, console: Console) -> None:
    """Print what the run needs, whether it fits, what would help, and what was decided."""
    sections = (
        ("", list(_header(found))),
        (f"Memory while training{_each(found)}", list(_parts(found))),
        (f"Most at once, of {size(found.hardware.memory_bytes)}{_each(found)}", list(_peaks(found))),
        (f"Each of {found.hardware.count} GPUs", list(_shared(found))),
        ("Verdict", list(_verdict(found))),
        ("Edits that save memory", list(_edits(found))),
        ("Decisions", [_decisions(found)]),
    )
    for heading, lines in sections:
        if heading and lines:
            console.print()
            console.print(Text(heading, HEAD))
        for line in lines:
            # A line to paste must stay one line.
            console.print(line, highlight=False, soft_wrap=isinstance(line, Text) and "--set" in line.plain)


def size(count: float) -> str:
    """Return bytes as a person reads them, e.g. `13.4 GiB` or `310 MiB`."""
    return f"{count / GIB:,.1f} GiB" if abs(count) >= GIB else f"{count / 2**20:,.1f} MiB"


def _each(found: Outlook) -> str:
    return ", each GPU" if found.hardware.count > 1 else ""


def _header(found: Outlook) -> Iterator[Text]:
    planned, recipe = Planned(found.case), found.case.recipe
    parts = [section.type for section in (recipe.method, recipe.adapter, recipe.quantization) if section is not None]
    if recipe.adapter is None:
        parts.append("all weights")
    checkpointed = ", activations recomputed" if planned.checkpointed else ""
    yield Text(f"hardware: {found.hardware.summary}")
    yield Text(f"model:    {recipe.model.name}: {_parameters(found)}")
    yield Text(f"method:   {' + '.join(parts)}, {_rows(planned)}{checkpointed}")


def _parameters(found: Outlook) -> str:
    """Say how many parameters the model has, an adapter not among them."""
    counted, size = footprint(found.case), found.plan.size
    if counted is not None and counted.exact:
        number, source = counted.elements if found.case.full else counted.frozen, "counted"
    elif size is not None:
        number, source = size.parameters, size.source
    else:
        return "its size is not known"
    return f"{number / 1e6:,.0f} M parameters ({source})" if number >= 10**7 else f"{number:,} parameters ({source})"


def _rows(planned: Planned) -> str:
    steps = planned.case.value(accumulation_steps)
    accumulated = f", {steps} times accumulated" if steps > 1 else ""
    rows = f"{planned.batch} row{'s' if planned.batch != 1 else ''}"
    return f"{rows} of up to {longest(planned.case):,} tokens at once{accumulated}"


def _parts(found: Outlook) -> Iterator[Table]:
    if found.estimate is None:
        return
    parts = {name: count for name, count in found.estimate.parts.items() if count}
    most = max(parts.values(), default=1)
    grid = _grid("", "size", "", "", right=(1,))
    for name, count in parts.items():
        exact = "counted" if name in found.estimate.exact else "estimated"
        _add(grid, name.replace("_", " "), size(count), Text(bar(count / most, BAR), QUIET), Text(exact, QUIET))
    yield grid


def _peaks(found: Outlook) -> Iterator[Table]:
    if found.estimate is None:
        return
    memory, most = found.hardware.memory_bytes, found.estimate.peak
    grid = _grid("", "size", "share", "", right=(1, 2))
    for phase in PHASES:
        count = found.estimate.peaks.get(phase, 0)
        if not count:
            continue
        style = "red" if count > room(found.case) else HEAD if count == most else ""
        # A bar longer than the device would push the table out of the window.
        filled = Text(bar(min(1.0, count / memory), BAR), style or QUIET)
        _add(grid, phase, size(count), f"{count / memory:.0%}", filled, style=style)
    yield grid


def _shared(found: Outlook) -> Iterator[Table | Text]:
    if not found.ways or found.estimate is None:
        return
    grid = _grid("", "weights", "gradients", "optimizer", "activations", "the rest", "peak", "", right=range(1, 7))
    for way in found.ways:
        if way.estimate is None:
            continue
        fits = way.estimate.peak <= room(found.case)
        figures = (size(count) for count in (*_columns(way.estimate), way.estimate.peak))
        _add(grid, way.sharding.title, *figures, "fits" if fits else "too much", style="" if fits else "red")
    yield grid
    for way in found.ways:
        if way.refusal:
            yield Text(f"{way.sharding.title}: {way.refusal}", QUIET)


def _columns(found: Estimate) -> tuple[int, ...]:
    parts = dict(found.parts)
    weights = sum(parts.pop(name, 0) for name in STATES)
    gradients, optimizer = parts.pop("gradients", 0), parts.pop("optimizer", 0)
    activations = parts.pop("activations", 0) + parts.pop("logits", 0)
    return weights, gradients, optimizer, activations, sum(parts.values())


def verdict(found: Outlook) -> str:
    """Say whether the run fits, with the margin."""
    if found.estimate is None:
        return "The size of the model is not known: download it, or name a local folder, to see what the run needs."
    usable, peak = room(found.case), found.estimate.peak
    of = f"of the {size(usable)} that may be filled ({USABLE:.0%} of {size(found.hardware.memory_bytes)})"
    phase = max(found.estimate.peaks, key=lambda name: found.estimate.peaks[name] if found.estimate else 0)
    if peak <= usable:
        return f"Fits: {size(peak)} {of}; {size(usable - peak)} are left."
    return f"Does not fit: {size(peak)} to {phase}, {size(peak - usable)} more than the {of.removeprefix('of the ')}."


def _verdict(found: Outlook) -> Iterator[Text]:
    yield Text(verdict(found), {None: "yellow", True: "green", False: "bold red"}[found.fits])
    divided = [way.sharding.title for way in found.ways if _fits(found, way)]
    if found.fits is False and divided:
        yield Text(f"Divided between the GPUs it would ({', '.join(divided)}); llmkit trains in one process so far.")


def _fits(found: Outlook, way: Way) -> bool:
    return way.estimate is not None and way.estimate.peak <= room(found.case)


def _edits(found: Outlook) -> Iterator[Text | Padding]:
    if found.estimate is None:
        return
    if found.fits is False and not any(edit.fits and edit.settings for edit in found.edits):
        yield Text("None of these is enough, and no three together are.", "yellow")
    shown = found.edits[:SPARE] if found.fits else found.edits
    for edit in shown:
        said = " ".join(f"--set {override}" for override in edit.overrides)
        yield Text(said or edit.why, HEAD)
        fits = Text("fits: ", "bold green") if found.fits is False and edit.fits else Text("")
        yield Padding(Text.assemble(fits, _figures(edit)), (0, 0, 0, 4), expand=False)
        if said:
            yield Padding(Text(edit.why, QUIET), (0, 0, 0, 4), expand=False)
    if len(shown) < len(found.edits):
        yield Text(f"and {len(found.edits) - len(shown)} more (--json)", QUIET)


def _figures(edit: Edit) -> str:
    time = "no slower" if edit.slower < 1.005 else f"about {edit.slower - 1:.0%} slower"
    changed = "" if edit.same else ", changes what is learnt"
    return f"saves {size(edit.saves)}, peak {size(edit.peak)}, {time}{changed}"


def _decisions(found: Outlook) -> Table:
    grid = _grid("decision", "value", "reason")
    # Keys are looked up and copied: they stay whole, and the prose beside them gets what is left.
    grid.columns[0].no_wrap, grid.columns[1].max_width = True, 18
    for decision in found.plan.decisions:
        value = decision.value
        spelled = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        _add(grid, decision.key, spelled, decision.reason)
    return grid


def _grid(*headings: str, right: Iterable[int] = ()) -> Table:
    """Return an empty table without lines; the columns `right` hold numbers."""
    grid, numbers = Table(box=None, pad_edge=False, header_style=QUIET), set(right)
    for index, heading in enumerate(headings):
        number = index in numbers
        grid.add_column(Text(heading), justify="right" if number else "left", no_wrap=number, overflow="fold")
    return grid


def _add(grid: Table, *cells: str | Text, style: str = "") -> None:
    """Add a row of cells as they are: brackets in them are no markup."""
    grid.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), style=style)
