"""The recipe that a rehearsal runs: the real one with a small model, few rows, three steps, and all else as planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.recipe.recipe import Limits, Recipe, Training
from llmkit.runs.checks import planned

if TYPE_CHECKING:
    from llmkit.planning.plan import Plan
    from llmkit.recipe.recipe import Data

STEPS, SAVED = 3, 2
"""Steps that are taken, and the one from which they are resumed."""

ROWS, GROUP = 2, 8
"""Most rows of a batch, and completions of a group."""

OWN_ROWS = 32
"""Most rows of an evaluation that has rows of its own."""

ANSWER = 128
"""Most tokens of an answer: a model with random weights never ends one."""


def small_recipe(recipe: Recipe, the_plan: Plan, model: Path, data: Data) -> Recipe:
    """Return `recipe` as it is planned, with the model in `model`, the rows of `data` and `STEPS` steps.

    What the planner decided for the real model is set, because it would decide something else for a small one.
    """
    chosen = the_plan.section("model")
    changes: dict[str, Any] = {
        "model": recipe.model.model_copy(update={**_unset(recipe.model, chosen), "name": str(model), "revision": None}),
        "data": data,
        "training": Training.model_validate(_training(recipe, the_plan)),
        # A limit that is reached before the third step would leave the rest out.
        "limits": Limits(),
        "checkpoints": recipe.checkpoints.model_copy(
            update={"keep": recipe.checkpoints.keep.model_copy(update={"last": max(2, recipe.checkpoints.keep.last)})}
        ),
        "gates": (),  # a model with random weights would miss them
        "evaluation": tuple(_short(evaluation) for evaluation in recipe.evaluation),
    }
    small = recipe.model_copy(update=changes)
    return small.placed(recipe.folder, json.dumps(small.model_dump(exclude_unset=True), indent=2, default=str) + "\n")


def _unset(section: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chosen.items() if getattr(section, name, None) is None}


def _short(evaluation: Any) -> Any:
    most = getattr(evaluation, "max_new_tokens", None)
    update: dict[str, Any] = {"max_new_tokens": min(most, ANSWER)} if most else {}
    if getattr(evaluation, "data", None) is not None:
        update["limit"] = min(evaluation.limit or OWN_ROWS, OWN_ROWS)
    return evaluation.model_copy(update=update)


def _training(recipe: Recipe, the_plan: Plan) -> dict[str, Any]:
    settings = {**the_plan.section("training"), **recipe.training.kwargs()}
    kept = {
        name: value
        for name, value in settings.items()
        if name not in Training.reserved and not name.startswith("torch_compile")
    }
    kept |= {"max_steps": STEPS, "logging_steps": 1, "torch_compile": False}
    if settings.get("report_to") not in (None, "none", []):
        kept["run_name"] = "llmkit-rehearsal"
    kept |= _occasions(recipe, the_plan)
    kept |= _of_groups(recipe, the_plan) if recipe.method.needs_rewards else _of_rows(recipe, the_plan)
    return {name: value for name, value in kept.items() if value is not None}


def _occasions(recipe: Recipe, the_plan: Plan) -> dict[str, Any]:
    """Return when it is saved and scored while training: by steps, as there are no epochs to wait for."""
    found: dict[str, Any] = {}
    if planned(recipe, the_plan, "save_strategy") not in ("no", "best"):
        found |= {"save_strategy": "steps", "save_steps": SAVED}
    if planned(recipe, the_plan, "eval_strategy") not in (None, "no"):
        found |= {"eval_strategy": "steps", "eval_steps": SAVED, "eval_delay": 0}
    return found


def _of_rows(recipe: Recipe, the_plan: Plan) -> dict[str, Any]:
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    return {name: min(ROWS, int(planned(recipe, the_plan, name) or 1)) for name in names}


def _of_groups(recipe: Recipe, the_plan: Plan) -> dict[str, Any]:
    """Return the batches of a method that samples: a group each, so that groups come out whole."""

    def value(name: str) -> Any:
        return planned(recipe, the_plan, name)

    group = min(GROUP, int(value("num_generations")))
    again = any(value(name) is not None for name in ("steps_per_generation", "generation_batch_size"))
    return {
        "num_generations": group,
        "num_generations_eval": None,
        "per_device_train_batch_size": group,
        "per_device_eval_batch_size": group,
        "gradient_accumulation_steps": 1 if again else min(ROWS, int(value("gradient_accumulation_steps") or 1)),
        # Answers that several steps learn from have to survive a checkpoint between them.
        "steps_per_generation": SAVED + 1 if again else None,
        "generation_batch_size": None,
        "max_completion_length": min(ANSWER, int(value("max_completion_length"))),
    }


def noted(section: Any, work: str, made: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:
    """Return a copy of a section of a recipe whose method `work` is what `made` makes of it; all else is the same."""
    copy = section.model_copy()
    # Beside the fields, where a dump of the section does not look.
    copy.__dict__[work] = made(getattr(copy, work))
    return copy
