"""The pages do what they say: commands and Python run, recipes are valid, rows parse, the reference is current.

Blocks of one page run in order in one folder. An HTML comment above a block tells the tests what its reader need not
know: `<!-- test: set a.b=c -->` adds overrides to its commands (`TINY` is the tiny model's folder), `file NAME` saves
the block, `format NAME` converts its rows, `refused` and `exits N` expect an error, `stdin TEXT` is typed in, and
`skip REASON` leaves it out. Recipes for real weights that Python blocks load are made small by themselves.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import LlmkitError
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.recipe import Recipe
from llmkit.recipe.spec import variant_names

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"] if p.is_file())
ROOMS = (
    "methods",
    "model.adapters",
    "model.quantization",
    "rewards",
    "evaluation",
    "exports",
    "data.formats",
    "data.made",
)
MOST_SKIPS = 6
READING = ("cat", "head", "ls")
"""Commands besides `llmkit` that a page may use."""

BLOCK = re.compile(
    r"(?P<notes>(?:^<!-- test: [^\n]*-->\n)*)^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
NOTE = re.compile(r"<!-- test: (\w+) ?(.*?) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block, with the notes above it by their first word."""

    page: Path
    line: int
    language: str
    text: str
    notes: dict[str, str]

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: m.start()].count("\n") + 1, m["language"], m["text"], dict(NOTE.findall(m["notes"])))
        for m in BLOCK.finditer(text)
    ]


def _page_name(page: Path) -> str:
    return page.stem


class Reader:
    """Someone who works through one page in a folder of their own."""

    def __init__(self, folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.tiny, self.monkeypatch = folder, tiny, monkeypatch
        self.names: dict[str, Any] = {"__name__": "__docs__"}

    def follow(self, block: Block) -> None:
        if "skip" in block.notes:
            assert len(block.notes["skip"]) > 10, f"{block.where}: say why it is skipped"
            return
        if "file" in block.notes:
            path = self.folder / block.notes["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        do: dict[str, Callable[[Block], None]] = {
            "bash": self.type_in,
            "python": self.execute,
            "yaml": self.check_yaml,
            "json": self.check_rows,
            "jsonl": self.check_rows,
            "jinja": lambda _: None,
            "text": lambda b: self._not_empty(b),
        }
        assert block.language in do, f"{block.where}: a block of {block.language or 'no language'} is not checked"
        do[block.language](block)

    def _not_empty(self, block: Block) -> None:
        assert block.text.strip(), block.where

    # --- commands

    def type_in(self, block: Block) -> None:
        expected = int(block.notes.get("exits", "0"))
        for command in re.sub(r"\\\n\s*", "", block.text).splitlines():
            words = shlex.split(command, comments=True)
            if not words:
                continue
            if words[0] == "make":
                self._target(words[1], block)
            elif words[0] in READING:
                subprocess.run(words, cwd=self.folder, check=True, capture_output=True)
            else:
                assert words[0] == "llmkit", f"{block.where}: {command!r} is not run by any test"
                code, said = self._llmkit([*words[1:], *self._overrides(block)], block.notes.get("stdin", ""))
                assert code == expected, f"{block.where}: {command!r} ended with {code}\n{said}"

    def _target(self, name: str, block: Block) -> None:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"{block.where}: no target {name!r} in the Makefile"

    def _overrides(self, block: Block) -> list[str]:
        changes = shlex.split(block.notes.get("set", "").replace("TINY", str(self.tiny)))
        return [word for change in changes for word in ("--set", change)]

    def _llmkit(self, words: list[str], typed: str) -> tuple[int, str]:
        from llmkit.cli.main import main

        out = io.StringIO()
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["llmkit", *words])
            patch.setattr(sys, "stdin", io.StringIO(typed))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", out)
            try:
                main()
            except SystemExit as stop:
                return int(stop.code or 0), out.getvalue()
        return 0, out.getvalue()

    # --- everything else

    def execute(self, block: Block) -> None:
        import llmkit

        source = "\n" * block.line + block.text
        with self.monkeypatch.context() as patch:
            patch.setattr(llmkit, "load_recipe", self._load_small, raising=False)
            exec(compile(source, str(block.page), "exec"), self.names)

    def _load_small(self, path: str, overrides: Sequence[str] = ()) -> Recipe:
        """Load a recipe as the page does; one for real weights gets the tiny model, few rows and two steps."""
        recipe = load_recipe(path, overrides)
        if not recipe.model.name.startswith("package:"):
            return recipe
        small = [f"model.name={self.tiny}", "hardware.device=cpu", "training.max_steps=2"]
        for name in ("train", "eval"):
            sources = getattr(recipe.data, name)
            small += [f"data.{name}.{i}.max_rows=12" for i in range(len(sources) if isinstance(sources, tuple) else 0)]
        small += [
            f"evaluation.{i}.max_new_tokens=4"
            for i, evaluation in enumerate(recipe.evaluation)
            if "max_new_tokens" in type(evaluation).model_fields
        ]
        return load_recipe(path, [*overrides, *small])

    def check_yaml(self, block: Block) -> None:
        path = self.folder / block.notes.get("file", f"block-{block.line}.yaml")
        path.write_text(block.text, encoding="utf-8")
        if "refused" in block.notes:
            with pytest.raises(LlmkitError, match=re.escape(block.notes["refused"])):
                self._load(path)
            return
        self._load(path)

    def _load(self, path: Path) -> Recipe:
        """Load a recipe; a fragment is merged over a whole one, as `extends` does it."""
        from ruamel.yaml import YAML

        keys = set(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
        if keys >= {"model", "data", "method"} or "extends" in keys:
            return load_recipe(path)
        assert keys <= set(Recipe.model_fields), f"{path}: {keys} are no sections"
        around = "method: {type: sft}\nmodel: {name: tiny}\ndata: {train: [{path: made:orders, format: messages}]}\n"
        (path.parent / "around.yaml").write_text(around, encoding="utf-8")
        path.write_text(f"extends: around.yaml\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
        return load_recipe(path)

    def check_rows(self, block: Block) -> None:
        try:
            rows = [json.loads(block.text)]
        except json.JSONDecodeError:
            rows = [json.loads(line) for line in block.text.splitlines() if line.strip()]
        if "format" in block.notes:
            from llmkit.data.sources import load_format

            for row in rows:
                load_format(block.notes["format"]).convert(row)


@pytest.fixture
def reader(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """A folder with the shipped recipes, a tiny model, and `tiny.yaml` with its rows."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "tiny-llama").symlink_to(tiny_folder)
    monkeypatch.chdir(tmp_path)
    return Reader(tmp_path, tiny_folder, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=_page_name)
def test_page(page: Path, reader: Reader, recipe_file: Path) -> None:
    for block in blocks(page):
        reader.follow(block)


def test_every_fence_is_understood() -> None:
    for page in PAGES:
        fences = len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert fences == 2 * len(blocks(page)), page.name


def test_few_blocks_are_skipped() -> None:
    skipped = [block.where for page in PAGES for block in blocks(page) if "skip" in block.notes]
    assert len(skipped) <= MOST_SKIPS, skipped


@pytest.mark.parametrize("page", PAGES, ids=_page_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_reference_is_current() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "reference.py"), "--check"], check=True, timeout=60)


@pytest.mark.parametrize("room", ROOMS)
def test_every_variant_is_in_the_reference_and_on_a_page(room: str) -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    guides = "".join(p.read_text(encoding="utf-8") for p in PAGES if p.stem != "reference")
    for name in variant_names(f"llmkit.{room}"):
        assert re.search(rf"^### \w+: `(made:)?{name}`$", reference, re.MULTILINE), name
        assert re.search(rf"\b{name}\b", guides), name


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("adapter.lora_dropout=0.2", "training.gradient_accumulation_steps=2", "training.max_steps=5"),
        ("adapter=null", "training.max_steps=-1", "training.num_train_epochs=1.5", "training.learning_rate=1e-3"),
        ("training.packing=true", "training.max_length=64"),
    ],
    ids=["plain", "accumulated", "full", "packed"],
)
def test_custom_loop_computes_what_run_computes(overrides: tuple[str, ...], recipe_file: Path, tmp_path: Path) -> None:
    import llmkit

    [source] = [b.text for b in blocks(ROOT / "docs" / "custom_loop.md") if "def train(" in b.text]
    names: dict[str, Any] = {}
    exec(compile(source, "custom_loop.md", "exec"), names)
    recipe = llmkit.load_recipe(recipe_file, overrides)
    prepared = llmkit.prepare(recipe)
    losses = names["train"](prepared)
    run = llmkit.run(recipe, out=tmp_path / "run")
    assert losses == pytest.approx(run.losses, abs=1e-5)
    assert len(losses) == prepared.loop().steps
