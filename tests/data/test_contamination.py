"""Contamination: rows of a benchmark are found in training rows by runs of words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.audit.columns import as_rows
from llmkit.data.audit.contamination import benchmarks, contamination, strings
from llmkit.data.audit.findings import Finding
from llmkit.data.audit.words import Sample, Vocabulary, said
from llmkit.data.splits import Row
from llmkit.errors import DataError
from llmkit.recipe.recipe import Recipe

Maker = Callable[..., Recipe]
Look = Callable[..., list[Finding]]


def line(seed: object, count: int = 30) -> str:
    draw = random.Random(str(seed))
    return " ".join(f"w{draw.randrange(9000)}" for _ in range(count))


def rows(texts: Sequence[str]) -> Sample:
    made = [
        Row(f"train:{i}", {"prompt": text, "completion": "x"}, {"input_ids": [i], "labels": [i]})
        for i, text in enumerate(texts)
    ]
    return Sample.of(as_rows(made), 10_000)


@pytest.fixture
def look(recipe: Maker, tmp_path: Path) -> Look:
    """Return what looks for the rows of a benchmark file in training texts."""

    def found(train: Sequence[str], benchmark: Sequence[Any], *overrides: str) -> list[Finding]:
        (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in benchmark), encoding="utf-8")
        chosen = recipe("data.eval=null", "data.audit.benchmarks=[{path: b.jsonl}]", *overrides)
        vocabulary, sample = Vocabulary(), rows(train)
        texts = vocabulary.texts(map(said, sample.examples))
        return list(contamination(sample, texts, benchmarks(chosen, rows([]), vocabulary), chosen))

    return found


TRAIN = [line(i) for i in range(30)]


def test_a_text_inside_a_training_row_is_found_with_both_places(look: Look) -> None:
    question = " ".join(TRAIN[4].split()[5:25]).upper() + "?"
    (found,) = look(TRAIN, [{"stem": line("other")}, {"stem": question, "key": "B"}])
    assert (found.count, found.of, found.where) == (1, 2, ("train:4",))
    assert "b.jsonl:2 in train:4" in found.what


@pytest.mark.parametrize(("words", "expected"), [(26, 1), (25, 1), (24, 0), (13, 0)])
def test_most_runs_of_a_text_must_be_there(look: Look, words: int, expected: int) -> None:
    # A text of 30 words has 18 runs of 13; of its first n words, n - 12 runs: 13 of 18 are 72%, 12 are 67%.
    question = " ".join([*TRAIN[4].split()[:words], *line("new").split()[words:]])
    assert len(look(TRAIN, [{"q": question}])) == expected


def test_a_shorter_text_is_looked_for_as_a_whole(look: Look) -> None:
    nine = TRAIN[4].split()[3:12]
    assert look(TRAIN, [{"q": " ".join(nine)}])
    assert not look(TRAIN, [{"q": " ".join([*nine[:-1], "other"])}])


def test_a_text_of_fewer_than_eight_words_is_no_evidence(look: Look) -> None:
    assert look(TRAIN, [{"q": " ".join(TRAIN[4].split()[:8])}])
    assert not look(TRAIN, [{"q": " ".join(TRAIN[4].split()[:7])}])


def test_an_instruction_of_the_benchmark_is_not_what_is_looked_for(look: Look) -> None:
    instruction = line("instruction", 40)
    benchmark = [{"q": f"{instruction} {line(f'q{i}', 14)}"} for i in range(40)]
    assert not look([*TRAIN, instruction], benchmark)
    (found,) = look([*TRAIN, f"{instruction} {line('q7', 14)}"], benchmark)
    assert found.count == 1


def test_an_instruction_of_the_training_rows_is_not_what_is_found(look: Look) -> None:
    instruction = line("instruction", 20)
    train = [f"{instruction} {text}" for text in TRAIN]
    assert not look(train, [{"q": instruction}])
    assert look([*TRAIN, instruction], [{"q": instruction}])


def test_the_length_of_a_run_is_the_recipe_s(look: Look) -> None:
    # Every tenth word differs: no run of 13, but runs of 8.
    question = " ".join("new" if i == 15 else word for i, word in enumerate(TRAIN[4].split()))
    assert not look(TRAIN, [{"q": question}])  # 18 - 13 = 5 of 18 runs
    assert not look(TRAIN, [{"q": question}], "data.audit.ngram=8")  # 23 - 8 = 15 of 23, 65%
    edge = " ".join("new" if i == 4 else word for i, word in enumerate(TRAIN[4].split()))
    assert look(TRAIN, [{"q": edge}], "data.audit.ngram=8")  # 23 - 5 = 18 of 23, 78%


@pytest.mark.parametrize(("share", "severity"), [(0.3, "warning"), (0.2, "error")])
def test_the_share_of_the_benchmark_decides(look: Look, share: float, severity: str) -> None:
    benchmark = [{"q": TRAIN[0]}, *({"q": line(f"b{i}")} for i in range(4))]
    (found,) = look(TRAIN, benchmark, f"data.audit.contamination={share}")
    assert found.severity == severity


def test_strings_of_any_layout_are_read_but_system_prompts_are_not() -> None:
    chat = [{"role": "system", "content": "z"}, {"content": "w"}]
    row = {"system": "s", "a": ["x", {"b": "y", "n": 3}], "messages": chat}
    assert list(strings(row)) == ["x", "y", "w"]


def test_a_missing_benchmark_is_an_error(recipe: Maker) -> None:
    chosen = recipe("data.audit.benchmarks=[{path: missing.jsonl}]")
    with pytest.raises(DataError, match="no such file"):
        benchmarks(chosen, rows([]), Vocabulary())
