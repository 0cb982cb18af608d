"""The sections of a recipe: what they default to, what they refuse, and that a recipe can be made in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit.recipe.loading import load_recipe
from llmkit.recipe.recipe import Recipe, Training

SOURCE = {"path": "made:orders", "format": "messages"}
SMALL: dict[str, Any] = {"model": {"name": "a/b"}, "data": {"train": [SOURCE]}, "method": {"type": "sft"}}


def test_what_a_recipe_leaves_out() -> None:
    recipe = Recipe.model_validate(SMALL)
    assert (recipe.adapter, recipe.quantization, recipe.data.eval) == (None, None, None)
    assert (recipe.evaluation, recipe.export, recipe.training.kwargs()) == ((), (), {})
    assert (recipe.data.overflow, recipe.hardware.device) == ("drop", "auto")
    assert (recipe.model.trust_remote_code, recipe.model.allow_pickle) == (False, ())


def test_a_recipe_is_frozen() -> None:
    recipe = Recipe.model_validate(SMALL)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.method = recipe.method
    with pytest.raises(ValidationError, match="frozen"):
        recipe.data.train[0].path = "other.jsonl"


def test_lists_become_tuples() -> None:
    recipe = Recipe.model_validate({**SMALL, "evaluation": [{"type": "perplexity"}], "export": [{"type": "merged"}]})
    assert isinstance(recipe.data.train, tuple)
    assert [e.type for e in recipe.evaluation] == ["perplexity"]
    assert [x.type for x in recipe.export] == ["merged"]


@pytest.mark.parametrize(
    ("share", "fits"), [(0.02, True), (0.999, True), (0.0, False), (1.0, False), (1, False), (-0.1, False)]
)
def test_a_share_lies_between_0_and_1(share: float, fits: bool) -> None:
    document = {**SMALL, "data": {"train": [SOURCE], "eval": share}}
    if fits:
        assert Recipe.model_validate(document).data.eval == share
    else:
        with pytest.raises(ValidationError, match="must lie between 0 and 1"):
            Recipe.model_validate(document)


def test_held_out_rows_can_be_sources() -> None:
    recipe = Recipe.model_validate({**SMALL, "data": {"train": [SOURCE], "eval": [{**SOURCE, "split": "test"}]}})
    assert isinstance(recipe.data.eval, tuple)
    assert recipe.data.eval[0].split == "test"


def test_training_fields_are_those_of_the_methods_config() -> None:
    recipe = Recipe.model_validate({**SMALL, "training": {"learning_rate": 5e-6, "max_length": 64}})
    assert recipe.training.kwargs() == {"learning_rate": 5e-6, "max_length": 64}
    for field in ("learning_rte", *Training.reserved):
        with pytest.raises(ValidationError, match=field):
            Recipe.model_validate({**SMALL, "training": {field: "x"}})


def test_a_recipe_made_in_python_starts_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.model_validate({**SMALL, "adapter": {"type": "lora", "r": 4}, "training": {"seed": 1}})
    assert recipe.folder == tmp_path
    # What the run folder keeps of it is a recipe file of the same content.
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.written, encoding="utf-8")
    again = load_recipe(path)
    assert again.model_dump() == recipe.model_dump()
    assert again.training.kwargs() == {"seed": 1}
    assert again.adapter is not None
    assert again.adapter.kwargs() == {"r": 4}


def test_placed_gives_a_recipe_another_folder_and_leaves_the_first_alone(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(SMALL).placed(tmp_path, "first: text\n")
    moved = recipe.placed(tmp_path / "other")
    assert (recipe.folder, moved.folder) == (tmp_path, tmp_path / "other")
    assert recipe.written == moved.written == "first: text\n"
    assert moved.placed(tmp_path, "second\n").written == "second\n"
    assert recipe.model_dump() == moved.model_dump()
