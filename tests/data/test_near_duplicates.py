"""Near duplicates: what MinHash proposes is decided by the sets of words themselves."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from llmkit.data.audit.near_duplicates import JUDGED, near_pairs, sets_of
from llmkit.data.audit.words import Vocabulary


def pairs(texts: Sequence[str], similarity: float = 0.8) -> dict[int, int]:
    """Return the earlier near row of each row that has one."""
    told = Vocabulary().texts([text] for text in texts)
    return dict(near_pairs(sets_of(told.values, told.joined(len(texts))), similarity))


def line(seed: int, count: int = 40) -> list[str]:
    draw = random.Random(seed)
    return [f"w{draw.randrange(5000)}" for _ in range(count)]


def jaccard(one: Sequence[str], other: Sequence[str]) -> float:
    """Compute the similarity of two lists of words without any of the code under test."""
    a, b = ({tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (one, other))
    return len(a & b) / len(a | b)


def test_similarity_is_that_of_the_sets_of_three_words() -> None:
    told = Vocabulary().texts([["a b c d e"], ["a b c d x"], ["a b"]])
    sets = sets_of(told.values, told.joined(3))
    # {abc, bcd, cde} and {abc, bcd, cdx} share 2 of 4.
    assert sets.similarity(0, 1) == 0.5
    assert np.diff(sets.offsets).tolist() == [3, 3, 0]


# Each changed word changes 3 of 58 runs: 4 leave (58 - 12) / (58 + 12) = 0.66, 5 leave 0.59.
@pytest.mark.parametrize(("changed", "near"), [(1, True), (3, True), (4, True), (5, False), (6, False)])
def test_rows_are_near_from_the_similarity_on(changed: int, near: bool) -> None:
    one = line(1, 60)
    other = [f"new{i}" if i % 9 == 4 and i // 9 < changed else word for i, word in enumerate(one)]
    assert (jaccard(one, other) >= 0.6) == near
    assert (pairs([" ".join(one), " ".join(other)], 0.6) == {1: 0}) == near


def test_all_pairs_are_found_and_no_others() -> None:
    rows = [line(i) for i in range(300)]
    copies = {300 + i: i * 7 for i in range(40)}
    texts = [" ".join(row) for row in rows] + [" ".join([*rows[i][:-1], "other"]) for i in copies.values()]
    assert pairs(texts) == copies


def test_case_punctuation_and_white_space_make_no_difference() -> None:
    text = " ".join(line(1))
    assert pairs([text, text.upper().replace(" ", ",  ") + "!"]) == {1: 0}


def test_signs_and_numbers_make_one() -> None:
    sums = [f"work out {a} + {b} - {a} * 3 = and say {a} {b} once more {b} {a} please" for a in (2, 5) for b in (3, 8)]
    assert pairs([*sums, sums[0].replace("+", "-")]) == {}


def test_an_instruction_that_many_rows_share_does_not_make_them_near() -> None:
    instruction = " ".join(line(999, 100))
    texts = [f"{instruction} {' '.join(line(i, 12))}" for i in range(60)]
    assert pairs(texts) == {}
    assert pairs([*texts, texts[3] + " indeed"], 0.7) == {60: 3}


def test_too_short_a_row_is_not_judged() -> None:
    words = line(1, JUDGED + 1)  # one run fewer than it takes
    assert pairs([" ".join(words), " ".join(words)]) == {}
    assert pairs([" ".join([*words, "more"])] * 2) == {1: 0}


def test_characters_are_words_where_a_script_has_no_spaces() -> None:
    text = "机器学习是人工智能的一个分支它让计算机从数据中学习而不是由人编写规则"
    assert pairs(
        [text, text.replace("规则", "程序"), "今天天气很好我们一起去公园散步吧然后去喝咖啡聊聊最近的生活"]
    ) == {1: 0}


def test_few_or_no_rows_have_no_pairs() -> None:
    assert pairs([]) == {}
    assert pairs([" ".join(line(1))]) == {}
