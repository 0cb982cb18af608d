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
    assert said.out.endswith("error (x): the rows are wrong\n  rows.jsonl:1\n  Mend them.\n")
    assert page.exists()  # where something is wrong, there is most to look at


def test_files_that_cannot_be_written_are_refused_before_anything_is_read(
    llmkit: Callable[..., Any], recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.runs.prepare.prepare_data", lambda *_, **__: pytest.fail("rows were read"))
    said = llmkit("data", recipe_file, "--json", "/proc/rows.json")
    assert (said.code, said.out) == (2, "")
    assert "/proc/rows.json can't be written" in said.err
    said = llmkit("data", recipe_file, "--html", "y", "--json", "y")
    assert (said.code, said.out) == (2, "")
    assert "both name y" in said.err


def test_what_validate_refuses_is_refused(llmkit: Callable[..., Any], recipe_file: Path) -> None:
    wrong = ("--set", "training.report_to=no_such_tracker")
    refused = llmkit("validate", recipe_file, *wrong)
    assert refused.code == 2
    said = llmkit("data", recipe_file, *wrong)
    assert (said.code, said.err, said.out) == (2, refused.err, "")


def test_the_name_that_is_shown_is_the_one_to_accept(
    llmkit: Callable[..., Any], recipe_file: Path, rows_file: Path, tmp_path: Path
) -> None:
    rows_file.write_text(rows_file.read_text(encoding="utf-8") * 3, encoding="utf-8")
    said = llmkit("data", recipe_file, "--set", "data.eval=null")
    assert said.code == 3
    assert "error (duplicates): " in said.out
    page, figures = tmp_path / "p.html", tmp_path / "p.json"
    accept = ("--set", "data.eval=null", "--set", "data.audit.accept=[duplicates]")
    said = llmkit("data", recipe_file, *accept, "--html", page, "--json", figures)
    assert said.code == 0, said
    assert "accepted (duplicates): " in said.out
    assert '<b>accepted</b> <code class="quiet">duplicates</code>' in page.read_text(encoding="utf-8")
    (found,) = json.loads(figures.read_text(encoding="utf-8"))["findings"]
    assert (found["check"], found["severity"], found["accepted"]) == ("duplicates", "warning", True)
