"""What `llmkit verify`, `reproduce` and `diff` print: tables, two curves in one plot, and a verdict."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from llmkit.recipe.secrets import redact
from llmkit.runs.proving.checked import FAILED, PARTS
from llmkit.runs.proving.differences import SECTIONS, Curve, Difference, Entry, Scored

if TYPE_CHECKING:
    from rich.console import Console

    from llmkit.runs.proving.reproducing import Reproduced
    from llmkit.runs.proving.verifying import Verified

QUIET, HEAD = "dim", "bold"
STYLES = {
    "same": "green",
    "changed": "bold red",
    "missing": "bold red",
    "other version": "yellow",
    "not recorded": "dim",
}
MARKS, BOTH = ("+", "x"), "*"
COLOURS = {"+": "cyan", "x": "yellow"}

WIDTH, HEIGHT = 72, 12
"""Characters of the plot, without its axis."""

APART = 0.01
"""Relative difference from which two curves are said to be apart."""

NAMED = 8
"""Curves that are named, of those that part."""

CELL = 60
"""Characters of a value that are printed."""

HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
NONE = "–"

Section = tuple[str, Sequence[Table | Text]]
"""A heading and what stands below it."""


# --- verify ----------------------------------------------------------------------------------------------------------


def print_verified(found: Verified, console: Console) -> None:
    """Print what was compared, part by part, and the verdict."""
    _say(console, Text(f"{found.folder}: {found.stage}"))
    grid = _grid("part", "state", "what", "")
    grid.columns[0].no_wrap = grid.columns[1].no_wrap = True
    for part in PARTS:
        here = [one for one in found.checked if one.part == part]
        same = [one for one in here if one.state == "same"]
        if same:
            names = [one.what + (f" ({one.detail})" if one.detail else "") for one in same]
            _add(grid, part, _state("same"), _names(names), "")
        for one in here:
            if one.state != "same":
                _add(grid, part, _state(one.state), one.what, one.detail)
    console.print()
    console.print(grid)
    console.print()
    for line in _verified(found):
        _say(console, line)


def _verified(found: Verified) -> Iterator[Text]:
    counts = {state: sum(one.state == state for one in found.checked) for state in STYLES}
    if found.passed:
        yield Text(f"Nothing has changed: {counts['same']} things are what they were.", "green")
    else:
        said = " and ".join(f"{counts[state]} {state}" for state in FAILED if counts[state])
        yield Text(f"Not what it was: {said}; {counts['same']} things are what they were.", "bold red")
    if counts["other version"]:
        yield Text("Other versions or hardware are no fault; the same run may give other digits on them.")
    if counts["not recorded"]:
        yield Text(f"{counts['not recorded']} could not be compared.")
    yield Text(f"lock.json, which all this rests on, has the SHA-256 {found.lock}", QUIET)


def _state(state: str) -> Text:
    return Text(state, STYLES[state])


def _names(names: Sequence[str]) -> str:
    """Return names as a list; many of them as the first ones and their number."""
    if len(names) <= 2 * NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:NAMED])} and {len(names) - NAMED:,} more"


# --- diff ------------------------------------------------------------------------------------------------------------


def print_difference(found: Difference, console: Console) -> None:
    """Print what two runs differ in, their curves in one plot, their scores and their speed."""
    for mark, path, stage in zip("AB", (found.a, found.b), found.stages, strict=True):
        _say(console, Text.assemble((f"{mark}  ", HEAD), f"{path}: {stage}"))
    sections: tuple[Section, ...] = (
        ("What differs", list(_entries(found))),
        ("The same", [Text(_equal(found))]),
        *curves(found),
        ("Scores on held-out rows", list(_scores(found))),
        ("Speed", [Text(f"{mark}  {said}") for mark, said in zip("AB", found.speeds, strict=True) if said]),
    )
    for heading, lines in sections:
        if lines:
            console.print()
            console.print(Text(heading, HEAD))
        for line in lines:
            console.print(line, highlight=False)


def _entries(found: Difference) -> Iterator[Table | Text]:
    if not found.entries:
        yield Text("Nothing that the runs were made of.")
        return
    yield entries_table(found.entries)


def entries_table(entries: Iterable[Entry]) -> Table:
    """Return the keys in which two runs differ, with both values and who decided them."""
    grid = _grid("", "key", "A", "B", "decided by")
    for entry in entries:
        _add(grid, entry.section, entry.key, _short(entry.a), _short(entry.b), entry.by)
    return grid


def _short(text: str | None) -> str:
    if text is None:
        return NONE
    bare = text.removesuffix(" with changes")
    if HASH.fullmatch(bare):
        return bare[:12] + text[len(bare) :]
    return text if len(text) <= CELL else f"{text[: CELL - 3]}..."


def _equal(found: Difference) -> str:
    counted = [f"{found.equal[section]:,} of {section}" for section in SECTIONS if found.equal.get(section)]
    return ", ".join(counted) or "nothing"


def _scores(found: Difference) -> Iterator[Table]:
    if not found.scores:
        return
    grid = _grid("metric", "base A", "base B", "tuned A", "tuned B", "B - A", right=range(1, 6))
    for score in found.scores:
        values = (*score.base, *score.tuned)
        _add(grid, score.name, *(_number(value) for value in values), _change(score))
    yield grid


def _change(score: Scored) -> str:
    one, two = score.tuned
    return NONE if one is None or two is None else f"{two - one:+.4g}" if one != two else "="


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.6g}"


# --- curves ----------------------------------------------------------------------------------------------------------


def curves(found: Difference) -> Iterator[Section]:
    """Yield a section with the plot of the curve that training is about, its figures, and where the curves part."""
    headline = found.headline
    if headline is None:
        yield "Curves", [Text("The runs have no logged step in common.")]
        return
    drawing = [_coloured(line) for line in plot((headline.a, headline.b))]
    yield headline.name, [*drawing, _figures(headline), *(Text(line) for line in _partings(found))]


def _coloured(line: str) -> Text:
    axis, bar, inside = line.partition("│")
    styles = {**COLOURS, BOTH: HEAD}
    return Text.assemble((axis + bar, QUIET), *((character, styles.get(character, "")) for character in inside))


def plot(points: Sequence[Mapping[int, float]], width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """Return the lines of a plot of two curves, value by step: `+` is the first, `x` the second, `*` both.

    Several steps in one column are drawn as their mean; what is no finite number is left out.
    """
    finite = [{step: value for step, value in curve.items() if math.isfinite(value)} for curve in points]
    steps = [step for curve in finite for step in curve]
    if not steps:
        return ["no finite value"]
    first, last = min(steps), max(steps)
    columns = [_columns(curve, first, last, width) for curve in finite]
    values = [value for curve in columns for value in curve.values()]
    low, high = min(values), max(values)
    cells = [[" "] * width for _ in range(height)]
    for mark, curve in zip(MARKS, columns, strict=True):
        for column, value in curve.items():
            row = cells[round((high - value) / ((high - low) or 1.0) * (height - 1))]
            row[column] = mark if row[column] == " " else BOTH
    labels = {0: high, height // 2: high - (high - low) * (height // 2) / (height - 1), height - 1: low}
    drawn = [
        f"{f'{labels[row]:.4g}' if row in labels else '':>10} │{''.join(cells[row]).rstrip()}" for row in range(height)
    ]
    under = f"{'step':>10}  {first:<{width // 2},}{last:>{width - width // 2},}"
    return [*drawn, under, f"{'':>10}  A {MARKS[0]}   B {MARKS[1]}   both {BOTH}"]


def _columns(curve: Mapping[int, float], first: int, last: int, width: int) -> dict[int, float]:
    """Return the mean of the values in each column of a plot."""
    found: dict[int, list[float]] = {}
    for step, value in curve.items():
        found.setdefault(round((step - first) / max(last - first, 1) * (width - 1)), []).append(value)
    return {column: sum(values) / len(values) for column, values in found.items()}


def _figures(curve: Curve) -> Table:
    grid = _grid("", "steps", "first", "last", "mean of the last tenth", "lowest", "highest", right=range(1, 7))
    for mark, points in zip("AB", (curve.a, curve.b), strict=True):
        values = [points[step] for step in sorted(points)]
        tail = values[-max(1, len(values) // 10) :]
        said = (values[0], values[-1], sum(tail) / len(tail), min(values), max(values))
        _add(grid, mark, f"{len(values):,}", *(f"{value:.6g}" for value in said))
    return grid


def _partings(found: Difference) -> Iterator[str]:
    """Say where the curves part: the first that does, how far, and from where on it can be seen."""
    parted, headline = found.parted, found.headline
    if headline is None:
        return
    common = len(headline.steps)
    if not parted:
        yield f"All figures are the same to the bit at the {common:,} steps that both have logged."
        return
    step, visible = headline.parts(), headline.parts(APART)
    if step is None:
        yield f"The {headline.name} is the same to the bit at all {common:,} steps that both have logged."
    else:
        seen = f"first at step {visible:,}" if visible else "nowhere"
        yield f"The {headline.name} parts at step {step:,}. It is more than {APART:.0%} apart {seen}; the largest"
        yield f"relative difference is {headline.largest:.2g}."
    others = [f"{curve.name} at step {curve.parts():,}" for curve in parted if curve is not headline]
    if others:
        yield f"Other figures that part: {_names(others)}."


# --- reproduce -------------------------------------------------------------------------------------------------------

VERDICTS = {
    "identical": ("Reproduced to the bit", "bold green"),
    "close": ("Reproduced, and not to the bit", "bold yellow"),
    "different": ("Not reproduced", "bold red"),
}


def print_reproduced(found: Reproduced, console: Console) -> None:
    """Print both curves, what differs around the runs, and the verdict."""
    difference = found.difference
    for mark, path, stage in zip("AB", (difference.a, difference.b), difference.stages, strict=True):
        _say(console, Text.assemble((f"{mark}  ", HEAD), f"{path}: {stage}"))
    beside = [entry for entry in difference.entries if entry.section in ("settings", "versions", "hardware")]
    sections: tuple[Section, ...] = (
        *curves(difference),
        ("Scores on held-out rows", list(_scores(difference))),
        ("Not the same around the runs", [entries_table(beside)] if beside else []),
        ("Verdict", list(_verdict(found))),
    )
    for heading, lines in sections:
        if lines:
            console.print()
            console.print(Text(heading, HEAD))
        for line in lines:
            console.print(line, highlight=False)


def _verdict(found: Reproduced) -> Iterator[Text]:
    words, style = VERDICTS[found.verdict]
    yield Text(f"{words}: {found.steps:,} logged step{'s' if found.steps != 1 else ''} compared.", style)
    for reason in found.reasons:
        yield Text(f"  {redact(reason)}")
    yield Text(_weights(found))
    if found.verdict == "close":
        largest = max((curve.largest for curve in found.difference.parted), default=0.0)
        yield Text(f"No figure that counts is more than {found.tolerance:.2g} apart (of all figures, {largest:.2g}).")
    yield Text(_expectation(found), QUIET)


def _weights(found: Reproduced) -> str:
    weights = found.weights
    if weights is None:
        return "The run kept no weights of this step to compare with."
    if weights.identical:
        return f"The weights of {weights.of} are the same to the bit ({', '.join(weights.same)})."
    others = ", ".join(name for name, same in weights.same.items() if not same)
    apart = f", by {weights.apart:.2g} of their length" if weights.apart is not None else ""
    return f"The weights of {weights.of} differ{apart} ({others})."


def _expectation(found: Reproduced) -> str:
    if not found.exact:
        return (
            "Equality to the bit was not to be expected: other versions, settings, processors or numbers of threads "
            "add numbers in another order, and kernels on GPUs may do so from one run to the next."
        )
    if found.verdict == "identical":
        return "That was to be expected: the same versions on the same CPU with as many threads."
    return (
        "Equality to the bit was to be expected: the same versions on the same CPU with as many threads. "
        "Something in this run depends on chance that the seed does not govern, on time, or on what is outside of it."
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def _grid(*headings: str, right: Iterable[int] = ()) -> Table:
    """Return an empty table without lines; the columns `right` hold numbers."""
    grid, numbers = Table(box=None, pad_edge=False, header_style=QUIET), set(right)
    for index, heading in enumerate(headings):
        number = index in numbers
        grid.add_column(Text(heading), justify="right" if number else "left", no_wrap=number, overflow="fold")
    return grid


def _add(grid: Table, *cells: str | Text) -> None:
    """Add a row of cells as they are, without secrets: brackets in them are no markup."""
    grid.add_row(*(Text(redact(cell)) if isinstance(cell, str) else cell for cell in cells))


def _say(console: Console, line: Text) -> None:
    console.print(line, highlight=False, soft_wrap=True)
