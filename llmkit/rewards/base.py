"""What every reward is: a Spec that says how good one completion is; and the one way in which they are called."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from llmkit.data.splits import Row
from llmkit.errors import LlmkitError, RecipeError, RunError
from llmkit.recipe.spec import Variant

SHOWN = 200
"""Characters of a completion that an error shows."""


class ScoreError(RunError):
    """What a reward raises when it can't score the completion at `index`; `score_part` adds its row and its text."""

    def __init__(self, what: str, index: int, *, remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.index = index


class Reward(Variant):
    """Base of the rewards; the file name is the `type`.

    A reward implements `score`, or `scores` where many at once are faster. What it loads once (a model, a module), it
    loads in `set_up` and keeps in private attributes.
    """

    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor of this part in the weighted sum; negative for a penalty."""

    label: str | None = Field(default=None, min_length=1)
    """Name of this part in metrics and tables; the type if unset. Two rewards of one type need different ones."""

    @property
    def name(self) -> str:
        """The part's name in metrics and tables."""
        return self.label or self.type

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError, DataError or RecipeError where a package or file (relative to `folder`) is missing.

        Imports nothing heavy: `llmkit validate` calls it.
        """

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise RowError where `row` lacks what scoring needs; called for every row before anything is trained."""

    def set_up(self, folder: Path) -> None:
        """Load what scoring needs; called once, before the first score. Relative paths start from `folder`."""

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return how good `completion` is as an answer to `row`; any finite number, higher is better."""
        raise NotImplementedError

    def scores(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the score of each completion; `rows` has the row of each, so rows repeat."""
        return [self.score(completion, row) for completion, row in zip(completions, rows, strict=True)]

    def golden(self, row: Mapping[str, Any]) -> str | None:
        """Return a completion that deserves the full reward, where the row tells one; the workbench scores it."""
        return None


def score_part(reward: Reward, completions: Sequence[str], rows: Sequence[Row]) -> list[float]:
    """Return the checked scores of one reward, in order; `rows[i]` is what `completions[i]` answers.

    Raises RunError, naming the row and the completion, if the reward raises, or returns something that is no finite
    number; and if it returns another number of values.
    """
    examples = [row.example for row in rows]
    try:
        values = list(reward.scores(completions, examples))
    except ScoreError as error:
        raise _failure(reward, f": {error.what}", completions, rows, error.index, error.remedy) from error
    except LlmkitError:
        raise  # it says itself what is wrong, e.g. that a judge can't be reached
    except Exception as error:  # noqa: BLE001 - any failure of a reward must name its row
        index = _culprit(reward, completions, examples)
        raise _failure(reward, f" raised {type(error).__name__}: {error}", completions, rows, index) from error
    if len(values) != len(completions):
        raise RunError(
            f"reward `{reward.name}` returned {len(values)} values for {len(completions)} completions",
            where=rows[0].where if rows else None,
            remedy="It must return exactly one number for each completion.",
        )
    for index, value in enumerate(values):
        problem = _problem(value)
        if problem is not None:
            raise _failure(reward, f" returned {value!r}{problem}", completions, rows, index)
    return [float(value) for value in values]


def _problem(value: object) -> str | None:
    """Return what keeps `value` from being a score; numbers of NumPy are scores as those of Python are."""
    if type(value).__name__ in ("bool", "bool_"):  # NumPy's has the same name
        return ": write `float(...)` around what is true or false"
    try:
        finite = isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        finite = False
    return None if finite else ", which is no finite number"


def _culprit(reward: Reward, completions: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the first completion that fails on its own; None where it takes several."""
    for index, (completion, example) in enumerate(zip(completions, examples, strict=True)):
        try:
            reward.scores([completion], [example])
        except Exception:  # noqa: BLE001 - the failure is reported by the caller
            return index
    return None


def _failure(
    reward: Reward,
    what: str,
    completions: Sequence[str],
    rows: Sequence[Row],
    index: int | None,
    remedy: str | None = None,
) -> RunError:
    where = rows[index].where if index is not None else f"{rows[0].where} and {len(rows) - 1} more"
    shown = f"\nThe completion: {completions[index][:SHOWN]!r}" if index is not None else ""
    remedy = remedy or "`llmkit reward RECIPE` tries it out."
    return RunError(f"reward `{reward.name}`{what}{shown}", where=where, remedy=remedy)


def total(rewards: Sequence[Reward], parts: Sequence[Sequence[float]]) -> list[float]:
    """Return the weighted sum for each completion; `parts[i][j]` is the score of reward i for completion j."""
    return [
        sum(reward.weight * value for reward, value in zip(rewards, values, strict=True))
        for values in zip(*parts, strict=True)
    ]


def check_names(rewards: Sequence[Reward]) -> None:
    """Raise RecipeError if two rewards have the same name: their metrics could not be told apart."""
    names = [reward.name for reward in rewards]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"two rewards are called {twice!r}", remedy="Give each a `label` of its own.")
