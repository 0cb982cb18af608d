"""pass@k: how likely one of k answers to a prompt passes, by the recipe's rewards."""

from __future__ import annotations

from dataclasses import replace
from math import comb
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from llmkit.data.splits import Row
from llmkit.errors import RecipeError
from llmkit.evaluation._generation import Generated, respond, row_prompts
from llmkit.evaluation._rows import placed, scored
from llmkit.evaluation.base import Score, Subject
from llmkit.rewards.base import score_part, total

Count = Annotated[int, Field(ge=1)]

ROUNDING = 1e-9
"""What a sum of weighted rewards may lack to the threshold."""


class PassAtK(Generated):
    """Sample `n` answers to each prompt, and let the recipe's rewards (`code` with its tests, say) tell which pass."""

    type: Literal["pass_at_k"]
    """Chance that one of k sampled answers passes, without bias (Chen et al. 2021, arXiv:2107.03374)."""

    n: int = Field(default=5, ge=1)
    """Answers that are sampled for each row: more make the estimate sharper."""

    k: tuple[Count, ...] = Field(default=(1,), min_length=1, strict=False)
    """The k's to estimate for, each at most `n`: `[1, 5]` gives `pass@1` and `pass@5`."""

    threshold: float = Field(default=1.0, allow_inf_nan=False)
    """Weighted sum of the recipe's rewards from which on an answer passes."""

    temperature: float = Field(default=0.8, gt=0, allow_inf_nan=False)
    """Temperature of the sampling, whose seed is the run's."""

    needs_rewards: ClassVar[bool] = True

    @model_validator(mode="after")
    def _enough(self) -> PassAtK:
        if max(self.k) > self.n:
            raise ValueError(f"`k: {max(self.k)}` needs as many answers a row: raise `n` from {self.n}")
        return self

    def check_row(self, row: Row) -> None:
        """Ask nothing of the row itself; what the rewards need, they check."""

    def score(self, subject: Subject) -> Score:
        """Return `pass@K` of each k, 0..1; the samples are the first answer to each row.

        Raises RecipeError where the recipe has no rewards, what `prepared` raises, DataError for a row that can't be
        asked or rewarded, RunError if a reward fails.
        """
        if not subject.rewards:
            raise RecipeError(
                "evaluation `pass_at_k` checks answers with the recipe's rewards, and it has none",
                remedy="Add e.g. `rewards: [{type: code}]`.",
            )
        subject = self.prepared(subject)
        for reward in subject.rewards:
            for row in subject.rows:
                with placed(row):
                    reward.check_row(row.example)
        prompts = row_prompts(subject.tokenizer, subject.rows, evaluation=self.type)
        done = subject.on_done
        samples = respond(
            replace(subject, on_done=None if done is None else lambda answers: done(answers // self.n)),
            [prompt for prompt in prompts for _ in range(self.n)],
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            temperature=self.temperature,
            seed=subject.seed,
        )
        answers = [sample.answer for sample in samples]
        rows = [row for row in subject.rows for _ in range(self.n)]
        totals = total(subject.rewards, [score_part(reward, answers, rows) for reward in subject.rewards])
        passed = [value >= self.threshold - ROUNDING for value in totals]
        passing = [sum(passed[start : start + self.n]) for start in range(0, len(passed), self.n)]
        parts = [{f"pass@{k}": pass_at_k(self.n, count, k) for k in self.k} for count in passing]
        # Of each row an answer that passes, where there is one.
        firsts = range(0, len(passed), self.n)
        shown = tuple(samples[at + next((j for j in range(self.n) if passed[at + j]), 0)] for at in firsts)
        return scored(parts, shown)


def pass_at_k(n: int, passing: int, k: int) -> float:
    """Return the chance that k answers, drawn from n of which some are passing, hold a passing one.

    Its mean over draws of the n answers is 1 - (1 - p)^k, which the same formula with p = passing / n is not
    (Chen et al. 2021, arXiv:2107.03374, equation 1).
    """
    return 1 - comb(n - passing, k) / comb(n, k)
