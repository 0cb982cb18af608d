"""Tools and environments that a recipe names as `file.py:name`: found by their source, loaded when built."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import DataError, RecipeError, SetupError, did_you_mean
from llmkit.recipe.functions import load_all, load_function, place, spelled
from llmkit.recipe.places import read_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.data.splits import Row

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def check_tool(reference: str, folder: Path) -> None:
    """Refuse a tool that the model could not be told about: its name, types and docstring are what it is shown.

    Reads the source and runs none of it. Raises RecipeError or SetupError.
    """
    node = _definition("tools", reference, folder)
    if not isinstance(node, _FUNCTIONS):
        raise SetupError(f"`method.tools`: {reference} is a class; a tool is a function")
    _check_function("tools", reference, node)


def check_environment(reference: str, folder: Path) -> None:
    """Refuse an environment class without `reset`, or with a public method that the model could not be told about.

    Reads the source and runs none of it. Raises RecipeError or SetupError.
    """
    node = _definition("environment", reference, folder)
    if not isinstance(node, ast.ClassDef):
        raise SetupError(f"`method.environment`: {reference} is a function; an environment is a class")
    methods = {item.name: item for item in node.body if isinstance(item, _FUNCTIONS)}
    if "reset" not in methods and not node.bases:
        raise SetupError(
            f"`method.environment`: {reference} has no method `reset`",
            remedy="Define `reset(self, **row)`; what it returns as text is added to the prompt.",
        )
    for name, method in methods.items():
        if not name.startswith("_") and name not in ("reset", "get_reward"):
            _check_function("environment", f"{reference}.{name}", method, own_arguments=1)


def _definition(key: str, reference: str, folder: Path) -> ast.stmt:
    path, name = _split(key, reference, folder)
    try:
        tree = ast.parse(read_file(path))
    except OSError as error:
        raise SetupError(f"`method.{key}`: {path} can't be read: {error.strerror}") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path}:{line}" if line else str(path)
        raise SetupError(f"`method.{key}`: {getattr(error, 'msg', error)}", where=where) from error
    known = {node.name: node for node in tree.body if isinstance(node, (*_FUNCTIONS, ast.ClassDef))}
    if name not in known:
        names = ", ".join(known) or "nothing"
        raise SetupError(f"`method.{key}`: {path} defines {names}, and no {name!r}{did_you_mean(name, known)}")
    return known[name]


def _split(key: str, reference: str, folder: Path) -> tuple[Path, str]:
    try:
        spelled(reference)
    except ValueError:
        raise RecipeError(
            f"`method.{key}`: {reference!r} is not of the form path/to/file.py:name",
            remedy="The path starts from the recipe's folder.",
        ) from None
    return place(reference, folder, f"`method.{key}`")


def _check_function(
    key: str, reference: str, node: ast.FunctionDef | ast.AsyncFunctionDef, own_arguments: int = 0
) -> None:
    """Refuse a function without types and docstring; the first `own_arguments` (`self`) need neither."""
    arguments = [*node.args.args, *node.args.kwonlyargs][own_arguments:]
    untyped = [argument.arg for argument in arguments if argument.annotation is None]
    doc = ast.get_docstring(node) or ""
    undescribed = [argument.arg for argument in arguments if f"{argument.arg}:" not in doc]
    lacks = [
        *(["a docstring"] if not doc else []),
        *([f"types of {', '.join(untyped)}"] if untyped else []),
        *([f"a line in the docstring's `Args:` for {', '.join(undescribed)}"] if doc and undescribed else []),
    ]
    if lacks:
        raise SetupError(
            f"`method.{key}`: {reference} lacks {' and '.join(lacks)}",
            remedy="The model learns of a tool from its typed arguments and a docstring with `Args:` (Google style).",
        )


def load_tools(references: Sequence[str], folder: Path) -> list[Callable[..., Any]]:
    """Import the tools, and check that each can be described to the model; raises SetupError."""
    from transformers.utils import get_json_schema
    from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

    tools: list[Callable[..., Any]] = load_all(references, folder, "`method.tools`")
    for reference, tool in zip(references, tools, strict=True):
        try:
            get_json_schema(tool)
        except (DocstringParsingException, TypeHintParsingException) as error:
            raise SetupError(f"`method.tools`: {reference} can't be described to the model: {error}") from error
    return tools


def load_environment(reference: str, folder: Path, rows: Sequence[Row]) -> type:
    """Import the environment class; its `reset` is given the columns of the whole row, and not of TRL's data set."""
    base: Any = load_function(reference, folder, "`method.environment`")

    def reset(self: Any, row: int, **columns: Any) -> Any:
        return base.reset(self, **rows[row].example)

    # A subclass, because TRL looks for `reset` and the tools on the class and logs a reward under the class's name.
    return type(base.__name__, (base,), {"reset": reset, "__doc__": base.__doc__, "__module__": base.__module__})


def require_tool_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise SetupError if the chat template can't show tool calls, or is none whose calls TRL can read back."""
    from trl.chat_template_utils import add_response_schema, supports_tool_calling

    if not supports_tool_calling(tokenizer):
        raise SetupError(
            "`method.tools`: the chat template does not show tool calls and their results",
            remedy="Use a model trained to call tools (e.g. Qwen/Qwen2.5-1.5B-Instruct), or `model.chat_template`.",
        )
    if getattr(tokenizer, "response_template", None) or getattr(tokenizer, "response_schema", None):
        return
    try:
        add_response_schema(tokenizer)
    except ValueError as error:
        raise SetupError(
            "`method.tools`: TRL does not know how this chat template writes a tool call, so none would be run",
            remedy="Use a template that TRL knows (those of Qwen 2.5, Qwen 3, Llama 3.1, GLM 4 and others).",
        ) from error


def require_messages(rows: Sequence[Row]) -> None:
    """Raise DataError at the first prompt that is plain text: tool calls are turns of a conversation."""
    for row in rows:
        if isinstance(row.example["prompt"], str):
            raise DataError(
                "the prompt is text, and tools need messages",
                where=row.where,
                remedy='Write it as [{"role": "user", "content": "..."}].',
            )
