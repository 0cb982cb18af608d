"""What can be refused before torch is imported, a row is read, or anything is downloaded."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

from llmkit.data.checking import check_data
from llmkit.errors import RecipeError, SetupError, did_you_mean
from llmkit.model.sources import locate
from llmkit.planning.checks import check as check_plan
from llmkit.recipe import fields
from llmkit.recipe.places import named_path, read_file
from llmkit.rewards.base import check_names

if TYPE_CHECKING:
    from llmkit.planning.plan import Plan
    from llmkit.recipe.recipe import Recipe

# Trackers of transformers 5.23 whose package is imported under the same name.
TRACKERS = ("clearml", "codecarbon", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")


def check(recipe: Recipe) -> None:
    """Refuse what can't work, before torch is imported or anything is downloaded.

    Raises RecipeError, DataError or SetupError.
    """
    _check_processes()
    check_plan(recipe)
    _check_adapter_init(recipe)
    _check_model(recipe)
    _check_length(recipe)
    check_data(recipe)
    require_trackers(recipe)
    _check_continued(recipe)
    _check_rewards(recipe)
    recipe.method.check_recipe(recipe)
    _check_evaluation(recipe)
    whole = [index for index, export in enumerate(recipe.export) if export.needs_adapter]
    if whole and recipe.adapter is None:
        names = ", ".join(recipe.export[index].type for index in whole)
        raise RecipeError(
            f"export {names} needs an adapter, and this recipe trains the full model",
            where=recipe.origin(("export", whole[0])),
            remedy="Remove the export (a fully trained model is whole in RUN/model), or add `adapter: {type: lora}`.",
        )


def _check_model(recipe: Recipe) -> None:
    model = recipe.model
    with recipe.at("model", "name"):
        locate(model, recipe.folder)
    if model.chat_template is None:
        return
    with recipe.at("model", "chat_template"):
        path = named_path(model.chat_template, recipe.folder)
        try:
            read_file(path)
        except OSError as error:
            raise SetupError(f"`model.chat_template`: {path} can't be read: {error.strerror}") from error


def _check_evaluation(recipe: Recipe) -> None:
    if recipe.gates and not recipe.evaluation:
        raise RecipeError(
            "`gates` are about scores, and the recipe has no `evaluation`",
            where=recipe.origin(("gates",)),
            remedy="Add the evaluation that gives the metric.",
        )
    for index, evaluation in enumerate(recipe.evaluation):
        with recipe.at("evaluation", index):
            if recipe.method.model_class not in evaluation.model_classes:
                raise RecipeError(
                    f"evaluation `{evaluation.type}` can't measure what method {recipe.method.type!r} trains",
                    remedy="Use `preference_accuracy`, which measures reward models too.",
                )
            evaluation.check_setup(recipe.folder)
    if setting(recipe, "eval_strategy") not in (None, "no") and recipe.data.eval is None:
        raise RecipeError(
            "`training.eval_strategy` needs held-out rows",
            where=recipe.origin(("training", "eval_strategy")),
            remedy="Add `eval: 0.02` (a share of the training rows) or sources of their own to `data`.",
        )
    best = recipe.checkpoints.keep.best
    if best and setting(recipe, "eval_strategy") in (None, "no"):
        raise RecipeError(
            f"`checkpoints.keep.best: {best}` keeps what scores best while training, and nothing is scored then",
            where=recipe.origin(("checkpoints", "keep", "best")),
            remedy="Set `training.eval_strategy: steps` (and `eval_steps`), or leave out `best`.",
        )
    needy = [e.type for e in recipe.evaluation if e.requires_rows()]
    if needy and recipe.data.eval is None:
        raise RecipeError(
            f"evaluation {', '.join(needy)} needs held-out rows",
            where=recipe.origin(("evaluation",)),
            remedy="Add `eval: 0.02` (a share of the training rows) or sources of their own to `data`.",
        )


def _check_rewards(recipe: Recipe) -> None:
    method = recipe.method
    if method.needs_rewards and not recipe.rewards:
        raise RecipeError(
            f"method {method.type!r} learns from rewards, and the recipe has none",
            where=recipe.origin(("method",)),
            remedy="Add e.g. `rewards: [{type: exact_match}]`; docs/reference.md lists them.",
        )
    scoring = [e.type for e in recipe.evaluation if e.needs_rewards]
    if scoring and not recipe.rewards:
        raise RecipeError(
            f"evaluation {', '.join(scoring)} scores with rewards, and the recipe has none",
            where=recipe.origin(("evaluation",)),
            remedy="Add e.g. `rewards: [{type: exact_match}]`.",
        )
    if recipe.rewards and not (method.needs_rewards or scoring):
        raise RecipeError(
            f"method {method.type!r} learns from its rows alone, no evaluation scores with rewards, and the recipe has "
            "`rewards`",
            where=recipe.origin(("rewards",)),
            remedy="Remove them, use `method: {type: grpo}`, or add `evaluation: [{type: reward}]`.",
        )
    with recipe.at("rewards"):
        check_names(recipe.rewards)
    for index, reward in enumerate(recipe.rewards):
        with recipe.at("rewards", index):
            reward.check_setup(recipe.folder)


def _check_processes() -> None:
    # Loading, scoring and writing are one process's work so far; several would write the same run folder.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SetupError(
            f"llmkit was started as {os.environ['WORLD_SIZE']} processes, and runs in one so far",
            remedy="Start it as `llmkit run RECIPE`, or with --nproc_per_node 1 / --num_processes 1.",
        )


def _check_length(recipe: Recipe) -> None:
    length = setting(recipe, "max_length")
    if isinstance(length, int) and length < 2:
        raise RecipeError(
            f"`training.max_length` is {length} tokens, and a row needs two: one is predicted from the other",
            where=recipe.origin(("training", "max_length")),
            remedy="Raise it, or write null for no limit.",
        )


def _check_adapter_init(recipe: Recipe) -> None:
    """Refuse initialisations that rewrite the base weights where those are packed."""
    init = recipe.adapter.kwargs().get("init_lora_weights", True) if recipe.adapter is not None else True
    if recipe.quantization is not None and not (isinstance(init, bool) or init in ("gaussian", "orthogonal")):
        raise RecipeError(
            f"`adapter.init_lora_weights: {init}` rewrites the base weights, and quantized ones can't be rewritten",
            where=recipe.origin(("adapter", "init_lora_weights")),
            remedy="Use true, gaussian or orthogonal, or leave out `quantization`.",
        )


def _check_continued(recipe: Recipe) -> None:
    if not is_adapter(recipe):
        return
    if recipe.adapter is None:
        raise RecipeError(
            f"`model.name`: {recipe.model.name} is an adapter folder, and the recipe has no `adapter`",
            where=recipe.origin(("model", "name")),
            remedy="Add `adapter: {type: lora}` to go on training it; its shape comes from the folder.",
        )
    if recipe.adapter.kwargs():
        keys = ", ".join(sorted(recipe.adapter.kwargs()))
        raise RecipeError(
            f"`adapter`: {keys} can't be set, because training continues from the adapter in {recipe.model.name}",
            where=recipe.origin(("adapter",)),
            remedy="Write `adapter: {type: lora}` alone, or start from a base model.",
        )


def is_adapter(recipe: Recipe) -> bool:
    """Whether `model.name` is an adapter folder that training continues from."""
    return locate(recipe.model, recipe.folder).adapter is not None


def setting(recipe: Recipe, name: str) -> Any:
    """Return a training field of `recipe`: what it sets, or the default of the method's TRL config (None if none)."""
    known = fields.describe(recipe.method.config)
    default = known[name].default if name in known else None
    return recipe.training.kwargs().get(name, default)


def planned(recipe: Recipe, the_plan: Plan, name: str) -> Any:
    """Return a training field as the run will have it: the recipe's value, the planner's, or the library's default."""
    if name in recipe.training.kwargs():
        return recipe.training.kwargs()[name]
    return the_plan.get(f"training.{name}", setting(recipe, name))


def require_trackers(recipe: Recipe) -> None:
    """Raise SetupError if the recipe reports to a tracker whose package is not installed."""
    wanted = recipe.training.kwargs().get("report_to", [])
    with recipe.at("training", "report_to"):
        for tracker in [wanted] if isinstance(wanted, str) else wanted:
            if tracker in ("none", "all"):
                continue
            if tracker not in TRACKERS:
                hint = did_you_mean(str(tracker), TRACKERS)
                raise RecipeError(
                    f"`training.report_to` must be none, all or one of {', '.join(TRACKERS)}, not {tracker!r}{hint}"
                )
            if importlib.util.find_spec(tracker) is None:
                raise SetupError(f"`training.report_to`: {tracker} is not installed", remedy=f"pip install {tracker}")
