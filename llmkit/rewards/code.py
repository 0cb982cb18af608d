"""Code: the share of the row's tests that the completion's Python code passes, in a sandbox.

>>> Code(type="code").score("```python\\ndef double(x):\\n    return 2 * x\\n```", {"tests": ["assert double(2) == 4"]})
1.0
"""

from __future__ import annotations

import ast
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from llmkit.data.shapes import RowError
from llmkit.errors import RunError, SetupError
from llmkit.rewards.base import Reward, ScoreError

if TYPE_CHECKING:
    from llmkit.rewards._sandbox import Limits, Protection

# A block that the token limit cut off ends with the text. Possessive quantifiers keep this linear.
FENCE = re.compile(
    r"^([ \t]*+)```[ \t]*+([\w+.-]*+)[^\n`]*+\n(.*?)(?:^[ \t]*+```[ \t\r]*+$|\Z)", re.DOTALL | re.MULTILINE
)
PYTHON = ("python", "python3", "py")
GOLDEN = ("canonical_solution", "code", "solution")


class Code(Reward):
    """Run the completion's code, then the tests, where neither can touch the machine (docs/sandbox.md).

    The code is the last fenced block of Python, else the last block without a language, else the whole completion.
    """

    type: Literal["code"]
    """Share of the tests passed; a string of tests passes or fails as one."""

    column: str = "tests"
    """Column with the tests: a string of Python, or a list of strings (MBPP: `test_list`, HumanEval: `test`)."""

    entry_point_column: str | None = None
    """Column with a function's name, where the tests define `check(candidate)` (HumanEval: `entry_point`)."""

    prompt_column: str | None = None
    """Column with code that stands before the completion's (HumanEval: `prompt`); none if unset."""

    golden_column: str | None = None
    """Column with a right answer for the workbench; `canonical_solution`, `code` or `solution` if unset."""

    timeout: float = Field(default=10.0, gt=0, le=600)
    """Seconds of wall clock for the code and all its tests."""

    memory_mb: int = Field(default=512, ge=64)
    """Megabytes of memory that each process of the code may have."""

    disk_mb: int = Field(default=16, ge=1)
    """Megabytes that the code may write in its folder."""

    processes: int = Field(default=4, ge=2)
    """Processes and threads that the code may be at once."""

    workers: int | None = Field(default=None, ge=1)
    """Sandboxes at once; 4, or the number of cores where that is less, if unset."""

    allow_weaker: bool = False
    """Run on a machine that can't enforce all of it. What that machine can't do is said in a warning."""

    def check_setup(self, folder: Path) -> None:
        """Attack this machine from a sandbox; raise SetupError if that does harm and `allow_weaker` is not set."""
        gaps = self._protection().gaps
        if not gaps:
            return
        what = f"on this machine, reward `{self.name}` can't keep a program from these: {'; '.join(gaps)}"
        if not self.allow_weaker:
            linux = "" if sys.platform == "linux" else "Only Linux can do all of it. "
            raise SetupError(
                what,
                remedy=f"{linux}docs/sandbox.md says what it takes. On a machine with nothing to lose: "
                "`allow_weaker: true`.",
            )
        warnings.warn(what, stacklevel=2)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise RowError if the row has no tests, tests that are no Python, or lacks a named column."""
        for column in (self.entry_point_column, self.prompt_column):
            if column is not None and not isinstance(row.get(column), str):
                raise RowError(f"no text in column {column!r}, which reward `{self.name}` needs")
        tests = row.get(self.column)
        listed = [tests] if isinstance(tests, str) else tests
        if (
            not isinstance(listed, list | tuple)
            or not listed
            or not all(isinstance(t, str) and t.strip() for t in listed)
        ):
            raise RowError(f"no tests in column {self.column!r}: a string or a list of strings of Python is needed")
        for test in self._tests(row):
            try:
                with warnings.catch_warnings(action="ignore"):
                    ast.parse(test)
            except (SyntaxError, ValueError) as error:
                raise RowError(f"a test in column {self.column!r} is not Python: {error}") from error

    def set_up(self, folder: Path) -> None:
        """Check the machine; what was found out for `check_setup` is not found out again."""
        self.check_setup(folder)

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return the share of tests passed."""
        return self._share(completion, row, 0)

    def scores(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the share of tests passed for each, `workers` at once; raises ScoreError where a sandbox failed."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(self.workers or min(4, os.cpu_count() or 1)) as pool:
            return list(pool.map(self._share, completions, rows, range(len(completions))))

    def golden(self, row: Mapping[str, Any]) -> str | None:
        """Return the right answer of the row, if it has one."""
        columns = GOLDEN if self.golden_column is None else (self.golden_column,)
        return next((row[column] for column in columns if isinstance(row.get(column), str)), None)

    def _share(self, completion: str, row: Mapping[str, Any], index: int) -> float:
        from llmkit.rewards._sandbox import run

        layers = self._protection().layers
        try:
            passed = run(self._program(completion, row), self._tests(row), self._limits(), layers).passed
        except RunError as error:
            raise ScoreError(error.what, index, remedy=error.remedy) from error
        return sum(passed) / len(passed)

    def _limits(self) -> Limits:
        from llmkit.rewards._sandbox import Limits

        return Limits(self.timeout, self.memory_mb, self.disk_mb, self.processes)

    def _protection(self) -> Protection:
        from llmkit.rewards._sandbox import Limits, probe

        # Probed with little: the limits that are set are not what a machine can or can't do.
        return probe(Limits())

    def _program(self, completion: str, row: Mapping[str, Any]) -> str:
        code = last_block(completion)
        if self.prompt_column is None:
            return completion if code is None else textwrap.dedent(code)
        # A plain completion goes on where the prompt ends, be that in the middle of a line.
        return f"{row[self.prompt_column]}{completion}" if code is None else f"{row[self.prompt_column]}\n{code}"

    def _tests(self, row: Mapping[str, Any]) -> list[str]:
        tests = row[self.column]
        listed = [tests] if isinstance(tests, str) else list(tests)
        if self.entry_point_column is None:
            return listed
        return [f"{test}\n\ncheck({row[self.entry_point_column]})\n" for test in listed]


def last_block(completion: str) -> str | None:
    """Return the last fenced block of Python, else the last without a language; None where there is neither.

    What the fence is indented by (in a list) is taken off; further indentation may go on with a prompt's function.
    """
    python = plain = None
    for indent, language, code in FENCE.findall(completion):
        outdented = re.sub(rf"^[ \t]{{0,{len(indent)}}}", "", code, flags=re.MULTILINE) if indent else code
        if language.lower() in PYTHON:
            python = outdented
        elif not language:
            plain = outdented
    return plain if python is None else python
