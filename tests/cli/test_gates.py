"""A gate that is missed, on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_the_command_ends_with_3(llmkit: Callable[..., Any], recipe_file: Path, tmp_path: Path) -> None:
    changes = ("evaluation=[{type: perplexity}]", "data.eval=0.25", "gates=[loss <= base - 1000]")
    sets = [word for change in changes for word in ("--set", change)]
    said = llmkit("run", recipe_file, "--out", tmp_path / "run", *sets)
    assert said.code == 3
    assert "MISSED" in said.out
