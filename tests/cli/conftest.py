"""The command line run in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmkit.cli.main import main


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def llmkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Said]:
    """Return a runner of the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("PYDANTIC_DISABLE_PLUGINS", "1")):
        monkeypatch.setenv(name, value)  # main() sets them, and nothing may stay behind

    def call(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["llmkit", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        else:
            code = 0
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return call
