"""What a row counts as, by hand, for each shape."""

from __future__ import annotations

import pytest

from llmkit.data.splits import Row

SFT = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
PAIR = {"prompt_ids": [1, 2], "chosen_ids": [3, 4, 5], "rejected_ids": [6]}
UNPAIRED = {"prompt_ids": [1, 2], "completion_ids": [3]}
PROMPT = {"prompt_ids": [1, 2]}


@pytest.mark.parametrize(
    ("tokens", "sequences", "longest", "total", "trained"),
    [
        (SFT, [[1, 2, 3]], 3, 3, 2),
        (PAIR, [[1, 2, 3, 4, 5], [1, 2, 6]], 5, 8, 4),
        (UNPAIRED, [[1, 2, 3]], 3, 3, 1),
        (PROMPT, [[1, 2]], 2, 2, 0),
        ({}, [[]], 0, 0, 0),
    ],
)
def test_counts(
    tokens: dict[str, list[int]], sequences: list[list[int]], longest: int, total: int, trained: int
) -> None:
    row = Row("a:1", {"label": True}, tokens)
    assert row.sequences == sequences
    assert (row.longest, sum(map(len, row.sequences)), row.trained_tokens) == (longest, total, trained)


@pytest.mark.parametrize(
    ("tokens", "cut"),
    [
        (SFT, {"input_ids": [1, 2], "labels": [-100, 2]}),
        (PAIR | {"prompt_ids": [1]}, {"prompt_ids": [1], "chosen_ids": [3], "rejected_ids": [6]}),
        (PAIR, {"prompt_ids": [1, 2], "chosen_ids": [], "rejected_ids": []}),
        (PROMPT | {"prompt_ids": [1, 2, 3]}, {"prompt_ids": [1, 2, 3]}),
    ],
)
def test_ends_are_cut_off_and_prompts_stay_whole(tokens: dict[str, list[int]], cut: dict[str, list[int]]) -> None:
    row = Row("a:1", {}, tokens, "a").cut(2)
    assert row == Row("a:1", {}, cut, "a", truncated=True)


@pytest.mark.parametrize(("label", "verdict"), [(True, "good"), (False, "bad")])
def test_only_unpaired_feedback_has_a_verdict(label: bool, verdict: str) -> None:
    assert Row("a:1", {"label": label}, UNPAIRED).verdict == verdict
    # The column of another shape may have the same name.
    assert Row("a:1", {"label": label}, PROMPT).verdict is None
