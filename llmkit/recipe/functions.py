"""Functions of the user's that a recipe names: checked by their source, announced, and run only when needed.

`FILE.py:NAME` is a file in the recipe's own folder or below it, `package.module:NAME` a module of an installed package.
Code from anywhere else is refused, so that a recipe from elsewhere brings all the code that it runs along, to be read.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from llmkit.errors import RecipeError, SetupError, did_you_mean
from llmkit.recipe.places import file_hash, named_path, read_file

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe

KEYS = ("python", "function", "tools", "environment")
"""Keys of a recipe, in whatever section, that name such functions and classes."""


@dataclass(frozen=True)
class Form:
    """How such a function is called."""

    signature: str
    """What the user is to write, with NAME for its name: `def NAME(row: dict) -> dict`."""
    arguments: str
    """What it is called with, in words: `a row`."""
    count: int
    """Number of positional arguments."""


@dataclass(frozen=True)
class Hook:
    """Code that a recipe names: `reference` as written, and the file and the name that it means."""

    reference: str
    path: Path
    name: str


def spelled(reference: str) -> str:
    """Return `reference` if it is written `FILE.py:NAME` or `package.module:NAME`; raises ValueError."""
    module, _, name = reference.rpartition(":")
    if not name.isidentifier() or not (module.endswith(".py") or _is_module(module)):
        raise ValueError(f"must be FILE.py:NAME, not {reference!r} (or package.module:NAME, of an installed package)")
    return reference


def _is_module(name: str) -> bool:
    return "." in name and all(part.isidentifier() for part in name.split("."))


def hooks(recipe: Recipe) -> list[Hook]:
    """Return all code that `recipe` names, each once; raises RecipeError for what `place` refuses."""
    references = dict.fromkeys(_references(recipe.model_dump(exclude_unset=True)))
    return [Hook(reference, *place(reference, recipe.folder, f"`{reference}`")) for reference in references]


def _references(values: Any, key: str | None = None) -> Iterator[str]:
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _references(value, name)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _references(value, key)
    elif isinstance(values, str) and key in KEYS and _is_spelled(values):
        yield values


def _is_spelled(reference: str) -> bool:
    try:
        return bool(spelled(reference))
    except ValueError:
        return False


def announcements(recipe: Recipe) -> list[str]:
    """Return a sentence for each function or class that a run of `recipe` will call; to be said before that."""
    return [
        f"this recipe runs code with your rights: {hook.name} of {hook.path} (SHA-256 {file_hash(hook.path)[:12]})"
        for hook in hooks(recipe)
    ]


def place(reference: str, folder: Path, owner: str) -> tuple[Path, str]:
    """Return the file and the name that `reference` means; nothing is imported.

    Raises RecipeError for a file that is not in `folder` or below it, links followed, and for a module of a package
    that is not installed. `owner` is the part of the recipe that names it, for the message.
    """
    module, _, name = reference.rpartition(":")
    if not module.endswith(".py"):
        return _installed(module, reference, owner), name
    home = folder.resolve()
    path = named_path(module, home).resolve()
    if not path.is_relative_to(home):
        raise RecipeError(
            f"{owner}: {path} is outside of the recipe's folder {home}, and code from elsewhere is not run",
            remedy="Copy the file beside the recipe, or name a module of an installed package: package.module:NAME.",
        )
    return path, name


def _installed(module: str, reference: str, owner: str) -> Path:
    """Return the file of a module, found without importing its package, which would run code."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # `__main__` has none
        spec = None
    home = Path(spec.origin).parent if spec and spec.origin and spec.submodule_search_locations else None
    # Not whatever Python finds: with `python -m`, that begins in the current folder.
    roots = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    roots.add(site.getusersitepackages())
    if home is None or not any(home.is_relative_to(root) for root in roots):
        raise RecipeError(
            f"{owner}: {reference!r} is not of the form path/to/file.py:name, and no package {top!r} is installed",
            remedy="The path starts from the recipe's folder.",
        )
    files = (home.joinpath(*inner[:-1], f"{inner[-1]}.py"), home.joinpath(*inner, "__init__.py"))
    return next((file for file in files if file.is_file()), files[0])


def check_function(reference: str, folder: Path, form: Form, owner: str) -> None:
    """Raise RecipeError where the file is missing or broken, or has no such function; nothing in it is run.

    `owner` is the part of the recipe that names it, for the message. Raises what `place` raises.
    """
    path, name = place(reference, folder, owner)
    try:
        tree = ast.parse(read_file(path), filename=str(path))
    except OSError as error:
        raise RecipeError(
            f"{owner}: the file can't be read: {error.strerror}",
            where=str(path),
            remedy="A relative path is taken from the recipe's folder.",
        ) from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the latter for brackets within brackets
        line = getattr(error, "lineno", None)
        raise RecipeError(
            f"{owner}: the file is no Python: {getattr(error, 'msg', error)}",
            where=f"{path}:{line}" if line else str(path),
        ) from error
    _check_definition(tree, name, path, form)


def load_function(reference: str, folder: Path, owner: str) -> Callable[..., Any]:
    """Import what `reference` names and return it; raises SetupError where that fails, and what `place` raises."""
    found: Callable[..., Any] = load_all([reference], folder, owner)[0]
    return found


def load_all(references: Sequence[str], folder: Path, owner: str) -> list[Any]:
    """Import what `references` name; those of one file share their module, and so what they remember.

    A file is run afresh, a package's module imported as any other. Raises SetupError where that fails, and what `place`
    raises.
    """
    modules: dict[Path, ModuleType] = {}
    found = []
    for reference in references:
        path, name = place(reference, folder, owner)
        if path not in modules:
            module = reference.rpartition(":")[0]
            modules[path] = _run(path, owner) if module.endswith(".py") else _import(module, path, owner)
        found.append(getattr(modules[path], name))
    return found


class _Source(SourceFileLoader):
    """Runs the text of a file: bytecode beside it may have been made from another one, and none is left there."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _run(path: Path, owner: str) -> ModuleType:
    name = f"llmkit_user_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Source(name, str(path)))
    if spec is None or spec.loader is None:
        raise SetupError(f"{owner}: the file can't be imported", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # types are looked up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a file of the user's may raise anything
        raise _failed(path.name, error, path, owner) from error
    return module


def _import(module: str, path: Path, owner: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a package may raise anything as well
        raise _failed(module, error, path, owner) from error


def _failed(name: str, error: BaseException, path: Path, owner: str) -> SetupError:
    return SetupError(f"{owner}: importing {name} raised {type(error).__name__}: {error}", where=str(path))


def _check_definition(tree: ast.Module, name: str, path: Path, form: Form) -> None:
    functions = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    if name not in functions:
        raise RecipeError(
            f"the file defines no function {name!r}{did_you_mean(name, functions)}",
            where=str(path),
            remedy=f"Write `{form.signature.replace('NAME', name)}` at its top level.",
        )
    node = functions[name]
    arguments = node.args
    positional = len(arguments.posonlyargs) + len(arguments.args)
    required = positional - len(arguments.defaults)
    fits = required <= form.count <= positional or (arguments.vararg is not None and required <= form.count)
    if isinstance(node, ast.AsyncFunctionDef) or not fits or None in arguments.kw_defaults:
        raise RecipeError(
            f"{name!r} can't be called with {form.arguments}",
            where=f"{path}:{node.lineno}",
            remedy=f"Write `{form.signature.replace('NAME', name)}`.",
        )
