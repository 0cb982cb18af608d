"""Memory that runs out while a run trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases import SFT, Case, last_step
from harness import At, Fault

SPARE = 0
"""Bytes that are left: what is asked of the system from here on is refused, and what was freed can be used again."""


@pytest.fixture(scope="module")
def hungry(undisturbed: Callable[..., Case]) -> Case:
    """A run of full training whose steps take more than a run's first bytes: all rows in one batch."""
    parts: dict[str, Any] = {**SFT, "adapter": None, "export": [], "evaluation": []}
    return undisturbed("hungry", parts, per_device_train_batch_size=18, eval_strategy="no", save_steps=6)


MOMENTS = {
    "before it trains": (At("os.rename", r"/audit\.json$"),),
    # Between two checkpoints: safetensors' Rust, where memory is refused, ends the process by itself.
    "while it trains": (At("os.rename", r"-> .*/checkpoint-6$"), At("open", r"/metrics\.jsonl$")),
}


def test_memory_that_runs_out_is_said_and_nothing_is_lost(hungry: Case, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name, moments in MOMENTS.items():
        resume = ["--resume"] if run.exists() else []
        ended = hungry.run(run, *resume, fault=Fault("starve", moments, (SPARE,)))
        assert ended.code == 1, f"{name}: {ended.said}"
        assert "memory" in ended.error, name
        assert "llmkit plan" in ended.error, name
        assert "--resume" in ended.error, name
    assert last_step(run) > 6
    hungry.ends_the_same(run)
