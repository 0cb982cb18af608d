"""The reward workbench: what the recipe's rewards give to golden answers, and to text that deserves nothing.

A policy finds whatever a reward pays for. So each reward is tried on the golden answer of each row, and on probes:
nothing, long filler, the prompt copied, a refusal, the golden answer repeated, its form without its content, the golden
answer of another row, and one answer for all rows. No model is loaded.

Golden answers come from the rewards (`Reward.golden`). A part is held against its own; a part that tells none, and the
weighted total, against those of all parts, each row and probe with the one that scores best. A template replaces them
all; where no reward tells one, the row's own answer stands in.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from llmkit.data.shapes import RowError
from llmkit.data.sources import read_examples
from llmkit.data.splits import Row
from llmkit.errors import DataError, RecipeError
from llmkit.recipe.recipe import Recipe
from llmkit.rewards.base import Reward, score_part
from llmkit.runs.checks import check, planned
from llmkit.runs.pace import completions_per_step
from llmkit.runs.prepare import plan, set_up_rewards
from llmkit.runs.probes import ANOTHER, FOR_ALL, GOLDEN, PROBES, REPEATED, STAND_IN, Candidates, golden_answers, probes
from llmkit.runs.progress import Bar, Narrator

TOTAL = "total"
CLOSE = 0.1
"""A score within this share of the golden answers' mean counts as having reached it."""

SLOW_STEP = 10.0
"""Seconds of scoring per step that are worth a warning."""


@dataclass(frozen=True)
class Line:
    """What one probe scored, row by row."""

    probe: str
    rows: tuple[int, ...]
    """Index of the row of each score: a probe can't be made from every row."""
    scores: tuple[float, ...]
    reached: float
    """Share of the rows that score as much as the golden answers do on average."""

    @property
    def mean(self) -> float:
        """Mean over the rows."""
        return statistics.fmean(self.scores)

    @property
    def spread(self) -> float:
        """Standard deviation over the rows."""
        return statistics.pstdev(self.scores)


@dataclass(frozen=True)
class Part:
    """One reward, or the weighted total, on all probes; the golden answers come first where there are any."""

    name: str
    weight: float
    lines: tuple[Line, ...]
    seconds: float
    """Median time to score one completion; of the total, the sum over the parts."""
    slowest: float
    """Longest time that one completion took, in seconds."""

    def line(self, probe: str) -> Line | None:
        """Return the line of `probe`; None where it could not be made from these rows."""
        return next((line for line in self.lines if line.probe == probe), None)


@dataclass(frozen=True)
class Flag:
    """Something found, in a sentence. An error means: don't train on this."""

    error: bool
    text: str


@dataclass(frozen=True)
class Workbench:
    """What the trial found. `parts` are in the recipe's order; `golden` says where the golden answers come from."""

    rows: int
    golden: str
    parts: tuple[Part, ...]
    total: Part
    flags: tuple[Flag, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found that makes the total worthless."""
        return not any(flag.error for flag in self.flags)


def try_rewards(
    recipe: Recipe, rows: int = 32, *, golden: str | None = None, narrator: Narrator | None = None
) -> Workbench:
    """Score golden answers and probes for `rows` rows, taken evenly from the training rows.

    `golden` is a template of a completion that deserves the full reward, with the row's columns as `$column`. Every row
    is checked, and no model is loaded. Raises RecipeError where the recipe has no rewards or the template names no
    column, DataError for a row that can't be scored, and RunError where a reward fails.
    """
    require_rewards(recipe)
    chosen = spread_out(training_rows(recipe), rows)
    told, source = golden_answers(recipe.rewards, chosen, golden)
    scorers = [_Scorer(reward, chosen) for reward in recipe.rewards]
    merged = [tuple(dict.fromkeys(text for text in per_row if text is not None)) for per_row in zip(*told, strict=True)]
    length = int(planned(recipe, plan(recipe), "max_completion_length"))
    narrator = narrator or Narrator()
    parts = []
    for scorer, own in zip(scorers, told, strict=True):
        name, weight = scorer.reward.name, scorer.reward.weight
        candidates = [(text,) if text is not None else () for text in own] if any(own) else merged
        with narrator.bar(f"scoring {name}", PROBES) as bar:
            tried = probes(chosen, candidates, length)
            parts.append(_part(name, weight, _watched(tried, bar), scorer.scores, [scorer]))
    with narrator.bar(f"scoring the {TOTAL}", PROBES) as bar:
        tried = probes(chosen, merged, length)
        total = _part(TOTAL, 1.0, _watched(tried, bar), _weighted(scorers), scorers)
    flags = [*_judge_total(total, recipe, chosen, sure=source is not STAND_IN), *_judge_speed(parts, recipe)]
    if len(parts) > 1:
        flags += [flag for part in parts if part.weight > 0 for flag in _judge_part(part)]
    return Workbench(len(chosen), source, tuple(parts), total, tuple(flags))


# --- rows ------------------------------------------------------------------------------------------------------------


def require_rewards(recipe: Recipe) -> None:
    """Raise RecipeError if the recipe's method learns from no rewards, and what `check` raises."""
    if not recipe.method.needs_rewards:
        raise RecipeError(
            f"method {recipe.method.type!r} learns from its rows alone: there is no reward to try",
            where=recipe.origin(("method",)),
            remedy="Use `method: {type: grpo}` with e.g. `rewards: [{type: exact_match}]`.",
        )
    check(recipe)


def training_rows(recipe: Recipe) -> list[Row]:
    """Return all training rows that can be used, without tokens, and set the rewards up; raises DataError without one.

    How many others there may be is the run's business.
    """
    placed = [pair for source in recipe.data.train for pair in read_examples(source, recipe.folder)]
    rows = [Row(where, example) for where, example in placed if not isinstance(example, RowError)]
    if not rows:
        where, reason = placed[0]
        raise DataError(f"no row can be used; this one: {reason}", where=where)
    set_up_rewards(recipe, rows)
    return rows


def spread_out(rows: Sequence[Row], count: int) -> list[Row]:
    """Return `count` of the rows, evenly spaced: sets are often sorted, so the first ones are not like the rest."""
    if count >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


# --- scoring ---------------------------------------------------------------------------------------------------------

Scores = Callable[[Sequence[tuple[int, str]]], list[float]]
"""Scores of cases: the row's index and the completion."""


@dataclass
class _Scorer:
    """Scores each completion of a row once, and remembers how long it took."""

    reward: Reward
    rows: Sequence[Row]
    known: dict[tuple[int, str], float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def scores(self, cases: Sequence[tuple[int, str]]) -> list[float]:
        new = [case for case in dict.fromkeys(cases) if case not in self.known]
        # A reward that scores many at once is timed as it will be used.
        at_once = len(new) if type(self.reward).scores is not Reward.scores else 1
        for start in range(0, len(new), max(at_once, 1)):
            batch = new[start : start + at_once]
            began = time.perf_counter()
            values = score_part(self.reward, [text for _, text in batch], [self.rows[index] for index, _ in batch])
            self.seconds += [(time.perf_counter() - began) / len(batch)] * len(batch)
            self.known.update(zip(batch, values, strict=True))
        return [self.known[case] for case in cases]


def _weighted(scorers: Sequence[_Scorer]) -> Scores:
    def scores(cases: Sequence[tuple[int, str]]) -> list[float]:
        found = [[scorer.reward.weight * value for value in scorer.scores(cases)] for scorer in scorers]
        return [sum(values) for values in zip(*found, strict=True)]

    return scores


def _watched(tried: Iterable[tuple[str, Candidates]], bar: Bar) -> Iterator[tuple[str, Candidates]]:
    for done, (probe, candidates) in enumerate(tried):
        bar.update(done, probe)
        yield probe, candidates


def _part(
    name: str, weight: float, tried: Iterable[tuple[str, Candidates]], scores: Scores, scorers: Sequence[_Scorer]
) -> Part:
    found: dict[str, dict[int, float]] = {}
    for probe, candidates in tried:
        cases = [(index, text) for index, texts in enumerate(candidates) for text in texts]
        best: dict[int, float] = {}
        for (index, _), value in zip(cases, scores(cases), strict=True):
            best[index] = max(value, best.get(index, value))
        if best and (probe not in found or statistics.fmean(best.values()) > statistics.fmean(found[probe].values())):
            found[probe] = best
    level = _level(statistics.fmean(found[GOLDEN].values())) if GOLDEN in found else None
    lines = tuple(
        Line(probe, tuple(best), tuple(best.values()), _share_from(level, tuple(best.values())))
        for probe, best in found.items()
    )
    return Part(
        name,
        weight,
        lines,
        seconds=sum(statistics.median(scorer.seconds) for scorer in scorers),
        slowest=sum(max(scorer.seconds) for scorer in scorers),
    )


def _level(golden: float) -> float:
    """Return the score from which the golden answers' mean counts as reached."""
    return golden - CLOSE * abs(golden)


def _share_from(level: float | None, values: Sequence[float]) -> float:
    return sum(value >= level for value in values) / len(values) if level is not None else 0.0


# --- judging ---------------------------------------------------------------------------------------------------------


def _judge_total(total: Part, recipe: Recipe, rows: Sequence[Row], *, sure: bool) -> list[Flag]:
    """Return what is wrong with what is trained on; `sure` where the golden answers are known to be golden."""
    who = f"`{recipe.rewards[0].name}`" if len(recipe.rewards) == 1 else "the total of the rewards"
    golden = total.line(GOLDEN)
    if golden is None:
        text = f"no golden answers are known, so nobody can say what {who} should give: name one with --golden"
        return [Flag(False, text), *_no_signal(total, who, error=False)]
    silent = _no_signal(total, who, error=True)
    if silent:
        return silent
    return [*_low_golden(total, golden, who, rows, sure=sure), *_for_nothing(total, golden, who, error=True)]


def _judge_part(part: Part) -> list[Flag]:
    """Return warnings on one of several parts; the total is what counts."""
    golden = part.line(GOLDEN)
    who = f"`{part.name}`"
    silent = _no_signal(part, who, error=False)
    return silent or (_for_nothing(part, golden, who, error=False) if golden else [])


def _no_signal(part: Part, who: str, *, error: bool) -> list[Flag]:
    values = {value for line in part.lines for value in line.scores}
    if len(values) > 1:
        return []
    golden = " and golden answers" if part.line(GOLDEN) else ""
    return [Flag(error, f"{who} gives {_number(values.pop())} to all probes{golden}: there is no signal to learn from")]


def _low_golden(total: Part, golden: Line, who: str, rows: Sequence[Row], *, sure: bool) -> list[Flag]:
    """Flag golden answers that don't all earn what the best of them does: an error where one earns nothing at all.

    Nothing at all is what the same row gives to an empty answer; scales may differ from row to row.
    """
    best = max(golden.scores)
    low = {row: value for row, value in zip(golden.rows, golden.scores, strict=True) if value < _level(best)}
    if golden.mean >= _level(best) or not low:
        return []
    empty = total.line("empty")
    nothing = dict(zip(empty.rows, empty.scores, strict=True)) if empty else {}
    worthless = [row for row, value in low.items() if row in nothing and value <= nothing[row]]
    named = worthless or list(low)
    counted = f"{len(named)} of {len(golden.scores)} rows; the first is {rows[named[0]].where}"
    text = f"golden answers score only {_number(golden.mean)} by {who}, and {_number(best)} at best: the "
    if worthless:
        return [Flag(sure, f"{text}reward or the rows are wrong ({counted})")]
    return [Flag(False, f"{text}rows are scored on different scales, or some are wrong ({counted})")]


def _for_nothing(part: Part, golden: Line, who: str, *, error: bool) -> list[Flag]:
    """Flag probes that earn what a golden answer earns, and repetition that earns more."""
    lowest = min(line.mean for line in part.lines)
    others = [line for line in part.lines if line.probe not in (GOLDEN, REPEATED)]
    free = [line for line in others if line.mean >= _level(golden.mean) and line.mean > lowest]
    repeated = part.line(REPEATED)
    if free:
        got = _listed(f"{_PHRASES[line.probe]} ({_number(line.mean)})" for line in free)
        text = f"gives its full reward (golden: {_number(golden.mean)}) to {got}: it can be had for nothing"
    elif golden.mean <= lowest:
        text = f"gives no probe less than golden answers ({_number(golden.mean)})"
    elif repeated and repeated.mean > golden.mean + CLOSE * abs(golden.mean):
        score, once = _number(repeated.mean), _number(golden.mean)
        text = f"pays for repetition: the golden answer again and again scores {score}, once {once}"
    else:
        return []
    return [Flag(error, f"{who} {text}")]


_PHRASES = {
    "empty": "an empty answer",
    "very long": "very long filler",
    "copied prompt": "a copied prompt",
    "refusal": "a refusal",
    "format only": "the right form without the content",
    ANOTHER: "the answer to another row",
    FOR_ALL: "one answer for all rows",
}


def _judge_speed(parts: Iterable[Part], recipe: Recipe) -> list[Flag]:
    completions = completions_per_step(recipe, plan(recipe))
    return [
        Flag(
            False,
            f"`{part.name}` takes {part.seconds:.2g} s per completion: {completions:.0f} completions a step = "
            f"{part.seconds * completions:.0f} s",
        )
        for part in parts
        if part.seconds * completions >= SLOW_STEP
    ]


def _listed(items: Iterable[str]) -> str:
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last


def _number(value: float) -> str:
    return f"{value:.3g}"
