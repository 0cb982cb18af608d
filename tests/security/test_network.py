"""A run of local files calls nobody, and a run that was told to stay offline does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from llmkit.errors import SetupError
from llmkit.model.loading import load_base, load_tokenizer, stay_silent
from llmkit.recipe.recipe import Recipe

Maker = Callable[..., Recipe]


def test_a_whole_run_of_local_files_calls_nobody(whole_run: Any) -> None:
    """Online, with telemetry left as it is, a hub that can be named, scores, a merged model and checkpoints."""
    assert whole_run.code == 0, whole_run.said
    assert whole_run.calls == []


def test_the_guard_of_that_run_notices_calls(whole_run: Any, tmp_path: Path) -> None:
    seen = tmp_path / "calls.txt"
    code = (
        "import socket, urllib.request\n"
        "for call in (lambda: socket.create_connection(('127.0.0.1', 9)), "
        "lambda: urllib.request.urlopen('http://example.org'), lambda: socket.socket().connect_ex(('127.0.0.1', 9))):\n"
        "    try:\n        call()\n    except OSError as error:\n        print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(whole_run.home / "guard"), "SEEN_CALLS": str(seen)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=60)
    assert len(seen.read_text(encoding="utf-8").splitlines()) >= 3


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls into the network of this process, all of which fail."""
    seen: list[str] = []

    def refuse(*arguments: Any, **named: Any) -> NoReturn:
        seen.append(str(arguments[-1:]))
        raise OSError("no network in this test")

    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    return seen


@pytest.mark.parametrize("load", [load_tokenizer, lambda made: load_base(made, dtype="float32")])
def test_offline_is_offline(recipe: Maker, no_network: list[str], load: Callable[[Recipe], Any]) -> None:
    with pytest.raises(SetupError, match="is not in the local cache, and HF_HUB_OFFLINE is set"):
        load(recipe("model.name=nobody/nothing"))
    assert no_network == []


def test_no_statistics_are_sent(monkeypatch: pytest.MonkeyPatch, no_network: list[str]) -> None:
    """TRL reports each trainer that is built; whoever imported huggingface_hub before can't bring that back."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _telemetry, build_hf_headers

    queued: list[Any] = []
    monkeypatch.setattr(_telemetry._TELEMETRY_QUEUE, "put", queued.append)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    _telemetry.send_telemetry(topic="trap")
    assert queued  # the trap works
    queued.clear()
    stay_silent()
    _telemetry.send_telemetry(topic="trl/SFTTrainer", library_name="trl")
    assert queued == []
    assert "torch/" not in build_hf_headers(library_name="transformers")["user-agent"]
    assert no_network == []


def test_no_service_is_asked_to_convert_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks a public Space to convert the pickled weights of a hub model, unless it is told not to."""
    from transformers.utils import is_env_variable_true

    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    stay_silent()
    assert is_env_variable_true("DISABLE_SAFETENSORS_CONVERSION")


def test_reading_a_recipe_calls_nobody(recipe: Maker, no_network: list[str]) -> None:
    from llmkit.runs.checks import check

    check(recipe("model.name=org/name"))
    assert no_network == []
