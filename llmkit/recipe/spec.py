"""The base of every recipe section, and the discovery of its variants: one file, one `type`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Annotated, Any, ClassVar, Union, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmkit.recipe import fields

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


def variant_names(package: str) -> tuple[str, ...]:
    """Return the `type` names that a package of variants offers: its public modules, except `base`."""
    path = importlib.import_module(package).__path__
    return tuple(sorted(m.name for m in pkgutil.iter_modules(path) if m.name != "base" and m.name[0] != "_"))


@cache
def variants(package: str) -> dict[str, type[Spec]]:
    """Import each variant file of `package` and return its Spec by `type`.

    The file `x.py` must hold exactly one Spec whose field `type` is `Literal["x"]`; none of them may import torch
    when it is imported.
    """
    found: dict[str, type[Spec]] = {}
    for name in variant_names(package):
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
        found[name] = specs[0]
    return found


def union_of(package: str) -> Any:
    """Return the discriminated union, on `type`, of all variants in `package`."""
    specs = tuple(variants(package).values())
    if len(specs) == 1:
        return specs[0]
    return Annotated[Union[specs], Field(discriminator="type")]  # noqa: UP007 - built at run time from a tuple
