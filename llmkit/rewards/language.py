"""Language: how much of the completion is in the wanted language.

>>> reward = Language(type="language", language="fr")
>>> reward.set_up(Path())
>>> reward.score("Je ne sais pas encore ce que nous ferons demain matin.", {})
1.0
>>> reward.score("I don't know yet what we will do tomorrow morning.", {})
0.0
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from llmkit.errors import RecipeError, did_you_mean
from llmkit.rewards._packages import check_package
from llmkit.rewards.base import Reward


class Language(Reward):
    """Score the share of characters in pieces that py3langid takes for `language`, against mixed languages.

    The pieces are lines; short ones are joined until they have `min_characters`, because an identifier is often wrong
    on a few words. Compared are the package's languages with an ISO 639-1 code, or only those in `among`.
    """

    type: Literal["language"]
    """Share of the text in the language, 0..1; needs the package py3langid."""

    language: str
    """ISO 639-1 code, e.g. `en`, `zh`."""

    among: tuple[str, ...] = Field(default=(), strict=False)
    """Codes of the languages that can occur at all, with which the identifier errs less; all if empty."""

    min_characters: int = Field(default=20, ge=1)
    """Characters that a piece needs to be judged; a completion with fewer scores 0."""

    _identifier: Any = PrivateAttr(default=None)

    @field_validator("language")
    @classmethod
    def _code(cls, value: str) -> str:
        if not re.fullmatch("[a-z]{2}", value):
            raise ValueError(f"must be an ISO 639-1 code such as `en`, not {value!r}")
        return value

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError where py3langid is not installed."""
        check_package("py3langid", "py3langid", self.name)

    def set_up(self, folder: Path) -> None:
        """Load the identifier (about a second); raises RecipeError for a language that it does not know."""
        langid = importlib.import_module("py3langid.langid")
        identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
        known = sorted({label for label in identifier.labels if len(label) == 2})
        for code in (self.language, *self.among):
            if code not in known:
                raise RecipeError(
                    f"reward `{self.name}`: py3langid knows no language {code!r}{did_you_mean(code, known)}",
                    remedy=f"Its languages: {', '.join(known)}.",
                )
        identifier.set_languages({self.language, *(self.among or known)})
        self._identifier = identifier

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return 0..1."""
        parts = pieces(completion, self.min_characters)
        right = [len(part) for part in parts if self._identifier.classify(part)[0] == self.language]
        return sum(right) / sum(map(len, parts)) if parts else 0.0


def pieces(text: str, least: int) -> list[str]:
    """Return the lines of `text`, joined where they are short, so that each has `least` characters; none if it hasn't.

    White space at the ends of lines is not counted.
    """
    found: list[str] = []
    waiting = ""
    for line in text.splitlines():
        waiting = f"{waiting} {line.strip()}".strip()
        if len(waiting) >= least:
            found.append(waiting)
            waiting = ""
    if waiting and found:
        found[-1] += f" {waiting}"
    return found
