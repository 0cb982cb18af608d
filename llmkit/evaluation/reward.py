"""Reward: what the recipe's own rewards say of the model's answers to the held-out rows, base beside tuned."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from llmkit.errors import RecipeError
from llmkit.evaluation._generation import answers
from llmkit.evaluation._rows import scored
from llmkit.evaluation.base import Evaluation, Score, Subject
from llmkit.rewards.base import score_part, total


class Reward(Evaluation):
    """Answer the held-out prompts and score the answers with the recipe's `rewards`."""

    type: Literal["reward"]
    """Mean of the weighted sum of the recipe's rewards, and of each part."""

    needs_rewards: ClassVar[bool] = True

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens."""

    limit: int | None = Field(default=None, ge=1)
    """Use only the first held-out rows; all of them if unset."""

    batch_size: int | None = Field(default=None, ge=1)
    """Prompts answered at once; if unset, up to 64 whose keys and values take half as much memory as the weights."""

    temperature: float = Field(default=0.0, ge=0)
    """0 always takes the likeliest token; above 0, tokens are sampled at this temperature with the run's seed."""

    def score(self, subject: Subject) -> Score:
        """Return `reward`, the mean weighted sum, and `reward/NAME` of each part where there are several.

        The parts are as the rewards give them, before their weights. `per_row` has the same metrics row by row. Raises
        RecipeError where the recipe has no rewards, DataError for rows without a prompt, RunError if a reward fails.
        """
        if not subject.rewards:
            raise RecipeError(
                "evaluation `reward` scores with the recipe's rewards, and it has none",
                remedy="Add e.g. `rewards: [{type: exact_match}]`.",
            )
        samples = answers(
            subject,
            max_new_tokens=self.max_new_tokens,
            limit=self.limit,
            batch_size=self.batch_size,
            evaluation="reward",
            temperature=self.temperature,
            seed=subject.seed,
        )
        rows = subject.rows[: self.limit]
        completions = [sample.answer for sample in samples]
        parts = [score_part(reward, completions, rows) for reward in subject.rewards]
        columns = {"reward": total(subject.rewards, parts)}
        if len(parts) > 1:
            columns |= {f"reward/{reward.name}": part for reward, part in zip(subject.rewards, parts, strict=True)}
        by_row = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return scored(by_row, samples)
