"""The shares that are asked for come out, no row more often than it may, and the same each time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.checking import check_mix
from llmkit.data.mixing import counts, drawn
from llmkit.errors import RecipeError
from llmkit.recipe.recipe import Data


def mix(*sources: dict[str, Any], **keys: Any) -> Data:
    return Data.model_validate({"train": [{"path": f"{i}.jsonl", **s} for i, s in enumerate(sources)], **keys})


@pytest.mark.parametrize(
    ("data", "rows", "expected"),
    [
        (mix({}, {}), [10, 3], [10, 3]),
        (mix({"repeat": 2}, {}), [10, 3], [20, 3]),
        (mix({"weight": 1}, {"weight": 1}), [10, 3], [3, 3]),
        (mix({"weight": 3}, {"weight": 1}), [100, 50], [100, 33]),
        (mix({"weight": 1}, {"weight": 1, "repeat": 3}), [10, 3], [9, 9]),
        (mix({"weight": 2}), [7], [7]),
        (mix({}, {}, temperature=1), [90, 10], [90, 10]),
        (mix({}, {}, temperature=2), [90, 10], [30, 10]),  # the roots of 90 and 10 are as 3 to 1
        (mix({}, {"repeat": 3}, temperature=2), [90, 10], [90, 30]),
        (mix({"weight": 1e308}, {"weight": 1e308}), [10, 3], [3, 3]),
    ],
)
def test_counts_by_hand(data: Data, rows: list[int], expected: list[int]) -> None:
    assert counts(data, rows) == expected


def test_a_very_hot_mix_takes_as_much_of_each() -> None:
    assert counts(mix({}, {}, temperature=1e6), [900, 10]) == [10, 10]


def test_a_share_that_is_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="the share of 1.jsonl in the mix is so small"):
        counts(mix({}, {}, temperature=0.001), [900, 10])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (mix({"weight": 1}), "`weight` mixes several sources, and there is one"),
        (mix({}, temperature=2), "`data.temperature` mixes several sources, and there is one"),
        (mix({}, eval=[{"path": "e", "repeat": 2}]), "held-out rows are not mixed, and e has a `repeat`"),
        (mix({"weight": 1}, {}), "some sources have a `weight`, and 1.jsonl has none"),
        (mix({"weight": 1}, temperature=2), "both say how sources are mixed"),
    ],
)
def test_a_mix_that_says_two_things_is_refused(data: Data, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_mix(data)


@given(rows=st.integers(1, 50), count=st.integers(0, 200), seed=st.integers(0, 5))
def test_rows_are_drawn_evenly_and_the_same_each_time(rows: int, count: int, seed: int) -> None:
    found = drawn(rows, count, seed).tolist()
    assert len(found) == count
    assert found == drawn(rows, count, seed).tolist() == sorted(found)
    often = Counter(found)
    assert max(often.values(), default=0) - min((often[i] for i in range(rows)), default=0) <= 1


def test_another_seed_draws_other_rows() -> None:
    assert drawn(100, 10, 1).tolist() != drawn(100, 10, 2).tolist()
    assert drawn(0, 0, 1).tolist() == []


sources = st.lists(st.tuples(st.integers(1, 2000), st.floats(0.1, 10), st.integers(1, 3)), min_size=1, max_size=5)


@given(sources=sources)
def test_shares_are_as_asked_up_to_a_row(sources: list[tuple[int, float, int]]) -> None:
    data = mix(*({"weight": weight, "repeat": repeat} for _, weight, repeat in sources))
    found = counts(data, [rows for rows, _, _ in sources])
    total = sum(weight for _, weight, _ in sources)
    size = min(rows * repeat * total / weight for rows, weight, repeat in sources)
    for count, (rows, weight, repeat) in zip(found, sources, strict=True):
        assert count <= rows * repeat
        assert abs(count - size * weight / total) <= 1


def test_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="1.jsonl, 2.jsonl has none"):
        check_mix(mix({"weight": 1}, {}, {}))
