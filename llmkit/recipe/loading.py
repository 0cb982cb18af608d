"""YAML -> Recipe: line numbers, duplicate keys, `extends`, `--set` overrides, and errors that say where."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from ruamel.yaml import YAML

from llmkit.errors import RecipeError, did_you_mean
from llmkit.recipe import fields
from llmkit.recipe.places import named_path, read_file
from llmkit.recipe.problems import SHOWN, Problem, field_problems, problems_of, shortened
from llmkit.recipe.reading import DEEPEST, UNFIT, TextError, read_values
from llmkit.recipe.recipe import Recipe, Training
from llmkit.recipe.secrets import redact, secret_places
from llmkit.recipe.spec import KeyPath, Room

METHODS = Room("llmkit.methods")

LARGEST = 256 * 1024
"""Bytes of a recipe file."""

LONGEST_CHAIN = 16
"""Recipes that extend each other."""


@dataclass(frozen=True)
class Document:
    """A recipe as written, `extends` and overrides merged in: plain `values`, and who set each key path."""

    path: Path
    values: dict[str, Any]
    origins: dict[KeyPath, str]
    own_text: str | None = None
    """Text of the file, where nothing was merged into it."""

    @property
    def folder(self) -> Path:
        """Folder that relative paths in the recipe start from."""
        return self.path.parent

    def text(self) -> str:
        """Return the document as YAML: the file's own text, or the merged values where they differ from it."""
        if self.own_text is not None:
            return self.own_text
        stream = io.StringIO()
        yaml = YAML()
        yaml.width = sys.maxsize  # ruamel folds long strings, and reads some of them back as others
        yaml.dump(self.values, stream)
        return stream.getvalue()

    def origin(self, path: KeyPath) -> str:
        """Return who set `path`, or the nearest section around it: `file:line` or `--set a.b=c`.

        What the whole file lacks, it lacks from its first line on.
        """
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, f"{self.path}:1")


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load and check a recipe file; `overrides` are `a.b=c` strings as `--set` takes them.

    Raises RecipeError, which lists every problem with its file and line. Never imports torch.
    """
    return build_recipe(read_document(Path(path), overrides))


def build_recipe(document: Document) -> Recipe:
    """Check `document` against the schema; raises RecipeError with every problem and its place.

    A recipe with a secret is refused: it is kept in the run folder, and shared.
    """
    for path in secret_places(document.values):
        raise RecipeError(
            f"`{'.'.join(map(str, path))}` holds a token or a password",
            where=redact(document.origin(path)),
            remedy="Recipes are kept and shared: leave it out, and give it in an environment variable, e.g. HF_TOKEN.",
        )
    try:
        recipe = Recipe.model_validate(document.values)
    except ValidationError as error:
        problems = problems_of(error, document.values, Recipe)
        raise _refusal(document, problems + _skipped_training_problems(document.values, problems)) from error
    return recipe.placed(document.folder.resolve(), document.text(), document.origin)


def read_document(path: Path, overrides: Iterable[str] = ()) -> Document:
    """Read a recipe file with its `extends` chain and apply `overrides`; raises RecipeError."""
    text = _read_text(path)
    values, origins = _read_chain(path, text, ())
    changes = list(overrides)
    merged = bool(changes) or ("extends",) in origins
    for override in changes:
        _apply_override(values, origins, override)
    return Document(path, values, origins, None if merged else text)


def _skipped_training_problems(values: dict[str, Any], found: list[Problem]) -> list[Problem]:
    """Check the training fields where pydantic does not get to them, because another section is refused already."""
    method, training = METHODS.named_in(values.get("method")), values.get("training")
    if method is None or not isinstance(training, dict):
        return []
    if any(problem.path[:1] == ("training",) for problem in found):
        return []
    try:
        fields.check(cast(Any, method).config, training, reserved=Training.reserved, path=("training",))
    except fields.FieldsError as error:
        return field_problems(error)
    return []


def _refusal(document: Document, problems: list[Problem]) -> RecipeError:
    lines = [f"{document.origin(problem.path)}: {shortened(problem.message)}" for problem in problems]
    more = f"\n{len(lines) - SHOWN} more problems" if len(lines) > SHOWN else ""
    return RecipeError("\n".join(lines[:SHOWN]) + more)


def _read_chain(path: Path, text: str, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Return the values of a recipe, merged over those of the recipe that it extends, and who set each of them."""
    own, lines = _parse(path, text)
    origins = {keys: f"{path}:{line}" for keys, line in lines.items()}
    parent = own.pop("extends", None)
    if parent is None:
        return own, origins
    seen = (*seen, path.resolve())
    base = _parent(parent, path, seen, origins[("extends",)])
    values, inherited = _read_chain(base, _read_text(base), seen)
    _merge(values, inherited, own, origins)
    return values, inherited


def _parent(named: Any, path: Path, seen: tuple[Path, ...], where: str) -> Path:
    """Return the file that `extends: named` means in the recipe `path`; raises RecipeError with its place, `where`."""
    if not isinstance(named, str):
        raise RecipeError("`extends` takes one path of a recipe file", where=where)
    try:
        base = named_path(named, path.parent)
    except RecipeError as error:
        raise RecipeError(f"`extends`: {error.what}", where=where) from error
    if not base.is_file():
        raise RecipeError(f"no such recipe: {base}{_near(base)}", where=where)
    if base.resolve() in seen:
        chain = " -> ".join(p.name for p in (*seen, base.resolve()))
        raise RecipeError(f"`extends` goes in a circle: {chain}", where=where)
    if len(seen) >= LONGEST_CHAIN:
        raise RecipeError(f"more than {LONGEST_CHAIN} recipes extend each other", where=where)
    return base


def _parse(path: Path, text: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    try:
        values, lines = read_values(text)
    except TextError as error:
        raise RecipeError(str(error), where=f"{path}:{error.line}") from error
    if values is None:
        raise RecipeError("the file is empty", where=str(path), remedy="`llmkit recipes` lists recipes to start from.")
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping with the sections model, data and method", where=f"{path}:1")
    return values, lines


def _read_text(path: Path) -> str:
    try:
        content = read_file(path, LARGEST)
    except FileNotFoundError:
        remedy = "`llmkit recipes` lists the shipped ones."
        raise RecipeError(f"no such recipe: {path}{_near(path)}", remedy=remedy) from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder, not a recipe file") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"can't be read: {getattr(error, 'strerror', error)}", where=str(path)) from error
    try:
        return content.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RecipeError("not UTF-8", where=f"{path}:{line}", remedy="Save the file as UTF-8.") from error


def _near(path: Path) -> str:
    names = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return did_you_mean(path.name, names)


def _merge(
    values: dict[str, Any], origins: dict[KeyPath, str], new: Mapping[str, Any], places: Mapping[KeyPath, str]
) -> None:
    """Merge `new` over `values`: mappings key by key, everything else (null included) replaces what was there."""
    replaced: set[KeyPath] = set()

    def merge(into: dict[str, Any], over: Mapping[str, Any], path: KeyPath) -> None:
        for key, value in over.items():
            here = (*path, key)
            old = into.get(key)
            if isinstance(old, dict) and isinstance(value, Mapping) and not _other_variant(old, value):
                merge(old, value, here)
            else:
                replaced.add(here)
                into[key] = value

    merge(values, new, ())
    for stale in [p for p in origins if any(p[:depth] in replaced for depth in range(1, len(p) + 1))]:
        del origins[stale]
    origins.update(places)


def _other_variant(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether `new` switches the variant: the keys of the old one mean nothing to it, so the section is replaced."""
    return "type" in old and "type" in new and old["type"] != new["type"]


def _apply_override(values: dict[str, Any], origins: dict[KeyPath, str], override: str) -> None:
    key, equals, text = override.partition("=")
    origin = shortened(f"--set {override}")
    if not equals or not key.strip():
        what = f"--set takes key=value, e.g. --set training.learning_rate=1e-4, not {override!r}"
        raise RecipeError(shortened(what))
    if UNFIT.search(key):
        raise RecipeError(shortened(f"--set {key!r}: no key has such characters"))
    keys = key.strip().split(".")
    if len(keys) > DEEPEST:
        raise RecipeError(f"nested too deeply: no key has {len(keys)} parts", where=origin)
    try:
        value, _ = read_values(text)
    except TextError as error:
        what = f"the value is not valid YAML: {shortened(repr(text))}: {str(error).removeprefix('not valid YAML: ')}"
        raise RecipeError(what, where=origin) from error
    parts = _assign(values, keys, value, origin)
    for stale in [p for p in origins if p[: len(parts)] == parts]:
        del origins[stale]
    for depth in range(1, len(parts)):
        origins.setdefault(parts[:depth], origin)
    origins.update(_origins_below(value, parts, origin))


def _origins_below(value: Any, path: KeyPath, origin: str) -> dict[KeyPath, str]:
    found = {path: origin}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found |= _origins_below(inner, (*path, key), origin)
    return found


def _assign(values: dict[str, Any], keys: list[str], value: Any, origin: str) -> KeyPath:
    """Put `value` at dotted `keys`, making the sections on the way; returns the path, where lists have numbers."""
    node: Any = values
    path: KeyPath = ()
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        place = ".".join(map(str, path))
        if isinstance(node, list):
            # Longer numbers are no places, and Python reads none of thousands of digits.
            index = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else len(node) + 1
            if index > len(node) or (index == len(node) and not last):
                raise RecipeError(f"`{place}` is a list of {len(node)}; {key!r} is not one of its places", where=origin)
            path = (*path, index)
            if index == len(node):
                node.append(value)
        elif isinstance(node, dict):
            path = (*path, key)
            if not last and node.get(key) is None:
                node[key] = {}
        else:
            raise RecipeError(f"`{place}` is a single value and has no {key!r} in it", where=origin)
        if last:
            node[path[-1]] = value
        else:
            node = node[path[-1]]
    return path
