"""The tool of grpo_tools_qwen.yaml: arithmetic, computed from the syntax tree and never by running text as code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

_LARGEST_EXPONENT = 64

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def calculator(expression: str) -> str:
    """
    Compute an arithmetic expression.

    Args:
        expression: Numbers with + - * / // % ** and parentheses, such as "(3 + 4) * 12.5".

    Returns:
        The result.

    Raises:
        ValueError: What is wrong with the expression; the model is shown it, and may try again.
    """
    try:
        return f"{float(_value(ast.parse(expression.strip(), mode='eval').body)):.12g}"
    except (SyntaxError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{expression!r} can't be computed: {error}") from error


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) > _LARGEST_EXPONENT:
            raise ValueError(f"the exponent {right:g} is too large")
        result = _BINARY[type(node.op)](left, right)
        if isinstance(result, complex):
            raise ValueError("the result is not a real number")
        return result
    raise ValueError("only numbers, + - * / // % ** and parentheses are understood")
