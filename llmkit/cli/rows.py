"""The commands on rows and rewards: what the model will read, what an answer earns, rows made by sampling."""

# No annotations as text here: typer would compile each of them again, which is a fifth of the time of `--help`.

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.app import GATE_MISSED, Overrides, RecipeFile, Target, app, console


@app.command()
def data(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows to print: the first, the extremes, others at random.")] = 6,
    source: Annotated[str | None, typer.Option(help="Print rows of this source only, by its path.")] = None,
    html: Annotated[Path | None, typer.Option(help="File to write the same to, as a page.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write all figures and rows to.")] = None,
) -> None:
    """Show the rows as the model will see them, and what is wrong.

    What is trained, what is left out, what the audit found; ends with 3 on an error.
    """
    from llmkit.recipe.loading import load_recipe
    from llmkit.runs.checks import check
    from llmkit.runs.data_page import render
    from llmkit.runs.data_report import print_seen
    from llmkit.runs.prepare import prepare_data
    from llmkit.runs.progress import terminal
    from llmkit.runs.seeing import check_targets, save, see

    the_recipe = load_recipe(recipe, overrides or ())
    check(the_recipe)
    check_targets(html, json_file)
    seen = see(prepare_data(the_recipe, narrator=terminal(), look=True), title=recipe.stem, count=rows, source=source)
    print_seen(seen, console())
    if html is not None:
        save(render(seen), html)
    if json_file is not None:
        save(seen.to_json(), json_file)
    if not seen.passed:
        raise typer.Exit(GATE_MISSED)


@app.command()
def reward(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to try the rewards on, evenly from the training rows.")] = 32,
    golden: Annotated[
        str | None, typer.Option(help="Completion that deserves the full reward, e.g. '<answer>$answer</answer>'.")
    ] = None,
) -> None:
    """Try the rewards out on golden answers and on bad ones.

    Ends with 3 if they can be tricked: text that deserves nothing must earn nothing.
    """
    from llmkit.recipe.loading import load_recipe
    from llmkit.runs.progress import terminal
    from llmkit.runs.report import print_workbench
    from llmkit.runs.workbench import try_rewards

    found = try_rewards(load_recipe(recipe, overrides or ()), rows, golden=golden, narrator=terminal())
    print_workbench(found, console())
    if not found.passed:
        raise typer.Exit(GATE_MISSED)


@app.command()
def preflight(
    recipe: RecipeFile,
    overrides: Overrides = None,
    prompts: Annotated[int, typer.Option(min=1, help="Training prompts to answer.")] = 16,
    samples: Annotated[int, typer.Option(min=2, help="Answers to each prompt.")] = 8,
    pass_at: Annotated[
        float | None, typer.Option(help="Reward from which an answer passes; default: what golden answers earn.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write all figures and answers to.")] = None,
) -> None:
    """Sample the base model: what it earns, and can it learn.

    Also what a step takes, and what to change.
    """
    from llmkit.recipe.loading import load_recipe
    from llmkit.runs.preflight import preflight as fly
    from llmkit.runs.progress import terminal
    from llmkit.runs.report import print_preflight

    the_recipe = load_recipe(recipe, overrides or ())
    found = fly(the_recipe, prompts=prompts, samples=samples, pass_at=pass_at, out=out, narrator=terminal())
    print_preflight(found, console())


@app.command()
def sample(
    target: Target,
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option("-n", "--samples", min=1, help="Answers to each prompt.")] = 8,
    prompts: Annotated[int | None, typer.Option(min=1, help="Training prompts to answer; default: all.")] = None,
    keep: Annotated[str, typer.Option(help="best (for SFT), pairs (best against worst, for DPO), or all.")] = "best",
    threshold: Annotated[
        float | None, typer.Option(help="Reward from which an answer is kept; default: what golden answers earn.")
    ] = None,
    margin: Annotated[float, typer.Option(min=0, help="Least difference between the rewards of a pair.")] = 0.0,
    temperature: Annotated[float | None, typer.Option(help="Default: training.temperature.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Answers sampled at once; default: as many as the run would.")
    ] = None,
    truncated: Annotated[bool, typer.Option("--truncated", help="Keep answers that were cut off as well.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSONL file to write, or to go on with; default: NAME-KEEP.")] = None,
) -> None:
    """Make rows to train on: draw answers, score them, keep the good.

    The prompts are those of the training rows.
    """
    from llmkit.runs.progress import terminal
    from llmkit.runs.report import print_sampling
    from llmkit.runs.sampling import sample as make_rows

    found = make_rows(
        target,
        overrides or (),
        samples=samples,
        prompts=prompts,
        keep=keep,
        threshold=threshold,
        margin=margin,
        temperature=temperature,
        batch_size=batch_size,
        truncated=truncated,
        out=out,
        narrator=terminal(),
    )
    print_sampling(found, console())
