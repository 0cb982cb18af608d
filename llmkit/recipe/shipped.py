"""The recipes that come with llmkit: listed with their first line, copied to start from."""

from __future__ import annotations

import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class Shipped:
    """A recipe file; its first line says what it shows, on what hardware, how long, and what to expect."""

    name: str
    path: Path
    summary: str


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes: the checkout's, or the installed package's."""
    checkout = Path(__file__).parents[2] / "recipes"
    return checkout if checkout.is_dir() else Path(sysconfig.get_path("data")) / "share" / "llmkit" / "recipes"


def shipped_recipes() -> list[Shipped]:
    """Return the shipped recipes by name."""
    return [
        Shipped(path.stem, path, path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# "))
        for path in sorted(recipes_folder().glob("*.yaml"))
    ]


def copy_recipe(name: str, target: Path) -> Path:
    """Copy the recipe `name` to a file or folder; raises RecipeError if it is unknown or the file exists."""
    known = {recipe.name: recipe.path for recipe in shipped_recipes()}
    wanted = name.removesuffix(".yaml")
    if wanted not in known:
        raise RecipeError(f"no recipe {name!r}{did_you_mean(wanted, known)}; there are {', '.join(known)}")
    path = target / known[wanted].name if target.is_dir() else target
    # The Python file of the same name, if there is one, holds the tools that the recipe names.
    tools = known[wanted].with_suffix(".py")
    copies = {known[wanted]: path} | ({tools: path.parent / tools.name} if tools.is_file() else {})
    for place in copies.values():
        if place.exists():
            raise RecipeError(f"{place} exists already, and is not overwritten")
    for original, place in copies.items():
        try:
            shutil.copyfile(original, place)
        except OSError as error:
            raise RecipeError(f"{place} can't be written: {error.strerror}") from error
    return path
