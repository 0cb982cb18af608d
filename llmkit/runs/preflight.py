"""Preflight of a run with rewards: what the base model earns before any training, and whether it can learn from that.

A few prompts are answered several times each, and the answers are scored. A group of answers that all earn the same
teaches nothing, so the share of such groups says more about a run's chances than the mean reward does. The time of a
step is measured on the way.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from llmkit.runs.folder import captured_logs, quiet_handler
from llmkit.runs.pace import Pace, generation_batch, learning_seconds, pace_of, planned
from llmkit.runs.probes import STAND_IN, golden_answers, prompt_text
from llmkit.runs.progress import Narrator
from llmkit.runs.reopen import Reopened, open_model
from llmkit.runs.workbench import require_rewards, spread_out, training_rows

QUANTILES = (0.1, 0.5, 0.9, 0.95, 1.0)
MUCH_CLIPPED = 0.2
"""Share of answers cut off at the limit that is worth a sentence."""

MOST = 0.5
"""Share of groups without signal that is worth a sentence."""

ENOUGH = 1e-9
"""Rewards that differ by less are the same: weighted sums round."""

OWN = frozenset({"do_sample", "eos_token_id", "pad_token_id", "use_cache", "num_beams"})
"""Keys of `training.generation_kwargs` that sampling sets itself, here as in the run."""


@dataclass(frozen=True)
class Sampled:
    """One answer of the base model; `tokens` counts the end token, `parts` has each reward without its weight."""

    where: str
    prompt: str
    completion: str
    tokens: int
    clipped: bool
    total: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Silent:
    """Shares of groups whose answers all earn the same, so that nothing is learnt from them."""

    all_right: float
    """All pass."""

    all_wrong: float
    """All earn the lowest reward seen."""

    all_equal: float
    """All earn the same in between."""

    @property
    def share(self) -> float:
        """All of them together."""
        return self.all_right + self.all_wrong + self.all_equal


@dataclass(frozen=True)
class Prompt:
    """The longest prompt that was looked at."""

    where: str
    tokens: int
    positions: int | None
    """Tokens that the model can read, prompt and answer together; None where its config names no limit."""


@dataclass(frozen=True)
class Preflight:
    """What the base model earns, prompt by prompt, and what a step takes."""

    prompts: int
    samples: int
    """Answers to each prompt."""
    group: int
    """Answers per group that `silent` speaks of: the run's, or `samples` where those are fewer."""
    reward: float
    """Mean of the weighted total."""
    parts: dict[str, float]
    """Mean of each reward, without its weight."""
    pass_at: float
    """Total from which an answer passes."""
    pass_at_from: str
    """Where that number comes from."""
    passes: tuple[float, ...]
    """pass@1, pass@2, ... pass@samples."""
    silent: Silent
    clipped: float
    """Share of answers that reached `max_completion_length` without an end token."""
    lengths: dict[str, int]
    """Quantiles of the answers' length, in tokens."""
    max_completion_length: int
    longest: Prompt | None
    pace: Pace
    answers: tuple[Sampled, ...]

    @property
    def advice(self) -> tuple[str, ...]:
        """What to change, in sentences; that the signal is fine where nothing is wrong."""
        return tuple(_advise(self))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-able values."""
        pace = {**asdict(self.pace), "seconds": self.pace.seconds, "hours": self.pace.hours}
        return {**asdict(self), "pace": pace, "advice": list(self.advice)}


def preflight(
    recipe: Recipe,
    *,
    prompts: int = 16,
    samples: int = 8,
    pass_at: float | None = None,
    out: Path | None = None,
    narrator: Narrator | None = None,
) -> Preflight:
    """Sample `samples` answers of the base model to each of `prompts` training prompts, score them, and time a step.

    An answer passes with a total of `pass_at`; if unset, with what golden answers earn, or the best answer seen. `out`
    is a JSON file to write, and its folder is made; it is never overwritten. Raises RecipeError, DataError or
    SetupError before anything is sampled, SetupError if a batch doesn't fit in memory, RunError where a reward fails.
    """
    require_rewards(recipe)
    if getattr(recipe.method, "tools", ()) or getattr(recipe.method, "environment", None):
        raise RecipeError(
            "preflight samples single answers, and this method's go back and forth with tools",
            remedy="Leave out `method.tools` and `method.environment` to see what the model earns without them.",
        )
    if out is not None and out.exists():
        raise DataError(f"{out} exists already, and is not overwritten")
    narrator = narrator or Narrator()
    every_row = training_rows(recipe)
    rows = spread_out(every_row, prompts)
    if out is not None:
        _make_folder(out.parent)
    with captured_logs(quiet_handler()):
        opened = open_model(recipe, None)
        ids = _prompt_ids(opened, rows)
        longest = _longest(opened, rows, ids, every_row)
        narrator.say(f"{len(rows)} prompts x {samples} answers of {recipe.model.name}")
        found, generating = _sample(opened, ids, samples, narrator)
        parts, scoring = _score(recipe, rows, samples, found)
        learning = learning_seconds(opened, [prompt for prompt in ids for _ in range(samples)], found)
    answers = _answers(recipe, rows, samples, found, parts)
    level = _passing(recipe, rows, [answer.total for answer in answers]) if pass_at is None else (pass_at, "given")
    pace = pace_of(recipe, opened.plan, len(every_row), len(answers), generating, scoring, learning)
    length = int(sampling(recipe, opened.plan)["max_new_tokens"])
    group = int(planned(recipe, opened.plan, "num_generations"))
    result = summarize(
        answers, samples, group=group, pass_at=level, max_completion_length=length, pace=pace, longest=longest
    )
    if out is not None:
        scratch = out.with_name(f".{out.name}.tmp")
        scratch.write_text(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(scratch, out)
    return result


# --- figures ---------------------------------------------------------------------------------------------------------


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the chance that one of `k` answers, drawn from `samples` of which `passed` pass, passes.

    The unbiased estimator of pass@k of Chen et al. 2021 (arXiv:2107.03374): 1 - C(n - c, k) / C(n, k).
    """
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)


def silent_groups(totals: Sequence[Sequence[float]], group: int, pass_at: float) -> Silent:
    """Return the expected shares of groups of `group` answers that all earn the same.

    `totals` has the rewards of one prompt in each row; a group is drawn from a row without replacement, so that with
    groups as large as the rows these are the shares seen.
    """
    lowest = min(value for row in totals for value in row)
    right = wrong = equal = 0.0
    for row in totals:
        for value, count in Counter(round(value / ENOUGH) * ENOUGH for value in row).items():
            share = math.comb(count, group) / math.comb(len(row), group) / len(totals)
            if value >= pass_at - ENOUGH:
                right += share
            elif value <= lowest + ENOUGH:
                wrong += share
            else:
                equal += share
    return Silent(right, wrong, equal)


def summarize(
    answers: Sequence[Sampled],
    samples: int,
    *,
    group: int,
    pass_at: tuple[float, str],
    max_completion_length: int,
    pace: Pace,
    longest: Prompt | None = None,
) -> Preflight:
    """Return the figures of `answers`, of which `samples` in a row belong to one prompt; computes nothing else."""
    totals = [[a.total for a in answers[i : i + samples]] for i in range(0, len(answers), samples)]
    level, level_from = pass_at
    passed = [sum(value >= level - ENOUGH for value in row) for row in totals]
    lengths = sorted(answer.tokens for answer in answers)
    group = min(group, samples)
    return Preflight(
        prompts=len(totals),
        samples=samples,
        group=group,
        reward=statistics.fmean(answer.total for answer in answers),
        parts={name: statistics.fmean(a.parts[name] for a in answers) for name in answers[0].parts},
        pass_at=level,
        pass_at_from=level_from,
        passes=tuple(statistics.fmean(pass_at_k(samples, count, k) for count in passed) for k in range(1, samples + 1)),
        silent=silent_groups(totals, group, level),
        clipped=statistics.fmean(answer.clipped for answer in answers),
        lengths={f"{q:.0%}": lengths[max(math.ceil(q * len(lengths)) - 1, 0)] for q in QUANTILES},
        max_completion_length=max_completion_length,
        longest=longest,
        pace=pace,
        answers=tuple(answers),
    )


def _passing(recipe: Recipe, rows: Sequence[Row], totals: Sequence[float]) -> tuple[float, str]:
    """Return the total from which an answer passes, and where it comes from."""
    told, source = golden_answers(recipe.rewards, rows)
    golden = []
    for row, texts in zip(rows, zip(*told, strict=True), strict=True):
        known = [text for text in dict.fromkeys(texts) if text is not None]
        if known and source is not STAND_IN:
            parts = [score_part(reward, known, [row] * len(known)) for reward in recipe.rewards]
            golden.append(max(total(recipe.rewards, parts)))
    if golden:
        # The median: a row whose golden answer earns nothing must not let everything pass.
        return statistics.median(golden), "golden answers"
    if max(totals) - min(totals) > ENOUGH:
        return max(totals), "the best answer seen"
    return 1.0, "no answer stood out"


def _advise(found: Preflight) -> list[str]:
    lines = [*_about_signal(found), *_about_room(found)]
    if found.clipped > MUCH_CLIPPED:
        limit = found.max_completion_length
        text = f"{found.clipped:.0%} of the answers are cut off at `training.max_completion_length: {limit}`"
        if found.clipped > 0.9:
            text += ": hardly any ends by itself. Train the base model to end its answers first (SFT), or raise it"
        else:
            text += f": their end is never rewarded. Raise it (to {2 * limit}, say) and look again"
        lines.append(f"{text}.")
    # Where another engine samples, the split of a step's time is not the run's.
    if found.pace.engine is None and found.pace.score > 0.3 * found.pace.seconds:
        share = found.pace.score / found.pace.seconds
        lines.append(f"Scoring takes {share:.0%} of a step: a faster reward is the cheapest way to a faster run.")
    return lines


def _about_room(found: Preflight) -> list[str]:
    """Say what training refuses: a prompt that leaves no room for the longest answer."""
    longest, limit = found.longest, found.max_completion_length
    if longest is None or longest.positions is None or longest.tokens + limit <= longest.positions:
        return []
    return [
        f"The prompt of {longest.where} has {longest.tokens} tokens, which with `training.max_completion_length: "
        f"{limit}` is more than the model's {longest.positions} positions: training refuses it. Lower "
        "`max_completion_length`, or remove the row."
    ]


def _about_signal(found: Preflight) -> list[str]:
    silent = found.silent
    if silent.all_wrong > MOST:
        text = f"{silent.all_wrong:.0%} of the groups of {found.group} are all wrong, and nothing is learnt from them"
        if not found.passes[-1]:
            return [f"{text}: not one answer passes. Take easier prompts, reward part of the way, or run SFT first."]
        enough = next((k for k, rate in enumerate(found.passes, start=1) if rate >= MOST), None)
        more = f"`training.num_generations: {enough}`" if enough and enough > found.group else "more generations"
        return [f"{text}: take easier prompts or {more}, reward part of the way, or run SFT first."]
    if silent.all_right > MOST:
        return [f"{silent.all_right:.0%} of the groups of {found.group} are all right already: take harder prompts."]
    if silent.all_equal > MOST:
        return [
            f"{silent.all_equal:.0%} of the groups of {found.group} earn one and the same reward, neither right nor "
            "wrong: add a reward that tells answers apart, or raise `training.temperature`."
        ]
    if silent.share > MOST:
        return [
            f"{silent.share:.0%} of the groups of {found.group} give no signal ({silent.all_right:.0%} all right, "
            f"{silent.all_wrong:.0%} all wrong): leave out the prompts that are too easy or too hard."
        ]
    return [f"The signal is fine: {1 - silent.share:.0%} of the groups of {found.group} have answers to compare."]


# --- sampling and scoring --------------------------------------------------------------------------------------------


def sampling(recipe: Recipe, the_plan: Plan) -> dict[str, Any]:
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
            "preflight samples without beams, and `training.generation_kwargs` has `num_beams`",
            remedy="Leave `num_beams` out to see what the model earns without them.",
        )
    return dict(given)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"the folder {folder} of --out can't be made: {error.strerror}") from error


def _prompt_ids(opened: Reopened, rows: Sequence[Row]) -> list[list[int]]:
    """Return the tokens of each prompt, made as for training."""
    stops = load_stop_ids(opened.recipe, opened.tokenizer)
    found = []
    for row in rows:
        try:
            found.append(tokenize(opened.tokenizer, Shape.PROMPT, row.example, stops)["prompt_ids"])
        except RowError as error:
            raise DataError(str(error), where=row.where) from error
    return found


def _longest(opened: Reopened, rows: Sequence[Row], ids: Sequence[list[int]], every_row: Sequence[Row]) -> Prompt:
    """Return the longest prompt among those sampled and the one of all rows that has the most characters."""
    wordy = max(every_row, key=lambda row: len(str(row.example["prompt"])))
    pairs = [*zip(rows, ids, strict=True), (wordy, _prompt_ids(opened, [wordy])[0])]
    row, tokens = max(pairs, key=lambda pair: len(pair[1]))
    return Prompt(row.where, len(tokens), getattr(opened.model.config, "max_position_embeddings", None))


def _sample(
    opened: Reopened, prompts: Sequence[list[int]], samples: int, narrator: Narrator
) -> tuple[list[Continuation], float]:
    """Return `samples` answers to each prompt, one prompt's after another's, and the seconds they took."""
    recipe, the_plan = opened.recipe, opened.plan
    settings = sampling(recipe, the_plan)
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    began = time.perf_counter()
    with narrator.bar("sampling", len(repeated)) as bar:
        found = sample(
            opened.model,
            opened.tokenizer,
            repeated,
            # As many at once as the trainer samples, so that the time is the run's.
            batch_size=max(1, round(generation_batch(recipe, the_plan))),
            on_done=bar.update,
            **settings,
        )
    return found, time.perf_counter() - began


def _score(
    recipe: Recipe, rows: Sequence[Row], samples: int, found: Sequence[Continuation]
) -> tuple[list[list[float]], float]:
    """Return the scores of each reward, in the order of the answers, and the seconds they took."""
    repeated = [row for row in rows for _ in range(samples)]
    began = time.perf_counter()
    parts = [score_part(reward, [answer.text for answer in found], repeated) for reward in recipe.rewards]
    return parts, time.perf_counter() - began


def _answers(
    recipe: Recipe, rows: Sequence[Row], samples: int, found: Sequence[Continuation], parts: Sequence[Sequence[float]]
) -> list[Sampled]:
    totals = total(recipe.rewards, parts)
    names = [reward.name for reward in recipe.rewards]
    answers = []
    for index, answer in enumerate(found):
        row = rows[index // samples]
        scores = {name: values[index] for name, values in zip(names, parts, strict=True)}
        clipped = not answer.stopped
        answers.append(
            Sampled(row.where, prompt_text(row), answer.text, len(answer.tokens), clipped, totals[index], scores)
        )
    return answers
