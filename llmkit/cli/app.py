"""What all commands share: the app, the options that several take, and how tables are printed."""

# No annotations as text here: typer would compile each of them again, which is a fifth of the time of `--help`.

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="llmkit fine-tunes language models from one recipe file, and proves its own runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Frames and colours around the help take rich, and rich takes longer than all the rest of `--help`.
    rich_markup_mode=None,
)

GATE_MISSED = 3
"""Exit code where a check found what must not be trained on; nothing failed."""

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")]
Target = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or a recipe file for its base model.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value, e.g. --set training.learning_rate=1e-4."),
]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Hold the options that every command takes (`--debug` is read in `main`, before anything can fail)."""


def console() -> Any:
    """Return the console that tables are printed on."""
    from rich.console import Console

    # Piped output is for reading on: a table that wraps at 80 columns is not.
    return Console() if sys.stdout.isatty() else Console(width=200)


def print_table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows under their headings."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        # Keys are looked up and copied: they stay whole, and the prose beside them wraps.
        grid.add_column(heading, no_wrap=index == 0, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console().print(grid)


def as_text(value: Any) -> str:
    """Return a value as a recipe would have it."""
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
