from __future__ import annotations

import pytest
from pydantic import ValidationError

from llmkit.evaluation._generation import answers
from llmkit.evaluation._metrics import exact_match
from llmkit.evaluation.exact_match import ExactMatch


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [(" Paris\n", "Paris", 1.0), ("paris", "Paris", 0.0), ("4", " 4", 1.0), ("", "no", 0.0)],
)
def test_equal_answers(answer, reference, expected):
    assert exact_match(answer, reference) == expected


def test_score_of_a_real_model_against_its_own_answers(subject):
    examples = [{"prompt": text, "completion": "?"} for text in ("the capital", "yes", "what is two")]
    own = answers(subject(examples), max_new_tokens=6, limit=None, batch_size=2)
    for example, sample in zip(examples[:2], own, strict=False):
        example["completion"] = sample.answer + " "
    score = ExactMatch(type="exact_match", max_new_tokens=6, batch_size=2).score(subject(examples))
    assert score.metrics == {"exact_match": pytest.approx(2 / 3)}
    assert score.rows == 3
    assert [sample.answer for sample in score.samples] == [sample.answer for sample in own]
    assert ExactMatch(type="exact_match", max_new_tokens=6, limit=2).score(subject(examples)).metrics == {
        "exact_match": 1.0
    }


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"limit": 0}, {"batch_size": 0}, {"max_tokens": 3}])
def test_fields_are_checked(wrong):
    with pytest.raises(ValidationError):
        ExactMatch(type="exact_match", **wrong)


def test_defaults():
    spec = ExactMatch(type="exact_match")
    assert (spec.max_new_tokens, spec.limit, spec.batch_size) == (256, None, None)
    assert spec.requires_rows()
