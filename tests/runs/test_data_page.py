"""The page of a recipe's rows: whole, by itself, and safe whatever the rows hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

from llmkit.data.audit import Finding
from llmkit.runs.data_page import render
from llmkit.runs.prepare import prepare_data
from llmkit.runs.seeing import PAGE, Seen, see

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7 * 7 }} \u202e"
VOID = {"meta", "br", "rect", "line"}


class Outline(HTMLParser):
    """Collects tags, attributes and text, and checks that what is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(recipe: Callable[..., Recipe], tmp_path: Path, user: str, *overrides: str) -> tuple[Seen, str]:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": "it is four"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    seen = see(prepare_data(recipe("data.eval=null", "data.train=[{path: rows.jsonl}]", *overrides)), title=user)
    return seen, render(seen)


def test_nothing_of_a_row_becomes_markup(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    _, page = page_of(recipe, tmp_path, EVIL)
    outline = Outline(page)
    tags = {tag for tag, _ in outline.tags}
    assert not tags & {"script", "img", "link", "iframe", "object"}
    assert not {name for _, attributes in outline.tags for name in attributes if name.startswith("on")}
    # The row's text is all there, as text.
    assert EVIL.replace("\u202e", "‹U+202E›") in "".join(outline.text)
    assert "\u202e" not in page
    assert "49" not in "".join(outline.text).split("Rows")[-1]


def test_the_page_needs_nothing_else(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    _, page = page_of(recipe, tmp_path, "two?")
    assert page.startswith(PAGE)
    assert not re.search(r"""(src|href)=|url\(|@import|https?://""", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


def test_every_token_has_its_id_and_whether_it_is_trained(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    seen, page = page_of(recipe, tmp_path, "what is two?")
    titles = [str(a["title"]) for tag, a in Outline(page).tags if tag == "span" and "title" in a]
    told = [(int(i), words) for ids, words in (t.split(": ") for t in titles) for i in ids.split(", ")]
    row = seen.shown[0].row
    assert [i for i, _ in told] == row.input_ids
    assert [words == "trained" for _, words in told] == [label != -100 for label in row.labels]


def test_the_text_of_a_row_is_not_changed_by_the_templates_own_white_space(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    seen, page = page_of(recipe, tmp_path, "what\n  is two?")
    [block] = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    text = "".join(Outline(block).text)
    whole = seen.tokenizer.decode(seen.shown[0].row.input_ids)
    assert text.replace("↵", "").replace("·", " ") == whole


def test_findings_are_on_the_page(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    seen, _ = page_of(recipe, tmp_path, "two?")
    found = Finding("x", "error", "wrong <b>", 9, 9, ("a.jsonl:1",), "Mend it.")
    page = render(Seen(**{**vars(seen), "findings": (found,)}))
    text = " ".join("".join(Outline(page).text).split())
    assert "error x wrong <b> a.jsonl:1, …" in text
    assert "Mend it. Sources" in text


def test_the_chart_has_a_bar_for_each_bin(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    seen, page = page_of(recipe, tmp_path, "two?", "training.max_length=200")
    bars = [attributes for tag, attributes in Outline(page).tags if tag == "rect"]
    assert len(bars) == len(seen.histogram)
    assert f"The longest row has {seen.lengths['most']} tokens; max_length is 200." in page
    _, page = page_of(recipe, tmp_path, "two?", f"training.max_length={seen.lengths['most']}")
    assert f"max_length {seen.lengths['most']}</text>" in page
