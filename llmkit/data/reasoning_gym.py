"""Rows made by the package reasoning_gym: `reasoning_gym:TASK`, questions with the entry that their scorer needs.

    {"prompt": [{"role": "user", "content": "State the final answer to ...: 4 + 3 ="}], "answer": "7",
     "task": "chain_sum", "entry": {"question": ..., "answer": "7", "metadata": {...}}}

Importing the package takes seconds, so names of tasks and options are read from its source files. `entry` stays as the
package made it: two of its scorers tell tuples from lists.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import DataError, RecipeError, SetupError, did_you_mean

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Source

PREFIX = "reasoning_gym:"
SPLITS = ("train", "test")
SIZE = 500
"""Rows of a split where neither `options.size` nor `max_rows` says how many."""

HELD_OUT_SEED = 1_000_000_000
"""What the seed of `split: test` is moved by. Row i is made from seed + i, so neighbouring seeds share their rows."""

UNREPEATABLE = ("codeio", "isomorphic_strings", "polynomial_multiplication", "ransom_note")
"""Tasks of reasoning_gym 0.1.25 that iterate over sets: each Python process asks other questions from the same seed."""


def check(source: Source) -> None:
    """Check, without importing the package, that the task, the split and the options exist.

    Raises SetupError if the package is not installed, DataError or RecipeError for what it doesn't have.
    """
    task = _task(source)
    if task not in _files():
        raise DataError(
            f"reasoning_gym has no task {task!r}{did_you_mean(task, _files())}",
            where=source.path,
            remedy=f"Tasks: {', '.join(_files())}.",
        )
    if task in UNREPEATABLE:
        raise DataError(
            f"the rows of {task!r} differ from one Python process to the next, so no run on them can be repeated",
            where=source.path,
            remedy="Choose another task, or write its rows to a file once and use that.",
        )
    if source.split not in (None, *SPLITS):
        raise DataError(f"no split {source.split!r}", where=source.path, remedy=f"Splits: {', '.join(SPLITS)}.")
    known = _options(task)
    for name in source.options:
        if name not in known:
            raise RecipeError(
                f"{task!r} has no option {name!r}{did_you_mean(name, known)}",
                where=source.path,
                remedy=f"Its options: {', '.join(known)}.",
            )
    seed = source.options.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < HELD_OUT_SEED:
        raise RecipeError(f"`options.seed` must be an integer from 0 to {HELD_OUT_SEED - 1}", where=source.path)


def rows(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of `source` after their places (`reasoning_gym:chain_sum/test[3]`), always the same ones.

    Raises RecipeError for options that the task refuses.
    """
    task, split = _task(source), source.split or SPLITS[0]
    seed = source.options.get("seed", 0) + (HELD_OUT_SEED if split == "test" else 0)
    options = {"size": source.max_rows or SIZE, **source.options, "seed": seed}
    for index, entry in enumerate(_entries(source, task, options)):
        prompt = [{"role": "user", "content": entry["question"]}]
        row = {"prompt": prompt, "answer": entry["answer"], "task": task, "entry": entry}
        yield f"{source.path}/{split}[{index}]", row


def _task(source: Source) -> str:
    return source.path.removeprefix(PREFIX)


def _entries(source: Source, task: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        made = importlib.import_module("reasoning_gym").create_dataset(task, **options)
    except (AssertionError, TypeError, ValueError) as error:  # how its configurations check themselves
        raise RecipeError(f"reasoning_gym refuses these options: {error}", where=source.path) from error
    with _seeded(options["seed"]):
        return [made[index] for index in range(min(len(made), source.max_rows or len(made)))]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Fix Python's own random numbers, which a task (list_functions) draws beside its seed; the caller's are kept."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@cache
def _files() -> dict[str, Path]:
    """Return the source file of each task, by name. `composite`, which joins others, is left out: list sources."""
    spec = importlib.util.find_spec("reasoning_gym")
    if spec is None or not spec.submodule_search_locations:
        raise SetupError("the package reasoning_gym is not installed", remedy='pip install "llmkit[rl]"')
    found = {}
    for file in Path(spec.submodule_search_locations[0]).rglob("*.py"):
        name = re.search(r'^DATASET_NAME = "(\w+)"$', file.read_text(encoding="utf-8"), re.MULTILINE)
        if name:
            found[name[1]] = file
    return dict(sorted(found.items()))


@cache
def _options(task: str) -> tuple[str, ...]:
    """Return the fields of the configuration that the task's file registers."""
    tree = ast.parse(_files()[task].read_text(encoding="utf-8"))
    calls = [node.value for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    name = next(ast.unparse(call.args[2]) for call in calls if ast.unparse(call.func) == "register_dataset")
    config = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return tuple(ast.unparse(item.target) for item in config.body if isinstance(item, ast.AnnAssign))
