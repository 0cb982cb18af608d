"""JSON fields: values worked out by hand, and rows and schemas that can't be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from llmkit.errors import DataError, RecipeError
from llmkit.evaluation._json import in_answer, leaves, read_json
from llmkit.evaluation.json_fields import JsonFields

ORDER = '{"size": "L", "toppings": ["ham", "olives"], "paid": true, "address": {"street": "Main St", "no": 5}}'
SCHEMA = {"type": "object", "properties": {"size": {"enum": ["S", "L"]}}, "required": ["size"]}


def scored(told, answer, reference=ORDER, **fields):
    return JsonFields(type="json_fields", **fields).score(told([answer], [reference])).metrics


@pytest.mark.parametrize(
    ("answer", "valid", "share", "exact"),
    [
        (ORDER, 1, 1, 1),
        (f"Here it is:\n```json\n{ORDER}\n```\nAnything else?", 1, 1, 1),
        (f"```\n{{}}\n```\nor rather\n```json\n{ORDER}\n```", 1, 1, 1),  # the last block
        (f"```json\n{ORDER}\n```\n```python\nprint()\n```", 1, 1, 1),  # a block of Python is none
        (json.dumps(json.loads(ORDER), indent=4), 1, 1, 1),
        ('{"paid": true, "size": "L"}', 1, 2 / 6, 0),
        (ORDER.replace("true", "1"), 1, 5 / 6, 0),
        (ORDER.replace("5", "5.0"), 1, 1, 1),
        (ORDER.replace("5", '"5"'), 1, 5 / 6, 0),
        (ORDER.replace('"ham", "olives"', '"olives", "ham"'), 1, 4 / 6, 0),  # by position
        (ORDER.replace('"ham", "olives"', '"ham", "olives", "corn"'), 1, 1, 0),  # more than asked for
        (ORDER.replace('{"street": "Main St", "no": 5}', '"Main St"'), 1, 4 / 6, 0),
        ("{}", 1, 0, 0),
        ("null", 1, 0, 0),
        (f"Here it is: {ORDER}", 0, 0, 0),
        (ORDER[:-1], 0, 0, 0),
        (ORDER.replace("5", "NaN"), 0, 0, 0),
        ("[" * 100_000, 0, 0, 0),
        ("[" * 500 + "]" * 500, 1, 0, 0),
        ("1" * 10_000, 0, 0, 0),  # more digits than Python reads
        ("", 0, 0, 0),
    ],
)
def test_by_hand(told, answer, valid, share, exact):
    assert scored(told, answer) == {"json_valid": valid, "field_accuracy": pytest.approx(share), "exact": exact}


@pytest.mark.parametrize(
    ("answer", "reference", "share", "exact"),
    [
        ("[]", "[]", 1, 1),
        ("{}", "[]", 0, 0),
        ("7", "7", 1, 1),
        ('"7"', "7", 0, 0),
        ("false", "0", 0, 0),
        ('{"a": []}', '{"a": []}', 1, 1),
        ('{"a": [1]}', '{"a": []}', 0, 0),
        ('{"0": 1}', "[1]", 0, 0),
        ('{"a": null}', '{"a": null, "b": null}', 1 / 2, 0),
        ('{"a": null}', '{"b": null}', 0, 0),
    ],
)
def test_values_without_parts(told, answer, reference, share, exact):
    assert scored(told, answer, reference) == {"json_valid": 1, "field_accuracy": share, "exact": exact}


def test_means_over_rows(told):
    score = JsonFields(type="json_fields").score(told(['{"a": 1}', "no"], ['{"a": 1}', '{"a": 1}']))
    assert score.metrics == {"json_valid": 0.5, "field_accuracy": 0.5, "exact": 0.5}
    assert score.per_row["exact"] == (1.0, 0.0)


@pytest.mark.parametrize(("answer", "fits"), [('{"size": "S"}', 1), ('{"size": "XXL"}', 0), ("[]", 0), ('"L', 0)])
@pytest.mark.parametrize("place", ["recipe", "file", "row", "row as text"])
def test_a_schema(told, tmp_path, answer, fits, place):
    subject = told([f"```json\n{answer}\n```"], [ORDER])
    subject.folder = tmp_path
    (tmp_path / "order.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    subject.rows[0].example["schema"] = json.dumps(SCHEMA) if place == "row as text" else SCHEMA
    fields = {"recipe": {"json_schema": SCHEMA}, "file": {"json_schema": "order.json"}}
    score = JsonFields(type="json_fields", **fields.get(place, {"column": "schema"})).score(subject)
    assert score.metrics["schema_valid"] == fits


def test_a_reference_may_be_an_object(subject, monkeypatch):
    monkeypatch.setattr("llmkit.evaluation._generation.generate", lambda *_, **__: ['{"a": "é"}', "[1, 2]"])
    asked = subject([{"prompt": "a", "answer": {"a": "é"}}, {"prompt": "a", "answer": [1, 2]}])
    score = JsonFields(type="json_fields").score(asked)
    assert score.metrics["exact"] == 1.0
    assert [sample.reference for sample in score.samples] == ['{"a": "é"}', "[1, 2]"]


def test_rows_that_can_not_be_compared(subject, monkeypatch):
    monkeypatch.setattr("llmkit.evaluation._generation.generate", lambda *_, **__: pytest.fail("generated"))
    spec = JsonFields(type="json_fields")
    with pytest.raises(DataError, match="eval.jsonl:2: the reference answer is no JSON"):
        spec.score(subject([{"prompt": "a", "answer": "{}"}, {"prompt": "a", "answer": "a large one"}]))
    with pytest.raises(DataError, match="eval.jsonl:1: the row has no reference answer"):
        spec.score(subject([{"prompt": "a"}]))
    with pytest.raises(DataError, match="eval.jsonl:1: the schema does not allow the reference"):
        JsonFields(type="json_fields", json_schema=SCHEMA).score(subject([{"prompt": "a", "answer": "{}"}]))
    with pytest.raises(DataError, match="eval.jsonl:1: column 'schema', which reward `json_fields`"):
        JsonFields(type="json_fields", column="schema").score(subject([{"prompt": "a", "answer": "{}"}]))


def test_schemas_that_can_not_be_used(tmp_path):
    with pytest.raises(ValidationError, match="not both"):
        JsonFields(type="json_fields", json_schema={}, column="schema")
    with pytest.raises(RecipeError, match="no valid JSON Schema"):
        JsonFields(type="json_fields", json_schema={"type": "objekt"}).check_setup(tmp_path)
    with pytest.raises(DataError, match="the schema can't be read"):
        JsonFields(type="json_fields", json_schema="gone.json").check_setup(Path(tmp_path))


def test_the_parts_of_json():
    assert leaves({"a": [1, {}], "b": True}) == {("a", 0): (False, 1), ("a", 1): (False, {}), ("b",): (True, True)}
    assert in_answer("  ```json\n  1\n  ```") == "  1\n"
    assert in_answer("```yaml\na: 1\n```") == "```yaml\na: 1\n```"
    with pytest.raises(ValueError, match="Infinity is no JSON"):
        read_json("[Infinity]")
