"""Code that a model has written runs in the sandbox or not at all."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llmkit.rewards._sandbox import Limits, probe
from llmkit.rewards.code import Code
from llmkit.rewards.reasoning_gym import EVALUATING

RUNNERS = (
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn",
    "os.fork", "pty.", "subprocess.", "multiprocessing.Process", "runpy.", "code.", "codeop.", "sympy.", "ctypes.",
    "importlib.machinery.", "importlib.util.spec_from_file_location", "importlib.util.module_from_spec",
)  # fmt: skip
"""Names (or how they begin) of what runs code or starts programs."""

MAY_RUN = {
    "recipe/functions.py": "functions that the recipe names; announced",
    "rewards/_sandbox.py": "starts the sandbox, and removes its folder",
    "rewards/_sandbox_child.py": "is the sandbox",
    "rewards/_sandbox_attacks.py": "attacks the machine from inside the sandbox",
    "runs/folder.py": "asks git for the commit",
    "cli/main.py": "starts llmkit itself anew",
}
"""Every file of llmkit that may, and what for. A new one has to be put here, and to be thought about."""


def test_nothing_else_in_llmkit_runs_code(calls: list[Any]) -> None:
    found = {(call.file, call.name) for call in calls if _runs(call.name)}
    assert {file for file, _ in found} <= set(MAY_RUN), sorted(found)
    assert {name for file, name in found if file == "runs/folder.py"} == {"subprocess.run"}
    assert {name for file, name in found if file == "cli/main.py"} <= {"os.execv"}


def _runs(name: str) -> bool:
    return any(name == runner or (name.startswith(runner) and not runner.isidentifier()) for runner in RUNNERS)


def test_the_search_finds_what_it_looks_for(calls: list[Any]) -> None:
    found = {(call.file, call.name) for call in calls if _runs(call.name)}
    assert ("rewards/_sandbox_child.py", "compile") in found
    assert ("rewards/_sandbox.py", "subprocess.Popen") in found
    assert ("cli/main.py", "os.execv") in found


def test_only_the_code_reward_has_the_key_to_the_sandbox(calls: list[Any]) -> None:
    users = {call.file for call in calls if call.name.startswith("llmkit.rewards._sandbox.")}
    assert users == {"rewards/code.py"}


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox's layers are Linux's")
def test_a_program_of_the_model_leaves_no_trace(tmp_path: Path, mine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "tok4f9a8b7c6d5e")
    if probe(Limits()).gaps:
        pytest.skip("this machine has no sandbox")
    program = (
        f"import os\ntry:\n    open({str(mine.marker)!r}, 'w')\nexcept OSError:\n    pass\nSEEN = dict(os.environ)\n"
    )
    tests = ["assert 'MY_SERVICE_TOKEN' not in SEEN", "assert 'tok4f9a8b7c6d5e' not in str(SEEN)"]
    reward = Code(type="code")
    reward.set_up(tmp_path)
    assert reward.score(program, {"tests": tests}) == 1.0
    assert not mine.went_off


# --- rewards that read answers as mathematics ------------------------------------------------------------------------

ANSWERS = [
    r"\boxed{CALL}",
    r"<answer>CALL</answer>",
    "CALL",
    "$CALL$",
    r"The final answer is $\text{CALL}$",
    "1 + CALL",
    "1/2 if CALL else 3",
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_not_run_as_python_by_the_math_reward(answer: str, mine: Any) -> None:
    pytest.importorskip("math_verify")
    from llmkit.rewards.math import Math

    call = f"__import__('os').system('touch {mine.marker}')"
    Math(type="math").score(answer.replace("CALL", call), {"answer": "5"})
    assert not mine.went_off


HARMLESS = {
    "basic_arithmetic": "evaluates what it has written itself",
    "codeio": "runs programs that the package ships, when it makes a row",
    "propositional_logic": "has a parser of that name",
}
FROM_ROWS = {"bitwise_arithmetic", "number_sorting"}
"""Evaluate a text of the row's entry, and not of the answer: the reward refuses one that is no arithmetic."""


def test_every_scorer_that_evaluates_is_known() -> None:
    """Of the version that is installed: a new one may have more of them."""
    spec = find_spec("reasoning_gym")
    if spec is None or spec.origin is None:
        pytest.skip("reasoning_gym is not installed")
    found = set()
    for file in Path(spec.origin).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        named = re.search(r'^DATASET_NAME = "(\w+)"$', text, re.MULTILINE)
        if named and re.search(r"(?<![\w.])(?:eval|exec)\(|\b(?:parse_expr|sympify)\(", text):
            found.add(named[1])
    assert found - set(HARMLESS) - FROM_ROWS <= set(EVALUATING)
    assert found >= FROM_ROWS


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("numeric", {}),
        ("exact_match", {}),
        ("format", {}),
        ("length", {"max": 5, "over": 2}),
        ("regex", {"pattern": "x"}),
        ("json_schema", {"json_schema": {"type": "object"}}),
    ],
)
def test_no_other_reward_runs_an_answer(kind: str, settings: dict[str, Any], mine: Any) -> None:
    """Answers that would do harm as Python, as sympy, or as YAML."""
    from llmkit.recipe.spec import variant

    reward: Any = variant("llmkit.rewards", kind)(type=kind, **settings)
    command = f"touch {mine.marker}"
    for answer in (
        f"__import__('os').system('{command}')",
        f"<answer>__import__('os').system('{command}')</answer>",
        f"!!python/object/apply:os.system ['{command}']",
        f"```json\n!!python/object/apply:os.system ['{command}']\n```",
    ):
        reward.score(answer, {"answer": "5", "prompt": "x"})
    assert not mine.went_off
