"""Language: shares of a text, and what is too short to tell."""

from __future__ import annotations

import doctest
from functools import cache
from pathlib import Path

import pytest
from pydantic import ValidationError

from llmkit.errors import RecipeError
from llmkit.rewards import language
from llmkit.rewards.language import Language, pieces

pytest.importorskip("py3langid")

ENGLISH = "The children are playing in the garden behind the old house."
GERMAN = "Die Kinder spielen im Garten hinter dem alten Haus am Waldrand."
CHINESE = "今天天气很好，我们一起去公园里散步，然后回家吃晚饭吧。"


@cache
def made(code: str, **fields: object) -> Language:
    reward = Language(type="language", language=code, **fields)
    reward.check_setup(Path())
    reward.set_up(Path())
    return reward


def test_the_example() -> None:
    assert doctest.testmod(language).failed == 0


@pytest.mark.parametrize(("text", "code"), [(ENGLISH, "en"), (GERMAN, "de"), (CHINESE, "zh")])
def test_a_text_in_one_language(text: str, code: str) -> None:
    assert made(code).score(text, {}) == 1.0
    assert made("fr", among=("en", "de", "zh")).score(text, {}) == 0.0


def test_a_mixed_text_scores_its_share_of_characters() -> None:
    reward = made("en")
    assert reward.score(f"{ENGLISH}\n\n{GERMAN}\n", {}) == pytest.approx(len(ENGLISH) / (len(ENGLISH) + len(GERMAN)))


@pytest.mark.parametrize("text", ["", "   \n\t", "Yes.", "42"])
def test_what_is_too_short_scores_zero(text: str) -> None:
    assert made("en").score(text, {}) == 0.0


def test_among_narrows_the_choice() -> None:
    # On its own, the identifier takes this greeting for another language.
    assert made("en", min_characters=5).score("Hello", {}) == 0.0
    assert made("en", min_characters=5, among=("zh",)).score("Hello", {}) == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("abcd", []),
        ("abcde", ["abcde"]),
        ("ab\ncd\nef", ["ab cd ef"]),
        ("abcdef\nab\n\nghijkl\nc", ["abcdef", "ab ghijkl c"]),
        ("  abcde  \n", ["abcde"]),
    ],
)
def test_pieces(text: str, expected: list[str]) -> None:
    assert pieces(text, 5) == expected


def test_unknown_languages() -> None:
    with pytest.raises(RecipeError, match=r"knows no language 'xx'(.|\n)*Its languages: af, .*zu"):
        made("xx")
    with pytest.raises(RecipeError, match="knows no language 'english'"):
        made("en", among=("english",))
    with pytest.raises(ValidationError, match="ISO 639-1"):
        Language(type="language", language="english")
