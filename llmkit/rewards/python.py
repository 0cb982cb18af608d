"""Python: a reward function of your own.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> code = "def score(completion, row):\\n    return float(row['answer'] in completion)"
>>> _ = (folder / "mine.py").write_text(code)
>>> reward = Python(type="python", function="mine.py:score")
>>> reward.set_up(folder)
>>> reward.score("It is 5.", {"answer": "5"})
1.0
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import PrivateAttr, field_validator

from llmkit.errors import RecipeError, SetupError, did_you_mean
from llmkit.rewards.base import Reward

FORM = "def NAME(completion: str, row: dict) -> float"


class Python(Reward):
    """Call `def score(completion: str, row: dict) -> float` from a Python file; `row` has the row's columns.

    The file is run on this machine with your rights: point only to code you trust.
    """

    type: Literal["python"]
    """Whatever the function returns; an error in it, or no finite number, stops the run and names the row."""

    function: str
    """`FILE.py:NAME`, the file relative to the recipe's folder."""

    _function: Any = PrivateAttr(default=None)

    @field_validator("function")
    @classmethod
    def _spelling(cls, value: str) -> str:
        file, _, name = value.rpartition(":")
        if not file.endswith(".py") or not name.isidentifier():
            raise ValueError(f"must be FILE.py:NAME, not {value!r}")
        return value

    def _place(self, folder: Path) -> tuple[Path, str]:
        file, _, name = self.function.rpartition(":")
        return (folder / Path(file).expanduser()).resolve(), name

    def check_setup(self, folder: Path) -> None:
        """Raise RecipeError where the file is missing or broken, or has no such function; nothing in it is run."""
        path, name = self._place(folder)
        try:
            tree = ast.parse(path.read_bytes(), filename=str(path))
        except OSError as error:
            raise RecipeError(
                f"reward `{self.name}`: the file can't be read: {error.strerror}",
                where=str(path),
                remedy="A relative `function` is taken from the recipe's folder.",
            ) from error
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            raise RecipeError(
                f"reward `{self.name}`: the file is no Python: {getattr(error, 'msg', error)}",
                where=f"{path}:{line}" if line else str(path),
            ) from error
        _check_function(tree, name, path)

    def set_up(self, folder: Path) -> None:
        """Import the file; raises SetupError where that fails."""
        path, name = self._place(folder)
        module_name = f"llmkit_reward_{abs(hash(path))}"
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise SetupError("the file can't be imported", where=str(path))
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look their module up there
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # noqa: BLE001 - a file of the user's may raise anything
            raise SetupError(
                f"reward `{self.name}`: importing the file raised {type(error).__name__}: {error}", where=str(path)
            ) from error
        self._function = getattr(module, name)

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return what the function returns; `score_part` checks that it is a finite number."""
        return cast(float, self._function(completion, dict(row)))


def _check_function(tree: ast.Module, name: str, path: Path) -> None:
    """Raise RecipeError unless the module has a function of that name which two positional arguments can call."""
    functions = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    if name not in functions:
        raise RecipeError(
            f"the file defines no function {name!r}{did_you_mean(name, functions)}",
            where=str(path),
            remedy=f"Write `{FORM.replace('NAME', name)}` at its top level.",
        )
    node = functions[name]
    arguments = node.args
    positional = len(arguments.posonlyargs) + len(arguments.args)
    required = positional - len(arguments.defaults)
    takes_two = required <= 2 <= positional or (arguments.vararg is not None and required <= 2)
    if isinstance(node, ast.AsyncFunctionDef) or not takes_two or None in arguments.kw_defaults:
        raise RecipeError(
            f"{name!r} can't be called with a completion and a row",
            where=f"{path}:{node.lineno}",
            remedy=f"Write `{FORM.replace('NAME', name)}`.",
        )
