"""Python: a reward function of your own.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> code = "def score(completion, row):\\n    return float(row['answer'] in completion)"
>>> _ = (folder / "mine.py").write_text(code)
>>> reward = Python(type="python", function="mine.py:score")
>>> reward.set_up(folder)
>>> reward.score("It is 5.", {"answer": "5"})
1.0
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import PrivateAttr, field_validator

from llmkit.recipe.functions import Form, check_function, load_function, spelled
from llmkit.rewards.base import Reward

FORM = Form("def NAME(completion: str, row: dict) -> float", "a completion and a row", 2)


class Python(Reward):
    """Call `def score(completion: str, row: dict) -> float` from a Python file; `row` has the row's columns.

    The file is run on this machine with your rights: point only to code you trust.
    """

    type: Literal["python"]
    """Whatever the function returns; an error in it, or no finite number, stops the run and names the row."""

    function: str
    """`FILE.py:NAME`, the file in the recipe's folder or below it, or `package.module:NAME` of an installed package."""

    _function: Any = PrivateAttr(default=None)

    @field_validator("function")
    @classmethod
    def _spelling(cls, value: str) -> str:
        return spelled(value)

    def check_setup(self, folder: Path) -> None:
        """Raise RecipeError where the file is missing or broken, or has no such function; nothing in it is run."""
        check_function(self.function, folder, FORM, f"reward `{self.name}`")

    def set_up(self, folder: Path) -> None:
        """Import the file; raises SetupError where that fails."""
        self._function = load_function(self.function, folder, f"reward `{self.name}`")

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return what the function returns; `score_part` checks that it is a finite number."""
        return cast(float, self._function(completion, dict(row)))
