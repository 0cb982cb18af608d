"""The command line. Every verb is thin, and imports what it needs inside: `--help` and `validate` never load torch."""

# No annotations as text here: typer would compile each of them again, which is a fifth of the time of `--help`.

import gc
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.errors import LlmkitError

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe

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


LEAN_HEAP = "glibc.malloc.mxfast=0:glibc.malloc.tcache_count=0"
"""Has glibc join small chunks with their neighbours when they are freed, at once."""


def main() -> None:
    """Run the command line; llmkit's own errors end it with a sentence and their exit code."""
    if sys.argv[1:2] == ["run"]:
        _keep_heap_whole()
    # Set before torch starts its threads: spinning ones make each other several times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # pydantic would search every installed package for plugins, which takes as long as reading a recipe.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    # Imports make many objects that stay: looking for garbage between them is a tenth of the time of `--help`.
    gc.set_threshold(200_000, 20, 20)
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except LlmkitError as error:
        if debug:
            raise
        _print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _keep_heap_whole() -> None:
    """Start anew with `LEAN_HEAP`, which counts only when a process starts: on Linux with glibc, without a GPU.

    Small chunks that are kept for reuse leave holes between tensors on a CPU: 30 to 75% of the activations instead of
    17 to 30%. Whoever has set glibc's tunables is left alone.
    """
    has_gpu = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))
    # Where another program calls `main`, it is not llmkit's to start anew.
    own = sys.orig_argv[-len(sys.argv) + 1 :] == sys.argv[1:]
    if not own or not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ or has_gpu:
        return
    import platform

    if platform.libc_ver()[0] == "glibc":
        os.environ["GLIBC_TUNABLES"] = LEAN_HEAP
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _print_error(error: LlmkitError) -> None:
    from rich.console import Console
    from rich.markup import escape

    text = f"{error.where}: {error.what}" if error.where else error.what
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[bold red]error:[/bold red] {escape(text)}")
    if error.remedy:
        console.print(escape(error.remedy))


def _console() -> Any:
    from rich.console import Console

    # Piped output is for reading on: a table that wraps at 80 columns is not.
    return Console() if sys.stdout.isatty() else Console(width=200)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Hold the options that every command takes (`--debug` is read in `main`, before anything can fail)."""


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
    if resume and out is None and recipe.name == "recipe.yaml":
        from llmkit.runs.reopen import recipe_of

        out = recipe.parent
        the_recipe, _ = recipe_of(out, overrides or ())
    from llmkit.runs.progress import terminal

    narrator = terminal()
    # Said before torch and the libraries around it are imported, which takes seconds.
    narrator.say(f"{recipe}: {_parts(the_recipe)}")
    from llmkit.runs.report import print_result
    from llmkit.runs.runner import run as run_recipe

    result = run_recipe(the_recipe, out=out, name=recipe.stem, resume=resume, watch=watch, narrator=narrator)
    print_result(result, _console())


@app.command()
def validate(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Check a recipe, its files and packages; reads no rows."""
    from llmkit.recipe.loading import load_recipe
    from llmkit.runs.checks import check

    the_recipe = load_recipe(recipe, overrides or ())
    check(the_recipe)
    typer.echo(f"{recipe}: valid ({_parts(the_recipe)})")


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
    from llmkit.runs.prepare import plan as make_plan
    from llmkit.runs.resolved import resolve

    the_recipe = load_recipe(recipe, overrides or ())
    the_plan = make_plan(the_recipe, None if hardware == "this" else parse_hardware(hardware))
    rows = resolve(the_recipe, the_plan)
    if not everything:
        rows = [row for row in rows if not row.by.endswith(" default")]
    _print_table(("key", "value", "decided by"), [(r.key, _value(r.value), r.by) for r in rows])
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
    print_outlook(found, _console())
    if json_file is not None:
        save(found.to_json(), json_file)
    if found.fits is False:
        raise typer.Exit(GATE_MISSED)


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
    print_seen(seen, _console())
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
    print_workbench(found, _console())
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
    print_preflight(found, _console())


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
    print_sampling(found, _console())


@app.command("eval")
def evaluate(target: Target, overrides: Overrides = None) -> None:
    """Score a run again: base beside tuned on the held-out rows.

    Of a recipe file, its base model alone.
    """
    from llmkit.runs.progress import terminal
    from llmkit.runs.reopen import evaluate as evaluate_run
    from llmkit.runs.report import print_scores

    scores = evaluate_run(target, overrides or (), narrator=terminal())
    print_scores(scores, _console())


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
def recipes(
    name: Annotated[str | None, typer.Argument(help="Recipe to copy; without it, all are listed.")] = None,
    to: Annotated[Path | None, typer.Argument(help="File or folder to copy it to; default: here.")] = None,
) -> None:
    """List the shipped recipes, or copy one to start from."""
    from llmkit.recipe.shipped import copy_recipe, shipped_recipes

    if name is not None:
        typer.echo(f"copied to {copy_recipe(name, to or Path.cwd())}")
        return
    _print_table(("recipe", "what it shows"), [(r.name, r.summary) for r in shipped_recipes()])


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
    _print_table(("", "what", "found", "remedy"), [(f.mark, f.what, f.found, f.remedy) for f in found])
    if any(f.mark == "bad" for f in found):
        raise typer.Exit(1)


def _parts(recipe: "Recipe") -> str:
    """Return what a recipe puts together, e.g. `sft + lora on some/model`."""
    sections = (recipe.method, recipe.adapter, recipe.quantization)
    return " + ".join(section.type for section in sections if section is not None) + f" on {recipe.model.name}"


def _print_table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        # Keys are looked up and copied: they stay whole, and the prose beside them wraps.
        grid.add_column(heading, no_wrap=index == 0, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    _console().print(grid)


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
