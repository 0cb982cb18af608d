"""Which of the logged figures a report draws, in which order, and what it says below each chart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llmkit.runs.charts import Chart, Figures, Line, chart, number
from llmkit.runs.reported import Reported

HELD_OUT = "eval_"
"""What transformers puts before the name of a figure of the held-out rows."""

PART = re.compile(r"rewards/(.+)/mean")
"""Name of the mean of one of several rewards (TRL)."""

Better = Literal["lowest", "highest"] | None


@dataclass(frozen=True)
class Figure:
    """A figure by its name in the logs, its title, which end of it is worth a word, and whether it is smoothed."""

    name: str
    title: str
    extreme: Better = None
    smooth: bool = True


FIGURES = (
    Figure("reward", "Reward", "highest"),
    Figure("loss", "Loss", "lowest"),
    Figure("rewards/accuracies", "Pairs ranked right", "highest"),
    Figure("accuracy", "Pairs ranked right", "highest"),
    Figure("rewards/margins", "Margin of the better answer", "highest"),
    Figure("margin", "Margin of the better answer", "highest"),
    Figure("mean_token_accuracy", "Tokens predicted right", "highest"),
    Figure("kl", "KL from the reference", "highest"),
    Figure("entropy", "Entropy"),
    Figure("frac_reward_zero_std", "Groups without signal"),
    Figure("completions/mean_length", "Tokens per completion"),
    Figure("completions/clipped_ratio", "Completions cut off"),
    Figure("learning_rate", "Learning rate", "highest", smooth=False),
    Figure("grad_norm", "Gradient norm", "highest"),
    Figure("step_time", "Seconds per step"),
    Figure("tokens_per_second", "Tokens per second"),
)
"""What training is about comes first."""


@dataclass(frozen=True)
class Drawn:
    """A chart, with a sentence for each of its lines and one for a screen reader."""

    chart: Chart
    said: tuple[tuple[Figures, str], ...]
    words: str


def curves(runs: Sequence[Reported]) -> list[Drawn]:
    """Return the charts of what the runs have logged, each with all runs that have it."""
    found = []
    for figure in _figures(runs):
        names = ((figure.name, False), (HELD_OUT + figure.name, True))
        lines = [
            Line(run.curves[name], index, evaluated, figure.smooth)
            for index, run in enumerate(runs)
            for name, evaluated in names
            if name in run.curves
        ]
        drawn = chart(figure.title, lines)
        if drawn is not None:
            found.append(_drawn(drawn, figure))
    return found


def _figures(runs: Sequence[Reported]) -> Iterator[Figure]:
    parts = dict.fromkeys(name for run in runs for name in run.curves if PART.fullmatch(name))
    for figure in FIGURES:
        yield figure
        # The only part of a reward is the reward.
        if figure.name == "reward" and len(parts) > 1:
            for name in parts:
                yield Figure(name, f"Reward: {name.split('/')[1]}", "highest")


def _drawn(found: Chart, figure: Figure) -> Drawn:
    said = tuple((line, _sentence(line, figure.extreme)) for line in found.figures)
    words = "; ".join(
        f"{'held-out rows: ' if line.evaluated else ''}{sentence}, steps {line.steps[0]:,} to {line.steps[1]:,}"
        for line, sentence in said
    )
    return Drawn(found, said, words)


def _sentence(line: Figures, extreme: Better) -> str:
    said = f"{number(line.first)} → {number(line.last)}" if line.steps[0] < line.steps[1] else number(line.last)
    ends = {"lowest": (line.lowest, line.lowest_step), "highest": (line.highest, line.highest_step)}
    if extreme is not None and line.lowest < line.highest:
        value, step = ends[extreme]
        if step not in line.steps:
            said += f", {extreme} {number(value)} at step {step:,}"
    if line.cut:
        said += f", {line.cut:,} beyond the chart ({number(line.lowest)} to {number(line.highest)})"
    return said + (f", {line.missing:,} not finite" if line.missing else "")
