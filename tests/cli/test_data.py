"""`llmkit data`: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.audit import Finding


def test_rows_are_shown_with_what_is_trained(llmkit: Callable[..., Any], recipe_file: Path) -> None:
    said = llmkit("data", recipe_file, "--rows", "2")
    assert said.code == 0, said
    assert said.out.startswith("tiny  18 conversation rows, 6 held out")
    assert "rows.jsonl" in said.out
    assert said.out.count("⟦it is ") == 2
    assert said.out.count("<|im_end|>⟧") == 2
    assert "held out for evaluation" in said.out
    assert "Nothing is wrong with these rows." in said.out


def test_the_same_command_prints_the_same(llmkit: Callable[..., Any], recipe_file: Path) -> None:
    first = llmkit("data", recipe_file)
    assert first.out == llmkit("data", recipe_file).out


def test_page_and_figures_are_written(llmkit: Callable[..., Any], recipe_file: Path, tmp_path: Path) -> None:
    page, figures = tmp_path / "rows.html", tmp_path / "rows.json"
    for _ in range(2):  # its own files are written anew
        said = llmkit("data", recipe_file, "--html", page, "--json", figures)
        assert said.code == 0, said
    assert page.read_text(encoding="utf-8").count("<b>rows.jsonl:") == 6
    values = json.loads(figures.read_text(encoding="utf-8"))
    assert values["rows"] == 18
    assert len(values["shown"]) == 6


def test_no_other_file_is_overwritten(llmkit: Callable[..., Any], recipe_file: Path, rows_file: Path) -> None:
    before = rows_file.read_bytes()
    said = llmkit("data", recipe_file, "--html", rows_file)
    assert said.code == 2
    assert "rows.jsonl exists already, and is not overwritten" in said.err
    assert said.out == ""
    assert rows_file.read_bytes() == before


def test_a_missing_folder_is_an_error_before_anything_is_read(llmkit: Callable[..., Any], recipe_file: Path) -> None:
    said = llmkit("data", recipe_file, "--html", "none/rows.html")
    assert said.code == 2
    assert "there is no folder none to write rows.html into" in said.err


def test_an_unknown_source_names_the_closest(llmkit: Callable[..., Any], recipe_file: Path) -> None:
    said = llmkit("data", recipe_file, "--source", "row.jsonl")
    assert said.code == 2
    assert "did you mean 'rows.jsonl'?" in said.err


def test_an_error_in_the_rows_ends_with_3(
    llmkit: Callable[..., Any], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Finding("x", "error", "the rows are wrong", 1, 1, ("rows.jsonl:1",), "Mend them.")]
    monkeypatch.setattr("llmkit.runs.prepare.audit", lambda *_: found)
    page = tmp_path / "rows.html"
    said = llmkit("data", recipe_file, "--html", page)
    assert said.code == 3
    assert said.out.endswith("error: the rows are wrong\n  rows.jsonl:1\n  Mend them.\n")
    assert page.exists()  # where something is wrong, there is most to look at
