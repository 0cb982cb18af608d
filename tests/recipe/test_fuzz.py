"""Bad recipes: whatever is wrong, one sentence with its file and line, exit code 2, no traceback, at once.

Tried on every kind of damage that we could think of, on a thousand that chance made of the shipped recipes, and on what
hypothesis makes of the JSON Schema. `LLMKIT_FUZZ=20` tries twenty times as much, other ones each time.
"""

from __future__ import annotations

import gc
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from llmkit.cli.main import main
from llmkit.errors import LlmkitError, RecipeError, RunError
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.schema import recipe_schema
from llmkit.runs import checks
from tests.recipe import _mutations as mutations
from tests.recipe import _nasty as nasty
from tests.recipe._mutations import Keys, Mutant, written
from tests.recipe._strategies import KEYWORDS, VALID, Strategy, broken

TIMES = int(os.environ.get("LLMKIT_FUZZ", "1"))
SEED = 6 if TIMES == 1 else random.SystemRandom().randrange(2**32)

SECONDS = 0.5
"""CPU time in which a recipe is refused."""

HANGS = 20.0
"""Seconds after which it never would be."""

LONGEST = 12_000
"""Characters of a message."""

WHOLE = ("no such recipe", "is a folder", "the file is empty", "can't be read", "no regular file", "is larger than")
"""What is wrong with a file as a whole, so that there is no line to name."""


# --- what must hold --------------------------------------------------------------------------------------------------


class Hanging(BaseException):
    """What interrupts a check that waits for ever; no `except Exception` holds it up."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer, be it in a system call; the alarm of pytest-timeout goes on afterwards."""

    def ring(*_: Any) -> None:
        raise Hanging(f"no answer within {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, ring)
    before, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, before)


def outcome(path: Path, overrides: Iterable[str] = ()) -> str | None:
    """Return what `llmkit validate` says of a recipe, None if it is valid; raises where it says it badly."""
    refusal: LlmkitError | None = None
    began = time.thread_time()
    try:
        with alarm(HANGS):
            checks.check(load_recipe(path, overrides))
    except LlmkitError as error:
        refusal = error
    spent = time.thread_time() - began
    if spent >= SECONDS:  # a busy neighbour empties the caches: slow is what is slow twice
        began = time.thread_time()
        with alarm(HANGS), suppress(LlmkitError):
            checks.check(load_recipe(path, overrides))
        spent = min(spent, time.thread_time() - began)
    assert spent < SECONDS, f"{spent:.2f} s of CPU: {str(refusal)[:200]}"
    if refusal is None:
        return None
    said = str(refusal)
    assert refusal.exit_code == 2, f"exit code {refusal.exit_code}: {said[:500]}"
    assert len(said) < LONGEST, f"a message of {len(said)} characters: {said[:500]}"
    assert _names_place(said, path), f"no place: {said[:500]}"
    return said


def _names_place(said: str, path: Path) -> bool:
    if said.startswith("--set ") or re.match(rf"{re.escape(str(path.parent))}/[^:\n]+:\d+: ", said):
        return True
    return any(words in said.partition("\n")[0] for words in WHOLE)


def verdict(mutant: Mutant, folder: Path) -> str | None:
    """Return the outcome of one bad recipe in its folder."""
    for name, text in mutant.beside.items():
        (folder / name).write_text(text, encoding="utf-8")
    text = mutant.text if isinstance(mutant.text, bytes) else mutant.text.encode("utf-8", "surrogatepass")
    (folder / "mutant.yaml").write_bytes(text)
    try:
        return outcome(folder / mutant.path, mutant.overrides)
    finally:
        for name in mutant.beside:
            (folder / name).unlink()


def badly_refused(mutants: Iterable[Mutant], folder: Path) -> tuple[list[str], int]:
    """Return what is wrong with the refusal of each of `mutants`, and how many are refused as they should be."""
    wrong, refused = [], 0
    for mutant in mutants:
        try:
            refused += verdict(mutant, folder) is not None
        except (Exception, Hanging) as error:  # noqa: BLE001 - any is a finding, and the others are wanted too
            wrong.append(f"{mutant.name}: {type(error).__name__}: {str(error)[:300]}")
    return wrong, refused


# --- where it is tried -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the bad recipes; all that a check may import is imported, and memory is bounded."""
    made = mutations.nursery(tmp_path_factory.mktemp("nursery"))
    for path in mutations.RECIPES:
        checks.check(load_recipe(path))
    recipe_schema()
    import jinja2.sandbox  # noqa: F401
    import jsonschema  # noqa: F401

    # What other tests have left is not looked through for garbage while the clock runs.
    gc.collect()
    gc.freeze()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, hard))
    yield made
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    gc.unfreeze()


def test_what_we_could_think_of_is_refused_well(folder: Path) -> None:
    mutants = mutations.fixed_mutants()
    wrong, refused = badly_refused(mutants, folder)
    assert wrong == []
    assert refused > 0.8 * len(mutants)


def test_what_chance_makes_of_the_shipped_recipes_is_refused_well(folder: Path) -> None:
    mutants = mutations.random_mutants(SEED, 1000 * TIMES)
    wrong, refused = badly_refused(mutants, folder)
    assert wrong == [], f"seed {SEED}"
    assert refused > 0.5 * len(mutants)


def test_a_seed_always_makes_the_same_recipes() -> None:
    assert mutations.random_mutants(1, 50) == mutations.random_mutants(1, 50) != mutations.random_mutants(2, 50)


def test_no_two_mutants_are_called_the_same() -> None:
    names = [mutant.name for mutant in mutations.fixed_mutants()]
    assert len(set(names)) == len(names)


# --- from the JSON Schema --------------------------------------------------------------------------------------------


def explore(recipes: Strategy, examples: int, folder: Path, phases: Iterable[Phase] = tuple(Phase)) -> int:
    """Try what `llmkit validate` says of that many recipes; returns how many are refused."""
    refused = 0

    @settings(
        max_examples=examples * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=phases,
    )
    @given(recipes)
    def try_one(tree: Any) -> None:
        nonlocal refused
        refused += verdict(Mutant("by the schema", written(tree)), folder) is not None

    try_one()
    return refused


def test_what_the_schema_allows_is_valid_or_refused_well(folder: Path) -> None:
    refused = explore(VALID, 100, folder)
    assert refused < 100 * TIMES, "not one passes: the strategies reach nothing"


def test_what_the_schema_allows_but_for_one_place_is_refused_well(folder: Path) -> None:
    explore(broken(), 100, folder)


def test_the_strategies_know_all_of_json_schema_that_ours_uses() -> None:
    def keywords(node: Any) -> Iterator[str]:
        if not isinstance(node, dict):
            return
        yield from node
        for named in ("properties", "$defs"):
            for inner in node.get(named, {}).values():
                yield from keywords(inner)
        for key in ("items", "additionalProperties"):
            yield from keywords(node.get(key))
        for key in ("anyOf", "oneOf"):
            for inner in node.get(key, ()):
                yield from keywords(inner)

    assert set(keywords(recipe_schema())) <= KEYWORDS


# --- the right line --------------------------------------------------------------------------------------------------


def _numbered(value: Any, line: int, here: Keys = ()) -> tuple[dict[Keys, int], int]:
    """Return the line of each key and item as `written` writes them, and the last line."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    found: dict[Keys, int] = {}
    last = line
    for key, inner in items:
        found[(*here, key)] = last + 1
        below, last = _numbered(inner, last + 1, (*here, key))
        found |= below
    return found, last


@pytest.mark.parametrize("stem", ["dpo_qwen", "grpo_tools_qwen", "qlora_qwen", "quickstart"])
def test_the_line_is_that_of_what_is_wrong(folder: Path, stem: str) -> None:
    path = folder / f"{stem}.yaml"
    wrong = []
    for place in mutations.places(mutations.values_of(path)):
        tree = mutations.values_of(path)
        if isinstance(mutations.at(tree, place), dict):
            mutations.at(tree, place)["zzz"] = 1
            expected: Keys = (*place, "zzz")
        else:
            expected = place
            mutations.with_value(tree, place, {"zzz": 1})
        said = str(verdict(Mutant("a line", written(tree)), folder))
        line = _numbered(tree, 1)[0][expected]
        if not re.match(rf"\S+/mutant\.yaml:{line}: ", said) and "yaml:" in said:
            wrong.append(f"{expected}: line {line}, not {said[:200]}")
    assert wrong == []


# --- what it has found -----------------------------------------------------------------------------------------------

FOUND: dict[str, tuple[str, tuple[str, ...], str]] = {
    "a list that holds itself": (nasty.BASE + "limits: &a [*a]\n", (), "undefined alias 'a'"),
    "a mapping merged into itself": (nasty.TEXTS["its own merge"], (), "undefined alias 'm'"),
    "a billion laughs": (nasty.TEXTS["laughs"], (), "more than 1500 values"),
    "brackets": (nasty.TEXTS["lists within lists"], (), "nested too deeply"),
    "a list as a key": (nasty.BASE + "? [[a], b]\n: c\n", (), "a key must be a word"),
    "a set": (nasty.BASE, ("training.seed=!!set {a}",), "the tag '!!set' means nothing in a recipe"),
    "a Python object": (nasty.BASE, ("training.seed=!!python/object:os.system x",), "means nothing in a recipe"),
    "an integer of nothing": (nasty.BASE.replace("truncate", "!!int ''"), (), "'' is no int"),
    "an integer of 5,000 digits": (nasty.BASE, ("training.seed=" + "9" * 5000,), "is no int"),
    "an integer of 20,000 bits": (nasty.BASE, ("training.seed=0x" + "f" * 5000,), "more than 64 bits"),
    "a place of 5,000 digits": (nasty.BASE, (f"data.train.{'9' * 5000}=x",), "is not one of its places"),
    "half a character": (nasty.BASE, ('model.name="\\uD83D"',), "holds the character U+D83D"),
    "YAML 1.1": (nasty.TEXTS["YAML 1.1"], (), "a recipe is YAML 1.2"),
    "YAML 1.9": (nasty.TEXTS["YAML 1.9"], (), "version minor part"),
    "three hundred keys": (nasty.TEXTS["three hundred keys"], (), "more problems"),
    "a NUL in a path": (nasty.BASE, ('model.name="\\0"',), "holds the character U+0000"),
    "links in a circle": (nasty.BASE, ("model.name=circular",), "can't be a path here: Too many levels of symbolic"),
    "a name that is too long": (nasty.BASE, ("model.name=" + "x" * 300,), "can't be a path here: File name too long"),
    "nobody's home": (nasty.BASE, ("model.name=~nobody-here/x",), "can't be a path here: Could not determine home"),
    "a package without a file": (nasty.BASE, ("model.name=package:__main__",), "is not installed"),
    "a module that is no package": (nasty.BASE, ("model.name=package:six",), "is not installed"),
    "an adapter of itself": (nasty.BASE, ("model.name=./circle",), "is an adapter itself"),
    "a pipe of rows": (nasty.BASE, ("data.train.0.path=pipe.jsonl",), "is no regular file"),
    "a pipe of prompts": (nasty.BASE, ("evaluation=[{type: generate, prompts: pipe.jsonl}]",), "no regular file"),
    "a pipe of Python": (nasty.BASE, ("data.train.0.python=pipe.py:f",), "no regular file"),
    "an endless template": (nasty.BASE, ("model.chat_template=zero.jinja",), "no regular file"),
    "a tracker that is a number": (nasty.BASE, ("training.report_to=[1]",), "`training.report_to` must be"),
    "a rank below 1": (nasty.BASE, ("adapter.r=-1",), "`adapter.r` must be at least 1"),
    "a seed below 0": (nasty.BASE, ("training.seed=-1",), "`training.seed` must be at least 0"),
    "a learning rate that is none": (nasty.BASE, ("training.learning_rate=.nan",), "takes a number, not nan"),
}
"""What was wrong once, by name: the text, the overrides, and words of what is said now."""


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once_is_refused_with_its_reason(folder: Path, name: str) -> None:
    text, overrides, words = FOUND[name]
    assert words in str(verdict(Mutant(name, text, overrides), folder))


def test_no_group_is_too_large_to_be_refused(folder: Path) -> None:
    grpo = mutations.GRPO.read_text(encoding="utf-8")
    sizes = ("per_device_train_batch_size=2000003", "gradient_accumulation_steps=1000003", "num_generations=2147483646")
    said = str(verdict(Mutant("a group", grpo, tuple(f"training.{size}" for size in sizes)), folder))
    assert "groups of `training.num_generations: 2147483646` don't divide them" in said
    assert "gradient_accumulation_steps 2147483646, or per_device_train_batch_size 2147483646" in said


def test_a_line_of_jinja_is_read_and_not_worked_out(folder: Path) -> None:
    line = "data.train.0.columns={messages: '{{ 9**9**9 }}'}"
    assert verdict(Mutant("a power", nasty.BASE, (line,)), folder) is None


def test_json_with_an_emoji_is_yaml(folder: Path) -> None:
    text = nasty.TEXTS["a JSON escape of an emoji"]
    assert "\\ud83d\\ude00" in text
    assert "no hub id either: 'a/😀'" in str(verdict(Mutant("an emoji", text), folder))


# --- the commands ----------------------------------------------------------------------------------------------------


def _command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str]:
    monkeypatch.setattr(sys, "argv", ["llmkit", *arguments])
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("PYDANTIC_DISABLE_PLUGINS", "1")
    thresholds = gc.get_threshold()
    try:
        with alarm(HANGS):
            main()
    except SystemExit as end:
        return end.code, capsys.readouterr().err
    finally:
        gc.set_threshold(*thresholds)
    return 0, capsys.readouterr().err


UNREADABLE = (
    nasty.TEXTS["laughs"],
    nasty.TEXTS["twenty thousand keys"],
    nasty.BASE.replace("lora,", "lroa,"),
    nasty.BASE.replace("2.0e-4", "!!python/object:os.system x"),
    nasty.BASE + '"[/red]\\\\[": [/bold]\n',
)
"""Recipes that can't be loaded."""


@pytest.mark.parametrize(
    "command", ["validate", "show", "plan", "data", "reward", "run", "preflight", "sample", "eval"]
)
def test_no_command_prints_a_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(folder)
    grpo = mutations.GRPO.read_text(encoding="utf-8")
    unfit = (
        grpo.replace("openai/gsm8k", "pipe.jsonl"),
        grpo.replace("openai/gsm8k", '"\\U0000202e[bold]\\\\[/].jsonl"'),
        grpo.replace("Qwen/Qwen2.5-1.5B-Instruct", "circular.gguf"),
    )
    for text in (*UNREADABLE, *(unfit)):  # it shows also what can't be run here
        (folder / "mutant.yaml").write_text(text, encoding="utf-8")
        code, said = _command(monkeypatch, capsys, command, "mutant.yaml")
        assert code == 2, text[:200]
        assert "Traceback" not in said
        assert re.search(r"error: mutant\.yaml:\d+: ", said), said
    assert not any((folder / "runs").rglob("*"))


@pytest.mark.parametrize(
    "hardware",
    [
        "",
        " ",
        ":",
        "a100",
        "a100-80gb:",
        "a100-80gb:x",
        "cpu:0",
        "cpu:-1",
        "cpu:²",
        "cpu:" + "9" * 5000,
        "\x1b[2J",
        "m2:2",
        "this:1",
    ],
)
def test_no_hardware_prints_a_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hardware: str
) -> None:
    for command in ("plan", "show"):
        code, said = _command(monkeypatch, capsys, command, str(nasty.SFT), "--hardware", hardware)
        assert (code, "error: " in said, "Traceback" in said) == (2, True, False)


def test_a_process_of_its_own_takes_no_longer(folder: Path) -> None:
    """On a slow machine, in three times what its libraries alone take to be imported."""
    (folder / "mutant.yaml").write_text(nasty.BASE + "modle: 1\n", encoding="utf-8")
    bare = min(_spent("-c", "import pydantic, rich.console, ruamel.yaml, typer", folder=folder)[0] for _ in range(3))
    refusals = [_spent("-m", "llmkit", "validate", "mutant.yaml", folder=folder) for _ in range(3)]
    assert {(done.returncode, done.stdout) for _, done in refusals} == {(2, b"")}
    place = f"error: mutant.yaml:{nasty.BASE.count(chr(10)) + 1}: unknown key 'modle'"
    assert all(done.stderr.decode().startswith(place) for _, done in refusals)
    assert min(seconds for seconds, _ in refusals) < max(SECONDS, 3 * bare)


def _spent(*arguments: str, folder: Path) -> tuple[float, subprocess.CompletedProcess[bytes]]:
    """Return the seconds of the processor that Python takes for `arguments`, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


# --- that it would notice --------------------------------------------------------------------------------------------


def _key_error(recipe: Any) -> None:
    raise KeyError("planted")


def _slow(recipe: Any) -> None:
    end = time.thread_time() + SECONDS
    while time.thread_time() < end:
        pass
    raise RecipeError("slow", where=recipe.origin(("model",)))


def _other_code(recipe: Any) -> None:
    raise RunError("no user error", where=recipe.origin(("model",)))


def _no_place(recipe: Any) -> None:
    raise RecipeError("somewhere something is wrong")


def _no_line(recipe: Any) -> None:
    raise RecipeError("somewhere in there something is wrong", where=recipe.origin(("model",)).rpartition(":")[0])


def _endless(recipe: Any) -> None:
    raise RecipeError("x" * LONGEST, where=recipe.origin(("model",)))


def _waiting(recipe: Any) -> None:
    (recipe.folder / "pipe").read_bytes()


def _reading(recipe: Any) -> None:
    (recipe.folder / "zero").read_bytes()


@pytest.mark.parametrize(
    ("planted", "noticed"),
    [
        (_key_error, KeyError),
        (_slow, AssertionError),
        (_other_code, AssertionError),
        (_no_place, AssertionError),
        (_no_line, AssertionError),
        (_endless, AssertionError),
        (_waiting, Hanging),
        (_reading, (Hanging, MemoryError)),
    ],
)
def test_a_planted_defect_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, planted: Callable[[Any], None], noticed: type[BaseException]
) -> None:
    monkeypatch.setattr(checks, "check", planted)
    if Hanging is noticed or planted is _reading:
        monkeypatch.setattr(sys.modules[__name__], "HANGS", 0.7)
    with pytest.raises(noticed):
        verdict(Mutant("a valid one", nasty.BASE), folder)


def test_a_defect_that_few_recipes_meet_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checks.check

    def check(recipe: Any) -> None:
        if recipe.model.revision is not None:
            raise KeyError("planted")
        real(recipe)

    monkeypatch.setattr(checks, "check", check)
    with pytest.raises(KeyError, match="planted"):
        explore(VALID, 100, folder, [Phase.generate])
    some = [Mutant("few", nasty.BASE), Mutant("one", nasty.BASE, ("model.revision=main",))]
    wrong, _ = badly_refused([*some, replace(some[0], name="again")], folder)
    assert wrong == ["one: KeyError: 'planted'"]
