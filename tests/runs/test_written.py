"""A file that grows in batches holds whole ones, whenever its writer was stopped, and all of the same settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import DataError, RecipeError
from llmkit.runs.progress import Narrator
from llmkit.runs.written import Written

SETTINGS = {"samples": 4, "temperature": 1.0, "model": {"name": "tiny"}, "rows": "abc", "stops": (1, 2)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def begun(out: Path, **changes: Any) -> Written:
    """Return the file, gone on with."""
    written = Written(out, {**SETTINGS, **changes}, prompts=4)
    written.go_on(Narrator())
    return written


def add(written: Written, *rows: dict[str, Any], dropped: int = 0) -> None:
    for _ in rows:
        written.tally.answered += 1
        written.tally.kept += 1
    for _ in range(dropped):
        written.tally.drop("no reason")
    written.add(rows)


def test_what_is_there_is_gone_on_with(out: Path) -> None:
    add(begun(out), {"n": 1}, dropped=1)
    again = begun(out)
    assert again.tally.done == 2
    add(again, {"n": "\u2028é"})
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]] == [
        {"n": 1},
        {"n": "\u2028é"},
    ]
    assert begun(out).tally.done == 3
    assert json.loads(out.with_name("rows.jsonl.ledger").read_text(encoding="utf-8"))["tally"]["kept"] == 2


def test_a_batch_that_kept_nothing_makes_an_empty_file(out: Path) -> None:
    add(begun(out), dropped=2)
    assert out.read_bytes() == b""
    assert begun(out).tally.done == 2


def test_half_a_batch_is_dropped(out: Path) -> None:
    add(begun(out), {"n": 1})
    whole = out.read_bytes()
    out.write_bytes(whole + b'{"n": 2}\n{"n":')
    assert begun(out).tally.done == 1
    assert out.read_bytes() == whole


def test_half_of_the_first_batch_is_dropped(out: Path) -> None:
    begun(out)
    out.write_bytes(b'{"n": 1}\n{"n":')
    again = begun(out, temperature=0.5)
    assert again.tally.done == 0
    assert not out.exists()


def test_nothing_done_binds_to_nothing(out: Path) -> None:
    begun(out)
    add(begun(out, temperature=0.5), {"n": 1})
    with pytest.raises(RecipeError, match=r"temperature was 0\.5 and is 1\.0"):
        begun(out)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": 0.7}, "temperature was 1.0 and is 0.7"),
        ({"samples": 2, "rows": "abd"}, "samples was 4 and is 2, other rows"),
        ({"model": {"name": "other"}}, "other model"),
        ({"top_p": 0.9}, "other top_p"),
    ],
)
def test_other_settings_are_refused(out: Path, changes: dict[str, Any], said: str) -> None:
    add(begun(out), {"n": 1})
    before = out.read_bytes()
    with pytest.raises(RecipeError) as error:
        begun(out, **changes)
    assert f"was begun with other settings: {said}" in str(error.value)
    assert "or choose another --out" in str(error.value)
    assert out.read_bytes() == before


@pytest.mark.parametrize("text", ['{"n": 9}\n', "", '{"n": 9}\n{"n": 2}\n'])
def test_a_file_that_was_changed_is_refused(out: Path, text: str) -> None:
    add(begun(out), {"n": 1})
    out.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="has been changed since it was written"):
        begun(out)
    assert out.read_text(encoding="utf-8") == text


def test_a_file_that_is_gone_is_missed(out: Path) -> None:
    add(begun(out), {"n": 1})
    out.unlink()
    with pytest.raises(DataError, match=r"remove it together with rows\.jsonl\.ledger to start over"):
        begun(out)


def test_a_file_of_someone_else_is_not_touched(out: Path) -> None:
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl exists already, and is not overwritten"):
        begun(out)
    assert out.read_text(encoding="utf-8") == "mine"


def test_the_ledger_is_no_data_file(out: Path) -> None:
    from llmkit.data.readers import READERS

    # A folder of data files is read whole.
    assert begun(out).ledger.suffix not in READERS
