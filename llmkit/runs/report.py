"""What a finished run prints: base beside tuned, sample answers side by side, and the next command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkit.runs import scoring

if TYPE_CHECKING:
    from rich.console import Console

    from llmkit.evaluation.base import Score
    from llmkit.runs.runner import RunResult


def print_result(result: RunResult, console: Console) -> None:
    """Print the tables of a finished run and the command to type next."""
    print_scores({"base": result.base, "tuned": result.tuned}, console)
    console.print(f"\nrun folder: {result.folder}", highlight=False)
    console.print(f"next:       [bold]llmkit chat {result.folder}[/bold]", highlight=False)


def print_scores(scores: dict[str, list[Score]], console: Console) -> None:
    """Print the scores of base and tuned model, or of the base model alone."""
    base = scores["base"]
    tuned = scores.get("tuned")
    if not base:
        return
    console.print()
    console.print(scoring.table(base, tuned))
    samples = scoring.samples_table(base, tuned)
    if samples is not None:
        console.print()
        console.print(samples)
