"""What commands print of what they found: scores and samples of a run, the workbench, the preflight, rows made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from llmkit.runs import scoring

if TYPE_CHECKING:
    from rich.console import Console

    from llmkit.evaluation.base import Score
    from llmkit.evaluation.statistics.comparing import Compared
    from llmkit.runs.preflight import Preflight
    from llmkit.runs.runner import RunResult
    from llmkit.runs.sampling import Sampling
    from llmkit.runs.workbench import Part, Workbench

SHOWN_PASSES = (1, 2, 4, 8, 16, 32, 64)
"""The k of the pass@k that are printed, beside the largest."""


def print_result(result: RunResult, console: Console) -> None:
    """Print the tables of a finished run, its speed, and the command to type next."""
    print_scores(result.base, result.tuned, result.compared, console)
    for gate in result.gates:
        mark = "held  " if gate.held else "MISSED"
        console.print(f"gate {mark} {gate.said}", highlight=False, soft_wrap=True, markup=False)
    console.print()
    if result.speed is not None:
        console.print(f"speed:      {result.speed.sentence()}", highlight=False, soft_wrap=True)
    if result.stopped_by is not None:
        console.print(f"stopped by: {result.stopped_by}; --resume continues", highlight=False)
    console.print(f"run folder: {result.folder}", highlight=False)
    verb = "chat" if result.answers else "eval"
    console.print(f"next:       [bold]llmkit {verb} {result.folder}[/bold]", highlight=False)


def print_scores(
    base: list[Score], tuned: list[Score] | None, found: list[list[Compared]] | None, console: Console
) -> None:
    """Print the scores of base and tuned model and what they differ in, or of the base model alone."""
    if not base:
        return
    console.print()
    console.print(scoring.table(base, found))
    samples = scoring.samples_table(base, tuned)
    if samples is not None:
        console.print()
        console.print(samples)


def print_workbench(found: Workbench, console: Console) -> None:
    """Print one table per reward, one for their weighted total where there are several, and what was found wrong."""
    console.print(f"{found.rows} rows; golden answers: {found.golden}", highlight=False)
    for part in (*found.parts, *([found.total] if len(found.parts) > 1 else [])):
        console.print()
        console.print(_probe_table(part))
    console.print()
    for flag in found.flags:
        mark = "[bold red]error:[/bold red]" if flag.error else "[bold yellow]warning:[/bold yellow]"
        console.print(f"{mark} {_plain(flag.text)}", highlight=False, soft_wrap=True)
    if not found.flags:
        console.print("Nothing here can be had for nothing, and golden answers earn it.", highlight=False)


def _probe_table(part: Part) -> Table:
    weight = "" if part.name == "total" else f"weight {part.weight:g}, "
    title = f"{part.name} ({weight}{_milliseconds(part.seconds)} per completion, slowest {_milliseconds(part.slowest)})"
    rows = [
        (
            line.probe,
            *(f"{value:.3g}" for value in (line.mean, min(line.scores), max(line.scores), line.spread)),
            f"{line.reached:.0%}" if part.lines[0].probe == "golden" else "",
        )
        for line in part.lines
    ]
    return _table(("probe", "mean", "min", "max", "spread", "as good as golden"), rows, title)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def print_preflight(found: Preflight, console: Console) -> None:
    """Print what the base model earns, what a step takes, and what to change."""
    title = f"{found.prompts} prompts x {found.samples} answers"
    console.print(_table(("", "base model"), [*_earned(found), *_taken(found)], title))
    console.print()
    for line in found.advice:
        console.print(_plain(line), highlight=False, soft_wrap=True)


def _earned(found: Preflight) -> Iterable[tuple[str, str]]:
    yield "mean reward", f"{found.reward:.3g}"
    for name, mean in found.parts.items():
        yield f"  {name}", f"{mean:.3g}"
    for k, rate in enumerate(found.passes, start=1):
        if k in SHOWN_PASSES or k == found.samples:
            yield f"pass@{k}", f"{rate:.1%}"
    yield "an answer passes at", f"{found.pass_at:.3g} ({found.pass_at_from})"
    silent = found.silent
    yield f"groups of {found.group} without signal", f"{silent.share:.0%}"
    yield "  all right, wrong, equal", f"{silent.all_right:.0%}, {silent.all_wrong:.0%}, {silent.all_equal:.0%}"
    yield "cut off", f"{found.clipped:.0%} at {found.max_completion_length} tokens"
    yield "tokens per answer", ", ".join(f"{value} ({name})" for name, value in found.lengths.items())


def _taken(found: Preflight) -> Iterable[tuple[str, str]]:
    pace = found.pace
    parts = f"generate {pace.generate:.1f} + score {pace.score:.1f} + learn {pace.learn:.1f}"
    yield "seconds per step", f"{pace.seconds:.1f} ({parts}; {pace.completions:g} completions)"
    if pace.engine is not None:
        yield "", f"measured with `generate`; the run samples with {pace.engine}"
    long = f"{pace.hours:.1f} hours" if pace.hours >= 1 else f"{60 * pace.hours:.0f} minutes"
    yield "whole run", f"{pace.steps:,} steps, {long} of training"


def print_sampling(found: Sampling, console: Console) -> None:
    """Print what was kept, what the answers earned, and how to train on the file."""
    tally = found.tally
    console.print(_table(("", "answers"), _sampled(found), f"{tally.prompts} prompts x {found.samples} answers"))
    console.print()
    if tally.altered:
        text = (
            f"{tally.altered} of the {tally.kept} kept rows are not rendered as they were sampled: the chat template "
            "leaves out a part of the answer, or adds one before it. Look at them before you train on them."
        )
        console.print(f"[bold yellow]warning:[/bold yellow] {_plain(text)}", highlight=False, soft_wrap=True)
    if not tally.kept:
        console.print(f"Nothing was kept, and {_plain(str(found.out))} is empty.", highlight=False, soft_wrap=True)
        return
    console.print(f"written: {_plain(str(found.out))}", highlight=False, soft_wrap=True)
    console.print("next:    a recipe with these lines", highlight=False)
    for line in found.recipe:
        console.print(f"  {_plain(line)}", highlight=False, soft_wrap=True)
    console.print("or, with a recipe that you have:", highlight=False)
    console.print(f"  [bold]llmkit run RECIPE --set {_plain(found.override)}[/bold]", highlight=False, soft_wrap=True)


def _sampled(found: Sampling) -> Iterable[tuple[str, str]]:
    tally = found.tally
    yield "prompts", f"{tally.prompts:,} read, {tally.answered:,} answered"
    yield "  kept", f"{tally.kept:,} ({tally.kept / tally.prompts:.0%})"
    for reason, count in sorted(tally.dropped.items()):
        yield "  dropped", f"{count:,} ({reason})"
    if found.passes is not None:
        yield "pass@1", f"{found.passes:.1%} (an answer passes at {found.pass_at:.3g}: {found.pass_at_from})"
    yield "mean reward", f"{tally.mean_reward:.3g}; of what was kept, {tally.mean_kept_reward:.3g}"
    yield "cut off", f"{tally.clipped:,} of {tally.answers:,} answers"
    yield "said twice", f"{tally.repeated:,} of {tally.answers:,} answers"
    yield "speed", f"{tally.tokens_per_second:,.0f} tokens/s ({tally.tokens:,} tokens)"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> Table:
    from rich.text import Text

    grid = Table(title=Text(title), title_justify="left")
    for index, heading in enumerate(headings):
        # Two columns are names and words; more are names and numbers.
        grid.add_column(heading, justify="right" if index and len(headings) > 2 else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
