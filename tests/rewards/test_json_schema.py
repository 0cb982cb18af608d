"""JSON Schema: what is JSON, what the schema allows, and which schemas are refused before anything is trained."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit.data.shapes import RowError
from llmkit.errors import DataError, RecipeError
from llmkit.rewards import json_schema
from llmkit.rewards.json_schema import JsonSchema

pytest.importorskip("jsonschema")

ORDER = {
    "type": "object",
    "properties": {"item": {"type": "string"}, "count": {"$ref": "#/$defs/count"}},
    "required": ["item"],
    "additionalProperties": False,
    "$defs": {"count": {"type": "integer", "minimum": 1}},
}


def made(schema: Any = None, **fields: Any) -> JsonSchema:
    reward = JsonSchema(type="json_schema", json_schema=schema, **fields)
    reward.check_setup(Path())
    reward.set_up(Path())
    return reward


def test_the_example() -> None:
    assert doctest.testmod(json_schema).failed == 0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"item": "tea"}', 1.0),
        ('\n {"item": "tea", "count": 2}\n', 1.0),
        ('{"item": "tea", "count": 0}', 0.0),
        ('{"item": "tea", "count": 1.5}', 0.0),
        ('{"item": "tea", "size": "L"}', 0.0),
        ('{"count": 2}', 0.0),
        ('{"item": "tea"} Enjoy!', 0.0),
        ('```json\n{"item": "tea"}\n```', 0.0),
        ("{'item': 'tea'}", 0.0),
        ('{"item": "tea", "count": NaN}', 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
        ("9" * 10_000, 0.0),
    ],
)
def test_valid_or_not(completion: str, expected: float) -> None:
    assert made(ORDER).score(completion, {}) == expected


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400])
def test_numbers_beyond_a_float_score_zero(number: str) -> None:
    assert made({"multipleOf": 0.5}).score("2.5", {}) == 1.0
    assert made({"multipleOf": 0.5}).score(number, {}) == 0.0


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_only_python_reads_is_no_json(constant: str) -> None:
    assert made({}).score("[1]", {}) == 1.0
    assert made({}).score(f"[{constant}]", {}) == 0.0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"item": "tea"}', 1.0),
        ('Here:\n```json\n{"item": "tea"}\n```\nEnjoy!', 1.0),
        ('```\n{"item": "tea"}\n```', 1.0),
        ('```json\n{"no": 1}\n```\nrather\n```json\n{"item": "tea"}\n```', 1.0),
        ('```json\n{"item": "tea"}\n```\nrather\n```json\n{"no": 1}\n```', 0.0),
        ('```json\n{"item": "tea"}', 0.0),
    ],
)
def test_fences(completion: str, expected: float) -> None:
    assert made(ORDER, fenced=True).score(completion, {}) == expected


def test_the_draft_is_the_schemas_own() -> None:
    # Draft 4 has a boolean exclusiveMinimum, which drafts from 6 on refuse.
    four = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}
    assert [made(four).score(text, {}) for text in ("1", "2")] == [0.0, 1.0]
    with pytest.raises(RecipeError, match="no valid JSON Schema: .*True.*exclusiveMinimum"):
        made({k: v for k, v in four.items() if k != "$schema"})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"properties": {"a": {"pattern": r"\p{L}+"}}}, r"the pattern .*p\{L\}\+' is no regular expression of Python"),
        ({"items": {"patternProperties": {"ok": True, "(": True}}}, r"the pattern '\(' is no regular expression"),
        # Draft 4 says nothing about the keys, so jsonschema does not look at them.
        (
            {"$schema": "http://json-schema.org/draft-04/schema#", "patternProperties": {"(": {}}},
            r"the pattern '\(' is no regular expression",
        ),
        ({"type": "objekt"}, "no valid JSON Schema: 'objekt'"),
        ({"properties": {"a": {"minimum": "1"}}}, "at properties/a/minimum"),
        ({"$schema": "https://example.org/mine"}, "knows no draft 'https://example.org/mine'"),
        ({"$ref": "#/$defs/gone"}, "`\\$ref: #/\\$defs/gone` leads nowhere"),
        ({"properties": {"a": {"items": {"$ref": "https://example.org/a.json"}}}}, "a.json` leads nowhere"),
    ],
)
def test_an_unusable_schema_is_refused(tmp_path: Path, schema: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        JsonSchema(type="json_schema", json_schema=schema).check_setup(tmp_path)
    (tmp_path / "s.json").write_text(json.dumps(schema))
    with pytest.raises(DataError, match=message):
        JsonSchema(type="json_schema", json_schema="s.json").check_setup(tmp_path)
    with pytest.raises(RowError, match=message):
        JsonSchema(type="json_schema", column="s").check_row({"s": schema})


def test_what_is_only_called_pattern_is_no_pattern() -> None:
    free = {"properties": {"pattern": {"enum": [{"pattern": "("}]}}, "patternProperties": {"^a": {"pattern": "^b"}}}
    assert [made(free).score(text, {}) for text in ('{"pattern": {"pattern": "("}}', '{"ab": "c"}')] == [1.0, 0.0]


def test_references_within_the_schema_are_found() -> None:
    tree = {"$id": "https://example.org/tree", "type": "array", "items": {"$ref": "https://example.org/tree"}}
    assert [made(tree).score(text, {}) for text in ("[[], [[]]]", "[[], 1]")] == [1.0, 0.0]
    published = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
    assert [made(published).score(text, {}) for text in ('{"type": "null"}', '{"type": 1}')] == [1.0, 0.0]


def test_a_schema_in_a_file(tmp_path: Path) -> None:
    reward = JsonSchema(type="json_schema", json_schema="s.json")
    with pytest.raises(DataError, match=r"s.json: .*can't be read: No such file(.|\n)*recipe's folder"):
        reward.check_setup(tmp_path)
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(DataError, match="s.json: reward `json_schema`: Expecting"):
        reward.check_setup(tmp_path)
    (tmp_path / "s.json").write_text(json.dumps(ORDER))
    reward.check_setup(tmp_path)
    reward.set_up(tmp_path)
    assert reward.score('{"item": "tea"}', {}) == 1.0


def test_each_rows_own_schema() -> None:
    reward = made(column="wanted")
    rows: list[dict[str, Any]] = [{"wanted": {"type": "integer"}}, {"wanted": '{"type": "string"}'}]
    for row in rows:
        reward.check_row(row)
    assert [reward.score("5", row) for row in rows] == [1.0, 0.0]
    for row in ({}, {"wanted": None}, {"wanted": "{"}, {"wanted": "5"}):
        with pytest.raises(RowError, match="column 'wanted'"):
            reward.check_row(row)


@pytest.mark.parametrize("fields", [{}, {"json_schema": {}, "column": "s"}])
def test_one_schema_or_the_rows(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="either `json_schema` .* or `column`"):
        JsonSchema(type="json_schema", **fields)
