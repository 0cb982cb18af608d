"""The JSON Schema of a recipe, for editors; library sections come from the field table."""

from __future__ import annotations

from typing import Any, cast

from llmkit.recipe import fields
from llmkit.recipe.recipe import Recipe, Training
from llmkit.recipe.spec import LibrarySpec, variants


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a recipe, with each section's own and its library's fields."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "llmkit recipe"
    schema["properties"]["extends"] = {"type": "string", "description": "Recipe file that this one is merged over."}
    for room in ("llmkit.model.adapters", "llmkit.model.quantization"):
        for spec in variants(room).values():
            if issubclass(spec, LibrarySpec):
                _fill(schema["$defs"][spec.__name__], spec.table, spec.reserved)
    _fill_training(schema["$defs"]["Training"])
    return schema


def _fill(section: dict[str, Any], config: str, reserved: dict[str, str]) -> None:
    library = fields.json_schema(config, reserved=reserved)
    section["properties"] = {**library["properties"], **section.get("properties", {})}
    section["additionalProperties"] = False


def _fill_training(section: dict[str, Any]) -> None:
    """Offer the fields of every method's config; which of them a recipe may set is checked with its method."""
    section["properties"] = {}
    for method in variants("llmkit.methods").values():
        _fill(section, cast(Any, method).config, Training.reserved)
