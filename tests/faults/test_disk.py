"""A disk that is full, or that may not be written any more, at any of the files of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import LONG, Case, last_step
from harness import At, Fault

ENOUGH = 300_000_000
MOMENTS = {
    "metrics.jsonl": At("open", r"/metrics\.jsonl$", 3),
    "a checkpoint": At("open|os.mkdir", r"/checkpoints/.*\b6\b"),
    "the files of a checkpoint": At("open", r"/checkpoints/.*\b8\b.*/trainer_state\.json"),
    "the model": At("open|os.mkdir", r"/model(/|$)"),
    "the scores": At("open", r"/\.evaluation\.json\.tmp$"),
    "an export": At("open|os.mkdir", r"/export/\.merged"),
    "the list of exports": At("open", r"/\.export\.json\.tmp$"),
}
"""What is about to be written, in the order in which one run comes to it."""

CHOSEN = MOMENTS if LONG else {"metrics.jsonl", "the files of a checkpoint", "the model", "an export"}
"""Those that `make test` takes."""


@pytest.fixture
def disk(sft: Case, tmp_path: Path) -> Iterator[Path]:
    """Return the place of a small disk."""
    if sft.zygote.no_mounts is not None:
        pytest.skip(f"no disk of a test's own can be mounted here ({sft.zygote.no_mounts})")
    place = tmp_path / "disk"
    sft.zygote.mount(place, ENOUGH)
    yield place
    sft.zygote.unmount(place)


def test_a_full_disk_is_said_and_nothing_is_lost(sft: Case, disk: Path) -> None:
    run = disk / "run"
    for name in (name for name in MOMENTS if name in CHOSEN):
        resume = ["--resume"] if sft.zygote.seen(run).exists() else []
        ended = sft.run(run, *resume, fault=Fault("fill", (MOMENTS[name],), (str(disk),)))
        assert ended.code in (1, 2), f"{name}: ended with {ended.code}\n{ended.said}"
        assert "no space is left" in ended.error, name
        assert "--resume" in ended.error, name
        sft.zygote.resize(disk, ENOUGH)
    sft.ends_the_same(run)


def test_a_run_that_can_not_be_written_is_said_and_nothing_is_lost(sft: Case, tmp_path: Path) -> None:
    run = tmp_path / "run"
    moments = (At("open", r"/metrics\.jsonl$", 3), At("open|os.mkdir", "/checkpoints/"))
    ended = sft.run(run, fault=Fault("forbid", moments, (str(run),)), powerless=True)
    try:
        assert ended.code in (1, 2), ended.said
        assert str(run) in ended.error
        assert "--resume" in ended.error
        reached = last_step(run)
        assert reached >= 3
        refused = sft.run(run, "--resume", powerless=True)
        assert refused.code == 2, refused.said
        assert str(run) in refused.error
        assert last_step(run) == reached
    finally:
        for folder, _, files in os.walk(run):
            os.chmod(folder, 0o755)
            for name in files:
                os.chmod(Path(folder) / name, 0o644)
    sft.ends_the_same(run, powerless=True)


def test_a_read_only_disk_is_said(sft: Case, disk: Path) -> None:
    """Where a system turns a broken disk read-only, root may not write either."""
    run = disk / "run"
    ended = sft.run(run, fault=Fault("kill", (At("open", r"/metrics\.jsonl$", 5),)))
    assert ended.killed
    sft.zygote.resize(disk, ENOUGH, read_only=True)
    refused = sft.run(run, "--resume")
    assert refused.code == 2, refused.said
    assert "read-only" in refused.error.lower()
    fresh = sft.run(disk / "other")
    assert fresh.code == 2, fresh.said
    assert "read-only" in fresh.error.lower()
    assert "--out" in fresh.error
    sft.zygote.resize(disk, ENOUGH)
    sft.ends_the_same(run)
