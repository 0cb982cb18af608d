"""What evaluations share: scores from the parts of rows, rows of their own, answers that are generated once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.data.splits import Row
from llmkit.evaluation import _generation
from llmkit.evaluation._rows import scored
from llmkit.evaluation.base import Evaluation, Score, Subject
from llmkit.evaluation.exact_match import ExactMatch
from llmkit.evaluation.f1 import F1
from llmkit.evaluation.perplexity import Perplexity
from llmkit.evaluation.reward import Reward
from llmkit.evaluation.statistics.aggregates import AGGREGATES
from llmkit.recipe.spec import variant
from llmkit.rewards.length import Length

ANSWERS = ['{"a": 1}', "the cat sat on the mat", "no", "", "a dog\nin the garden"]
REFERENCES = ['{"a": 1}', '{"b": 2}', '"no"', "[]", '{"c": [3, 4]}']


def assert_whole(score: Score) -> None:
    """Assert that each metric is what its aggregate makes of the sums of the rows' parts."""
    assert score.per_row
    for name, parts in score.per_row.items():
        assert len(parts) == score.rows
        sums = np.asarray(parts, dtype=float).reshape(score.rows, -1).sum(axis=0)
        found = float(AGGREGATES[score.aggregate.get(name, "mean")](sums, score.rows))
        assert found == pytest.approx(score.metrics[name], abs=1e-9), name
    assert score.aggregate.keys() <= score.per_row.keys()


@pytest.mark.parametrize("name", ["accuracy", "bleu", "chrf", "exact_match", "f1", "json_fields", "rouge"])
def test_a_score_is_what_its_parts_add_up_to(told, name):
    spec: Any = variant("llmkit.evaluation", name)
    score = spec(type=name).score(told(ANSWERS, REFERENCES))
    assert_whole(score)
    assert score.per_row.keys() == score.metrics.keys()


def test_so_is_a_reward(told):
    subject = told(ANSWERS, REFERENCES)
    subject.rewards = (Length(type="length", max=2, over=3),)
    assert_whole(Reward(type="reward").score(subject))


def test_so_is_perplexity(model, tokenizer):
    rows = [
        Row(f"e:{i}", {}, {"input_ids": ids, "labels": [-100, *ids[1:]]} if ids else {})
        for i, ids in enumerate(([5, 6, 7], [], [8], [9, 10, 11, 12, 13]))
    ]
    score = Perplexity(type="perplexity").score(Subject(model, tokenizer, rows, seed=0))
    assert_whole(score)
    assert score.per_row.keys() == score.metrics.keys() == {"loss", "perplexity"}
    assert [tokens for _, tokens in score.per_row["loss"]] == [2.0, 0.0, 0.0, 4.0]
    assert score.metrics["perplexity"] == pytest.approx(np.exp(score.metrics["loss"]))
    assert Perplexity.lower_is_better == {"loss", "perplexity"}


def test_parts_of_several_numbers():
    score = scored([{"a": (1.0, 2.0), "b": 1.0}, {"a": (4.0, 8.0), "b": 0.0}], aggregate={"a": "ratio"})
    assert (score.metrics, score.rows) == ({"a": 0.5, "b": 0.5}, 2)
    assert score.per_row == {"a": ((1.0, 2.0), (4.0, 8.0)), "b": (1.0, 0.0)}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the prompts of each call of `generate`, which says yes."""
    calls: list[int] = []

    def fake(_model: Any, _tokenizer: Any, prompts: Any, **_: Any) -> list[str]:
        calls.append(len(prompts))
        return ["yes"] * len(prompts)

    monkeypatch.setattr(_generation, "generate", fake)
    return calls


def with_data(kind: type[Evaluation], name: str, **fields: Any) -> Evaluation:
    return kind.model_validate({"type": name, "data": {"path": "own.jsonl"}, **fields})


def test_answers_are_shared_between_evaluations_of_the_same_rows(subject, counted, tmp_path: Path):
    lines = [{"prompt": f"{i}?", "completion": "yes"} for i in range(2)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    person = subject([{"prompt": f"{i}?", "completion": "no"} for i in range(2)])
    person.folder = tmp_path
    assert with_data(ExactMatch, "exact_match").score(person).metrics == {"exact_match": 1.0}
    assert with_data(F1, "f1").score(person).metrics == {"f1": 1.0}
    assert counted == [2]
    # The same prompts have the same answers, and other references.
    assert ExactMatch(type="exact_match").score(person).metrics == {"exact_match": 0.0}
    assert F1(type="f1").score(person).metrics == {"f1": 0.0}
    assert counted == [2]
    assert with_data(F1, "f1", limit=1).score(person).rows == 1
    assert counted == [2, 1]
    # Lines of one file are other prompts where they are read by other columns.
    columns = {"prompt": "Again: {{ prompt }}"}
    again = ExactMatch.model_validate({"type": "exact_match", "data": {"path": "own.jsonl", "columns": columns}})
    assert again.score(person).samples[0].prompt == "Again: 0?"
    assert counted == [2, 1, 2]
