"""The code reward: which code is run against which tests, and what the score says. The sandbox has its own tests."""

from __future__ import annotations

import gzip
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.shapes import RowError
from llmkit.data.splits import Row
from llmkit.errors import RunError, SetupError
from llmkit.rewards import _sandbox
from llmkit.rewards import code as module
from llmkit.rewards._sandbox import Limits, Outcome, Protection
from llmkit.rewards.base import score_part
from llmkit.rewards.code import Code

linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox's layers are Linux's")
DOUBLE = "def double(x):\n    return 2 * x\n"
HUMANEVAL = (
    Path(os.environ.get("LLMKIT_SHARED", Path(__file__).parents[3] / "shared")) / "data/humaneval/HumanEval.jsonl.gz"
)


def reward(**fields: Any) -> Code:
    return Code(type="code", **fields)


@linux
def test_a_list_gives_the_share_and_a_string_all_or_nothing() -> None:
    tests = ["assert double(2) == 4", "assert double(0) == 0", "assert double(2) == 5", "assert triple(1) == 3"]
    assert reward().score(DOUBLE, {"tests": tests}) == 0.5
    assert reward().score(DOUBLE, {"tests": "\n".join(tests)}) == 0.0
    assert reward().score(DOUBLE, {"tests": "\n".join(tests[:2])}) == 1.0
    assert reward().score("", {"tests": tests}) == 0.0


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("x = 1", "x = 1"),
        ("    return 1\n", "    return 1\n"),
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```\nor\n```Python3\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1", "x = 1"),  # cut at the token limit
        ("```bash\nls\n```", "```bash\nls\n```"),
        # The fence that ends one block does not begin another.
        ("```python\nx = 1\n```\nOutput:\n```\n5\n```", "x = 1\n"),
        ("```bash\nls\n```\nthen\n```python\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nRun it:\n```bash\nls\n```\nDone.", "x = 1\n"),
        ("```bash\nls\n```\n```\nx = 1\n```\n```text\n1\n```", "x = 1\n"),
        ("```py title=a.py\r\nx = 1\r\n```\r\n```\r\n1\r\n```", "x = 1\r\n"),
        ("- so:\n\n  ```python\n  def f():\n      return 1\n  ```\n\n- done", "def f():\n    return 1\n"),
        ("```python\n    x = 1\n```", "x = 1\n"),
        ("", ""),
    ],
)
def test_the_code_is_the_last_block_or_everything(completion: str, code: str) -> None:
    assert reward()._program(completion, {}) == code


def test_the_prompt_stands_before_the_code() -> None:
    asked = reward(prompt_column="prompt")
    row = {"prompt": "def f(x):\n    return"}
    assert asked._program(" x + 1", row) == "def f(x):\n    return x + 1"
    assert asked._program("```python\ny = 1\n```", row) == "def f(x):\n    return\ny = 1\n"
    assert asked._program("```bash\nls\n```", row) == "def f(x):\n    return```bash\nls\n```"
    # A function's body keeps its indentation, but for that of the list in which it stands.
    assert asked._program("  ```\n      x + 1\n  ```", row) == "def f(x):\n    return\n    x + 1\n"


@pytest.mark.parametrize("unit", ["```", "```\n", "``` ", " ", "```a", "```python\n", "\n ", "a"])
def test_long_nonsense_takes_no_time(unit: str) -> None:
    start = time.perf_counter()
    module.last_block(unit * (100_000 // len(unit)) + "`x")
    module.last_block("```" + unit * (100_000 // len(unit)) + "`x")
    assert time.perf_counter() - start < 2.0


def test_a_sandbox_that_breaks_down_names_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(program: str, tests: Sequence[str], limits: Limits, layers: frozenset[str]) -> Outcome:
        if program == "bad":
            raise RunError("a sandbox broke down (exit code 70)")
        return Outcome((True,), ("",), layers)

    monkeypatch.setattr(_sandbox, "run", run)
    monkeypatch.setattr(_sandbox, "probe", lambda limits: Protection(frozenset(), ()))
    rows = [Row(where=f"rows.jsonl:{i}", example={"tests": "pass"}) for i in range(3)]
    with pytest.raises(RunError, match=r"(?s)rows\.jsonl:1: reward `code`: a sandbox broke down .*'bad'"):
        score_part(reward(), ["good", "bad", "good"], rows)


def test_an_entry_point_is_given_to_check() -> None:
    row = {"test": "def check(f):\n    assert f(1) == 2", "entry": "g"}
    asked = reward(column="test", entry_point_column="entry")
    assert asked._tests(row) == ["def check(f):\n    assert f(1) == 2\n\ncheck(g)\n"]


@pytest.mark.parametrize("tests", [None, "", [], ["assert True", ""], [3], {"a": 1}])
def test_a_row_without_tests_is_refused(tests: Any) -> None:
    with pytest.raises(RowError, match="no tests in column 'tests'"):
        reward().check_row({"tests": tests})


def test_a_row_whose_tests_are_not_python_is_refused() -> None:
    # It would give every completion zero, without a word.
    with pytest.raises(RowError, match="is not Python: .*never closed"):
        reward().check_row({"tests": ["assert True", "assert (1"]})


@pytest.mark.parametrize("field", ["prompt_column", "entry_point_column"])
def test_a_row_without_a_named_column_is_refused(field: str) -> None:
    with pytest.raises(RowError, match="no text in column 'name'"):
        reward(**{field: "name"}).check_row({"tests": "pass"})


def test_the_golden_answer() -> None:
    assert reward().golden({"solution": "b", "code": "a"}) == "a"
    assert reward(golden_column="mine").golden({"mine": "c", "code": "a"}) == "c"
    assert reward().golden({"tests": "pass"}) is None


@linux
def test_hostile_rows_cost_themselves_alone() -> None:
    hostile = [
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        "while True: pass",
        "bytearray(10 << 30)",
        "import os\nos.kill(os.getppid(), 9)",
        "import os\nos._exit(0)",
        "import socket\nsocket.socket()",
        "open('/tmp/outside', 'w')",
    ]
    completions = [text for bad in hostile for text in (bad, DOUBLE)]
    rows = [Row(where=f"rows.jsonl:{i}", example={"tests": ["assert double(4) == 8"]}) for i in range(len(completions))]
    assert score_part(reward(timeout=2, workers=3), completions, rows) == [0.0, 1.0] * len(hostile)


def test_workers_are_bounded_and_the_order_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    running, highest, lock = [0], [0], threading.Lock()

    def run(program: str, tests: Sequence[str], limits: Limits, layers: frozenset[str]) -> Outcome:
        with lock:
            running[0] += 1
            highest[0] = max(highest[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1
        return Outcome((program == "good",), ("",), layers)

    monkeypatch.setattr(_sandbox, "run", run)
    monkeypatch.setattr(_sandbox, "probe", lambda limits: Protection(frozenset(), ()))
    completions = ["good", "bad", "good"] * 5
    assert reward(workers=3).scores(completions, [{"tests": "pass"}] * 15) == [1.0, 0.0, 1.0] * 5
    assert highest == [3]


def test_the_limits_of_the_recipe_reach_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(program: str, tests: Sequence[str], limits: Limits, layers: frozenset[str]) -> Outcome:
        seen.append((limits, layers))
        return Outcome((True,), ("",), layers)

    monkeypatch.setattr(_sandbox, "run", run)
    monkeypatch.setattr(_sandbox, "probe", lambda limits: Protection(frozenset({"landlock"}), ()))
    reward(timeout=3, memory_mb=100, disk_mb=2, processes=5).score("", {"tests": "pass"})
    assert seen == [(Limits(3.0, 100, 2, 5), frozenset({"landlock"}))]


def test_a_machine_that_can_not_protect_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = Protection(frozenset(), ("reach the network", "read your files"))
    monkeypatch.setattr(_sandbox, "probe", lambda limits: weak)
    with pytest.raises(SetupError, match="can't keep a program from these: reach the network; read your files"):
        reward().check_setup(Path())
    with pytest.raises(SetupError):
        reward().set_up(Path())
    with pytest.warns(UserWarning, match="can't keep a program from these: reach the network"):
        reward(allow_weaker=True).check_setup(Path())


@pytest.mark.slow
@linux
@pytest.mark.skipif(not HUMANEVAL.is_file(), reason="the HumanEval file is not on this machine")
def test_the_solutions_of_humaneval_pass_and_a_stub_does_not() -> None:
    with gzip.open(HUMANEVAL, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    asked = reward(column="test", entry_point_column="entry_point", prompt_column="prompt", timeout=30)
    for row in rows:
        asked.check_row(row)
    started = time.monotonic()
    golden = asked.scores([asked.golden(row) or "" for row in rows], rows)
    seconds = time.monotonic() - started
    assert golden == [1.0] * 164
    assert asked.scores(["    return None\n"] * 164, rows) == [0.0] * 164
    print(f"164 solutions in {seconds:.1f} s, {1000 * seconds / 164:.0f} ms each")
