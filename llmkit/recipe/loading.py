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
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from llmkit.errors import RecipeError, did_you_mean
from llmkit.recipe import fields
from llmkit.recipe.problems import Problem, field_problems, problems_of
from llmkit.recipe.recipe import Recipe, Training
from llmkit.recipe.spec import KeyPath, Room

METHODS = Room("llmkit.methods")


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
        """Return who set `path`, or the nearest section around it: `file:line` or `--set a.b=c`."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, str(self.path))


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load and check a recipe file; `overrides` are `a.b=c` strings as `--set` takes them.

    Raises RecipeError, which lists every problem with its file and line. Never imports torch.
    """
    return build_recipe(read_document(Path(path), overrides))


def build_recipe(document: Document) -> Recipe:
    """Check `document` against the schema; raises RecipeError with every problem and its place."""
    try:
        recipe = Recipe.model_validate(document.values)
    except ValidationError as error:
        problems = problems_of(error, document.values, Recipe)
        raise _refusal(document, problems + _skipped_training_problems(document.values, problems)) from error
    return recipe.placed(document.folder.resolve(), document.text(), document.origin)


def read_document(path: Path, overrides: Iterable[str] = ()) -> Document:
    """Read a recipe file with its `extends` chain and apply `overrides`; raises RecipeError."""
    values, origins = _read_chain(path, ())
    changes = list(overrides)
    merged = bool(changes) or ("extends",) in origins
    for override in changes:
        _apply_override(values, origins, override)
    return Document(path, values, origins, None if merged else _read_text(path))


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
    lines = [f"{document.origin(p.path)}: {p.message}" for p in problems]
    return RecipeError("\n".join(lines))


def _read_chain(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(str(p.name) for p in (*seen, resolved))
        raise RecipeError(f"`extends` goes in a circle: {chain}", where=str(path))
    node = _parse(path)
    values: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    parent = node.get("extends")
    if parent is not None:
        if not isinstance(parent, str):
            raise RecipeError("`extends` takes one path of a recipe file", where=f"{path}:{_line(node, 'extends')}")
        base = path.parent / Path(parent).expanduser()
        if not base.is_file():
            raise RecipeError(f"no such recipe: {base}{_near(base)}", where=f"{path}:{_line(node, 'extends')}")
        values, origins = _read_chain(base, (*seen, resolved))
    own, own_origins = _plain(node, str(path))
    own.pop("extends", None)
    _merge(values, origins, own, own_origins)
    return values, origins


def _parse(path: Path) -> CommentedMap:
    text = _read_text(path)
    try:
        node = _load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        key = (error.problem or "").split('"')[1] if '"' in (error.problem or "") else "?"
        raise RecipeError(f"key {key!r} stands twice in the same section", where=f"{path}:{line}") from error
    except MarkedYAMLError as error:
        raise _syntax_error(path, text, error) from error
    except YAMLError as error:
        raise RecipeError(f"not valid YAML: {error}", where=str(path)) from error
    if node is None:
        raise RecipeError("the file is empty", where=str(path), remedy="`llmkit recipes` lists recipes to start from.")
    if not isinstance(node, CommentedMap):
        raise RecipeError("a recipe is a mapping with the sections model, data and method", where=f"{path}:1")
    return node


def _load(text: str) -> Any:
    """Return ruamel's round-trip nodes of a YAML text; raises YAMLError whatever is wrong with it."""
    try:
        return YAML(typ="rt").load(text)
    except (ValueError, KeyError) as error:  # a value that its tag or its form promises and is not: 2020-13-45
        raise YAMLError(str(error)) from error
    except RecursionError:
        raise YAMLError("nested too deeply") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        remedy = "`llmkit recipes` lists the shipped ones."
        raise RecipeError(f"no such recipe: {path}{_near(path)}", remedy=remedy) from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder, not a recipe file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError("not UTF-8", where=f"{path}:{line}", remedy="Save the file as UTF-8.") from error
    except OSError as error:
        raise RecipeError(f"can't be read: {error.strerror}", where=str(path)) from error


def _near(path: Path) -> str:
    names = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return did_you_mean(path.name, names)


def _syntax_error(path: Path, text: str, error: MarkedYAMLError) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    marked = text.split("\n")[line - 1 : line]
    if any("\t" in one[: len(one) - len(one.lstrip())] for one in marked):
        return RecipeError("YAML does not allow tabs here; indent with spaces", where=f"{path}:{line}")
    return RecipeError(f"not valid YAML: {error.problem or error.context}", where=f"{path}:{line}")


def _line(node: CommentedMap | CommentedSeq, key: str | int) -> int:
    """Return the 1-based line of `key` in `node`; flow sequences have no entry of their own for an item."""
    places = node.lc.data or {}
    if key in places:
        return int(places[key][0]) + 1
    return int(node.lc.line) + 1


def _plain(node: Any, file: str, path: KeyPath = ()) -> tuple[Any, dict[KeyPath, str]]:
    """Turn ruamel's round-trip nodes into plain values and note the place of each key."""
    origins: dict[KeyPath, str] = {}
    if isinstance(node, CommentedMap):
        result: Any = {}
        for key in node:
            place = f"{file}:{_line(node, key)}"
            name = key if isinstance(key, str) else str(key)
            value, inner = _plain(node[key], file, (*path, name))
            result[name] = value
            origins |= {(*path, name): place, **inner}
        return result, origins
    if isinstance(node, CommentedSeq):
        result = []
        for index, item in enumerate(node):
            value, inner = _plain(item, file, (*path, index))
            result.append(value)
            origins |= {(*path, index): f"{file}:{_line(node, index)}", **inner}
        return result, origins
    return _scalar(node), origins


def _scalar(value: Any) -> Any:
    # ruamel wraps numbers and strings in subclasses that remember their spelling; an anchored `true` is an int there.
    if isinstance(value, ScalarBoolean):
        return bool(value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _merge(
    values: dict[str, Any], origins: dict[KeyPath, str], new: Mapping[str, Any], places: Mapping[KeyPath, str]
) -> None:
    """Merge `new` over `values`: mappings key by key, everything else (null included) replaces what was there."""

    def merge(into: dict[str, Any], over: Mapping[str, Any], path: KeyPath) -> None:
        for key, value in over.items():
            here = (*path, key)
            old = into.get(key)
            if isinstance(old, dict) and isinstance(value, Mapping) and not _other_variant(old, value):
                merge(old, value, here)
            else:
                for stale in [p for p in origins if p[: len(here)] == here]:
                    del origins[stale]
                into[key] = value

    merge(values, new, ())
    origins.update(places)


def _other_variant(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether `new` switches the variant: the keys of the old one mean nothing to it, so the section is replaced."""
    return "type" in old and "type" in new and old["type"] != new["type"]


def _apply_override(values: dict[str, Any], origins: dict[KeyPath, str], override: str) -> None:
    key, equals, text = override.partition("=")
    origin = f"--set {override}"
    if not equals or not key.strip():
        raise RecipeError(f"--set takes key=value, e.g. --set training.learning_rate=1e-4, not {override!r}")
    try:
        value, _ = _plain(_load(text), origin)
    except YAMLError as error:
        raise RecipeError(f"the value is not valid YAML: {text!r}", where=origin) from error
    parts = _assign(values, key.strip().split("."), value, origin)
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
            index = int(key) if key.isascii() and key.isdigit() else len(node) + 1
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
