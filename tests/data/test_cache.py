"""A second run reads prepared rows back; a changed byte, setting, tokenizer or line of code does not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from llmkit.data import cache, reading
from llmkit.data.prepare import load_splits
from llmkit.data.splits import Splits
from llmkit.errors import DataError
from llmkit.recipe.recipe import Recipe

Maker = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the sources that were read."""
    paths: list[str] = []
    read = reading.read_examples

    def counted(source: Any, *rest: Any) -> Any:
        paths.append(source.path)
        return read(source, *rest)

    monkeypatch.setattr(reading, "read_examples", counted)
    return paths


def load(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, max_length: int = 1024) -> tuple[Splits, dict[str, Any]]:
    stops = frozenset({int(tokenizer.eos_token_id or 0)})
    splits, ledger = load_splits(recipe, tokenizer, stops, max_length=max_length, seed=42)
    return splits, ledger.to_dict()


def test_a_second_run_reads_nothing_and_finds_the_same(
    recipe: Maker, tokenizer: PreTrainedTokenizerFast, reads: list[str]
) -> None:
    first = load(recipe(), tokenizer)
    assert load(recipe(), tokenizer) == first
    assert reads == ["rows.jsonl"]


def test_the_seed_and_the_mix_need_no_new_preparation(
    recipe: Maker, tokenizer: PreTrainedTokenizerFast, reads: list[str]
) -> None:
    load(recipe(), tokenizer)
    load(recipe("data.train.0.repeat=2", "data.eval=0.5"), tokenizer)
    assert reads == ["rows.jsonl"]


def change_byte(rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows_file.write_text(rows_file.read_text(encoding="utf-8").replace("plus 0", "plus 1", 1), encoding="utf-8")


def change_template(rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = str(tokenizer.chat_template).replace("'\n'", "'\n\n'")


def change_tokenizer(rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(["plus"])


def change_code(rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    cache._code()["data"] = "other"


@pytest.mark.parametrize("change", [change_byte, change_template, change_tokenizer, change_code])
def test_what_changes_the_rows_prepares_them_anew(
    recipe: Maker,
    rows_file: Path,
    tokenizer: PreTrainedTokenizerFast,
    reads: list[str],
    change: Callable[[Path, PreTrainedTokenizerFast], None],
) -> None:
    load(recipe(), tokenizer)
    change(rows_file, tokenizer)
    load(recipe(), tokenizer)
    cache._code.cache_clear()
    assert len(reads) == 2


@pytest.mark.parametrize("override", ["data.overflow=truncate", "data.train.0.max_rows=20", "data.train_on=last"])
def test_settings_that_change_the_rows_prepare_them_anew(
    recipe: Maker, tokenizer: PreTrainedTokenizerFast, reads: list[str], override: str
) -> None:
    load(recipe(), tokenizer)
    load(recipe(override), tokenizer)
    load(recipe(), tokenizer, max_length=512)
    assert len(reads) == 3


def test_a_failed_preparation_leaves_nothing(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast, own_cache: Path
) -> None:
    rows_file.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}) + "\n", encoding="utf-8")
    with pytest.raises(DataError):
        load(recipe(), tokenizer)
    assert [place for place in own_cache.iterdir() if place.name.startswith("new-")] == []


def test_rows_that_no_run_has_used_for_long_are_removed(
    recipe: Maker, tokenizer: PreTrainedTokenizerFast, own_cache: Path
) -> None:
    old = own_cache / "old"
    fresh = own_cache / "fresh"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
    long_ago = time.time() - 40 * 86400
    os.utime(old, (long_ago, long_ago))
    load(recipe(), tokenizer)
    assert not old.exists()
    assert fresh.exists()
