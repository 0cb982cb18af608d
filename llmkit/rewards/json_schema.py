"""JSON Schema: 1 where the completion is JSON that its schema allows.

>>> reward = JsonSchema(type="json_schema", json_schema={"type": "object", "required": ["size"]})
>>> reward.set_up(Path())
>>> reward.score('{"size": "L"}', {})
1.0
>>> reward.score("A large one.", {})
0.0
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import PrivateAttr, model_validator

from llmkit.data.shapes import RowError
from llmkit.errors import DataError, RecipeError
from llmkit.recipe.places import named_path, read_file
from llmkit.rewards._packages import check_package
from llmkit.rewards.base import Reward

_FENCE = re.compile(r"^[ \t]*```[A-Za-z]*[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)


class JsonSchema(Reward):
    """Validate with the package jsonschema, by the draft that the schema's `$schema` names (2020-12 if none).

    JSON is as RFC 8259 has it: NaN and Infinity are none. `format` is an annotation, as the standard has it, and
    checks nothing. A `$ref` leads into the schema itself or to a published draft; nothing is fetched.
    """

    type: Literal["json_schema"]
    """1 for valid JSON that the schema allows, else 0; needs the package jsonschema."""

    json_schema: dict[str, Any] | str | None = None
    """The schema, or the path of a .json file that holds it."""

    column: str | None = None
    """Column with each row's own schema, as an object or a JSON string, instead of one for all."""

    fenced: bool = False
    """Take the last block between ``` fences where there is one, instead of the whole completion."""

    _validator: Any = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _one_schema(self) -> JsonSchema:
        if (self.json_schema is None) == (self.column is None):
            raise ValueError("set either `json_schema` (one for all rows) or `column` (each row's own)")
        return self

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError where jsonschema is not installed; DataError or RecipeError for an unusable schema."""
        check_package("jsonschema", "jsonschema", self.name)
        if self.json_schema is not None:
            self._build(folder)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise RowError if the row's own schema is missing or unusable."""
        if self.column is not None:
            self._row_validator(row)

    def set_up(self, folder: Path) -> None:
        """Build the validator of the schema that all rows share."""
        if self.json_schema is not None:
            self._validator = self._build(folder)

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return 1.0 or 0.0."""
        validator = self._validator if self.column is None else self._row_validator(row)
        blocks = _FENCE.findall(completion) if self.fenced else []
        try:
            value = json.loads(blocks[-1] if blocks else completion, parse_constant=_refuse)
            return float(validator.is_valid(value))
        except (ValueError, OverflowError, RecursionError):  # no JSON, or numbers or nesting beyond Python's limits
            return 0.0

    def _build(self, folder: Path) -> Any:
        if not isinstance(self.json_schema, str):
            try:
                return build_validator(self.json_schema)
            except ValueError as error:
                raise RecipeError(f"reward `{self.name}`: {error}", where="`json_schema`") from error
        path = named_path(self.json_schema, folder)
        try:
            return build_validator(json.loads(read_file(path).decode()))
        except OSError as error:
            raise DataError(
                f"reward `{self.name}`: the schema can't be read: {error.strerror}",
                where=str(path),
                remedy="A relative `json_schema` is taken from the recipe's folder.",
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"reward `{self.name}`: {error}", where=str(path)) from error

    def _row_validator(self, row: Mapping[str, Any]) -> Any:
        value = row.get(self.column or "")
        try:
            return build_validator(json.loads(value) if isinstance(value, str) else value)
        except ValueError as error:
            raise RowError(f"column {self.column!r}, which reward `{self.name}` validates with: {error}") from error


def build_validator(schema: Any) -> Any:
    """Return jsonschema's validator of `schema`.

    Raises ValueError if it is no schema, names an unknown draft, or refers to what is neither in it nor published.
    """
    if not isinstance(schema, (dict, bool)):
        raise ValueError(f"a JSON Schema is an object, not {schema!r:.80}")
    validators = importlib.import_module("jsonschema.validators")
    draft = schema.get("$schema") if isinstance(schema, dict) else None
    known = draft is None or isinstance(draft, str)
    cls = validators.validator_for(schema, default=None) if draft and known else validators.Draft202012Validator
    if not known or cls is None:
        raise ValueError(f"jsonschema knows no draft {draft!r:.80}")
    try:
        cls.check_schema(schema)
    except importlib.import_module("jsonschema.exceptions").SchemaError as error:
        if error.validator_value == "regex":
            _check_pattern(error.instance)
        place = "/".join(str(part) for part in error.absolute_path)
        raise ValueError(f"no valid JSON Schema: {error.message:.200}" + (f" (at {place})" if place else "")) from error
    except (OverflowError, RecursionError) as error:  # a pattern that Python's own compiler gives up on
        raise ValueError(f"no valid JSON Schema: {error}") from error
    registry = importlib.import_module("jsonschema_specifications").REGISTRY
    _check_parts(schema, cls.META_SCHEMA["$schema"], registry)
    # A registry of one's own: jsonschema's default fetches what a `$ref` leads to.
    return cls(schema, registry=registry)


def _check_parts(schema: Any, draft: str, registry: Any) -> None:
    """Raise ValueError for the first `$ref` that leads nowhere, or pattern that Python can't read.

    jsonschema would find either only on some completion.
    """
    referencing = importlib.import_module("referencing")
    specification = importlib.import_module("referencing.jsonschema").specification_with(draft)
    resource = referencing.Resource(schema, specification=specification)
    waiting = [(resource, registry.resolver_with_root(resource))]
    while waiting:
        part, resolver = waiting.pop()
        if isinstance(part.contents, dict) and isinstance(part.contents.get("$ref"), str):
            try:
                resolver.lookup(part.contents["$ref"])
            except referencing.exceptions.Unresolvable as error:
                raise ValueError(f"`$ref: {part.contents['$ref']}` leads nowhere") from error
        if isinstance(part.contents, dict):
            for pattern in (part.contents.get("pattern", ""), *part.contents.get("patternProperties", ())):
                _check_pattern(pattern)
        waiting += [(inner, resolver.in_subresource(inner)) for inner in part.subresources()]


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        what = f"the pattern {pattern!r:.80} is no regular expression of Python, which jsonschema uses: {error}"
        raise ValueError(what) from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
