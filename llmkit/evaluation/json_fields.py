"""JSON: whether answers are JSON, fit a schema, and have the fields of the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import PrivateAttr, model_validator

from llmkit.data.shapes import RowError
from llmkit.data.splits import Row
from llmkit.evaluation._generation import Generated, prompt_and_reference
from llmkit.evaluation._json import in_answer, leaves, read_json
from llmkit.evaluation.base import Part
from llmkit.rewards.json_schema import JsonSchema


class JsonFields(Generated):
    """Read greedy answers as JSON, from their last fenced block where there is one, and compare them by fields.

    A field is a value that is neither a list nor an object with something in it. Lists are compared by position.
    """

    type: Literal["json_fields"]
    """Share of answers that are JSON and fit a schema, and of the reference's fields that are right."""

    json_schema: dict[str, Any] | str | None = None
    """A schema for all answers, or the path of a .json file that holds it; needs the package jsonschema."""

    column: str | None = None
    """Column with each row's own schema, as an object or a JSON string, instead of one for all."""

    _schema: JsonSchema | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _one_schema(self) -> JsonFields:
        if self.json_schema is not None and self.column is not None:
            raise ValueError("set `json_schema` (one for all rows) or `column` (each row's own), not both")
        if self.json_schema is not None or self.column is not None:
            self._schema = JsonSchema(
                type="json_schema", label=self.type, json_schema=self.json_schema, column=self.column
            )
        return self

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError, DataError or RecipeError for an unusable schema, and what is raised for its own rows."""
        super().check_setup(folder)
        if self._schema is not None:
            self._schema.check_setup(folder)
            self._schema.set_up(folder)

    def check_row(self, row: Row) -> None:
        """Raise RowError where the reference is no JSON, or the schema is unusable or does not allow the reference."""
        super().check_row(row)
        reference = prompt_and_reference(row.example, evaluation=self.type)[1] or ""
        try:
            read_json(reference)
        except ValueError as error:
            raise RowError(f"the reference answer is no JSON: {error}") from error
        if self._schema is not None:
            self._schema.check_row(row.example)
            if not self._schema.score(reference, row.example):
                raise RowError("the schema does not allow the reference answer")

    def measure(self, answer: str, reference: str, row: Row) -> dict[str, Part]:
        """Return the row's part in `json_valid`, `schema_valid` (with a schema), `field_accuracy` and `exact`, 0..1.

        `field_accuracy` is the share of the reference's fields that the answer has with the same value; `exact` asks
        for these and no others. An answer that is no JSON has no fields.
        """
        text, wanted = in_answer(answer), leaves(read_json(reference))
        try:
            found, valid = leaves(read_json(text)), True
        except ValueError:
            found, valid = {}, False
        fits = {} if self._schema is None else {"schema_valid": self._schema.score(text, row.example)}
        right = sum(found.get(place) == leaf for place, leaf in wanted.items())
        return {
            "json_valid": float(valid),
            **fits,
            "field_accuracy": right / len(wanted),
            "exact": float(found == wanted),
        }
