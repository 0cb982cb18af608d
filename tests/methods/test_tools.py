"""Tools and environments named in a recipe: refused by their source alone, and described to the model as written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from llmkit.data.splits import Row
from llmkit.errors import DataError, RecipeError, SetupError
from llmkit.methods import _tools

CALCULATOR = Path(__file__).parents[2] / "recipes" / "grpo_tools_qwen.py"
GOOD = '''
def double(x: int) -> int:
    """Double a number.

    Args:
        x: The number.

    Returns:
        Twice as much.
    """
    return 2 * x


class Shop:
    """A shop."""

    def reset(self, answer, **row):
        self.price = answer
        return f" It costs {answer}."

    def pay(self, coins: int) -> str:
        """Pay.

        Args:
            coins: How many.
        """
        return "thanks" if str(coins) == self.price else "no"
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.py").write_text(GOOD, encoding="utf-8")
    return tmp_path


def test_good_ones_pass(folder: Path) -> None:
    _tools.check_tool("good.py:double", folder)
    _tools.check_environment("good.py:Shop", folder)
    _tools.check_tool(f"{CALCULATOR.name}:calculator", CALCULATOR.parent)


@pytest.mark.parametrize(
    ("reference", "error", "sentence"),
    [
        ("good.py", RecipeError, "is not of the form path/to/file.py:name"),
        ("good.txt:double", RecipeError, "is not of the form"),
        ("absent.py:double", SetupError, "absent.py can't be read: No such file"),
        ("good.py:doubel", SetupError, r"defines double, Shop, and no 'doubel' \(did you mean 'double'"),
        ("good.py:Shop", SetupError, "is a class; a tool is a function"),
        ("broken.py:f", SetupError, "invalid syntax"),
        ("bare.py:f", SetupError, "lacks a docstring and types of x"),
        ("bare.py:g", SetupError, r"lacks a line in the docstring's `Args:` for y"),
    ],
)
def test_tools_that_can_not_work(folder: Path, reference: str, error: type[Exception], sentence: str) -> None:
    (folder / "broken.py").write_text("def f(:\n", encoding="utf-8")
    bare = 'raise RuntimeError("must not be run")\ndef f(x): pass\ndef g(y: int):\n    """Do."""\n'
    (folder / "bare.py").write_text(bare, encoding="utf-8")
    with pytest.raises(error, match=sentence):
        _tools.check_tool(reference, folder)


def test_an_environment_needs_reset_and_documented_tools(folder: Path) -> None:
    source = "class A:\n    pass\nclass B:\n    def reset(self): pass\n    def go(self, x): pass\n"
    (folder / "env.py").write_text(source, encoding="utf-8")
    with pytest.raises(SetupError, match="has no method `reset`"):
        _tools.check_environment("env.py:A", folder)
    with pytest.raises(SetupError, match="env.py:B.go lacks a docstring and types of x"):
        _tools.check_environment("env.py:B", folder)
    with pytest.raises(SetupError, match="is a function; an environment is a class"):
        _tools.check_environment("good.py:double", folder)


def test_a_file_that_fails_names_itself(folder: Path) -> None:
    (folder / "fails.py").write_text('def f() -> int:\n    """Do."""\nraise KeyError("no")\n', encoding="utf-8")
    with pytest.raises(SetupError, match="importing .*fails.py raised KeyError: 'no'"):
        _tools.load_tools(["fails.py:f"], folder)


def test_tools_of_one_file_share_its_state(folder: Path) -> None:
    shared = "SEEN = []\ndef f() -> list:\n    'Do.'\n    return SEEN\ndef g() -> list:\n    'Do.'\n    return SEEN\n"
    (folder / "shared.py").write_text(shared, encoding="utf-8")
    first, second = _tools.load_tools(["shared.py:f", "shared.py:g"], folder)
    assert first() is second()


def test_an_environment_is_reset_with_the_whole_row(folder: Path) -> None:
    rows = [Row("a:1", {"prompt": "x", "answer": "3"}), Row("a:2", {"prompt": "y", "answer": "4"})]
    made = _tools.load_environment("good.py:Shop", folder, rows)()
    assert made.reset(row=1, prompt="ignored") == " It costs 4."
    assert (made.pay(3), made.pay(4)) == ("no", "thanks")
    assert type(made).__name__ == "Shop"


def test_prompts_must_be_messages() -> None:
    good = Row("a:1", {"prompt": [{"role": "user", "content": "x"}]})
    with pytest.raises(DataError, match="the prompt is text, and tools need messages") as caught:
        _tools.require_messages([good, Row("a:2", {"prompt": "x"})])
    assert caught.value.where == "a:2"


@pytest.mark.parametrize(
    ("expression", "result"),
    [("2 + 3 * 4", "14"), ("(3 + 4) * 12", "84"), ("-7 / 2", "-3.5"), (" 0.1 + 0.2 ", "0.3")],
)
def test_the_calculator_calculates(expression: str, result: str) -> None:
    assert calculator()(expression) == result


@pytest.mark.parametrize(
    "expression", ["__import__('os')", "9 ** 9 ** 9", "True + 1", "'a' * 3", "x", "1" * 400, "2 / 0", "("]
)
def test_the_calculator_runs_no_python(expression: str) -> None:
    with pytest.raises(ValueError):
        calculator()(expression)


def calculator():  # noqa: ANN201 - a function of a file outside the package
    spec = importlib.util.spec_from_file_location("calculator", CALCULATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.calculator
