"""Scores of base and tuned model: the tuned one is given its base, and the table shows what only one of them has."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console

from llmkit.evaluation.base import Evaluation, Score, Subject
from llmkit.rewards.exact_match import ExactMatch
from llmkit.runs import scoring
from llmkit.runs.progress import Narrator


class Noting(Evaluation):
    """Notes what it is given."""

    type: Literal["noting"] = "noting"

    def score(self, subject: Subject) -> Score:
        """Return the base's value plus one."""
        before = subject.base.metrics["value"] if subject.base is not None else 0.0
        return Score({"value": before + 1, "rewards": float(len(subject.rewards))}, 0)


def test_each_evaluation_gets_its_own_base_and_the_rewards(model, tokenizer) -> None:
    def scored(**more):
        evaluations = (Noting(), Noting())
        narrator = Narrator()
        return scoring.score(
            evaluations, model, tokenizer, (), seed=0, folder=Path(), narrator=narrator, name="x", **more
        )

    assert [s.metrics for s in scored()] == [{"value": 1.0, "rewards": 0.0}] * 2
    base = [Score({"value": 10.0}, 0), Score({"value": 20.0}, 0)]
    found = scored(base=base, rewards=(ExactMatch(type="exact_match"),))
    assert [s.metrics for s in found] == [{"value": 11.0, "rewards": 1.0}, {"value": 21.0, "rewards": 1.0}]


def lines(base: list[Score], tuned: list[Score] | None) -> list[list[str]]:
    """Return the cells of the table's rows."""
    console = Console(width=200, record=True, quiet=True)
    console.quiet = False
    with console.capture() as shown:
        console.print(scoring.table(base, scoring.compared(base, tuned) if tuned is not None else None))
    rows = [line.strip("│ ").split("│") for line in shown.get().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


def test_a_metric_that_one_of_them_lacks_is_a_dash() -> None:
    base = [Score({"accuracy": 0.5, "only_base": 2.0}, 4)]
    tuned = [Score({"accuracy": 0.75, "margin": 0.25}, 4)]
    assert lines(base, tuned) == [
        ["accuracy", "4", "0.5", "0.75", "+0.25", "not tested"],
        ["only_base", "4", "2", "–", "–", "not tested"],
        ["margin", "4", "–", "0.25", "–", "not tested"],
    ]
    values = (0.0,) * 40, (1.0,) * 30 + (0.0,) * 10
    before, after = (Score({"exact_match": sum(v) / 40}, 40, per_row={"exact_match": v}) for v in values)
    assert lines([before], [after]) == [
        ["exact_match", "40", "0", "0.75", "+0.75 [+0.597, +0.858]", "better (30 rows now right, 0 now wrong)"]
    ]
    other = Score({"exact_match": 0.0}, 8), Score({"exact_match": 0.5}, 8)
    assert [row[:4] for row in lines([before, other[0], other[0]], [after, other[1], other[1]])] == [
        ["exact_match", "40", "0", "0.75"],
        ["exact_match", "8", "0", "0.5"],  # of other rows; the same twice is one line
    ]
    assert lines(base, None) == [["accuracy", "4", "0.5"], ["only_base", "4", "2"]]
