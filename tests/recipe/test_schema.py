"""The JSON Schema of a recipe: well formed, complete, and in agreement with the shipped recipes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkit.model.adapters.lora import Lora
from llmkit.recipe import fields
from llmkit.recipe.loading import read_document
from llmkit.recipe.recipe import Recipe, Training
from llmkit.recipe.schema import recipe_schema
from llmkit.recipe.shipped import shipped_recipes

SCHEMA = recipe_schema()
TYPES = {
    "object": dict,
    "array": (list, tuple),
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def _nodes(node: Any, place: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every schema in the document with its place; `properties` and `$defs` hold schemas by name."""
    if isinstance(node, dict):
        yield place, node
        for key in ("properties", "$defs"):
            for name, inner in node.get(key, {}).items():
                yield from _nodes(inner, f"{place}/{key}/{name}")
        for key in ("items", "additionalProperties"):
            yield from _nodes(node.get(key), f"{place}/{key}")
        for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            for index, inner in enumerate(node.get(key, [])):
                yield from _nodes(inner, f"{place}/{key}/{index}")


def _target(reference: str) -> dict[str, Any]:
    found: Any = SCHEMA
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    assert isinstance(found, dict)
    return found


def _refusals(value: Any, schema: dict[str, Any], place: str = "") -> list[str]:
    """Return what a value has that the schema does not take: types, words, and keys.

    Of several alternatives, the one counts that refuses least.
    """
    if "$ref" in schema:
        return _refusals(value, _target(schema["$ref"]), place)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return min((_refusals(value, inner, place) for inner in schema[key]), key=len)
    if "const" in schema and value != schema["const"]:
        return [f"{place}: {value!r} is not {schema['const']!r}"] * 100
    if "enum" in schema and value not in schema["enum"]:
        return [f"{place}: {value!r} is not one of {schema['enum']}"]
    wanted = schema.get("type", [])
    names = [wanted] if isinstance(wanted, str) else wanted
    fits = [n for n in names if isinstance(value, TYPES[n]) and (n == "boolean" or not isinstance(value, bool))]
    if names and not fits:
        return [f"{place}: {value!r} is not {wanted}"]
    if isinstance(value, dict):
        return _refused_keys(value, schema, place)
    if isinstance(value, list):
        return [r for i, item in enumerate(value) for r in _refusals(item, schema.get("items", {}), f"{place}.{i}")]
    return []


def _refused_keys(value: dict[str, Any], schema: dict[str, Any], place: str) -> list[str]:
    known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    found = [f"{place}: no {key!r}" for key in schema.get("required", []) if key not in value]
    for key, inner in value.items():
        if key in known:
            found += _refusals(inner, known[key], f"{place}.{key}")
        elif more is False:
            found.append(f"{place}: unknown key {key!r}")
    return found


def test_it_is_json_that_names_its_dialect() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["type"] == "object"
    assert SCHEMA["required"] == ["model", "data", "method"]
    assert set(SCHEMA["properties"]) == {*Recipe.model_fields, "extends"}


def test_it_is_well_formed() -> None:
    nodes = dict(_nodes(SCHEMA))
    assert len(nodes) > 300
    for place, node in nodes.items():
        kinds = node.get("type", [])
        assert {kinds} if isinstance(kinds, str) else set(kinds) <= set(TYPES), place
        assert isinstance(node.get("description", ""), str), place
        assert set(node.get("required", [])) <= set(node.get("properties", {})), place
        assert node.get("enum", ["one"]), place
        if "$ref" in node:
            assert _target(node["$ref"]), place


@pytest.mark.skipif(importlib.util.find_spec("jsonschema") is None, reason="jsonschema is not installed")
def test_it_fits_the_metaschema() -> None:
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_section_is_closed() -> None:
    models = {n: node for n, node in SCHEMA["$defs"].items() if node.get("type") == "object"}
    assert {"Model", "Data", "Source", "Training", "Lora", "Nf4", "Perplexity", "Merged"} <= set(models)
    assert {name for name, node in models.items() if node["additionalProperties"] is not False} == set()
    assert SCHEMA["additionalProperties"] is False


def test_library_sections_offer_the_librarys_fields_and_none_that_llmkit_sets() -> None:
    lora = set(SCHEMA["$defs"]["Lora"]["properties"])
    assert {"type", "r", "lora_alpha", "use_dora", "target_modules"} <= lora
    assert not lora & set(Lora.reserved)
    training = set(SCHEMA["$defs"]["Training"]["properties"])
    assert {"learning_rate", "max_steps", "max_length", "packing"} <= training
    assert not training & set(Training.reserved)
    wanted = {n for n, f in fields.describe("SFTConfig").items() if set(f.types) - {"null"}} - set(Training.reserved)
    assert wanted <= training


@pytest.mark.parametrize("recipe", shipped_recipes(), ids=lambda recipe: recipe.name)
def test_it_takes_every_shipped_recipe(recipe: Any) -> None:
    assert _refusals(read_document(recipe.path).values, SCHEMA) == []


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("modle=1", ": unknown key 'modle'"),
        ("training.learning_rte=1", ".training: unknown key 'learning_rte'"),
        ("training.learning_rate=fast", ".training.learning_rate: 'fast' is not number"),
        ("adapter.rr=1", ".adapter: unknown key 'rr'"),
        ("model.name=5", ".model.name: 5 is not string"),
        ("model.dtype=float64", ".model.dtype: 'float64' is not one of"),
        ("data.train.0.fromat=x", ".data.train.0: unknown key 'fromat'"),
        ("data.overflow=x", ".data.overflow: 'x' is not one of"),
        ("hardware.device=gpu", ".hardware.device: 'gpu' is not one of"),
        ("evaluation.0.limt=1", ".evaluation.0: unknown key 'limt'"),
    ],
)
def test_it_refuses_what_the_recipe_refuses(tmp_path: Path, override: str, refusal: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "extends: base.yaml\nmodel: {name: a}\nadapter: {type: lora}\nmethod: {type: sft}\n"
        "data: {train: [{path: a, format: text}]}\nevaluation: [{type: perplexity}]\n",
        encoding="utf-8",
    )
    path.with_name("base.yaml").write_text("{}\n", encoding="utf-8")
    assert _refusals(read_document(path).values, SCHEMA) == []
    found = _refusals(read_document(path, [override]).values, SCHEMA)
    assert [line for line in found if line.startswith(refusal)]


def test_descriptions_come_from_the_code() -> None:
    described = SCHEMA["$defs"]["Lora"]["properties"]["r"]["description"]
    assert described == fields.describe("LoraConfig")["r"].help
