"""The base of every recipe section, and the discovery of its variants: one file, one `type`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, model_validator
from pydantic_core import PydanticKnownError
from pydantic_core.core_schema import no_info_plain_validator_function, tagged_union_schema

from llmkit.recipe import fields

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema

KeyPath = tuple[str | int, ...]
"""Place of a value in a recipe: the keys and list indices that lead to it."""


class Spec(BaseModel):
    """A frozen part of a recipe; unknown keys are refused."""

    # Built when first used: of all the sections, a command then builds only the Recipe that holds them.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True, protected_namespaces=())


class Variant(Spec):
    """A section that comes in kinds; each kind is a file that declares `type: Literal["FILE"]`."""

    type: str
    """The name of this variant."""


class LibrarySpec(Spec):
    """A section whose keys are those of one of the libraries' own config classes, checked against the field table.

    Only what the recipe sets is held (`kwargs`): the rest is left to the planner or to the library's default.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, defer_build=True, protected_namespaces=())

    table: ClassVar[str] = ""
    """Name of the config class in the field table, e.g. `LoraConfig`; empty if another section decides it."""

    reserved: ClassVar[dict[str, str]] = {}
    """Library fields that llmkit sets itself, each with the sentence that says what to write instead."""

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, values: Any) -> Any:
        if isinstance(values, dict) and cls.table:
            own = set(cls.model_fields)
            extra = {k: v for k, v in values.items() if k not in own}
            fields.check(cls.table, extra, own=own, reserved=cls.reserved)
        return values

    def kwargs(self) -> dict[str, Any]:
        """Return the library's keyword arguments that the recipe sets."""
        return dict(self.model_extra or {})


@cache
def variant_names(package: str) -> tuple[str, ...]:
    """Return the `type` names that a package of variants offers: its public modules, except `base`."""
    path = importlib.import_module(package).__path__
    files = (m.name for m in pkgutil.iter_modules(path) if not m.ispkg)
    return tuple(sorted(name for name in files if name != "base" and name[0] != "_"))


@cache
def variant(package: str, name: str) -> type[Spec]:
    """Import the file of one variant of `package` and return its Spec.

    The file `x.py` must hold exactly one Spec whose field `type` is `Literal["x"]`; none of them may import torch
    when it is imported.
    """
    module = importlib.import_module(f"{package}.{name}")
    specs = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Spec)
        and value.__module__ == module.__name__
        and "type" in value.model_fields
        and get_args(value.model_fields["type"].annotation) == (name,)
    ]
    if len(specs) != 1:
        raise TypeError(f"{module.__name__} must hold exactly one Spec with type: Literal[{name!r}]")
    return specs[0]


def variants(package: str) -> dict[str, type[Spec]]:
    """Import every variant of `package` and return the Specs by `type`."""
    return {name: variant(package, name) for name in variant_names(package)}


@dataclass(frozen=True)
class Room:
    """A package of variants as the type of a field: a section is checked by the one variant that its `type` names.

    A discriminated union of all variants would import every file of the room, whichever the recipe uses.
    """

    package: str

    def named_in(self, section: Any) -> type[Spec] | None:
        """Return the variant whose `type` a section holds; None if it names none."""
        name = section.get("type") if isinstance(section, dict) else getattr(section, "type", None)
        return variant(self.package, name) if name in variant_names(self.package) else None

    def _checked(self, section: Any) -> Spec:
        found = self.named_in(section)
        if found is not None:
            return found.model_validate(section)
        if not isinstance(section, dict):
            raise PydanticKnownError("model_attributes_type")
        if "type" not in section:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'type'"})
        names = ", ".join(map(repr, variant_names(self.package)))
        told = {"discriminator": "'type'", "tag": str(section["type"]), "expected_tags": names}
        raise PydanticKnownError("union_tag_invalid", told)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        known = variants(self.package)
        # With a `ref` each variant becomes a definition of its own, which a schema can fill and refer to.
        choices = {
            name: {**TypeAdapter(spec).core_schema, "ref": f"{spec.__module__}.{spec.__name__}"}
            for name, spec in known.items()
        }
        return handler(tagged_union_schema(cast(Any, choices), "type"))


def union_of(package: str) -> Any:
    """Return the type of a section that is one of the variants of `package`, told apart by `type`."""
    return Annotated[Any, Room(package)]
