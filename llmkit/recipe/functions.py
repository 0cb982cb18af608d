"""Functions of the user's that a recipe names as `FILE.py:NAME`: checked by their source, run only when needed."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from llmkit.errors import RecipeError, SetupError, did_you_mean


@dataclass(frozen=True)
class Form:
    """How such a function is called."""

    signature: str
    """What the user is to write, with NAME for its name: `def NAME(row: dict) -> dict`."""
    arguments: str
    """What it is called with, in words: `a row`."""
    count: int
    """Number of positional arguments."""


def spelled(reference: str) -> str:
    """Return `reference` if it is written `FILE.py:NAME`; raises ValueError."""
    file, _, name = reference.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ValueError(f"must be FILE.py:NAME, not {reference!r}")
    return reference


def check_function(reference: str, folder: Path, form: Form, owner: str) -> None:
    """Raise RecipeError where the file is missing or broken, or has no such function; nothing in it is run.

    `owner` is the part of the recipe that names it, for the message.
    """
    path, name = _place(reference, folder)
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise RecipeError(
            f"{owner}: the file can't be read: {error.strerror}",
            where=str(path),
            remedy="A relative path is taken from the recipe's folder.",
        ) from error
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise RecipeError(
            f"{owner}: the file is no Python: {getattr(error, 'msg', error)}",
            where=f"{path}:{line}" if line else str(path),
        ) from error
    _check_definition(tree, name, path, form)


def load_function(reference: str, folder: Path, owner: str) -> Callable[..., Any]:
    """Run the file afresh and return its function; raises SetupError where that fails."""
    path, name = _place(reference, folder)
    found: Callable[..., Any] = getattr(load_module(path, owner), name)
    return found


def load_module(path: Path, owner: str) -> ModuleType:
    """Run a file as a module, always afresh; raises SetupError where that fails."""
    name = f"llmkit_user_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SetupError(f"{owner}: the file can't be imported", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # types are looked up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a file of the user's may raise anything
        what = f"{owner}: importing {path.name} raised {type(error).__name__}: {error}"
        raise SetupError(what, where=str(path)) from error
    return module


def _place(reference: str, folder: Path) -> tuple[Path, str]:
    file, _, name = reference.rpartition(":")
    return (folder / Path(file).expanduser()).resolve(), name


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
