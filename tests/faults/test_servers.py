"""A hub, a judge and a tracker that break, cut what they send, or never answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cases import GRPO, LONG, PLAIN, SFT, Case, differences, last_step, write_recipe
from harness import Zygote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """Behaves as told: `behaviour` is `well`, `503`, `cut` (half of the body), or `silent` (no answer at all)."""

    def __init__(self) -> None:
        self.behaviour = "well"
        self.asked = 0
        self.breaks: dict[int, str] = {}
        """Behaviour from the N-th request on."""

        self.ending = threading.Event()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one(self) -> None:
                size = int(self.headers["Content-Length"] or 0)
                outer.answer(self, self.rfile.read(size))

            do_GET = do_HEAD = do_POST = handle_one  # noqa: N815

            def log_message(self, *args: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        self.ending.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def heal(self) -> None:
        self.behaviour, self.breaks = "well", {}

    def answer(self, request: BaseHTTPRequestHandler, asked: bytes) -> None:
        with self.lock:
            self.asked += 1
            self.behaviour = self.breaks.pop(self.asked, self.behaviour)
            behaviour = self.behaviour
        if behaviour == "silent":
            self.ending.wait()
            return
        body = self.body(request.path, asked) if behaviour != "503" else b"busy"
        request.send_response(503 if behaviour == "503" else 200)
        for name, value in (("X-Repo-Commit", COMMIT), ("ETag", '"0123"'), ("Content-Length", str(len(body)))):
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            # Half of it, and the connection ends: HTTP/1.0 has no other request on it.
            request.wfile.write(body[: len(body) // 2] if behaviour == "cut" else body)

    def body(self, path: str, asked: bytes) -> bytes:
        if path.endswith("/chat/completions"):
            text = json.loads(asked)["messages"][0]["content"]
            content = f"Its length decides.\n{len(text) % 11}"
            return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
        return json.dumps({"model_type": "llama", "made": "up"}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def hub() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def online(hub: Server, environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Starts runs that take `hub` for the hub: huggingface_hub reads its address when it is imported."""
    home = tmp_path_factory.mktemp("online")
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home / "hf"), "HF_HUB_ETAG_TIMEOUT": "2"}
    made = Zygote(home, {**environ, **settings})
    yield made
    made.close()


@pytest.mark.parametrize("behaviour", ["503", "silent", "cut"])
def test_a_model_that_a_broken_hub_has_is_refused_in_time(
    behaviour: str, hub: Server, online: Zygote, tmp_path: Path
) -> None:
    """huggingface_hub alone would ask for minutes: six times, a minute each, for each of several files."""
    hub.behaviour = behaviour
    recipe = write_recipe(tmp_path, SFT, "somebody/some-model")
    ended = online.llmkit("run", recipe, "--out", tmp_path / "run", timeout=90)
    assert ended.code == 2, ended.said
    assert "somebody/some-model" in ended.error
    assert "hub" in ended.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("behaviour", ["503", "silent"])
def test_rows_that_a_broken_hub_has_are_refused_in_time(
    behaviour: str, hub: Server, online: Zygote, tiny_folder: Path, tmp_path: Path
) -> None:
    hub.behaviour = behaviour
    data = {"train": [{"path": "somebody/some-rows", "format": "messages"}]}
    parts = {**SFT, "data": data, "evaluation": [], "training": {}}
    ended = online.llmkit("run", write_recipe(tmp_path, parts, tiny_folder), "--out", tmp_path / "run", timeout=90)
    assert ended.code == 2, ended.said
    assert "somebody/some-rows" in ended.error
    assert "hub" in ended.error
    assert not (tmp_path / "run").exists()


def test_a_judge_that_breaks_ends_the_run_and_costs_nothing(
    server: Server, undisturbed: Callable[..., Case], tmp_path: Path
) -> None:
    judge = {"type": "judge", "url": f"{server.url}/v1", "model": "m", "retries": 0, "timeout": 4, "cache": False}
    case = undisturbed("judged", {**GRPO, "rewards": [judge]}, max_steps=6)
    asked, server.asked = server.asked, 0
    assert asked >= 20
    server.breaks = {asked * 3 // 4: "503"}
    run = tmp_path / "run"
    ended = case.run(run)
    assert ended.code == 1, ended.said
    assert "the judge at" in ended.error
    assert "HTTP 503" in ended.error
    assert last_step(run) >= 1
    server.behaviour = "silent"
    ended = case.run(run, "--resume", timeout=90)
    assert ended.code == 1, ended.said
    assert "the judge at" in ended.error
    server.heal()
    case.ends_the_same(run)


SWANLAB = '''
"""As many trackers do, it sends what it is given, and waits for an answer as long as it takes."""
import json
import urllib.request

config = {}


def get_run():
    return None


def init(**settings):
    _send(settings)


def log(values, step):
    _send({**values, "step": step})


def _send(values):
    urllib.request.urlopen(URL, json.dumps(values, default=str).encode()).read()
'''


@pytest.mark.parametrize("behaviour", ["503", "silent", "cut"] if LONG else ["silent"])
def test_a_broken_tracker_neither_stops_nor_holds_a_run(
    behaviour: str, server: Server, plain: Case, tiny_folder: Path, tmp_path: Path
) -> None:
    package = tmp_path / "swanlab"
    package.mkdir()
    (package / "__init__.py").write_text(f"URL = {server.url!r}\n{SWANLAB}", encoding="utf-8")
    recipe = write_recipe(tmp_path, PLAIN, tiny_folder, report_to="swanlab")
    server.breaks = {4: behaviour}
    ended = plain.zygote.llmkit("run", recipe, "--out", tmp_path / "run", path=tmp_path, timeout=plain.seconds + 30)
    assert ended.code == 0, ended.said
    assert server.asked >= 4
    assert "swanlab" in ended.said.lower()
    assert differences(tmp_path / "run", plain.straight) == []
