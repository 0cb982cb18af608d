"""Every error that llmkit raises on purpose, with the exit code it ends the command with.

An error says what is wrong, where (file:line or row), and what to do about it. User errors print no traceback;
`llmkit --debug ...` shows it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LlmkitError(Exception):
    """Base of all llmkit errors: `what` happened, `where` it stands, `remedy` that mends it."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n{self.remedy}" if self.remedy else text


class RecipeError(LlmkitError):
    """The recipe, an override or the command line is wrong."""

    exit_code = 2


class DataError(LlmkitError):
    """A data file is missing, unreadable, or holds rows that can't be used."""

    exit_code = 2


class SetupError(LlmkitError):
    """The machine lacks something the recipe needs: a package, a device, weights, space, a reachable hub."""

    exit_code = 2


class RunError(LlmkitError):
    """The run itself failed, or what it produced did not pass its own check."""

    exit_code = 1


class Interrupted(LlmkitError):  # noqa: N818 - nothing is wrong with the run
    """A signal ended the run at a step from which `--resume` goes on (75 is EX_TEMPFAIL: try again later)."""

    exit_code = 75


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the choice closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
