"""Python that a recipe names: from its own folder or an installed package alone, and told before it runs."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import py_compile
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import RecipeError, SetupError
from llmkit.methods import _tools
from llmkit.recipe.functions import Form, announcements, check_function, hooks, load_all, load_function
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.recipe import Recipe
from llmkit.rewards.python import Python

Maker = Callable[..., Recipe]
FORM = Form("def NAME(row: dict) -> dict", "a row", 1)
GOOD = "def f(row):\n    return row\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The recipe's folder, with a stranger's file beside it."""
    folder = tmp_path / "home"
    (folder / "below").mkdir(parents=True)
    for file in (folder / "mine.py", folder / "below" / "mine.py"):
        file.write_text(GOOD, encoding="utf-8")
    return folder


@pytest.mark.parametrize("reference", ["mine.py:f", "below/mine.py:f", "below/../mine.py:f", "../home/mine.py:f"])
def test_files_of_the_recipes_folder_are_run(home: Path, reference: str) -> None:
    check_function(reference, home, FORM, "`python`")
    assert load_function(reference, home, "`python`")({"a": 1}) == {"a": 1}


def outside(home: Path, mine: Any) -> list[str]:
    """Return the ways to name a file that is not in the recipe's folder."""
    stranger = home.parent / "stranger.py"
    stranger.write_text(mine.code + GOOD, encoding="utf-8")
    (home / "link.py").symlink_to(stranger)
    (home / "folder").symlink_to(home.parent)
    return ["../stranger.py:f", f"{stranger}:f", "link.py:f", "folder/stranger.py:f", "below/../../stranger.py:f"]


def test_files_from_elsewhere_are_refused_and_not_run(home: Path, mine: Any) -> None:
    for reference in outside(home, mine):
        for act in (
            lambda reference: check_function(reference, home, FORM, "`python`"),
            lambda reference: load_function(reference, home, "`python`"),
            lambda reference: Python(type="python", function=reference).check_setup(home),
            lambda reference: Python(type="python", function=reference).set_up(home),
            lambda reference: _tools.check_tool(reference, home),
            lambda reference: _tools.load_tools([reference], home),
            lambda reference: _tools.check_environment(reference, home),
            lambda reference: _tools.load_environment(reference, home, []),
        ):
            with pytest.raises(RecipeError, match="is outside of the recipe's folder"):
                act(reference)
    assert not mine.went_off


@pytest.mark.parametrize("reference", ["~nobody-of-this-name/x.py:f", "a\0b.py:f"])
def test_what_is_no_path(home: Path, reference: str) -> None:
    with pytest.raises(RecipeError, match="can't be a path here"):
        check_function(reference, home, FORM, "`python`")


def test_a_file_that_links_to_itself(home: Path) -> None:
    (home / "loop.py").symlink_to("loop.py")
    with pytest.raises(RecipeError, match="can't be a path here"):
        check_function("loop.py:f", home, FORM, "`python`")


# --- installed packages ----------------------------------------------------------------------------------------------


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: Any) -> Path:
    """A folder of installed packages with `mypkg` in it; importing the package as a whole would be noticed."""
    folder = tmp_path / "site-packages"
    (folder / "mypkg" / "deep").mkdir(parents=True)
    (folder / "mypkg" / "__init__.py").write_text(mine.code, encoding="utf-8")
    (folder / "mypkg" / "rows.py").write_text(GOOD, encoding="utf-8")
    (folder / "mypkg" / "deep" / "__init__.py").write_text(GOOD, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(folder)])
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypkg"]:
        del sys.modules[name]


@pytest.mark.parametrize("reference", ["mypkg.rows:f", "mypkg.deep:f"])
def test_a_module_of_an_installed_package(home: Path, packages: Path, mine: Any, reference: str) -> None:
    check_function(reference, home, FORM, "`python`")
    assert not mine.went_off  # it is looked at without being imported
    assert load_function(reference, home, "`python`")({"a": 1}) == {"a": 1}


def test_a_module_that_lacks_the_function(home: Path, packages: Path) -> None:
    with pytest.raises(RecipeError, match=r"rows.py: the file defines no function 'g'"):
        check_function("mypkg.rows:g", home, FORM, "`python`")
    with pytest.raises(RecipeError, match="can't be read: No such file"):
        check_function("mypkg.absent:f", home, FORM, "`python`")


def test_a_package_in_the_current_folder_is_not_installed(
    home: Path, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m` has Python look there first."""
    (home / "theirs").mkdir()
    for name in ("__init__", "rows"):
        (home / "theirs" / f"{name}.py").write_text(mine.code + GOOD, encoding="utf-8")
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.chdir(home)
    for name in ("theirs", "nowhere", "__main__", "json"):
        with pytest.raises(RecipeError, match=f"no package '{name}' is installed"):
            load_function(f"{name}.rows:f", home, "`python`")
    assert not mine.went_off


# --- what is run is what is told -------------------------------------------------------------------------------------


def test_bytecode_beside_the_file_is_not_run(home: Path, mine: Any) -> None:
    """Python takes `__pycache__` for the file's own where its header says that nobody needs to check."""
    file = home / "mine.py"
    evil = home / "evil.py"
    evil.write_text(mine.code + GOOD, encoding="utf-8")
    target = importlib.util.cache_from_source(str(file))
    py_compile.compile(str(evil), target, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    spec = importlib.util.spec_from_file_location("trap", file)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert mine.went_off  # the trap works on Python's own loader
    mine.marker.unlink()
    load_function("mine.py:f", home, "`python`")
    assert not mine.went_off


def test_no_bytecode_is_left_behind(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    load_function("mine.py:f", home, "`python`")
    assert not list(home.rglob("__pycache__"))


def test_functions_of_one_file_share_its_state(home: Path) -> None:
    (home / "shared.py").write_text(
        "SEEN = []\ndef f():\n    return SEEN\ndef g():\n    return SEEN\n", encoding="utf-8"
    )
    first, second = load_all(["shared.py:f", "below/../shared.py:g"], home, "`method.tools`")
    assert first() is second()


REWARD = "rewards=[{type: python, function: 'mine.py:f'}]"


def test_each_is_announced_with_its_place_and_its_hash(recipe: Maker, tmp_path: Path, mine: Any) -> None:
    text = mine.code + GOOD
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    (tmp_path / "tools.py").write_text("def t() -> str:\n    'Do.'\n    return ''\n", encoding="utf-8")
    method = "method={type: grpo, tools: ['tools.py:t'], environment: 'tools.py:E'}"
    made = recipe("data.train.0.python=mine.py:rows", method, REWARD)
    found = announcements(made)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert f"this recipe runs code with your rights: f of {tmp_path}/mine.py (SHA-256 {digest})" in found
    assert [hook.reference for hook in hooks(made)] == ["mine.py:rows", "tools.py:t", "tools.py:E", "mine.py:f"]
    assert len(found) == 4
    assert not mine.went_off


def test_what_only_looks_like_code_is_not_announced(recipe: Maker) -> None:
    made = recipe("data.train.0.columns={text: 'a.py:f'}", "data.train.0.format=text")
    assert announcements(made) == []


def test_extends_brings_no_code_of_another_folder(home: Path, tmp_path: Path, recipe_file: Path, mine: Any) -> None:
    """The folder of the recipe that is run counts, whichever file names the function."""
    (recipe_file.parent / "mine.py").write_text(mine.code + GOOD, encoding="utf-8")
    top = home / "top.yaml"
    top.write_text(
        f"extends: {recipe_file}\ndata: {{train: [{{path: x.jsonl, python: mine.py:f}}]}}\n", encoding="utf-8"
    )
    made = load_recipe(top)
    assert [hook.path for hook in hooks(made)] == [home / "mine.py"]
    top.write_text(
        f"extends: {recipe_file}\ndata: {{train: [{{path: x.jsonl, python: {recipe_file.parent}/mine.py:f}}]}}\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError, match="is outside of the recipe's folder"):
        hooks(load_recipe(top))


def test_a_folder_that_was_changed_in_the_lock_is_told(recipe: Maker, home: Path, tmp_path: Path, mine: Any) -> None:
    """A run goes on from the folder in `lock.json`; who changes it is announced with the place of what runs."""
    (home / "mine.py").write_text(mine.code + GOOD, encoding="utf-8")
    made = recipe("data.train.0.python=mine.py:f").placed(home)
    assert str(home / "mine.py") in announcements(made)[0]
    assert not mine.went_off


def test_the_code_of_a_whole_run_left_no_bytecode(whole_run: Any) -> None:
    assert not list((whole_run.home / "recipe").rglob("*.pyc"))


def test_a_file_of_the_name_of_a_library_is_not_taken_for_it(home: Path, mine: Any) -> None:
    """The command `llmkit` looks for modules where they are installed, and not in the current folder."""
    script = Path(sys.executable).with_name("llmkit")
    if not script.is_file():
        pytest.skip("llmkit is not installed beside this Python")
    for name in ("pydantic", "yaml", "typer", "torch"):
        (home / f"{name}.py").write_text(mine.code, encoding="utf-8")
    said = subprocess.run(
        [script, "recipes"], cwd=home, env={**os.environ, "PYTHONPATH": ""}, check=True, capture_output=True
    )
    assert said.stdout
    assert not mine.went_off


def test_importing_fails_with_a_sentence(home: Path, packages: Path) -> None:
    (packages / "mypkg" / "rows.py").write_text(f"{GOOD}raise KeyError('no')\n", encoding="utf-8")
    with pytest.raises(SetupError, match="`python`: importing mypkg.rows raised KeyError: 'no'"):
        load_function("mypkg.rows:f", home, "`python`")
