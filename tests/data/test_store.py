"""Rows in a file read as they were written, count as they would in memory, and become TRL's columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.data.splits import Row
from llmkit.data.store import FACTS, Listed, Rows, Stored, Writer, digests, facts_of, packed_batch, token_dataset

SFT = [
    Row(
        "a:1",
        {"messages": [{"role": "user", "content": "ünï ⟦"}]},
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
        "a",
    ),
    Row("a:2", {"text": "x", "n": None}, {"input_ids": [4], "labels": [4]}, "a", truncated=True),
    Row("a:2", {}, {"input_ids": [5, 6], "labels": [-100, 6]}, "a", part=1),
]
PAIRS = [Row("b:1", {"prompt": "p"}, {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}, "b")]
JUDGED = [
    Row("c:1", {"label": True}, {"prompt_ids": [1], "completion_ids": [2, 3]}, "c"),
    Row("c:2", {"label": False}, {"prompt_ids": [1], "completion_ids": [4]}, "c"),
]
WEIGHED = [
    Row("d:1", {}, {"input_ids": [1, 2], "labels": [-100, 2], "loss_weights": [0.0, 0.5]}, "d"),
    Row("d:2", {}, {"input_ids": [3, 4], "labels": [3, 4]}, "d"),
]


def stored(path: Path, rows: list[Row], batch: int = 2) -> Stored:
    writer = Writer(path)
    for start in range(0, len(rows), batch):
        writer.write(packed_batch(rows[start : start + batch]))
    writer.close()
    return Stored(path, rows[0].source if rows else "")


@pytest.mark.parametrize("rows", [SFT, PAIRS, JUDGED, WEIGHED], ids=["sft", "pairs", "judged", "weighed"])
def test_rows_read_as_they_were_written(tmp_path: Path, rows: list[Row]) -> None:
    found = Rows([stored(tmp_path / "rows.arrow", rows)])
    assert list(found) == rows
    assert found == Rows([Listed(rows)])
    assert found[-1] == rows[-1]
    for name in FACTS:
        assert found.fact(name).tolist() == Rows([Listed(rows)]).fact(name).tolist()


def test_a_file_without_rows_is_read_as_none(tmp_path: Path) -> None:
    found = Rows([stored(tmp_path / "rows.arrow", []), stored(tmp_path / "more.arrow", SFT)])
    assert list(found) == SFT
    assert len(Rows([stored(tmp_path / "none.arrow", [])])) == len(Rows([])) == 0


def test_an_index_beyond_the_end_is_an_index_error(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        Rows([stored(tmp_path / "rows.arrow", SFT)])[3]


def test_selections_keep_their_order_over_several_files(tmp_path: Path) -> None:
    more = [Row("e:1", {}, {"input_ids": [9], "labels": [9]}, "e")]
    rows = Rows([stored(tmp_path / "a", SFT), stored(tmp_path / "b", more)])
    chosen = rows.take(np.array([3, 0, 3]))
    assert [row.where for row in chosen] == ["e:1", "a:1", "e:1"]
    assert chosen.sources.tolist() == [1, 0, 1]
    assert [row.where for row in chosen[1:]] == ["a:1", "e:1"]
    assert [row.where for row in rows.take(rows.totals == 1)] == ["a:2", "e:1"]
    assert chosen.dataset().to_dict() == {"input_ids": [[9], [1, 2, 3], [9]], "labels": [[9], [-100, 2, 3], [9]]}


@pytest.mark.parametrize("rows", [SFT, PAIRS, JUDGED, WEIGHED], ids=["sft", "pairs", "judged", "weighed"])
def test_the_data_set_is_the_same_from_the_file_and_from_memory(tmp_path: Path, rows: list[Row]) -> None:
    from_file = token_dataset(Rows([stored(tmp_path / "rows.arrow", rows)])).to_dict()
    assert from_file == token_dataset(rows).to_dict() == token_dataset(Rows([Listed(rows)])).to_dict()
    assert set(from_file) == set(rows[0].tokens)


def test_a_row_without_weights_among_weighed_ones_has_none(tmp_path: Path) -> None:
    found = token_dataset(Rows([stored(tmp_path / "rows.arrow", WEIGHED)]))
    assert found["loss_weights"][:] == [[0.0, 0.5], None]


def test_digests_are_equal_where_the_model_reads_the_same() -> None:
    same = Row("z:9", {"other": "columns"}, SFT[0].tokens | {"labels": [1, 2, 3]}, "z")
    other = Row("z:9", {}, {"input_ids": [1, 2], "labels": [1, 2]})
    first, second, third = digests([SFT[0], same, other]).tolist()
    assert first == second != third


def test_a_pair_is_not_its_answers_joined_otherwise() -> None:
    swapped = Row("b:1", {}, {"prompt_ids": [1, 2], "chosen_ids": [4, 5], "rejected_ids": [3]})
    assert len(set(digests([PAIRS[0], swapped]).tolist())) == 2


ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.lists(ids, min_size=1, max_size=30), batch=st.integers(1, 7), data=st.data())
def test_any_rows_any_order(tmp_path: Path, tokens: list[list[int]], batch: int, data: Any) -> None:
    rows = [Row(f"a:{i}", {"i": i}, {"input_ids": ids, "labels": ids}, "a") for i, ids in enumerate(tokens)]
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20))
    found = Rows([stored(tmp_path / "rows.arrow", rows, batch)]).take(np.array(order, np.int64))
    assert list(found) == [rows[i] for i in order]
    assert found.dataset()["input_ids"][:] == [tokens[i] for i in order]
    assert found.trained.tolist() == [len(tokens[i]) for i in order]


def test_what_is_counted_by_hand() -> None:
    assert facts_of(PAIRS[0])[:6] == (4, 7, 3, False, 0, 0)
    assert [facts_of(row)[5] for row in JUDGED] == [1, 2]
