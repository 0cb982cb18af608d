"""The commands on llmkit itself: its recipes, its schema, this machine."""

# No annotations as text here: typer would compile each of them again, which is a fifth of the time of `--help`.

import json
from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.app import app, print_table


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Recipe to copy; without it, all are listed.")] = None,
    to: Annotated[Path | None, typer.Argument(help="File or folder to copy it to; default: here.")] = None,
) -> None:
    """List the shipped recipes, or copy one to start from."""
    from llmkit.recipe.shipped import copy_recipe, shipped_recipes

    if name is not None:
        typer.echo(f"copied to {copy_recipe(name, to or Path.cwd())}")
        return
    print_table(("recipe", "what it shows"), [(r.name, r.summary) for r in shipped_recipes()])


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors.

    yaml-language-server reads it, for one.
    """
    from llmkit.recipe.schema import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


@app.command()
def doctor() -> None:
    """Check versions, devices and demo weights.

    Names what is missing, and the command that mends it.
    """
    from llmkit.cli.doctor import findings

    found = findings()
    print_table(("", "what", "found", "remedy"), [(f.mark, f.what, f.found, f.remedy) for f in found])
    if any(f.mark == "bad" for f in found):
        raise typer.Exit(1)
