"""int8: trains, merges within its stated tolerance, and keeps quiet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.recipe.recipe import Recipe
from llmkit.runs.runner import run


def test_int8_trains_and_says_nothing_thousands_of_times(
    recipe: Callable[..., Recipe], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    the_recipe = recipe("quantization.type=int8", "export=[{type: merged}]", "evaluation=[{type: perplexity}]")
    result = run(the_recipe, out=tmp_path / "run")
    assert result.tuned[0].metrics["loss"] < result.base[0].metrics["loss"]
    assert result.exported[0].checks["mean_kl"] < 5e-2
    assert capfd.readouterr().out == ""
    assert "MatMul8bitLt" not in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
