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
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.data.splits import Row
from llmkit.errors import DataError
from llmkit.recipe.recipe import Recipe
from llmkit.recipe.secrets import redact
from llmkit.runs.checks import planned
from llmkit.runs.drawing import (
    ENOUGH,
    Sampled,
    draw,
    golden_level,
    make_folder,
    positions,
    prompt_ids,
    require_single_answers,
    sampling_kwargs,
    score,
)
from llmkit.runs.folder import captured_logs, quiet_handler
from llmkit.runs.pace import Pace, generation_batch, learning_seconds, pace_of
from llmkit.runs.progress import Narrator
from llmkit.runs.reopen import Reopened, open_model
from llmkit.runs.workbench import require_rewards, spread_out, training_rows

QUANTILES = (0.1, 0.5, 0.9, 0.95, 1.0)
MUCH_CLIPPED = 0.2
"""Share of answers cut off at the limit that is worth a sentence."""

MOST = 0.5
"""Share of groups without signal that is worth a sentence."""


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
    require_single_answers(recipe, "preflight")
    if out is not None and out.exists():
        raise DataError(f"{out} exists already, and is not overwritten")
    narrator = narrator or Narrator()
    every_row = training_rows(recipe)
    rows = spread_out(every_row, prompts)
    if out is not None:
        make_folder(out.parent)
    with captured_logs(quiet_handler()):
        opened = open_model(recipe, None)
        ids = prompt_ids(opened, rows)
        longest = _longest(opened, rows, ids, every_row)
        narrator.say(f"{len(rows)} prompts x {samples} answers of {recipe.model.name}")
        settings = sampling_kwargs(recipe, opened.plan)
        # As many at once as the trainer samples, so that the time is the run's.
        at_once = max(1, round(generation_batch(recipe, opened.plan)))
        with narrator.bar("sampling", len(rows) * samples) as bar:
            found, generating = draw(opened, ids, samples, settings, batch_size=at_once, on_done=bar.update)
        answers, scoring = score(recipe, rows, samples, found)
        learning = learning_seconds(opened, [prompt for prompt in ids for _ in range(samples)], found)
    level = _passing(recipe, rows, [answer.total for answer in answers]) if pass_at is None else (pass_at, "given")
    pace = pace_of(recipe, opened.plan, len(every_row), len(answers), generating, scoring, learning)
    length = int(settings["max_new_tokens"])
    group = int(planned(recipe, opened.plan, "num_generations"))
    result = summarize(
        answers, samples, group=group, pass_at=level, max_completion_length=length, pace=pace, longest=longest
    )
    if out is not None:
        scratch = out.with_name(f".{out.name}.tmp")
        scratch.write_text(redact(json.dumps(result.to_dict(), indent=2, ensure_ascii=False)) + "\n", encoding="utf-8")
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
    golden = golden_level(recipe, rows)
    if golden is not None:
        return golden, "golden answers"
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


# --- the longest prompt ----------------------------------------------------------------------------------------------


def _longest(opened: Reopened, rows: Sequence[Row], ids: Sequence[list[int]], every_row: Sequence[Row]) -> Prompt:
    """Return the longest prompt among those sampled and the one of all rows that has the most characters."""
    wordy = max(every_row, key=lambda row: len(str(row.example["prompt"])))
    pairs = [*zip(rows, ids, strict=True), (wordy, prompt_ids(opened, [wordy])[0])]
    row, tokens = max(pairs, key=lambda pair: len(pair[1]))
    return Prompt(row.where, len(tokens), positions(opened))
