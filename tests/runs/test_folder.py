"""The run folder: what a resumed run forgets, and what it must find unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.errors import DataError
from llmkit.recipe.recipe import Recipe
from llmkit.runs.folder import RunFolder, code_hashes
from llmkit.runs.runner import run

Maker = Callable[..., Recipe]


def test_steps_behind_a_checkpoint_are_forgotten_whatever_the_answers_hold(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    samples = [{"step": step, "completion": "one\u2028two\u0085three\x1c"} for step in (1, 2, 3)]
    folder.append_samples(samples)
    with (tmp_path / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "completion": "cut o')
    folder.forget_steps_after(2)
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines if line] == samples[:2]


def test_code_that_a_recipe_names_is_hashed(recipe: Maker, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(completion, row):\n    return 1.0\n", encoding="utf-8")
    reward = "rewards=[{type: python, function: 'mine.py:score'}]"
    found = code_hashes(recipe("data.train.0.format=prompt", "method.type=grpo", reward))
    assert list(found) == ["mine.py"]
    assert len(found["mine.py"]) == 64
    assert code_hashes(recipe()) == {}


def test_a_run_does_not_go_on_with_other_rewards(recipe: Maker, rows_file: Path, tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"q {i}"}]} for i in range(8)]
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code = tmp_path / "mine.py"
    code.write_text("def score(completion, row):\n    return float(len(completion))\n", encoding="utf-8")
    the_recipe = recipe(
        "data.train.0.format=prompt",
        "data.eval=null",
        "method.type=grpo",
        "rewards=[{type: python, function: 'mine.py:score'}]",
        "training.num_generations=4",
        "training.max_completion_length=4",
        "training.max_steps=1",
        "training.save_steps=1",
    )
    run(the_recipe, out=tmp_path / "run")
    code.write_text("def score(completion, row):\n    return 0.0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"the code has changed since .*: mine\.py"):
        run(the_recipe, out=tmp_path / "run", resume=True)
