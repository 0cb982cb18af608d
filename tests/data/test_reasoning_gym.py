"""Tasks of reasoning_gym: checked without importing it, made the same each time, scored by its own scorers."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmkit.data import reasoning_gym as gym
from llmkit.data import sources
from llmkit.errors import DataError, LlmkitError, RecipeError, SetupError
from llmkit.recipe.recipe import Source

pytest.importorskip("reasoning_gym")


def source(task: str, **keys: Any) -> Source:
    return Source(path=f"reasoning_gym:{task}", format="prompt", **keys)


def read(task: str, **keys: Any) -> list[tuple[str, dict[str, Any]]]:
    return list(sources.read_examples(source(task, **keys), Path()))


def test_names_and_options_are_those_of_the_package() -> None:
    from reasoning_gym.factory import DATASETS

    assert set(gym._files()) == set(DATASETS) - {"composite"}
    for task in gym._files():
        assert gym._options(task) == tuple(field.name for field in dataclasses.fields(DATASETS[task][1])), task


def test_checking_imports_nothing() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from llmkit.data import sources; from llmkit.recipe.recipe import Source\n"
        "s = Source(path='reasoning_gym:chain_sum', format='prompt', options={'max_terms': 3})\n"
        "sources.check_source(s, Path())\n"
        "assert not {'reasoning_gym', 'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_rows_have_what_their_scorer_needs() -> None:
    import reasoning_gym

    rows = read("chain_sum", max_rows=20, options={"min_terms": 2, "max_terms": 2, "max_digits": 1})
    assert [where for where, _ in rows][:2] == ["reasoning_gym:chain_sum/train[0]", "reasoning_gym:chain_sum/train[1]"]
    assert len(rows) == 20
    for _, row in rows:
        assert set(row) == {"prompt", "answer", "task", "entry"}
        assert row["prompt"] == [{"role": "user", "content": row["entry"]["question"]}]
        score = reasoning_gym.get_score_answer_fn(row["task"])
        assert score(row["answer"], row["entry"]) == 1.0
        assert score(str(int(row["answer"]) + 1), row["entry"]) < 1.0
        json.dumps(row)


def test_a_scorer_that_tells_tuples_from_lists_is_given_tuples() -> None:
    import reasoning_gym

    [(_, row)] = read("rearc", max_rows=1)
    assert reasoning_gym.get_score_answer_fn("rearc")(row["answer"], row["entry"]) == 1.0


def test_the_same_rows_each_time_and_others_for_another_seed() -> None:
    assert read("gcd", max_rows=5) == read("gcd", max_rows=5)
    assert read("gcd", max_rows=5) != read("gcd", max_rows=5, options={"seed": 1})
    # This task draws from Python's own random numbers as well, which stay as they were.
    random.seed(1)
    first = read("list_functions", max_rows=5)
    after = random.random()
    random.seed(2)
    assert read("list_functions", max_rows=5) == first
    random.seed(1)
    assert random.random() == after


def test_held_out_rows_are_others() -> None:
    """Row i comes from seed + i: a held-out split at the next seed would have all but one of the training rows."""
    keys = {"max_rows": 200, "options": {"min_digits": 6, "max_digits": 6}}
    questions = {
        split: {row["entry"]["question"] for _, row in read("chain_sum", split=split, **keys)} for split in gym.SPLITS
    }
    assert [len(questions[split]) for split in gym.SPLITS] == [200, 200]
    assert not questions["train"] & questions["test"]
    assert {row["entry"]["question"] for _, row in read("chain_sum", **keys)} == questions["train"]


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({}, 500),
        ({"max_rows": 7}, 7),
        ({"max_rows": 501}, 501),
        ({"options": {"size": 9}}, 9),
        ({"max_rows": 4, "options": {"size": 9}}, 4),
        ({"max_rows": 12, "options": {"size": 9}}, 9),
    ],
)
def test_number_of_rows(keys: dict[str, Any], count: int) -> None:
    assert len(read("gcd", **keys)) == count


@pytest.mark.parametrize(
    ("task", "keys", "error", "text"),
    [
        (
            "chain_sums",
            {},
            DataError,
            "reasoning_gym has no task 'chain_sums' (did you mean 'chain_sum'?)\nTasks: ab, ",
        ),
        ("composite", {}, DataError, "has no task 'composite'"),
        ("ransom_note", {}, DataError, "differ from one Python process to the next"),
        ("gcd", {"split": "eval"}, DataError, "reasoning_gym:gcd: no split 'eval'\nSplits: train, test."),
        ("gcd", {"options": {"max_number": 3}}, RecipeError, "'gcd' has no option 'max_number' (did you mean "),
        ("gcd", {"options": {"seed": -1}}, RecipeError, "`options.seed` must be an integer from 0 to 999999999"),
        ("gcd", {"options": {"seed": True}}, RecipeError, "`options.seed` must be an integer"),
        ("gcd", {"name": "main"}, RecipeError, "a reasoning_gym task has no `name`"),
    ],
)
def test_refused_before_anything_is_made(task: str, keys: dict[str, Any], error: type[LlmkitError], text: str) -> None:
    with pytest.raises(error) as caught:
        sources.check_source(source(task, **keys), Path())
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_terms": 1}, "reasoning_gym refuses these options: max_terms must be >= min_terms"),
        ({"max_terms": "x"}, "reasoning_gym refuses these options: "),
        ({"size": 0}, "reasoning_gym refuses these options: size must be positive"),
    ],
)
def test_options_that_the_task_refuses(options: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read("chain_sum", options=options)
    assert text in str(caught.value)
    assert caught.value.where == "reasoning_gym:chain_sum"


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    gym._files.cache_clear()
    with pytest.raises(SetupError) as caught:
        sources.check_source(source("gcd"), Path())
    assert caught.value.remedy == 'pip install "llmkit[rl]"'


@pytest.mark.slow
@pytest.mark.parametrize("task", gym.UNREPEATABLE)
def test_what_is_refused_as_unrepeatable_is(task: str) -> None:
    """If this fails after an upgrade, the package has mended the task: take it off the list."""
    code = (
        f"import reasoning_gym; d = reasoning_gym.create_dataset({task!r}, seed=0, size=60)\n"
        "print([d[i]['question'] for i in range(60)])"
    )
    made = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2")
    ]
    assert made[0] != made[1]
