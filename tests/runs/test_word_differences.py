"""Words that only one of two texts has: nothing of a text is lost, and what is marked is what differs."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.runs.word_differences import Piece, compare_words


def marked(pieces: tuple[Piece, ...]) -> list[str]:
    return [piece.text for piece in pieces if piece.own]


def test_the_words_that_differ_are_marked() -> None:
    found = compare_words("the capital of France is Lyon.", "the capital of France is certainly Paris.")
    assert marked(found.one) == ["Lyon"]
    assert marked(found.other) == ["certainly Paris"]


def test_the_same_answer_has_no_mark() -> None:
    found = compare_words("yes,  no", "yes,\nno")
    assert marked(found.one) == marked(found.other) == []
    assert found.alike == 1.0


def test_texts_with_nothing_in_common_are_left_alone() -> None:
    found = compare_words("I can't help with that", '{"item": "latte"}')
    assert marked(found.one) == marked(found.other) == []
    assert found.alike < 0.25


def test_one_character_of_chinese_is_a_word() -> None:
    found = compare_words("今天天气很好", "今天天气不好")
    assert marked(found.one) == ["很"]
    assert marked(found.other) == ["不"]


TEXTS = st.text(max_size=60) | st.lists(st.sampled_from(["a", "b", "c", " ", "\n", ",", "今"])).map("".join)


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS)
def test_the_pieces_are_the_texts(one: str, other: str) -> None:
    found = compare_words(one, other)
    assert "".join(piece.text for piece in found.one) == one
    assert "".join(piece.text for piece in found.other) == other


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh,;"), min_size=1, unique=True), st.integers(0, 11))
def test_a_planted_word_is_marked_and_nothing_else(words: list[str], place: int) -> None:
    place = min(place, len(words))
    found = compare_words(" ".join(words), " ".join([*words[:place], "planted", *words[place:]]))
    assert marked(found.one) == []
    assert marked(found.other) == ["planted"]
