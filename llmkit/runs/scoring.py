"""Base beside tuned: the recipe's evaluations on the same rows, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from llmkit.evaluation.base import Score, Subject
from llmkit.runs.progress import Narrator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmkit.data.splits import Row
    from llmkit.evaluation.base import Evaluation
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
        scores.append(found)
        values = ", ".join(f"{k} {v:.4g}" for k, v in found.metrics.items()) or f"{len(found.samples)} answers"
        narrator.say(f"{name}: {values} ({found.rows} rows)")
    return scores


def to_dict(evaluations: tuple[Evaluation, ...], **models: list[Score]) -> list[dict[str, Any]]:
    """Return the scores of several models as JSON-able values, one entry per evaluation."""
    return [
        {
            "evaluation": evaluation.model_dump(exclude_unset=True),
            **{name: asdict(scores[index]) for name, scores in models.items()},
        }
        for index, evaluation in enumerate(evaluations)
    ]


def table(base: list[Score], tuned: list[Score] | None) -> Table:
    """Return the table base | tuned | change, one line per metric; without `tuned`, the base alone."""
    grid = Table(title="held-out rows", title_justify="left")
    for heading in ("metric", "rows", "base", *(("tuned", "change") if tuned is not None else ())):
        grid.add_column(heading, justify="left" if heading == "metric" else "right")
    seen = set()
    for index, before in enumerate(base):
        after = tuned[index] if tuned is not None else before
        for name in dict.fromkeys((*before.metrics, *after.metrics)):
            if name in seen:
                continue
            seen.add(name)
            old, new = before.metrics.get(name), after.metrics.get(name)
            change = f"{new - old:+.4g}" if old is not None and new is not None else NONE
            grid.add_row(name, str(before.rows), _number(old), *((_number(new), change) if tuned is not None else ()))
    return grid


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


def _cell(text: str | None) -> Any:
    from rich.text import Text

    short = text or ""
    return Text(short if len(short) <= 300 else short[:297] + "...")
