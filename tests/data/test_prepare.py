"""Splits: every row accounted for, held-out rows never trained on, what can't be right stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llmkit.data.checking import check_data
from llmkit.data.prepare import load_splits
from llmkit.errors import DataError, RecipeError
from llmkit.recipe.recipe import Recipe

Maker = Callable[..., Recipe]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pair(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def load(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, max_length: int | None = 1024) -> tuple[Any, Any]:
    assert tokenizer.eos_token_id is not None
    return load_splits(recipe, tokenizer, frozenset({tokenizer.eos_token_id}), max_length=max_length, seed=42)


def test_the_held_out_share_is_disjoint_and_repeatable(recipe: Maker, tokenizer: PreTrainedTokenizerFast) -> None:
    first, ledger = load(recipe(), tokenizer)
    second, _ = load(recipe(), tokenizer)
    assert (len(first.train), len(first.eval)) == (18, 6)
    assert first == second
    assert not {r.where for r in first.train} & {r.where for r in first.eval}
    accounts = ledger.to_dict()
    assert accounts["train"]["rows.jsonl"]["dropped"] == {"held out for evaluation": 6}
    assert accounts["eval"]["held out of the training rows"]["kept"] == 6


def test_training_rows_that_are_also_held_out_are_dropped_and_counted(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = rows_file.read_text(encoding="utf-8").splitlines()
    (rows_file.parent / "eval.jsonl").write_text("\n".join(rows[:3]), encoding="utf-8")
    splits, ledger = load(recipe("data.eval=[{path: eval.jsonl, format: messages}]"), tokenizer)
    assert (len(splits.train), len(splits.eval)) == (21, 3)
    assert ledger.to_dict()["train"]["rows.jsonl"]["dropped"] == {"also among the held-out rows": 3}


@pytest.mark.parametrize(("overflow", "kept", "truncated"), [("drop", 2, 0), ("truncate", 3, 1)])
def test_long_rows_are_dropped_or_cut_and_counted(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast, overflow: str, kept: int, truncated: int
) -> None:
    write(rows_file, [pair("a", "b"), pair("a", "b c"), pair("a", "x" * 200)])
    splits, ledger = load(recipe("data.eval=null", f"data.overflow={overflow}"), tokenizer, max_length=64)
    account = ledger.to_dict()["train"]["rows.jsonl"]
    assert (account["read"], account["kept"], account["truncated"]) == (3, kept, truncated)
    assert max(len(r.input_ids) for r in splits.train) <= 64


def test_overflow_error_names_the_row(recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write(rows_file, [pair("a", "b"), pair("a", "x" * 200)])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the row has \d+ tokens") as caught:
        load(recipe("data.eval=null", "data.overflow=error"), tokenizer, max_length=64)
    assert "data.overflow" in str(caught.value.remedy)


def test_a_row_whose_trained_part_is_cut_off_is_dropped(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write(rows_file, [pair("a", "b"), pair("c", "d"), pair("x" * 200, "b")])
    splits, ledger = load(recipe("data.eval=null", "data.overflow=truncate"), tokenizer, max_length=64)
    assert ledger.to_dict()["train"]["rows.jsonl"]["dropped"] == {"no trained token is left": 1}
    assert all(r.trained_tokens for r in splits.train)


def test_a_source_that_loses_most_of_its_rows_stops_the_run(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write(rows_file, [pair("a", "b"), *(pair("a", "x" * 200) for _ in range(3))])
    with pytest.raises(DataError, match="3 of 4 rows can't be used: 3 longer than 64 tokens"):
        load(recipe("data.eval=null"), tokenizer, max_length=64)


def test_a_share_that_leaves_nothing_is_refused(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write(rows_file, [pair("a", "b")])
    with pytest.raises(DataError, match="leaves nothing to train on"):
        load(recipe("data.eval=0.5"), tokenizer)


def test_a_second_start_token_is_refused(recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.bos_token = "<|im_start|>"
    write(rows_file, [{"text": "<|im_start|><|im_start|>hello"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the rendered row begins with '<\|im_start\|>' twice"):
        load(recipe("data.eval=null", "data.train.0.format=text"), tokenizer)


def test_a_shape_the_method_can_not_learn_from_fails_before_anything_is_read(recipe: Maker, rows_file: Path) -> None:
    rows_file.write_text("not even JSON", encoding="utf-8")
    with pytest.raises(RecipeError, match="'sft' learns from .* but format 'preference' gives preference rows"):
        check_data(recipe("data.train.0.format=preference"))


rows_of_a_source = st.lists(st.one_of(st.integers(1, 120), st.none()), min_size=2, max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=rows_of_a_source,
    second=rows_of_a_source,
    overflow=st.sampled_from(["drop", "truncate", "split"]),
    weights=st.one_of(st.none(), st.tuples(st.floats(0.2, 5), st.floats(0.2, 5))),
    repeat=st.integers(1, 3),
)
def test_the_counts_always_sum_to_the_rows_read(
    recipe: Maker,
    rows_file: Path,
    tokenizer: PreTrainedTokenizerFast,
    first: list[int | None],
    second: list[int | None],
    overflow: str,
    weights: tuple[float, float] | None,
    repeat: int,
) -> None:
    """Two sources of rows of any length, some broken (None), mixed in any way: each row has one fate."""
    for name, lengths in (("a.jsonl", first), ("b.jsonl", second)):
        lines = [
            "{broken" if n is None else json.dumps(pair("q", "x" * n + f"{name} {i}")) for i, n in enumerate(lengths)
        ]
        (rows_file.parent / name).write_text("\n".join(lines), encoding="utf-8")
    keys = [f", weight: {weight}" for weight in weights] if weights else ["", ""]
    sources = f"[{{path: a.jsonl, repeat: {repeat}{keys[0]}}}, {{path: b.jsonl{keys[1]}}}]"
    made = recipe(f"data.train={sources}", "data.eval=0.3", "data.broken=1", f"data.overflow={overflow}")
    try:
        splits, ledger = load(made, tokenizer, max_length=60)
    except DataError:
        return
    accounts = ledger.to_dict()["train"]
    for name, lengths in (("a.jsonl", first), ("b.jsonl", second)):
        account, rows = accounts[name], [row for row in splits.train if row.source == name]
        assert account["read"] == len(lengths)
        assert account["broken"] == lengths.count(None)
        assert account["read"] == account["kept"] + account["broken"] + sum(account["dropped"].values())
        different = {(row.where, row.part): row for row in rows}.values()
        assert account["pieces"] == len(different)
        assert account["kept"] == len({row.where for row in different})
        assert account["tokens"] == sum(len(row.input_ids) for row in different)
        assert account["trained_tokens"] == sum(row.trained_tokens for row in different)
        assert account["truncated"] == sum(row.truncated for row in different)
        assert ledger.mix[name].rows == len(rows)
        held_out = {row.where for row in splits.eval if row.source == name}
        assert not held_out & {row.where for row in rows}


def test_pieces_of_a_long_row_stay_on_one_side_of_the_split(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write(rows_file, [{"text": " ".join(str(i * j) for j in range(9, 20 + i))} for i in range(3, 27)])
    splits, ledger = load(
        recipe("data.train.0.format=text", "data.eval=0.3", "data.overflow=split"), tokenizer, max_length=16
    )
    train, held_out = ({row.where for row in rows} for rows in (splits.train, splits.eval))
    assert not train & held_out
    assert (len(train), len(held_out)) == (17, 7)
    account = ledger.to_dict()["train"]["rows.jsonl"]
    assert account["split"] == account["kept"] == 17
    assert account["pieces"] == len(splits.train) > 17
    assert max(len(row.input_ids) for row in splits.train) == 16


def test_preferences_are_not_split(recipe: Maker) -> None:
    with pytest.raises(RecipeError, match="can't cut preference rows"):
        check_data(recipe("data.train.0.format=preference", "data.overflow=split", "method.type=dpo"))


def test_the_mix_is_drawn_and_what_is_not_drawn_is_counted(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write(rows_file.parent / "few.jsonl", [pair(f"other {i}", "yes") for i in range(4)])
    sources = "[{path: rows.jsonl, weight: 2}, {path: few.jsonl, weight: 1, repeat: 2}]"
    splits, ledger = load(recipe(f"data.train={sources}", "data.eval=null"), tokenizer)
    assert len(splits.train) == 24
    found = ledger.to_dict()
    assert found["train"]["rows.jsonl"]["dropped"] == {"not drawn by the mix": 8}
    assert {path: share["rows"] for path, share in found["mix"].items()} == {"rows.jsonl": 16, "few.jsonl": 8}
    tokens = sum(len(row.input_ids) for row in splits.train if row.source == "few.jsonl")
    assert found["mix"]["few.jsonl"]["tokens"] == tokens
    assert found["mix"]["few.jsonl"]["token_share"] == tokens / sum(len(row.input_ids) for row in splits.train)
    again, _ = load(recipe(f"data.train={sources}", "data.eval=null"), tokenizer)
    assert again == splits


def test_broken_rows_within_the_bound_are_left_out_and_listed(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = rows_file.read_text(encoding="utf-8").splitlines()
    text[4] = '{"messages": 7}'
    rows_file.write_text("\n".join(text), encoding="utf-8")
    splits, ledger = load(recipe("data.eval=null", "data.broken=0.05"), tokenizer)
    assert len(splits.train) == 23
    assert ledger.to_dict()["train"]["rows.jsonl"]["broken"] == 1
    (broken,) = ledger.broken()
    assert broken.where == "rows.jsonl:5"
    assert "must be a list of turns" in broken.reason


def test_broken_rows_beyond_the_bound_stop_the_run_with_their_places(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = rows_file.read_text(encoding="utf-8").splitlines()
    text[4] = text[9] = '{"messages": 7}'
    rows_file.write_text("\n".join(text), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"rows.jsonl:5: .*2 of the 24 rows read are broken\)\nrows.jsonl:10: "
    ) as caught:
        load(recipe("data.eval=null", "data.broken=0.05"), tokenizer)
    assert "now 0.05" in str(caught.value.remedy)


def test_a_file_of_broken_rows_is_not_read_to_its_end(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    good = rows_file.read_text(encoding="utf-8").splitlines()[0]
    rows_file.write_text("\n".join([good, *['{"messages": 7}'] * 5000]), encoding="utf-8")
    with pytest.raises(DataError, match="499 of the 500 rows read are broken"):
        load(recipe("data.eval=null"), tokenizer)


def test_rows_that_are_only_looked_at_are_prepared_all_the_same(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write(rows_file, [pair("a", "b"), *(pair("a", "x" * 200) for _ in range(3))])
    with rows_file.open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    told: list[DataError] = []
    stops = frozenset({int(tokenizer.eos_token_id or 0)})
    splits, ledger = load_splits(recipe("data.eval=null"), tokenizer, stops, max_length=64, seed=42, refuse=told.append)
    assert [row.where for row in splits.train] == ["rows.jsonl:1"]
    assert ledger.to_dict()["train"]["rows.jsonl"]["broken"] == 1
    broken, dropped = map(str, told)
    assert broken.startswith("rows.jsonl:5: ")
    assert "4 of 5 rows can't be used: 3 longer than 64 tokens, 1 broken" in dropped


def test_reasoning_that_is_cut_is_cut_from_the_example_as_well(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write(rows_file, [pair("a", "<think>hm</think>b"), pair("c", "d")])
    splits, _ = load(recipe("data.eval=null", "data.reasoning=cut"), tokenizer)
    assert splits.train[0].example["messages"][1]["content"] == "b"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.train.0.format=text", "data.train_on=last"), "chooses among the turns of conversations"),
        (("data.audit.benchmarks=[{path: none.jsonl}]",), "no such file"),
    ],
)
def test_settings_of_other_rows_and_missing_benchmarks_are_refused_before_reading(
    recipe: Maker, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises((RecipeError, DataError), match=message):
        check_data(recipe(*overrides))


def test_rows_that_are_left_out_on_purpose_may_be_most_of_them(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    code = "def few(row):\n    return row if 'is 1' in row['messages'][0]['content'] else None\n"
    (rows_file.parent / "few.py").write_text(code, encoding="utf-8")
    splits, ledger = load(recipe("data.eval=null", "data.train=[{path: rows.jsonl, python: few.py:few}]"), tokenizer)
    assert len(splits.train) == 11
    assert ledger.to_dict()["train"]["rows.jsonl"]["dropped"] == {"left out by few": 13}


def test_a_split_row_that_is_held_out_in_one_piece_is_not_trained_in_the_others(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write(rows_file, [{"text": "x" * 16 + "q" * 40}, {"text": "yes no maybe"}])
    write(rows_file.parent / "eval.jsonl", [{"text": "x" * 15}])
    keys = ("data.train.0.format=text", "data.eval=[{path: eval.jsonl, format: text}]", "data.overflow=split")
    whole, _ = load(recipe(*keys), tokenizer, max_length=16)
    assert len(whole.train) > 2  # the pieces differ from the held-out text by its end token
    write(rows_file.parent / "eval.jsonl", [{"text": "x" * 16 + "z" * 40}])
    splits, ledger = load(recipe(*keys), tokenizer, max_length=16)
    assert [row.example["text"] for row in splits.train] == ["yes no maybe"]
    assert ledger.to_dict()["train"]["rows.jsonl"]["dropped"] == {"also among the held-out rows": 1}


def test_what_json_can_not_hold_is_set_aside(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    lines = ["def dated(row):", "    ask = row['messages'][0]", "    ask['at'] = {1} if ' 3 ' in ask['content'] else 1"]
    code = "\n".join([*lines, "    return row", ""])
    (rows_file.parent / "dated.py").write_text(code, encoding="utf-8")
    sources = "data.train=[{path: rows.jsonl, python: dated.py:dated}]"
    splits, ledger = load(recipe("data.eval=null", sources, "data.broken=0.1"), tokenizer)
    assert len(splits.train) == 23
    (broken,) = ledger.broken()
    assert broken.where == "rows.jsonl:4"


def test_a_source_that_is_held_out_as_a_whole_is_named(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write(rows_file.parent / "few.jsonl", [pair("other", "yes")])
    sources = "data.train=[{path: rows.jsonl, weight: 1}, {path: few.jsonl, weight: 1}]"
    with pytest.raises(DataError, match="few.jsonl: nothing is left to mix in: 0 of 1 rows kept"):
        load(recipe(sources, "data.eval=[{path: few.jsonl}]"), tokenizer)
