"""Reasoning Gym: the score that the package reasoning_gym gives an answer to its own task.

>>> entry = {"question": "2 + 3 =", "answer": "5", "metadata": {}}
>>> ReasoningGym(type="reasoning_gym").score("<answer>5</answer>", {"task": "chain_sum", "entry": entry})
1.0
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from llmkit.data.shapes import RowError
from llmkit.rewards._marks import tagged
from llmkit.rewards._packages import check_package
from llmkit.rewards.base import Reward

HEX = re.compile(r"0x[0-9a-fA-F]+")
ARITHMETIC = re.compile(r"[\s\d()\[\],.'\"+*/%<>&|^~-]*")
"""Numbers (those of `HEX` apart), also in quotes, brackets and operators: no name that Python could look up."""

EVALUATED: Mapping[str, Callable[[Mapping[str, Any]], Iterable[Any]]] = {
    "bitwise_arithmetic": lambda entry: [entry.get("metadata", {}).get("problem", "")],
    "number_sorting": lambda entry: [entry.get("answer", "")],
}
"""What scorers pass to Python's `eval` of a row's own entry, which may come from anybody's file."""

EVALUATING = (
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
)
"""Tasks of reasoning_gym 0.1.25 whose scorers pass the answer to Python's `eval`, some of them through sympy."""

UNDISCERNING = frozenset({"game_of_life_halting"})
"""Tasks of reasoning_gym 0.1.25 whose scorers give any text the full score: bool("False") is True."""

REFUSALS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)
"""What scorers of the package raise on an answer that they can't read."""

NAN = frozenset({"complex_arithmetic"})
"""Tasks of reasoning_gym 0.1.25 whose scorers read `nan` as a number and give it the full score: min(1.0, nan) is 1."""

Scorer = Callable[..., float]


class ReasoningGym(Reward):
    """Score with the task's own scorer, partial credit included, as the data source `reasoning_gym:TASK` needs it.

    The answer is what the last `<answer>...</answer>` holds, else the whole completion. Some scorers raise on answers
    that they can't read (`prime_factorization` on words): these score 0. That a scorer works on the row at all is
    checked before, on the row's own answer. Refused are tasks whose scorers would run the model's answer as code, or
    accept any answer.
    """

    type: Literal["reasoning_gym"]
    """The task's own score, 0..1; needs the package reasoning_gym, and rows made by it."""

    exact: bool = False
    """Give 1 for a full score and 0 for any other, instead of partial credit."""

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError where reasoning_gym is not installed."""
        check_package("reasoning_gym", "reasoning-gym", self.name)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise RowError if the row has no task and entry, or its scorer is unsafe or fails on the row's own answer."""
        task, entry = row.get("task"), row.get("entry")
        if not isinstance(task, str) or not isinstance(entry, Mapping):
            raise RowError(
                f"no columns 'task' and 'entry', which reward `{self.name}` scores with; "
                "the data source `reasoning_gym:TASK` makes such rows"
            )
        if task in EVALUATING:
            raise RowError(f"the scorer of {task!r} runs the model's answer as Python code; choose another task")
        if task in UNDISCERNING:
            raise RowError(f"the scorer of {task!r} gives any answer its full score; choose another task")
        for text in EVALUATED[task](entry) if task in EVALUATED else ():
            # A power of powers would take forever.
            if not ARITHMETIC.fullmatch(HEX.sub("0", str(text))) or "**" in str(text):
                raise RowError(f"the scorer of {task!r} evaluates {str(text)[:80]!r} as Python, which is no arithmetic")
        try:
            value = scorer(task)(answer=entry.get("answer"), entry=entry)
        except (*REFUSALS, AssertionError) as error:
            raise RowError(
                f"reasoning_gym can't score the row's own answer in {task!r}: {type(error).__name__}: {error}"
            ) from error
        if isinstance(entry.get("answer"), str) and value < 1.0:
            raise RowError(
                f"the row's own answer scores {value:g} in {task!r}, so its entry is not as reasoning_gym made it; "
                "some scorers need the tuples that a JSON file turns into lists"
            )

    def set_up(self, folder: Path) -> None:
        """Import the package, which takes seconds."""
        importlib.import_module("reasoning_gym")

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return 0..1."""
        inside = tagged(completion)
        answer = completion.strip() if inside is None else inside
        if row["task"] in NAN and "nan" in "".join(answer.lower().split()):
            return 0.0
        try:
            value = float(scorer(row["task"])(answer=answer, entry=row["entry"]))
        except REFUSALS:
            return 0.0
        if not math.isfinite(value):
            return 0.0
        return float(value >= 1.0) if self.exact else value

    def golden(self, row: Mapping[str, Any]) -> str | None:
        """Return the entry's answer in tags; None for tasks with many right answers."""
        answer = row["entry"].get("answer")
        return None if answer is None else f"<answer>{answer}</answer>"


@cache
def scorer(task: str) -> Scorer:
    """Return the scorer of `task`; raises ValueError for an unknown one."""
    found: Scorer = importlib.import_module("reasoning_gym").get_score_answer_fn(task)
    return found
