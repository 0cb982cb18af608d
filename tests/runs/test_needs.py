"""What a run needs of the disk: counted on the plan, less what is there already."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from llmkit.errors import SetupError
from llmkit.runs.folder import RunFolder
from llmkit.runs.needs import BESIDE, Needs, needs, require_space
from llmkit.runs.prepare import plan
from llmkit.runs.runner import run

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe


def test_disk_is_what_a_run_keeps(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """Against a real run of full training, whose checkpoints hold the weights and two moments."""
    changes = ("adapter=null", "export=[]", "training.max_steps=3", "training.save_strategy=steps")
    asked = recipe(*changes, "training.save_steps=1", "evaluation=[]")
    found = run(asked, out=tmp_path / "run").folder
    kept = sum(file.stat().st_size for file in found.rglob("*") if file.suffix in (".safetensors", ".pt"))
    need = needs(asked, plan(asked)).disk
    assert need is not None
    one = (found / "model" / "model.safetensors").stat().st_size
    # One checkpoint more than stays: the one that is being written.
    assert need - 3 * one == pytest.approx(kept, rel=0.1)


def test_what_is_written_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = Needs(memory=1, usable=1, disk=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=BESIDE + 4_000))
    (tmp_path / "weights").write_bytes(bytes(6_000))
    require_space(tmp_path, what, there=RunFolder(tmp_path).size())
    with pytest.raises(SetupError, match="the run needs about"):
        require_space(tmp_path, what)
