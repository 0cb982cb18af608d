"""Streams: the same rows each time, shuffled, mixed as asked, never a held-out one, counted once."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llmkit.data.checking import check_data
from llmkit.data.ledger import Ledger
from llmkit.data.prepare import load_splits
from llmkit.data.splits import Splits
from llmkit.data.streaming import shuffled
from llmkit.errors import DataError, RecipeError
from llmkit.recipe.recipe import Recipe

Maker = Callable[..., Recipe]
TWO = "[{path: rows.jsonl, streaming: true}, {path: rows.jsonl, streaming: true}]"
STREAM = ("data.train.0.streaming=true", "data.eval=null", "training.max_steps=4")


def load(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> tuple[Splits, Ledger]:
    return load_splits(recipe, tokenizer, frozenset({int(tokenizer.eos_token_id or 0)}), max_length=1024, seed=42)


def ids(splits: Splits, count: int) -> list[tuple[int, ...]]:
    assert splits.stream is not None
    return [tuple(row["input_ids"]) for row in islice(splits.stream(), count)]


def test_a_buffer_gives_each_item_once_and_bounds_how_far_it_moves() -> None:
    found = list(shuffled(range(1000), 10, random.Random(3)))
    assert sorted(found) == list(range(1000))
    assert found != list(range(1000))
    assert all(item <= place + 10 for place, item in enumerate(found))
    assert list(shuffled(range(5), 10, random.Random(3))) == [0, 2, 3, 4, 1]


def pairs(path: Path, count: int, word: str) -> None:
    turns = [("user", f"{word} {{}}?"), ("assistant", f"{word} {{}}")]
    rows = [{"messages": [{"role": r, "content": c.format(i)} for r, c in turns]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_each_pass_has_each_row_once_in_another_order(recipe: Maker, tokenizer: PreTrainedTokenizerFast) -> None:
    whole, _ = load(recipe("data.eval=null"), tokenizer)
    splits, _ = load(recipe(*STREAM), tokenizer)
    found = ids(splits, 48)
    rows = sorted(tuple(row.input_ids) for row in whole.train)
    assert sorted(found[:24]) == sorted(found[24:]) == rows
    assert found[:24] != found[24:]
    assert found == ids(load(recipe(*STREAM), tokenizer)[0], 48)


def test_rows_are_counted_once_however_often_they_come(recipe: Maker, tokenizer: PreTrainedTokenizerFast) -> None:
    splits, ledger = load(recipe(*STREAM, "data.shuffle_buffer=2"), tokenizer)
    ids(splits, 1)
    ids(splits, 60)
    ids(splits, 60)
    account = ledger.to_dict()["train"]["rows.jsonl"]
    assert (account["read"], account["kept"]) == (24, 24)


def test_held_out_rows_are_not_streamed_nor_audited(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    lines = rows_file.read_text(encoding="utf-8").splitlines()
    (rows_file.parent / "eval.jsonl").write_text("\n".join(lines[:3]), encoding="utf-8")
    splits, ledger = load(recipe(*STREAM[::2], "data.eval=[{path: eval.jsonl}]"), tokenizer)
    held_out = {tuple(row.input_ids) for row in splits.eval}
    assert len(held_out) == 3
    assert not held_out & {tuple(row.input_ids) for row in splits.train}
    assert not held_out & set(ids(splits, 40))
    assert ledger.to_dict()["train"]["rows.jsonl"]["dropped"] == {"also among the held-out rows": 3}


def test_a_stream_of_held_out_rows_alone_is_refused(recipe: Maker, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no row is left: .*24 dropped \\(also among the held-out rows\\)"):
        load(recipe(*STREAM[::2], "data.eval=[{path: rows.jsonl}]"), tokenizer)


def test_a_source_that_loses_most_of_its_rows_is_refused_before_training(
    recipe: Maker, tokenizer: PreTrainedTokenizerFast
) -> None:
    stops = frozenset({int(tokenizer.eos_token_id or 0)})
    with pytest.raises(DataError, match="rows can't be used: .* longer than"):
        load_splits(recipe(*STREAM), tokenizer, stops, max_length=12, seed=42)


def test_sources_are_mixed_by_weight(recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    pairs(rows_file, 400, "what")
    pairs(rows_file.parent / "other.jsonl", 400, "yes")
    keys = "streaming: true, weight"
    sources = f"data.train=[{{path: rows.jsonl, {keys}: 3}}, {{path: other.jsonl, {keys}: 1}}]"
    splits, ledger = load(recipe(sources, *STREAM[1:]), tokenizer)
    texts = [tokenizer.decode(row) for row in ids(splits, 200)]
    share = Counter("yes" in text for text in texts)[True] / 200
    assert 0.15 < share < 0.35  # a quarter, give or take three standard deviations
    accounts = ledger.to_dict()["train"]
    assert accounts["rows.jsonl"]["read"] == accounts["other.jsonl"]["read"] == 400  # the buffer holds all of them


def test_a_short_source_does_not_start_the_long_one_anew(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs(rows_file, 300, "what")
    pairs(rows_file.parent / "other.jsonl", 5, "yes")
    keys = "streaming: true, weight: 1"
    sources = f"data.train=[{{path: rows.jsonl, {keys}}}, {{path: other.jsonl, {keys}}}]"
    splits, _ = load(recipe(sources, *STREAM[1:], "data.shuffle_buffer=4"), tokenizer)
    texts = [text for row in ids(splits, 400) if "what" in (text := tokenizer.decode(row))]
    assert len(set(texts)) == len(texts) > 150


def test_only_the_head_is_read_before_training(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs(rows_file, 3000, "what")
    splits, ledger = load(recipe(*STREAM), tokenizer)
    assert len(splits.train) == 1000
    assert ledger.to_dict()["train"]["rows.jsonl"]["read"] == 0


def test_broken_rows_stop_the_stream_where_their_share_is_too_large(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs(rows_file, 1200, "what")
    with rows_file.open("a", encoding="utf-8") as file:
        file.write("{broken\n" * 300)
    splits, _ = load(recipe(*STREAM), tokenizer)
    with pytest.raises(DataError, match="rows.jsonl:1201: "):
        ids(splits, 5000)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.eval=0.1",), "can't be a share of a stream"),
        (("training.max_steps=-1",), "no end that epochs could be counted by"),
        (("data.temperature=2", f"data.train={TWO}"), "needs to know how many rows"),
        (("data.train.0.repeat=2",), "can't `repeat`"),
        (
            (f"data.train={TWO}",),
            "need a `weight` each",
        ),
        (
            ("data.train=[{path: rows.jsonl, streaming: true}, {path: rows.jsonl}]",),
            "all training sources are streamed",
        ),
        (("data.eval=[{path: rows.jsonl, streaming: true}]",), "held-out rows can't be streamed"),
        (("data.train.0.streaming=false", "data.shuffle_buffer=5"), "no source has `streaming: true`"),
        (("training.dataloader_num_workers=1",), "processes that load batches"),
        (("training.padding_free=true",), "need the lengths of all rows"),
        (("training.packing=true",), "need the lengths of all rows"),
        (("method.type=dpo", "data.train.0.format=preference"), "needs all rows at once"),
    ],
)
def test_what_a_stream_can_not_do_is_refused(recipe: Maker, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_data(recipe(*STREAM, *overrides))


def test_a_resumed_run_reads_on_where_it_was(recipe: Maker, rows_file: Path, tmp_path: Path) -> None:
    """Eight steps, and six with two more, past the end of the file: the same rows in the same order."""
    import llmkit

    keys = (*STREAM[:2], "training.max_steps=8", "data.shuffle_buffer=5", "training.per_device_train_batch_size=5")
    keys += ("training.save_steps=6", "training.logging_steps=1", "export=[]")
    straight = llmkit.run(recipe(*keys, "evaluation=[]"), out=tmp_path / "straight")
    stopped = recipe(*keys, "evaluation=[]")
    llmkit.run(stopped, out=tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "checkpoint-8")
    resumed = llmkit.run(stopped, out=tmp_path / "stopped", resume=True)
    assert resumed.losses == straight.losses
    assert len(straight.losses) == 8
    ledger = json.loads((tmp_path / "straight" / "ledger.json").read_text())
    assert ledger["train"]["rows.jsonl"]["read"] == 24
