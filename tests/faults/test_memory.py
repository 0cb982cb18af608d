"""Memory that runs out while a run trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases import SFT, Case, last_step
from harness import At, Fault

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def hungry(undisturbed: Callable[..., Case]) -> Case:
    """A run of full training whose steps take more than a run's first bytes: all rows in one batch."""
    parts: dict[str, Any] = {**SFT, "adapter": None, "export": [], "evaluation": []}
    return undisturbed("hungry", parts, per_device_train_batch_size=18, eval_strategy="no", max_steps=6)


@pytest.mark.parametrize("spare", [0, 1, 4])
def test_memory_that_runs_out_is_said_and_nothing_is_lost(spare: int, hungry: Case, tmp_path: Path) -> None:
    run = tmp_path / "run"
    third_step = At("open", r"/metrics\.jsonl$", 3)
    ended = hungry.run(run, fault=Fault("starve", (third_step,), (spare * MEGABYTE,)))
    assert ended.code == 1, ended.said
    assert "memory" in ended.error
    assert "llmkit plan" in ended.error
    assert "--resume" in ended.error
    assert last_step(run) >= 3
    hungry.ends_the_same(run)
