"""Every resolved value of a recipe and who decided it: recipe line, override, planner or library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.planning.plan import Plan
from llmkit.recipe import fields
from llmkit.recipe.recipe import Recipe, Training

if TYPE_CHECKING:
    from llmkit.recipe.spec import LibrarySpec


@dataclass(frozen=True)
class Resolved:
    """One value: its key path with dots, and who decided it."""

    key: str
    value: Any
    by: str


def resolve(recipe: Recipe, plan: Plan) -> list[Resolved]:
    """Return every value of the run: what the recipe sets, what the planner adds, what the libraries default to."""
    values = recipe.model_dump(exclude_unset=True)
    found = [Resolved(".".join(map(str, path)), value, recipe.origin(path)) for path, value in _leaves(values)]
    known = {r.key for r in found}
    found += [Resolved(d.key, d.value, f"planner: {d.reason}") for d in plan.decisions if d.key not in known]
    known |= {d.key for d in plan.decisions}
    for section, spec, config in _library_sections(recipe):
        reserved = {**spec.reserved}
        found += [
            Resolved(f"{section}.{name}", info.default, f"{config} default")
            for name, info in fields.describe(config).items()
            if f"{section}.{name}" not in known and name not in reserved
        ]
    order = {name: index for index, name in enumerate(type(recipe).model_fields)}
    return sorted(found, key=lambda r: order.get(r.key.split(".")[0], len(order)))


def _library_sections(recipe: Recipe) -> Iterator[tuple[str, type[LibrarySpec], str]]:
    yield "training", Training, recipe.method.config
    if recipe.adapter is not None:
        yield "adapter", type(recipe.adapter), recipe.adapter.table
    if recipe.quantization is not None:
        yield "quantization", type(recipe.quantization), recipe.quantization.table


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def resolved_yaml(recipe: Recipe, plan: Plan) -> str:
    """Return the resolved values as YAML, one dotted key a line, with who decided it as the comment."""
    import json

    lines = [f"{r.key}: {json.dumps(r.value, ensure_ascii=False)}  # {r.by}" for r in resolve(recipe, plan)]
    return "\n".join(lines) + "\n"
