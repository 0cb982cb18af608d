"""What there is to see of rows: sources, lengths, padding, and rows worth a look."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmkit.data.audit import Finding
from llmkit.data.ledger import Account, Ledger
from llmkit.data.shapes import Shape
from llmkit.data.splits import Row, Splits
from llmkit.errors import DataError, RecipeError
from llmkit.runs.prepare import PreparedData, prepare_data
from llmkit.runs.seeing import FIGURES, PAGE, Seen, as_rows, check_target, check_targets, passages, pick, save, see

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from llmkit.recipe.recipe import Recipe

Make = Callable[..., PreparedData]


def row(length: int, trained: int, source: str = "a.jsonl", number: int = 1) -> Row:
    """Return a row of `length` tokens, of which the last `trained` carry loss."""
    ids = [5 + number % 100] * length
    tokens = {"input_ids": ids, "labels": [-100] * (length - trained) + ids[length - trained :]}
    return Row(f"{source}:{number}", {}, tokens, source)


@pytest.fixture
def prepared(recipe: Callable[..., Recipe], tokenizer: PreTrainedTokenizerFast) -> Make:
    """Return a maker of prepared data from rows, without reading any."""

    def make(
        rows: Sequence[Row], *overrides: str, shape: Shape = Shape.CONVERSATION, findings: Sequence[Finding] = ()
    ) -> PreparedData:
        ledger = Ledger()
        for name in dict.fromkeys(one.source for one in rows):
            ledger.train.setdefault(name, Account()).keep(as_rows([one for one in rows if one.source == name]))
        splits = Splits(shape, tuple(rows), ())
        the_recipe = recipe("data.eval=null", *overrides)
        return PreparedData(the_recipe, tokenizer, frozenset({2}), splits, ledger, list(findings))

    return make


def padding_of(seen: Seen) -> dict[str, float]:
    return {batching.name: batching.padding for batching in seen.batchings}


# --- sources ---------------------------------------------------------------------------------------------------------


def test_all_of_a_recipe_is_seen(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    lines = [{"prompt": "two?", "completion": f"four {i}"} for i in range(30)]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data = prepare_data(recipe("data.train=[{path: more.jsonl}]", "data.eval=0.2", "training.max_length=64"))
    seen = see(data, title="mine", count=3)
    train, held_out = seen.sources
    assert (train.split, train.name, train.format) == ("train", "more.jsonl", "prompt_completion")
    assert "`prompt`" in train.reason
    assert (train.account.read, train.account.kept) == (30, 24)
    assert (held_out.split, held_out.format, held_out.account.kept) == ("eval", None, 6)
    assert (seen.rows, seen.held_out, seen.shape) == (24, 6, Shape.PROMPT_COMPLETION)
    assert [(lost.reason, lost.count) for lost in seen.lost] == [("held out for evaluation", 6)]
    assert all(place.startswith("more.jsonl:") for place in seen.lost[0].places)
    assert seen.lengths["most"] == max(len(one.input_ids) for one in data.splits.train)
    assert seen.passed


def test_shares_are_those_of_the_kept_rows(prepared: Make) -> None:
    data = prepared([row(10, 5), row(10, 5, number=2), row(20, 5, "b.jsonl")])
    shares = {origin.name: (origin.row_share, origin.token_share) for origin in see(data, title="x").sources}
    assert shares == {"a.jsonl": (pytest.approx(2 / 3), 0.5), "b.jsonl": (pytest.approx(1 / 3), 0.5)}


def test_quantiles_and_histogram_count_training_rows(prepared: Make) -> None:
    seen = see(prepared([row(10, 5), row(30, 2, number=2)]), title="x")
    assert (seen.lengths["least"], seen.lengths["most"]) == (10, 30)
    assert (seen.trained["least"], seen.trained["most"]) == (2, 5)
    assert sum(bin_.count for bin_ in seen.histogram) == 2


# --- batches ---------------------------------------------------------------------------------------------------------


def test_padding_as_it_stands_and_as_it_could_be(prepared: Make) -> None:
    rows = [row(30 if i % 2 else 10, 5, number=i) for i in range(64)]
    size = "training.per_device_train_batch_size=4"
    seen = see(prepared(rows, size, "training.max_length=40"), title="x")
    found = padding_of(seen)
    assert list(found) == ["shuffled", "grouped by length", "packed"]
    assert found["packed"] == 0.0  # 10 and 30 fill 40
    assert found["grouped by length"] < 0.15 < found["shuffled"] <= 1 / 3
    assert [batching.name for batching in seen.batchings if batching.here] == ["grouped by length"]
    assert seen.batch_size == 4


@pytest.mark.parametrize(
    ("override", "here"),
    [
        ("training.packing=true", "packed"),
        ("training.padding_free=true", "without padding"),
        ("training.train_sampling_strategy=random", "shuffled"),
        ("training.train_sampling_strategy=sequential", "in their order"),
    ],
)
def test_the_recipes_own_way_is_told(prepared: Make, override: str, here: str) -> None:
    rows = [row(10 + i, 5, number=i) for i in range(8)]
    seen = see(prepared(rows, override, "training.max_length=64"), title="x")
    assert [batching.name for batching in seen.batchings if batching.here] == [here]


def test_rows_in_their_order_are_padded_in_their_order(prepared: Make) -> None:
    rows = [row(10, 5), row(30, 5, number=2), row(20, 5, number=3)]
    sequential = "training.train_sampling_strategy=sequential"
    seen = see(prepared(rows, sequential, "training.per_device_train_batch_size=2"), title="x")
    assert padding_of(seen)["in their order"] == pytest.approx(20 / 80)


def test_both_answers_of_a_pair_are_padded(prepared: Make) -> None:
    pair = Row("a:1", {}, {"prompt_ids": [5], "chosen_ids": [6, 7, 2], "rejected_ids": [2]}, "a")
    seen = see(prepared([pair], "training.per_device_train_batch_size=2", shape=Shape.PREFERENCE), title="x")
    assert padding_of(seen) == dict.fromkeys(("shuffled", "grouped by length"), pytest.approx(2 / 8))


def test_the_planned_batch_size_is_used_where_the_recipe_has_none(prepared: Make) -> None:
    data = prepared([row(10, 5)])
    training = {k: v for k, v in data.recipe.training.kwargs().items() if "batch" not in k}
    recipe = data.recipe.model_copy(update={"training": type(data.recipe.training)(**training)}).placed(Path.cwd())
    assert see(replace(data, recipe=recipe), title="x").batch_size in (1, 2, 4, 8)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_worth_a_look_come_first() -> None:
    rows = as_rows([row(10, 5), row(12, 1, number=2), row(40, 9, number=3), row(11, 5, "b", number=4)])
    assert pick(rows, 4, seed=1) == [
        ("first", 0),
        ("longest", 2),
        ("fewest trained tokens", 1),
        ("first of its source", 3),
    ]
    assert pick(rows, 1, seed=1) == [("first", 0)]
    assert pick(rows, 0, seed=1) == []
    assert pick(as_rows([]), 3, seed=1) == []


def test_a_row_is_shown_once_with_all_its_reasons() -> None:
    rows = as_rows([row(40, 1), *(row(10, 5, number=i) for i in range(2, 40))])
    chosen = pick(rows, 6, seed=1)
    assert chosen[0] == ("first, longest, fewest trained tokens", 0)
    assert [why for why, _ in chosen[1:]] == ["random"] * 5
    assert len({index for _, index in chosen}) == 6
    assert chosen == pick(rows, 6, seed=1) != pick(rows, 6, seed=2)


def test_a_small_set_is_shown_whole() -> None:
    rows = as_rows([row(10, 5, number=i) for i in range(3)])
    assert sorted(index for _, index in pick(rows, 50, seed=1)) == [0, 1, 2]


def test_prompts_train_nothing_so_none_has_the_fewest() -> None:
    rows = as_rows([Row(f"p:{i}", {"prompt": "a"}, {"prompt_ids": [5] * i}, "p") for i in (1, 2)])
    assert "fewest" not in str(pick(rows, 2, seed=0))


def test_rows_of_one_source_only(prepared: Make) -> None:
    rows = [row(10, 5, "rows.jsonl", number=i) for i in range(5)]
    data = prepared([*rows, row(10, 5, "b.jsonl")])
    assert {shown.row.source for shown in see(data, title="x", source="rows.jsonl").shown} == {"rows.jsonl"}
    with pytest.raises(RecipeError, match=r"no source 'row.jsonl' \(did you mean 'rows.jsonl'\?\)"):
        see(data, title="x", source="row.jsonl")


def test_arrays_and_rows_agree_whatever_the_order() -> None:
    mixed = [row(10, 5, "a"), row(20, 5, "b"), row(30, 5, "a", number=3)]
    rows = as_rows(mixed)
    assert list(rows) == mixed
    assert rows.lengths.tolist() == [10, 20, 30]
    assert as_rows(rows) is rows


def test_loss_weights_are_seen() -> None:
    weighted = Row("a:1", {}, {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "loss_weights": [0.0, 0.5, 1.0]})
    [passage] = passages(weighted)
    assert list(passage.weights) == [0.0, 0.5, 1.0]
    assert passage.trained == 2


def test_prompt_and_answers_are_apart() -> None:
    judged = Row("a:1", {"label": False}, {"prompt_ids": [5, 6], "completion_ids": [7, 2]})
    prompt, completion = passages(judged)
    assert (prompt.title, list(prompt.weights)) == ("prompt", [0.0, 0.0])
    assert (completion.title, list(completion.weights)) == ("completion (bad)", [1.0, 1.0])


def test_the_columns_of_a_prompt_are_seen(prepared: Make) -> None:
    example: dict[str, Any] = {"prompt": "two?", "answer": "4", "entry": {"n": 1, "text": "\x1b[31m"}}
    data = prepared([Row("p:1", example, {"prompt_ids": [5]}, "p")], shape=Shape.PROMPT)
    seen = see(data, title="x")
    assert seen.shown[0].columns == {"answer": "4", "entry": '{"n": 1, "text": "\\u001b[31m"}'}
    assert seen.batch_size is None
    assert seen.batchings == ()


# --- findings and files ----------------------------------------------------------------------------------------------


def test_errors_come_first_and_fail(prepared: Make) -> None:
    odd, wrong = Finding("odd", "warning", "odd"), Finding("wrong", "error", "wrong")
    seen = see(prepared([row(10, 5)], findings=[odd, wrong]), title="x")
    assert seen.findings == (wrong, odd)
    assert not seen.passed
    assert see(prepared([row(10, 5)], findings=[odd]), title="x").passed


def test_the_figures_are_json(prepared: Make) -> None:
    text = see(prepared([row(10, 5)], findings=[Finding("odd", "warning", "odd", where=("a:1",))]), title="x").to_json()
    assert text.startswith(FIGURES)
    values = json.loads(text)
    assert values["sources"][0]["trained_tokens"] == 5
    assert values["shown"][0]["passages"][0]["weights"] == [0.0] * 5 + [1.0] * 5
    assert values["findings"][0]["where"] == ["a:1"]
    assert (values["findings"][0]["check"], values["findings"][0]["accepted"]) == ("odd", False)


def test_only_its_own_files_are_written_anew(tmp_path: Path) -> None:
    page = tmp_path / "rows.html"
    check_target(page, PAGE)
    save(PAGE + "\n<html>", page)
    check_target(page, PAGE)
    with pytest.raises(DataError, match=r"rows.html exists already, and is not overwritten"):
        check_target(page, FIGURES)
    for path in (tmp_path, tmp_path / "none" / "rows.html"):
        with pytest.raises(DataError):
            check_target(path, PAGE)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.html"]


def test_what_cannot_be_written_is_said_before(tmp_path: Path) -> None:
    for path in (Path("/proc/rows.html"), tmp_path / ("x" * 300)):  # no permission would stop root
        with pytest.raises(DataError, match="can't be written"):
            check_target(path, PAGE)
        with pytest.raises(DataError, match="can't be written"):
            save("x", path)
    check_targets(tmp_path / "a", tmp_path / "b")
    check_targets(None, None)
    with pytest.raises(RecipeError, match="`--html` and `--json` both name"):
        check_targets(tmp_path / "a", tmp_path / "." / "a")
    assert list(tmp_path.iterdir()) == []


def test_only_the_beginning_of_a_file_is_read(tmp_path: Path) -> None:
    page = tmp_path / "rows.html"
    with page.open("wb") as file:
        file.write(PAGE.encode())
        file.truncate(1 << 34)  # 16 GiB, none of them on the disk
    check_target(page, PAGE)
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer
    with pytest.raises(DataError, match="exists already"):
        check_target(tmp_path / "pipe", PAGE)
