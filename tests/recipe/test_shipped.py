"""The shipped recipes: each is valid, says what it shows, and can be copied but never over another file."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.errors import RecipeError
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.shipped import copy_recipe, recipes_folder, shipped_recipes

NAMES = [recipe.name for recipe in shipped_recipes()]


def test_all_recipe_files_are_listed_by_name() -> None:
    assert "quickstart" in NAMES
    assert sorted(f"{name}.yaml" for name in NAMES) == sorted(p.name for p in recipes_folder().glob("*.y*ml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_valid_and_begins_with_a_summary(name: str) -> None:
    recipe = next(r for r in shipped_recipes() if r.name == name)
    load_recipe(recipe.path)
    first = recipe.path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# {recipe.summary}"
    assert len(recipe.summary) > 30


def test_a_copy_goes_to_a_folder_or_a_file(tmp_path: Path) -> None:
    original = (recipes_folder() / "quickstart.yaml").read_text(encoding="utf-8")
    for name, target, path in [
        ("quickstart", tmp_path, tmp_path / "quickstart.yaml"),
        ("quickstart.yaml", tmp_path / "mine.yaml", tmp_path / "mine.yaml"),
    ]:
        assert copy_recipe(name, target) == path
        assert path.read_text(encoding="utf-8") == original


def test_the_tools_of_a_recipe_are_copied_with_it(tmp_path: Path) -> None:
    path = copy_recipe("grpo_tools_qwen", tmp_path / "mine.yaml")
    assert path.is_file()
    assert (tmp_path / "grpo_tools_qwen.py").is_file()
    with pytest.raises(RecipeError, match=r"grpo_tools_qwen\.py exists already"):
        copy_recipe("grpo_tools_qwen", tmp_path / "other.yaml")
    assert not (tmp_path / "other.yaml").exists()


def test_a_copy_overwrites_nothing(tmp_path: Path) -> None:
    mine = tmp_path / "quickstart.yaml"
    mine.write_text("mine", encoding="utf-8")
    for target in (tmp_path, mine):
        with pytest.raises(RecipeError, match=r"quickstart\.yaml exists already, and is not overwritten"):
            copy_recipe("quickstart", target)
    assert mine.read_text(encoding="utf-8") == "mine"


def test_an_unknown_name_lists_all_with_the_closest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        copy_recipe("quikstart", tmp_path)
    assert str(caught.value).startswith("no recipe 'quikstart' (did you mean 'quickstart'?); there are ")
    assert all(name in str(caught.value) for name in NAMES)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere/mine\.yaml can't be written: No such file or directory"):
        copy_recipe("quickstart", tmp_path / "nowhere" / "mine.yaml")
