"""What `llmkit rehearse` prints: a line for each stage, and last what would have gone wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from llmkit.recipe.secrets import redact

if TYPE_CHECKING:
    from rich.console import Console

    from llmkit.runs.proving.rehearsal_stages import Rehearsal

STYLES = {"passed": "green", "warned": "yellow", "failed": "bold red", "skipped": "dim"}


def print_rehearsal(found: Rehearsal, console: Console) -> None:
    """Print the stages with their times, then each failure with the error that the run would have ended with."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("stage", no_wrap=True)
    grid.add_column("seconds", justify="right", no_wrap=True)
    grid.add_column("", no_wrap=True)
    grid.add_column("found", overflow="fold")
    for stage in found.stages:
        said = "see below" if stage.outcome == "failed" else stage.said.partition("\n")[0]
        seconds = f"{stage.seconds:.1f}" if stage.outcome != "skipped" else ""
        # What a library or a tracker says may hold what it was called with.
        grid.add_row(Text(stage.name), seconds, Text(stage.outcome, style=STYLES[stage.outcome]), Text(redact(said)))
    console.print(grid)
    console.print()
    for sentence in found.sentences():
        console.print(Text(redact(sentence)), style="red", highlight=False, soft_wrap=True)
        console.print()
    end = "nothing here would stop the run" if found.passed else f"{len(found.failures)} of these would have gone wrong"
    console.print(f"rehearsed in {found.seconds:.0f} s: {end}", highlight=False)
