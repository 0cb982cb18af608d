"""Base beside tuned: the recipe's evaluations on the same rows, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from llmkit.evaluation.base import Score, Subject
from llmkit.model.heads import CLASSIFIER
from llmkit.recipe.gates import parse_gate
from llmkit.runs.progress import Narrator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmkit.data.splits import Row
    from llmkit.evaluation.base import Evaluation
    from llmkit.evaluation.statistics.comparing import Compared
    from llmkit.recipe.recipe import Recipe
    from llmkit.rewards.base import Reward

SHOWN_SAMPLES = 3
NONE = "–"
"""In the table: this model has no such metric."""


def score(
    evaluations: tuple[Evaluation, ...],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    seed: int,
    folder: Path,
    narrator: Narrator,
    name: str,
    rewards: tuple[Reward, ...] = (),
    base: Sequence[Score] | None = None,
) -> list[Score]:
    """Score `model` by each evaluation, in order; evaluations that need the same answers share them.

    `rewards` are the recipe's, set up. `base` are the base model's scores by the same evaluations, where a tuned model
    is scored: some metrics are relative to them.
    """
    subject = Subject(model=model, tokenizer=tokenizer, rows=rows, seed=seed, folder=folder, rewards=rewards)
    scores = []
    for index, evaluation in enumerate(evaluations):
        subject.base = base[index] if base is not None else None
        limit = getattr(evaluation, "limit", None)
        with narrator.bar(f"{name}: {evaluation.type}", min(limit or len(rows), len(rows))) as bar:
            subject.on_done = bar.update
            found = evaluation.score(subject)
        found = replace(found, lower_is_better=tuple(sorted(evaluation.lower_is_better & set(found.metrics))))
        scores.append(found)
        values = ", ".join(f"{k} {v:.4g}" for k, v in found.metrics.items()) or f"{len(found.samples)} answers"
        narrator.say(f"{name}: {values} ({found.rows} rows)")
    return scores


def require_metrics(recipe: Recipe, base: Sequence[Score]) -> None:
    """Raise RecipeError for a gate about a metric that no evaluation gives; before training, by what the base has."""
    from llmkit.evaluation.statistics.gating import require_known

    given = {name for score in base for name in score.metrics}
    # A reward model's answers are no likelier than before: it has no metrics of its own beside its base's.
    language = recipe.method.model_class != CLASSIFIER
    alone = {name for evaluation in recipe.evaluation for name in evaluation.tuned_alone if language}
    for index, text in enumerate(recipe.gates):
        gate = parse_gate(text)
        with recipe.at("gates", index):
            require_known([gate], given if gate.relative else given | alone)


def compared(base: Sequence[Score], tuned: Sequence[Score]) -> list[list[Compared]]:
    """Compare base and tuned by each evaluation, in order, with intervals and tests."""
    from llmkit.evaluation.statistics.comparing import compare

    return compare(base, tuned, [frozenset(score.lower_is_better) for score in tuned])


def to_dict(
    evaluations: tuple[Evaluation, ...], base: list[Score], tuned: list[Score], found: list[list[Compared]]
) -> list[dict[str, Any]]:
    """Return the scores of both models and what they differ in as JSON-able values, one entry per evaluation."""
    return [
        {
            "evaluation": evaluation.model_dump(exclude_unset=True),
            "base": asdict(base[index]),
            "tuned": asdict(tuned[index]),
            "statistics": [asdict(one) for one in found[index]],
        }
        for index, evaluation in enumerate(evaluations)
    ]


def lost_rows(base: Sequence[Score], tuned: Sequence[Score]) -> list[dict[str, Any]]:
    """Return the rows that the base had right and the tuned model has wrong, with those of an evaluation's metrics."""
    from llmkit.evaluation.statistics.comparing import regressions

    found = []
    for before, after in zip(base, tuned, strict=True):
        metrics: dict[int, list[str]] = {}
        for metric, rows in regressions(before, after).items():
            for row in rows:
                metrics.setdefault(row, []).append(metric)
        found += [{"metric": ", ".join(metrics[row]), **_lost_row(before, after, row)} for row in sorted(metrics)]
    return found


def _lost_row(before: Score, after: Score, row: int) -> dict[str, Any]:
    if not before.samples:
        return {"row": row}
    old = before.samples[row]
    answers = {"base": old.answer, "tuned": after.samples[row].answer}
    return {"where": old.where, "prompt": old.prompt, "reference": old.reference, **answers}


def table(base: Sequence[Score], found: Sequence[Sequence[Compared]] | None) -> Table:
    """Return the table base | tuned | change, one line per metric; without a tuned model's, the base alone."""
    grid = Table(title="held-out rows", title_justify="left")
    headings = ("metric", "rows", "base", *(("tuned", "change [95%]", "") if found is not None else ()))
    for heading in headings:
        grid.add_column(heading, justify="left" if heading in ("metric", "") else "right")
    if found is None:
        for score in base:
            for name, value in score.metrics.items():
                grid.add_row(Text(name), str(score.rows), _number(value))
        return grid
    # Two evaluations of the same answers may both give a metric; of other rows it is another line.
    for one in dict.fromkeys(one for part in found for one in part):
        values = _number(one.base), _number(one.tuned), _change(one), _verdict(one)
        grid.add_row(Text(one.metric), str(one.rows), *values)
    return grid


def _change(one: Compared) -> Text:
    if one.change is None:
        return Text(NONE)
    interval = one.change_interval
    ends = f" [{interval.low:+.3g}, {interval.high:+.3g}]" if interval is not None else ""
    return Text(f"{one.change:+.4g}{ends}")


def _verdict(one: Compared) -> Text:
    flips = f" ({one.fixed:,} rows now right, {one.broken:,} now wrong)" if one.fixed is not None else ""
    colours = {"better": "green", "worse": "bold red"}
    return Text(one.verdict + flips, style=colours.get(one.verdict, ""))


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"


def samples_table(base: list[Score], tuned: list[Score] | None) -> Table | None:
    """Return the first answers of both models side by side, or None where nothing was generated."""
    index = next((i for i, score in enumerate(base) if score.samples), None)
    if index is None:
        return None
    grid = Table(title="sample answers", title_justify="left", show_lines=True)
    for heading in ("prompt", "expected", "base", *(("tuned",) if tuned is not None else ())):
        grid.add_column(heading, overflow="fold", ratio=1)
    for row, sample in enumerate(base[index].samples[:SHOWN_SAMPLES]):
        answers = (sample.answer, *((tuned[index].samples[row].answer,) if tuned is not None else ()))
        grid.add_row(*(_cell(text) for text in (sample.prompt, sample.reference, *answers)))
    return grid


def _cell(text: str | None) -> Text:
    short = text or ""
    return Text(short if len(short) <= 300 else short[:297] + "...")
