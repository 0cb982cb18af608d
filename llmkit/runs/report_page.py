"""The report of one run, or of several side by side, as one HTML page: no scripts, nothing fetched, all escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmkit.runs.charts import HEIGHT, INTERVAL_HEIGHT, INTERVAL_WIDTH, WIDTH, bars, number
from llmkit.runs.proving.differences import SECTIONS
from llmkit.runs.report_answers import Rollout, bare_regressions, regressions, rollouts, samples
from llmkit.runs.report_curves import curves
from llmkit.runs.report_facts import (
    commands,
    cost,
    decisions,
    differences,
    inside,
    meter,
    name_of,
    packed,
    section_facts,
    sources,
    table,
    what_was_run,
)
from llmkit.runs.report_scores import counts, groups
from llmkit.runs.reported import REGRESSIONS, Reported, read_run
from llmkit.runs.seeing import check_target, save
from llmkit.runs.spelling import places, visible

REPORT_FILE = "report.html"

PAGE = "<!doctype html><!-- llmkit report -->"
"""How the page begins: only such a file is overwritten."""

LARGEST_RECIPE = 20_000
"""Characters of a recipe that are on the page."""

SIGNS = {"finished": ("better", "✓"), "stopped": ("warned", "■"), "ended": ("warned", "■"), "unfinished": ("no", "…")}
"""How each word that a stage begins with is shown: its colour, and its sign."""

_KEPT = re.compile(r"([\n\t])")


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder, without secrets; raises SetupError where it is none."""
    save(render([folder]), folder / REPORT_FILE)
    return folder / REPORT_FILE


def write_comparison(runs: Sequence[Path], target: Path) -> None:
    """Write the page of several runs, without secrets, into a new file or an earlier such page.

    Raises SetupError where a folder is no run, and DataError where `target` is another file or can't be written.
    """
    check_target(target, PAGE)
    save(render(runs), target)


def render(runs: Sequence[Path]) -> str:
    """Return the page of one run, or of several side by side; raises SetupError where a folder is no run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=readable,
    )
    environment.filters.update(number=number, places=places, thousands="{:,}".format, inside=inside)
    environment.globals.update(
        letter=letter,
        most_regressions=REGRESSIONS,
        chart_size=(WIDTH, HEIGHT),
        picture=(INTERVAL_WIDTH, INTERVAL_HEIGHT),
    )
    return environment.get_template("report_page.html").render(**_shown([read_run(path) for path in runs]))


def _shown(runs: Sequence[Reported]) -> dict[str, Any]:
    several = len(runs) > 1
    return {
        "runs": runs,
        "several": several,
        "names": [name_of(run) for run in runs],
        "states": [SIGNS.get(re.split(r"\W", run.stage)[0], SIGNS["unfinished"]) for run in runs],
        "facts": table(runs, what_was_run),
        "counts": [counts(run) for run in runs],
        "groups": groups(runs),
        "differences": differences(runs) if several else [],
        "curves": curves(runs),
        "samples": samples(runs),
        "rollouts": [_by_step(rollouts(run)) for run in runs],
        "regressions": [regressions(run) for run in runs],
        "bare": [bare_regressions(run) for run in runs],
        "sources": [source for index, run in enumerate(runs) for source in sources(index, run)],
        "packed": [list(packed(run)) for run in runs],
        "lengths": [_bars(run) for run in runs],
        "meters": [meter(run) for run in runs],
        "cost": table(runs, cost),
        "decisions": [] if several else list(decisions(runs[0])),
        "environment": [(name, table(runs, section_facts(name))) for name in SECTIONS if name != "settings"],
        "commands": list(commands(runs)),
        "recipes": [(run.recipe[:LARGEST_RECIPE], max(0, len(run.recipe) - LARGEST_RECIPE)) for run in runs],
    }


def _bars(run: Reported) -> list[Any]:
    return bars([(one.low, one.high, one.count) for one in run.lengths.histogram]) if run.lengths else []


def _by_step(found: Iterable[Rollout]) -> list[tuple[int, list[Rollout]]]:
    steps: dict[int, list[Rollout]] = {}
    for one in found:
        steps.setdefault(one.step, []).append(one)
    return list(steps.items())


def letter(index: int) -> str:
    """Return the name of a run on the page of several: A, B, ..., Z, 27, ..."""
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def readable(value: Any) -> Any:
    """Return text as it may be shown: characters that can't be seen, or that turn the others around, are named.

    Line breaks and tabs stay. What a macro has made is escaped already.
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(part if part in "\n\t" else visible(part) for part in _KEPT.split(value))
