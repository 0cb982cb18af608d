"""The promises seen from the command line: what is refused, announced and hidden there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli.main import main
from llmkit.data.shapes import RowError
from llmkit.errors import DataError, LlmkitError, RecipeError, SetupError
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.recipe import Recipe, Source
from llmkit.runs.folder import RunFolder

Maker = Callable[..., Recipe]
TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Return a runner of the command line in this process, which gives all that it prints."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("PYDANTIC_DISABLE_PLUGINS", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def call(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["llmkit", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
        except SystemExit:
            pass
        except LlmkitError as error:  # with --debug; Python itself hands it to this
            sys.excepthook(type(error), error, error.__traceback__)
        printed = capfd.readouterr()
        return printed.out + printed.err

    return call


# --- announced -------------------------------------------------------------------------------------------------------


def test_a_whole_run_announces_its_code_before_it_runs(whole_run: Any) -> None:
    said = whole_run.said
    announced = said.index("this recipe runs code with your rights: leak of ")
    assert announced < said.index("train 0.0 s" if "train 0.0 s" in said else "trained 2 steps")
    assert "recipe/hook.py (SHA-256 " in said


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        f"model: {{name: some/model, revision: {TOKEN}}}",
        "model: {name: 'https://me:geheim@example.org/model'}",
        "model: {name: some/model}\nrewards: [{type: judge, url: 'http://me:geheim@x/v1', model: m}]",
    ],
)
def test_a_recipe_with_a_secret_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "secret.yaml"
    rest = "data: {train: [{path: made:orders, format: messages}]}\nmethod: {type: sft}\n"
    path.write_text(f"{line}\n{rest}", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"secret.yaml:\d+: `[\w.]+` holds a token or a password") as caught:
        load_recipe(path)
    assert "environment variable" in str(caught.value)
    assert "geheim" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_an_override_with_a_secret_is_refused_without_repeating_it(recipe_file: Path, said: Callable[..., str]) -> None:
    found = said("validate", recipe_file, "--set", f"model.revision={TOKEN}")
    assert "holds a token or a password" in found
    assert TOKEN not in found


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_an_error_of_the_command_line_tells_no_secret(
    recipe_file: Path, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch, debug: list[str]
) -> None:
    """A run that fails: the row function raises with a token and a password in its words."""
    monkeypatch.setenv("MY_SERVICE_TOKEN", "tok4f9a8b7c6d5e")
    code = "import os\ndef f(row):\n    raise OSError(f'https://me:geheim@x: {os.environ[\"MY_SERVICE_TOKEN\"]}')\n"
    (recipe_file.parent / "hook.py").write_text(code, encoding="utf-8")
    out = recipe_file.parent / "run"
    found = said(*debug, "run", recipe_file, "--out", out, "--set", "data.train.0.python=hook.py:f")
    assert "hook.py:f raised OSError: https://me:***@x: ***" in found
    assert ("Traceback" in found) is bool(debug)
    assert "geheim" not in found
    assert "tok4f9a8b7c6d5e" not in found
    assert not out.exists()


@pytest.fixture
def judge() -> Iterator[str]:
    """A judge that answers every request with what it was sent, the key included."""

    class Repeats(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(400)
            self.end_headers()
            self.wfile.write(f"no: {self.headers}".encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Repeats)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_a_judge_that_repeats_its_key(
    grpo_file: Callable[..., Path], said: Callable[..., str], judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "judge-k3y-0123")
    path = grpo_file("judged", [{"prompt": f"{i} is", "answer": str(i)} for i in range(8)])
    reward = f"rewards=[{{type: judge, url: '{judge}', model: m, api_key_env: JUDGE_KEY, retries: 0, cache: false}}]"
    found = said("reward", path, "--set", reward)
    assert "refuses the request: HTTP 400" in found
    assert "judge-k3y-0123" not in found


# --- code of models --------------------------------------------------------------------------------------------------


def test_a_reward_model_does_not_bring_code(
    model_copy: Path, mine: Any, edit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask on the terminal, and take `y` for an answer."""
    from llmkit.model.scores import load_reward_model

    monkeypatch.setattr("builtins.input", lambda *arguments: "y")
    (model_copy / "configuration_x.py").write_text(mine.code, encoding="utf-8")
    edit(model_copy / "config.json", model_type="xmodel", auto_map={"AutoConfig": "configuration_x.X"})
    with pytest.raises(SetupError, match="can't be loaded"):
        load_reward_model(model_copy)
    assert not mine.went_off


def test_a_plan_of_a_model_with_code_runs_none(
    recipe_file: Path, model_copy: Path, mine: Any, edit: Callable[..., None], said: Callable[..., str]
) -> None:
    (model_copy / "configuration_x.py").write_text(mine.code, encoding="utf-8")
    edit(model_copy / "config.json", model_type="xmodel", auto_map={"AutoConfig": "configuration_x.X"})
    for command in ("plan", "run"):
        found = said(command, recipe_file, "--set", f"model.name={model_copy}")
        assert "Traceback" not in found
    assert "Python code that comes with it, which was not run" in found
    assert not mine.went_off


@pytest.mark.parametrize("task", ["bitwise_arithmetic", "number_sorting"])
def test_rows_of_a_file_are_not_evaluated(task: str, mine: Any) -> None:
    """These scorers hand a text of the row to `eval`, and a file of rows may hold any."""
    pytest.importorskip("reasoning_gym")
    from llmkit.rewards.reasoning_gym import ReasoningGym

    code = f"__import__('os').system('touch {mine.marker}')"
    entry = {"answer": code, "metadata": {"problem": code, "direction": "ascending"}}
    reward = ReasoningGym(type="reasoning_gym")
    with pytest.raises(RowError, match="is no arithmetic"):
        reward.check_row({"task": task, "entry": entry})
    assert not mine.went_off


# --- paths and checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["package:llmkit/../tests", "package:llmkit//etc/passwd", "package:llmkit/a/../../x"])
def test_a_file_of_a_package_lies_in_it(tmp_path: Path, path: str) -> None:
    from llmkit.data.sources import check_source

    with pytest.raises(DataError, match="must be written package:NAME/path/of/file"):
        check_source(Source(path=path, format="text"), tmp_path)


def test_a_checkpoint_with_code_in_it_does_not_resume(recipe: Maker, tmp_path: Path, mine: Any, whole_run: Any) -> None:
    """Whoever can plant one can write its manifest as well: then torch refuses it, with a sentence."""
    from llmkit.runs.recovery.manifest import write_manifest
    from llmkit.runs.reopen import recipe_of
    from llmkit.runs.runner import run

    shutil.copytree(whole_run.home / "recipe", tmp_path / "recipe")
    shutil.copytree(whole_run.home / "model", tmp_path / "model")
    folder = tmp_path / "recipe" / "run"
    RunFolder(folder).update_lock(folder=str(tmp_path / "recipe"))
    shutil.rmtree(folder / "checkpoints" / "checkpoint-2")
    mine.armed(folder / "checkpoints" / "checkpoint-1" / "optimizer.pt", torch_file=True)
    write_manifest(folder / "checkpoints" / "checkpoint-1")
    the_recipe, _ = recipe_of(folder)
    with pytest.raises(SetupError, match="holds something else than numbers"):
        run(the_recipe, out=folder, resume=True)
    assert not mine.went_off


def test_the_command_line_needs_no_telemetry_to_be_turned_off() -> None:
    code = (
        "import os, sys\nsys.argv = ['llmkit', 'recipes']\n"
        "from llmkit.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([os.environ.get(n) for n in ('HF_HUB_DISABLE_TELEMETRY', 'DO_NOT_TRACK', 'GRADIO_ANALYTICS_ENABLED')])\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "['1', '1', 'False']"
