"""The commands on a run: score, export, talk to it."""

# No annotations as text here: typer would compile each of them again, which is a fifth of the time of `--help`.

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.app import GATE_MISSED, Overrides, Target, app, console

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]


@app.command("eval")
def evaluate(target: Target, overrides: Overrides = None) -> None:
    """Score a run again: base beside tuned on the held-out rows.

    Of a recipe file, its base model alone.
    """
    from llmkit.runs.progress import terminal
    from llmkit.runs.reopen import evaluate as evaluate_run
    from llmkit.runs.report import print_scores
    from llmkit.runs.scoring import compared

    scores = evaluate_run(target, overrides or (), narrator=terminal())
    base, tuned = scores["base"], scores.get("tuned")
    print_scores(base, tuned, compared(base, tuned) if tuned is not None else None, console())


@app.command()
def report(run: RunFolder) -> None:
    """Write the page of a run: report.html in its folder."""
    from llmkit.runs.report_page import write_report

    typer.echo(write_report(run))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Run folders.")],
    out: Annotated[Path, typer.Option(help="The page that is written.")] = Path("comparison.html"),
) -> None:
    """Write one page of several runs, side by side."""
    from llmkit.runs.report_page import write_comparison

    write_comparison(runs, out)
    typer.echo(out)


@app.command()
def export(target: Target, overrides: Overrides = None) -> None:
    """Write the exports of a finished run, each of them checked.

    An export must compute what the trained model computes.
    """
    from llmkit.runs.progress import terminal
    from llmkit.runs.reopen import export as export_run

    for exported in export_run(target, overrides or (), narrator=terminal()):
        typer.echo(f"{exported.type}: {exported.path}")


@app.command()
def chat(
    target: Target,
    overrides: Overrides = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt; default: the one the training rows begin with.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 answers greedily.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 512,
) -> None:
    """Talk to a run's tuned model. /clear forgets the conversation, /quit or Ctrl-D leaves."""
    from llmkit.runs.answering import chat as chat_with

    chat_with(target, overrides or (), system=system, temperature=temperature, max_new_tokens=max_new_tokens)


@app.command()
def generate(
    target: Target,
    prompts: Annotated[Path, typer.Argument(help="JSONL with a `prompt` (string or messages) on each line.")],
    answers: Annotated[Path, typer.Argument(help="JSONL to write: each row with an `answer` added.")],
    overrides: Overrides = None,
    temperature: Annotated[float, typer.Option(help="0 answers greedily.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Prompts answered at once; default: by their lengths.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Answer a file of prompts: JSONL in, JSONL out, in that order."""
    from llmkit.runs.answering import answer_file
    from llmkit.runs.progress import terminal

    count = answer_file(
        target,
        prompts,
        answers,
        overrides or (),
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        narrator=terminal(),
    )
    typer.echo(f"{count} answers in {answers}")


@app.command()
def verify(
    run: RunFolder,
    rows: Annotated[bool, typer.Option("--rows", help="Also prepare the rows again, and compare them.")] = False,
) -> None:
    """Hash again what a run names and keeps, to see what has changed.

    Data, code, weights, records, checkpoints, exports; ends with 3 if something has changed or is missing.
    """
    from llmkit.runs.progress import terminal
    from llmkit.runs.proving.proof_report import print_verified
    from llmkit.runs.proving.verifying import verify as verify_run

    found = verify_run(run, terminal().say, rows=rows)
    print_verified(found, console())
    if not found.passed:
        raise typer.Exit(GATE_MISSED)


@app.command()
def reproduce(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Folder of the new run; default: RUN-again, numbered.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="End training after so many steps; no scores.")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Relative difference that counts as reproduced, if not to the bit.")
    ] = 0.01,
) -> None:
    """Run a run again by its own plan, and compare step by step.

    To the bit, within the tolerance, or not: then it ends with 3.
    """
    from llmkit.runs.progress import terminal
    from llmkit.runs.proving.proof_report import print_reproduced
    from llmkit.runs.proving.reproducing import reproduce as reproduce_run

    found = reproduce_run(run, out, terminal(), steps=steps, tolerance=tolerance)
    print_reproduced(found, console())
    if not found.passed:
        raise typer.Exit(GATE_MISSED)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Run folder.")],
    b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Run folder.")],
) -> None:
    """Show what two runs differ in, and where their curves part.

    Settings, data, code, weights, versions, hardware, scores and speed; finished runs or not.
    """
    from llmkit.runs.proving.differences import compare
    from llmkit.runs.proving.proof_report import print_difference

    print_difference(compare(a, b), console())
