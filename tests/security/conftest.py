"""What attackers plant, and one whole run among it whose traces all the tests here look at."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SECRETS = {
    "MY_SERVICE_TOKEN": "tok4f9a8b7c6d5e",
    "DB_PASSWORD": 'pa55"w0rd\\hunter',
    "OPENAI_API_KEY": "sk-proj-a1B2c3D4e5F6g7H8i9J0k1L2m3N4",
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
}
ENDPOINT = "http://someone:hub-pa55word@127.0.0.1:9"
PLANTED = (*SECRETS.values(), "hub-pa55word", "plain-h3ader-key", "url-pa55word")
"""What may stand nowhere after a run; the last two are in no variable, and known by what is around them."""

GUARD = """
import os, socket
seen = os.environ["SEEN_CALLS"]
def note(what):
    with open(seen, "a") as file:
        file.write(f"{what}\\n")
    raise OSError("no network in this test")
def connect(self, address, real=socket.socket.connect):
    return real(self, address) if self.family == socket.AF_UNIX else note(f"connect {address}")
socket.socket.connect = socket.socket.connect_ex = connect
socket.socket.sendto = lambda self, *arguments: note(f"sendto {arguments[-1]}")
socket.getaddrinfo = socket.gethostbyname = lambda host, *arguments, **named: note(f"look up {host}")
"""
"""A `sitecustomize` module: every call into the network is noted, and fails."""

HOOK = """
import logging, os, warnings
def leak(row):
    logging.getLogger("transformers").warning("sent Authorization: Bearer plain-h3ader-key")
    warnings.warn(f"asked https://me:url-pa55word@example.org for {row['messages'][0]['content']}")
    logging.getLogger("datasets").error("the environment is %s", dict(os.environ))
    return row
"""


RUNNING = ("eval", "exec", "compile", "__import__")


class Bomb:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@dataclass
class Mine:
    """A place for bombs; `armed` writes one, and `went_off` tells whether any of them was loaded."""

    marker: Path

    @property
    def went_off(self) -> bool:
        return self.marker.exists()

    def pickled(self) -> bytes:
        return pickle.dumps(Bomb(self.marker))

    def armed(self, path: Path, *, torch_file: bool = False) -> Path:
        """Write a bomb as a plain pickle, or as `torch.save` writes one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if torch_file:
            import torch

            torch.save({"weight": Bomb(self.marker)}, path)
        else:
            path.write_bytes(self.pickled())
        return path

    @property
    def code(self) -> str:
        """Python that goes off when it is imported."""
        return f"import os\nos.system(\"touch '{self.marker}'\")\n"


@pytest.fixture
def mine(tmp_path: Path) -> Mine:
    found = Mine(tmp_path / "went-off")
    pickle.loads(found.pickled())  # the bombs are real
    assert found.went_off
    found.marker.unlink()
    return found


@pytest.fixture
def model_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model's folder, to be changed."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit(file: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.fixture(name="edit")
def _edit() -> Callable[..., None]:
    return edit


# --- the package's source --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call in llmkit's own source: the file, the name that is called, in full, and the line."""

    file: str
    name: str
    line: int


@pytest.fixture(scope="session")
def calls() -> list[Call]:
    """Every call in llmkit, by the full name of what is called: after `from pickle import loads as x`, `x()` is one."""
    found = []
    for path in sorted((ROOT / "llmkit").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = dict(_imported(tree))
        file = str(path.relative_to(ROOT / "llmkit"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                root, _, rest = ast.unparse(node.func).partition(".")
                found.append(Call(file, f"{names.get(root, root)}{'.' if rest else ''}{rest}", node.lineno))
            elif isinstance(node, ast.Name) and node.id in RUNNING and isinstance(node.ctx, ast.Load):
                found.append(Call(file, node.id, node.lineno))  # under another name it may be called anywhere
    assert len(found) > 5000
    return found


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (top, top)
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


# --- one run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WholeRun:
    """A run of the command line on a model with everything planted in it, in a process of its own."""

    home: Path
    """What lies around: the recipe's folder, the model, the user's home, and in `outside` a folder nobody named."""
    folder: Path
    cache: Path
    code: int
    said: str
    calls: list[str]
    """Calls into the network."""
    new: set[str]
    """Files that are there now and were not before, outside of the run folder and llmkit's cache."""
    changed: set[str]
    went_off: bool


@pytest.fixture(scope="session")
def whole_run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """Train, score and export on a planted model, with secrets in the environment and the network cut and watched."""
    home = tmp_path_factory.mktemp("whole")
    bombs = Mine(home / "went-off")
    _plant(shutil.copytree(tiny_folder, home / "model"), bombs)
    recipe = _write_recipe(home / "recipe")
    (home / "outside").mkdir()
    (home / "user").mkdir()
    guard = home / "guard" / "sitecustomize.py"
    guard.parent.mkdir()
    guard.write_text(GUARD, encoding="utf-8")
    seen = home / "calls.txt"
    seen.touch()
    run, cache = home / "recipe" / "run", home / "cache"
    before = _states(home)
    said = subprocess.run(
        [sys.executable, "-m", "llmkit", "run", str(recipe), "--out", str(run)],
        env=_environment(home, guard.parent, seen, cache),
        cwd=home / "outside",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    after = {name: state for name, state in _states(home).items() if not _is_ours(name)}
    return WholeRun(
        home,
        run,
        cache,
        said.returncode,
        said.stdout,
        seen.read_text(encoding="utf-8").splitlines(),
        new=after.keys() - before.keys(),
        changed={name for name, state in after.items() if before.get(name, state) != state},
        went_off=bombs.went_off,
    )


def _is_ours(name: str) -> bool:
    return name.startswith(("recipe/run/", "cache/", "calls.txt", "guard/__pycache__/"))


def _states(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return {str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in files}


def _plant(model: Path, bombs: Mine) -> None:
    """Put pickles beside the safetensors, code that a known architecture doesn't need, and names of paths."""
    for name in ("pytorch_model.bin", "adapter_model.bin", "optimizer.pt", "training_args.bin", "consolidated.00.pth"):
        bombs.armed(model / name)
    for name in ("tokenizer.pkl", "vocab.pkl", "special_tokens.pickle"):
        bombs.armed(model / name)
    for name in ("modeling_x", "configuration_x", "tokenization_x"):
        (model / f"{name}.py").write_text(bombs.code, encoding="utf-8")
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text(bombs.code, encoding="utf-8")
    code = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    edit(model / "config.json", auto_map=code, _name_or_path="../../outside/model")
    edit(
        model / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "tokenization_x.X"]},
        name_or_path="../../outside/tokenizer",
        vocab_file="/etc/passwd",
        tokenizer_file="/etc/passwd",
    )


def _write_recipe(folder: Path) -> Path:
    folder.mkdir()
    turns = [[("user", f"what is {i} plus 1?"), ("assistant", f"it is {i + 1}")] for i in range(24)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in turns]
    lines = [json.dumps(row) for row in rows] + [f"{{broken {SECRETS['MY_SERVICE_TOKEN']}"]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "hook.py").write_text(HOOK, encoding="utf-8")
    recipe = {
        "model": {"name": "../model"},
        "adapter": {"type": "lora", "r": 4},
        "data": {
            "train": [{"path": "rows.jsonl", "format": "messages", "python": "hook.py:leak"}],
            "eval": 0.25,
            "broken": 0.1,
        },
        "method": {"type": "sft"},
        "training": {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1.0e-2,
            "save_steps": 1,
        },
        "evaluation": [{"type": "perplexity"}],
        "export": [{"type": "merged"}, {"type": "adapter"}],
        "hardware": {"device": "cpu"},
    }
    path = folder / "planted.yaml"
    path.write_text(f"# asks {ENDPOINT}\n{json.dumps(recipe, indent=2)}\n", encoding="utf-8")
    return path


def _environment(home: Path, guard: Path, seen: Path, cache: Path) -> dict[str, str]:
    """Return an environment that is online, with a home of its own; TRL keeps silent in CI, so this is none."""
    dropped = ("CI", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in (*dropped, "XDG_CACHE_HOME")}
    (home / "tmp").mkdir()
    return (
        kept
        | SECRETS
        | {
            "HF_ENDPOINT": ENDPOINT,
            "HOME": str(home / "user"),
            "TMPDIR": str(home / "tmp"),
            "LLMKIT_CACHE": str(cache),
            "PYTHONPATH": os.pathsep.join((str(guard), str(ROOT))),
            "PYTHONDONTWRITEBYTECODE": "",
            "SEEN_CALLS": str(seen),
            "OMP_NUM_THREADS": "1",
        }
    )


@pytest.fixture
def planted() -> tuple[str, ...]:
    return PLANTED
