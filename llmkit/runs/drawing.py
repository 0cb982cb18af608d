"""Answers drawn from a model to training prompts, and scored by the recipe's rewards: for `preflight` and `sample`."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.data.shapes import RowError, Shape
from llmkit.data.splits import Row
from llmkit.data.tokens import tokenize
from llmkit.errors import DataError, RecipeError, SetupError
from llmkit.model.generation import Continuation, sample
from llmkit.model.loading import load_stop_ids
from llmkit.planning.plan import Plan
from llmkit.recipe.recipe import Recipe
from llmkit.rewards.base import score_part, total
from llmkit.runs.checks import planned
from llmkit.runs.probes import STAND_IN, golden_answers, prompt_text
from llmkit.runs.reopen import Reopened

ENOUGH = 1e-9
"""Rewards that differ by less are the same: weighted sums round."""

OWN = frozenset({"do_sample", "eos_token_id", "pad_token_id", "use_cache", "num_beams"})
"""Keys of `training.generation_kwargs` that sampling sets itself, here as in the run."""


@dataclass(frozen=True)
class Sampled:
    """One answer of the model; `tokens` counts the end token, `parts` has each reward without its weight."""

    where: str
    prompt: str
    completion: str
    tokens: int
    clipped: bool
    total: float
    parts: dict[str, float]


# --- before anything is loaded ---------------------------------------------------------------------------------------


def require_single_answers(recipe: Recipe, command: str) -> None:
    """Raise RecipeError if the method's answers go back and forth with tools; `command` is what can't do that."""
    if getattr(recipe.method, "tools", ()) or getattr(recipe.method, "environment", None):
        raise RecipeError(
            f"{command} samples single answers, and this method's go back and forth with tools",
            remedy="Leave out `method.tools` and `method.environment` to see what the model earns without them.",
        )


def make_folder(folder: Path) -> None:
    """Make the folder of a file to write; raises SetupError if it can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"the folder {folder} of --out can't be made: {error.strerror}") from error


def sampling_kwargs(recipe: Recipe, the_plan: Plan) -> dict[str, Any]:
    """Return how the run samples: limit, temperature, seed, and further settings of transformers' GenerationConfig.

    `training.generation_kwargs` win over the fields of the same meaning, as in TRL. Raises RecipeError where they are
    no object, or ask for beams.
    """
    names = ("top_p", "top_k", "min_p", "repetition_penalty")
    fields = {name: planned(recipe, the_plan, name) for name in names}
    further = _generation_kwargs(recipe, the_plan)
    return {
        "max_new_tokens": int(planned(recipe, the_plan, "max_completion_length")),
        "temperature": float(planned(recipe, the_plan, "temperature")),
        "seed": int(planned(recipe, the_plan, "seed")),
        **{name: value for name, value in fields.items() if value is not None},
        **{name: value for name, value in further.items() if name not in OWN},
        # What is greedy in the run is greedy here.
        **({"temperature": 0.0} if further.get("do_sample") is False else {}),
    }


def _generation_kwargs(recipe: Recipe, the_plan: Plan) -> dict[str, Any]:
    given = planned(recipe, the_plan, "generation_kwargs") or {}
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise RecipeError(f"`training.generation_kwargs` is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise RecipeError(f"`training.generation_kwargs` must be an object, not {given!r}")
    if given.get("num_beams", 1) != 1:
        raise RecipeError(
            "answers are sampled without beams, and `training.generation_kwargs` has `num_beams`",
            remedy="Leave `num_beams` out to see what the model earns without them.",
        )
    return dict(given)


def golden_level(recipe: Recipe, rows: Sequence[Row]) -> float | None:
    """Return the weighted total that golden answers to `rows` earn; None where no reward tells one."""
    told, source = golden_answers(recipe.rewards, rows)
    golden = []
    for row, texts in zip(rows, zip(*told, strict=True), strict=True):
        known = [text for text in dict.fromkeys(texts) if text is not None]
        if known and source is not STAND_IN:
            parts = [score_part(reward, known, [row] * len(known)) for reward in recipe.rewards]
            golden.append(max(total(recipe.rewards, parts)))
    # The median: a row whose golden answer earns nothing must not let everything pass.
    return statistics.median(golden) if golden else None


# --- with a model ----------------------------------------------------------------------------------------------------


def prompt_ids(opened: Reopened, rows: Sequence[Row]) -> list[list[int]]:
    """Return the tokens of each prompt, made as for training; raises DataError for the first that can't be."""
    stops = load_stop_ids(opened.recipe, opened.tokenizer)
    found = tokenize(opened.tokenizer, Shape.PROMPT, [row.example for row in rows], stops)
    ids = []
    for row, tokens in zip(rows, found, strict=True):
        if isinstance(tokens, RowError):
            raise DataError(str(tokens), where=row.where) from tokens
        ids.append(tokens["prompt_ids"])
    return ids


def positions(opened: Reopened) -> int | None:
    """Return how many tokens the model can read, prompt and answer together; None where its config names no limit."""
    found: int | None = getattr(opened.model.config, "max_position_embeddings", None)
    return found


def draw(
    opened: Reopened,
    prompts: Sequence[list[int]],
    samples: int,
    settings: Mapping[str, Any],
    *,
    batch_size: int,
    on_done: Callable[[int], None] | None = None,
) -> tuple[list[Continuation], float]:
    """Return `samples` answers to each prompt, one prompt's after another's, and the seconds they took.

    `settings` are those of `sampling_kwargs`. `on_done` is called with the number of answers that are there.
    """
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    began = time.perf_counter()
    found = sample(opened.model, opened.tokenizer, repeated, batch_size=batch_size, on_done=on_done, **settings)
    return found, time.perf_counter() - began


def score(
    recipe: Recipe, rows: Sequence[Row], samples: int, found: Sequence[Continuation]
) -> tuple[list[Sampled], float]:
    """Return the scored answers, in order, and the seconds that the rewards took; each row has `samples` in a row."""
    repeated = [row for row in rows for _ in range(samples)]
    began = time.perf_counter()
    parts = [score_part(reward, [answer.text for answer in found], repeated) for reward in recipe.rewards]
    seconds = time.perf_counter() - began
    totals = total(recipe.rewards, parts)
    names = [reward.name for reward in recipe.rewards]
    answers = []
    for index, (row, answer) in enumerate(zip(repeated, found, strict=True)):
        scores = {name: values[index] for name, values in zip(names, parts, strict=True)}
        clipped = not answer.stopped
        answers.append(
            Sampled(row.where, prompt_text(row), answer.text, len(answer.tokens), clipped, totals[index], scores)
        )
    return answers, seconds
