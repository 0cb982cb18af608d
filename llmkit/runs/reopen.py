"""A finished run (or a recipe's base model) opened again: to evaluate, export, chat with, or generate from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmkit.data.splits import Splits
from llmkit.errors import DataError, RecipeError, SetupError
from llmkit.evaluation.base import Score
from llmkit.exports.base import Exported, Trained
from llmkit.model.loading import load_model, load_stop_ids, load_tokenizer, on_device
from llmkit.planning.plan import Plan
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.recipe import Recipe
from llmkit.runs import scoring
from llmkit.runs.checks import check, setting
from llmkit.runs.exporting import export_all
from llmkit.runs.folder import RunFolder, require_same_rows
from llmkit.runs.prepare import load_rows, plan, row_hashes, set_up_rewards
from llmkit.runs.progress import Narrator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Reopened:
    """A model ready to answer. `folder` is None where only a recipe's base model was asked for."""

    recipe: Recipe
    plan: Plan
    folder: RunFolder | None
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel


def recipe_of(target: Path, overrides: Iterable[str] = ()) -> tuple[Recipe, RunFolder | None]:
    """Return the recipe of a run folder or of a recipe file; or raise RecipeError or SetupError."""
    if not target.is_dir():
        return load_recipe(target, overrides), None
    folder = RunFolder.open(target)
    recipe = load_recipe(target / "recipe.yaml", overrides)
    # Relative paths still start where the run was started from.
    return recipe.placed(Path(folder.read_json("lock.json")["folder"])), folder


def reopen(target: Path, overrides: Iterable[str] = ()) -> Reopened:
    """Load the tuned model of the run folder `target`, or the base model of the recipe file `target`."""
    recipe, folder = recipe_of(target, overrides)
    return open_model(recipe, folder)


def open_model(recipe: Recipe, folder: RunFolder | None, *, base: bool = False) -> Reopened:
    """Load the tuned model of `folder`; the base model if there is no folder or with `base`."""
    the_plan = plan(recipe)
    tokenizer = load_tokenizer(recipe)
    if folder is None or base:
        model = load_model(recipe, the_plan, tokenizer)
    elif not folder.model.is_dir():
        raise SetupError(
            f"{folder.path} has no trained model yet", remedy=f"llmkit run {folder.path}/recipe.yaml --resume"
        )
    elif (folder.model / "adapter_config.json").is_file():
        # Over the recipe's base, and not over the path in the adapter's own config: a cache may have been emptied.
        model = load_model(recipe, the_plan, tokenizer, adapter=folder.model)
    else:
        model = load_model(_with_model(recipe, folder.model), the_plan, tokenizer)
    model.eval()
    return Reopened(recipe, the_plan, folder, tokenizer, on_device(model, the_plan))


def _with_model(recipe: Recipe, path: Path) -> Recipe:
    """Return `recipe` with the model in the folder `path` in place of its own; everything else is as it was."""
    model = recipe.model.model_copy(update={"name": str(path.resolve())})
    return recipe.model_copy(update={"model": model}).placed(recipe.folder)


def _splits(opened: Reopened, narrator: Narrator) -> Splits:
    stops = load_stop_ids(opened.recipe, opened.tokenizer)
    return load_rows(opened.recipe, opened.tokenizer, stops, narrator)[0]


def evaluate(
    target: str | Path, overrides: Iterable[str] = (), *, narrator: Narrator | None = None
) -> dict[str, list[Score]]:
    """Score a run's tuned model and its base on the held-out rows; a recipe file's base model alone.

    Returns the scores by `base` and `tuned`, each in the order of the recipe's `evaluation`.
    """
    narrator, overrides = narrator or Narrator(), tuple(overrides)
    recipe, folder = recipe_of(Path(target), overrides)
    check(recipe)
    if not recipe.evaluation:
        raise RecipeError("the recipe has no `evaluation`", remedy="Add one: --set 'evaluation=[{type: perplexity}]'")
    found: dict[str, list[Score]] = {}
    for name in ("base", "tuned") if folder else ("base",):
        opened = open_model(recipe, folder, base=name == "base")
        splits = _splits(opened, narrator)
        rows = splits.eval
        if folder is not None and not overrides:
            # Rows that were held out anew might have been trained on.
            require_same_rows(folder, {"eval": row_hashes(splits)["eval"]})
        if not found:
            needy = any(one.needs_rewards and one.requires_rows() for one in recipe.evaluation)
            set_up_rewards(recipe, rows if needy else ())
        # The next one is loaded when this one is gone: both at once might not fit.
        model, tokenizer = opened.model, opened.tokenizer
        del opened
        found[name] = scoring.score(
            recipe.evaluation,
            model,
            tokenizer,
            rows,
            seed=int(setting(recipe, "seed")),
            folder=recipe.folder,
            narrator=narrator,
            name=name,
            rewards=recipe.rewards,
            base=found.get("base"),
        )
        del model
    return found


def export(target: str | Path, overrides: Iterable[str] = (), *, narrator: Narrator | None = None) -> list[Exported]:
    """Write the exports of a finished run, each checked; raises SetupError if `target` has no trained model."""
    opened = reopen(Path(target), overrides)
    if opened.folder is None:
        raise SetupError(f"{target} is a recipe; export takes the folder of a finished run")
    if not opened.recipe.export:
        raise RecipeError("the recipe has no `export`", remedy="Add one: --set 'export=[{type: merged}]'")
    check(opened.recipe)
    narrator = narrator or Narrator()
    splits = _splits(opened, narrator)
    trained = Trained(opened.recipe, opened.plan, opened.model, opened.tokenizer, splits, opened.folder.model)
    return export_all(trained, opened.folder, narrator)


def read_prompts(path: Path) -> list[dict[str, object]]:
    """Read a JSONL file with a `prompt` (string or messages) on each line; raises DataError with the line."""
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    rows = []
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it takes for the end of a line.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"not JSON: {error}", where=f"{path}:{number}") from error
        if not isinstance(row, dict) or "prompt" not in row:
            raise DataError("each line is an object with a `prompt`", where=f"{path}:{number}")
        rows.append(row)
    return rows
