"""Streams: the same rows each time, shuffled, mixed as asked, never a held-out one, counted once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from llmkit.data.checking import check_data
from llmkit.data.ledger import Ledger
from llmkit.data.prepare import load_splits
from llmkit.data.splits import Splits
from llmkit.errors import DataError, RecipeError
from llmkit.recipe.recipe import Recipe

Maker = Callable[..., Recipe]
STREAM = ("data.streaming=true", "data.eval=null", "training.max_steps=4")


def load(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> tuple[Splits, Ledger]:
    return load_splits(recipe, tokenizer, frozenset({int(tokenizer.eos_token_id or 0)}), max_length=1024, seed=42)


def ids(splits: Splits, count: int | None = None) -> list[tuple[int, ...]]:
    assert splits.stream is not None
    return [tuple(row["input_ids"]) for row in islice(splits.stream(), count)]


def pairs(path: Path, count: int, word: str) -> None:
    turns = [("user", f"{word} {{}}?"), ("assistant", f"{word} {{}}")]
    rows = [{"messages": [{"role": r, "content": c.format(i)} for r, c in turns]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_stream_has_each_row_once_in_another_order(recipe: Maker, tokenizer: PreTrainedTokenizerFast) -> None:
    whole, _ = load(recipe("data.eval=null"), tokenizer)
    splits, ledger = load(recipe(*STREAM), tokenizer)
    found = ids(splits)
    assert sorted(found) == sorted(tuple(row.input_ids) for row in whole.train)
    assert found != [tuple(row.input_ids) for row in whole.train]
    assert found == ids(load(recipe(*STREAM), tokenizer)[0])
    assert ledger.to_dict()["train"]["rows.jsonl"]["kept"] == 24


def test_reading_it_again_counts_nothing_twice(recipe: Maker, tokenizer: PreTrainedTokenizerFast) -> None:
    splits, ledger = load(recipe(*STREAM), tokenizer)
    ids(splits)
    before = ledger.to_dict()
    ids(splits)
    assert ledger.to_dict() == before


def test_the_buffer_bounds_how_far_a_row_moves(recipe: Maker, tokenizer: PreTrainedTokenizerFast) -> None:
    whole, _ = load(recipe("data.eval=null"), tokenizer)
    order = {tuple(row.input_ids): index for index, row in enumerate(whole.train)}
    found = [order[row] for row in ids(load(recipe(*STREAM, "data.shuffle_buffer=2"), tokenizer)[0])]
    assert found != sorted(found)
    assert all(original <= place + 2 for place, original in enumerate(found))


def test_held_out_rows_are_not_streamed(recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    lines = rows_file.read_text(encoding="utf-8").splitlines()
    (rows_file.parent / "eval.jsonl").write_text("\n".join(lines[:3]), encoding="utf-8")
    splits, ledger = load(recipe(*STREAM[::2], "data.eval=[{path: eval.jsonl}]"), tokenizer)
    held_out = {tuple(row.input_ids) for row in splits.eval}
    assert len(held_out) == 3
    assert not held_out & set(ids(splits))
    assert ledger.to_dict()["train"]["rows.jsonl"]["dropped"] == {"also among the held-out rows": 3}


def test_sources_are_mixed_by_weight(recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    pairs(rows_file, 400, "what")
    pairs(rows_file.parent / "other.jsonl", 400, "yes")
    sources = "data.train=[{path: rows.jsonl, weight: 3}, {path: other.jsonl, weight: 1}]"
    splits, _ = load(recipe(sources, *STREAM), tokenizer)
    texts = [tokenizer.decode(row) for row in ids(splits, 200)]
    share = Counter("yes" in text for text in texts)[True] / 200
    assert 0.15 < share < 0.35  # a quarter, give or take three standard deviations


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
        ids(splits)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.eval=0.1",), "can't be a share of a stream"),
        (("training.max_steps=-1",), "no end that epochs could be counted by"),
        (("data.temperature=2",), "needs to know how many rows"),
        (("data.train.0.repeat=2",), "can't `repeat`"),
        (("data.train=[{path: rows.jsonl}, {path: rows.jsonl}]",), "need a `weight` each"),
        (("training.packing=true",), "needs the lengths of all rows"),
        (("method.type=dpo", "data.train.0.format=preference"), "needs all rows at once"),
    ],
)
def test_what_a_stream_can_not_do_is_refused(recipe: Maker, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_data(recipe(*STREAM, *overrides))


def test_a_resumed_run_reads_on_where_it_was(
    recipe: Maker, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps, and two with two more: the same losses, so the same rows in the same order."""
    import llmkit

    keys = (*STREAM, "data.shuffle_buffer=8", "training.save_steps=2", "training.logging_steps=1", "export=[]")
    straight = llmkit.run(recipe(*keys, "evaluation=[]"), out=tmp_path / "straight")
    stopped = recipe(*keys, "evaluation=[]")
    from transformers import Trainer

    save = Trainer._save_checkpoint

    def save_and_stop(self: Any, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            llmkit.run(stopped, out=tmp_path / "stopped")
    resumed = llmkit.run(stopped, out=tmp_path / "stopped", resume=True)
    assert resumed.losses == straight.losses
    assert len(straight.losses) == 4
    ledger = json.loads((tmp_path / "straight" / "ledger.json").read_text())
    assert ledger["train"]["rows.jsonl"]["read"] > 0
