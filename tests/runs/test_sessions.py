"""A line for each session of a run, however it ends."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from llmkit.runs.folder import RunFolder
from llmkit.runs.sessions import SESSIONS_FILE, peak_bytes, session


def written(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (path / SESSIONS_FILE).read_text(encoding="utf-8").splitlines()]


def test_each_session_is_a_line_also_one_that_fails(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("", encoding="utf-8")
    with session(RunFolder(tmp_path), "mps"):
        pass
    with pytest.raises(ValueError, match="wrong"), session(RunFolder(tmp_path), "mps"):
        raise ValueError("wrong")
    found = written(tmp_path)
    assert len(found) == 2
    assert all(isinstance(one["seconds"], float) and 0 <= one["seconds"] < 5 for one in found)
    assert datetime.fromisoformat(str(found[0]["began"])).tzinfo is not None
    assert found[0]["peak_bytes"] is None


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), session(RunFolder(tmp_path / "gone"), "cpu"):
        raise ValueError("refused")
    assert not (tmp_path / "gone").exists()


def test_the_peak_is_what_the_kernel_says_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t 9000 kB\nVmHWM:\t 123 kB\nVmRSS:\t 100 kB\n", encoding="utf-8")
    monkeypatch.setattr("llmkit.runs.sessions._STATUS", status)
    assert peak_bytes("cpu") == 123 * 1024
    assert peak_bytes("mps") is None
    monkeypatch.setattr("llmkit.runs.sessions._STATUS", tmp_path / "none")
    assert peak_bytes("cpu") is None
