"""The commands that take a recipe: run it, check it, show what it comes to."""

# No annotations as text here: typer would compile each of them again, which is a fifth of the time of `--help`.

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.app import GATE_MISSED, Overrides, RecipeFile, app, as_text, console, print_table

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/RECIPE, numbered if taken.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the run folder.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Print sampled completions as they come.")] = False,
) -> None:
    """Fine-tune, evaluate and export as the recipe says."""
    from llmkit.recipe.loading import load_recipe

    the_recipe = load_recipe(recipe, overrides or ())
    # The start is over, and cycles that a training leaves behind may hold tensors.
    gc.set_threshold(50_000, 20, 20)
    if resume and out is None and recipe.name == "recipe.yaml" and (recipe.parent / "lock.json").is_file():
        from llmkit.runs.reopen import recipe_of

        out = recipe.parent
        the_recipe, _ = recipe_of(out, overrides or ())
    from llmkit.runs.progress import terminal

    narrator = terminal()
    # Said before torch and the libraries around it are imported, which takes seconds.
    narrator.say(f"{recipe}: {parts(the_recipe)}")
    from llmkit.runs.report import print_result
    from llmkit.runs.runner import run as run_recipe

    result = run_recipe(
        the_recipe, out=out, name=recipe.stem, resume=resume, watch=watch, narrator=narrator, exits=True
    )
    print_result(result, console())
    if not all(gate.held for gate in result.gates):
        raise typer.Exit(GATE_MISSED)


@app.command()
def validate(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Check a recipe, its files and packages; reads no rows."""
    from llmkit.recipe.loading import load_recipe
    from llmkit.runs.checks import check

    the_recipe = load_recipe(recipe, overrides or ())
    check(the_recipe)
    typer.echo(f"{recipe}: valid ({parts(the_recipe)})")


@app.command()
def show(
    recipe: RecipeFile,
    overrides: Overrides = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what the libraries default to.")] = False,
    hardware: Annotated[str, typer.Option(help="this, or a machine such as a100-80gb:8.")] = "this",
) -> None:
    """Show each resolved value and who decided it.

    Recipe line, override, planner or library.
    """
    from llmkit.planning.hardware import parse_hardware
    from llmkit.recipe.loading import load_recipe
    from llmkit.runs.checks import check
    from llmkit.runs.prepare import plan as make_plan
    from llmkit.runs.resolved import resolve

    the_recipe = load_recipe(recipe, overrides or ())
    check(the_recipe)
    the_plan = make_plan(the_recipe, None if hardware == "this" else parse_hardware(hardware))
    rows = resolve(the_recipe, the_plan)
    if not everything:
        rows = [row for row in rows if not row.by.endswith(" default")]
    print_table(("key", "value", "decided by"), [(r.key, as_text(r.value), r.by) for r in rows])
    if not everything:
        typer.echo("--all shows what the libraries default to as well.")


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    hardware: Annotated[str, typer.Option(help="this, or a machine such as a100-80gb:8, rtx4090, cpu:2.")] = "this",
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write all figures to, in bytes.")] = None,
) -> None:
    """Show the memory that a run takes, and what would make it fit.

    By part and phase, on this machine or another, and every decision with its reason; ends with 3 if it does not fit.
    """
    from llmkit.planning.hardware import parse_hardware
    from llmkit.recipe.loading import load_recipe
    from llmkit.runs.checks import check
    from llmkit.runs.plan_report import BEGINS, look, print_outlook
    from llmkit.runs.prepare import plan as make_plan
    from llmkit.runs.seeing import check_target, save

    the_recipe = load_recipe(recipe, overrides or ())
    check(the_recipe)
    if json_file is not None:
        check_target(json_file, BEGINS)
    the_plan = make_plan(the_recipe, None if hardware == "this" else parse_hardware(hardware))
    found = look(the_recipe, the_plan, recipe.stem)
    print_outlook(found, console())
    if json_file is not None:
        save(found.to_json(), json_file)
    if found.fits is False:
        raise typer.Exit(GATE_MISSED)


@app.command()
def rehearse(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Where the run would keep its folder; nothing stays there.")] = Path("runs"),
) -> None:
    """Try a recipe on a tiny model, to find what breaks late.

    Real rows, random weights of the same architecture: train, score, resume, export, reload; ends with 3 if one fails.
    """
    from llmkit.recipe.loading import load_recipe
    from llmkit.runs.progress import terminal
    from llmkit.runs.proving.rehearsal_report import print_rehearsal
    from llmkit.runs.proving.rehearsing import rehearse as rehearse_recipe

    found = rehearse_recipe(load_recipe(recipe, overrides or ()), terminal(), out=out)
    print_rehearsal(found, console())
    if not found.passed:
        raise typer.Exit(GATE_MISSED)


def parts(recipe: "Recipe") -> str:
    """Return what a recipe puts together, e.g. `sft + lora on some/model`."""
    sections = (recipe.method, recipe.adapter, recipe.quantization)
    return " + ".join(section.type for section in sections if section is not None) + f" on {recipe.model.name}"
