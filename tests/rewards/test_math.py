"""Math: what math-verify takes for equal, and what it can't read, costs one row at most."""

from __future__ import annotations

import doctest
import threading
import time

import pytest

from llmkit.data.shapes import RowError
from llmkit.errors import SetupError
from llmkit.rewards import _packages, math
from llmkit.rewards._marks import boxed, tagged
from llmkit.rewards.math import Math

pytest.importorskip("math_verify")


def test_the_example() -> None:
    assert doctest.testmod(math).failed == 0


@pytest.mark.parametrize(
    ("answer", "completion", "expected"),
    [
        (r"\frac{1}{2}", r"so \boxed{0.5}", 1.0),
        (r"\frac{1}{2}", r"so \boxed{\frac{2}{4}}.", 1.0),
        (r"$\frac12$", "<answer>1/2</answer>", 1.0),
        ("1/2", "The answer is $0.5$", 1.0),
        (r"\frac{1}{2}", r"so \boxed{\frac{1}{3}}", 0.0),
        ("x^2 + 2x + 1", r"\boxed{(x+1)^2}", 1.0),
        ("x^2 + 2x + 1", r"\boxed{(x-1)^2}", 0.0),
        (r"\sqrt{8}", r"\boxed{2\sqrt{2}}", 1.0),
        (r"\{1, 2\}", r"\boxed{\{2, 1\}}", 1.0),
        ("(1, 2)", r"\boxed{(2, 1)}", 0.0),
        ("18", "9 * 2 = 18", 1.0),
        ("16 - 3 - 4 = 9\n#### 18", r"\boxed{\$18}", 1.0),
        (r"thus \boxed{42}", "<answer>42.</answer>", 1.0),
        ("5", "<answer>They are 5 apples</answer>", 1.0),
        # the last box counts, and a box before tags and text
        ("5", r"\boxed{3} no: \boxed{5}", 1.0),
        ("5", r"\boxed{5} no: \boxed{3}", 0.0),
        ("5", r"\boxed{3} <answer>5</answer> 5", 0.0),
        ("5", "", 0.0),
        ("5", "no idea", 0.0),
    ],
)
def test_equal_as_mathematics(answer: str, completion: str, expected: float) -> None:
    assert Math(type="math").score(completion, {"answer": answer}) == expected


@pytest.mark.parametrize("answer", [r"\frac{\pi}{4}", "18", "7 eggs\n#### 18", r"\boxed{x+1}", "[0, 1)", r"\$1,234"])
def test_the_golden_answer_has_the_full_reward(answer: str) -> None:
    reward = Math(type="math", column="solution")
    row = {"solution": answer}
    reward.check_row(row)
    assert reward.score(reward.golden(row) or "", row) == 1.0


@pytest.mark.parametrize("row", [{"question": "?"}, {"answer": None}, {"answer": ""}, {"answer": "!?"}])
def test_a_row_without_an_expression_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(RowError, match="'answer'"):
        Math(type="math").check_row(row)


@pytest.mark.parametrize("text", ["(" * 3000, r"\boxed{" + "(" * 500, r"\boxed{\frac{1}{0}}", "1" * 20_000])
def test_what_can_not_be_read_scores_zero(text: str) -> None:
    assert Math(type="math").score(text, {"answer": "5"}) == 0.0


def test_what_takes_too_long_scores_zero() -> None:
    start = time.perf_counter()
    assert Math(type="math", timeout=1).score(r"\boxed{9^{9^{9^9}}}", {"answer": "5"}) == 0.0
    assert time.perf_counter() - start < 20


def test_another_thread_raises_and_does_not_score_zero() -> None:
    caught: list[BaseException] = []

    def work() -> None:
        try:
            Math(type="math").score(r"\boxed{77}", {"answer": "77"})
        except ValueError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "threaded environment" in str(caught[0])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    Math(type="math").check_setup(tmp_path)
    monkeypatch.setattr(_packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"`math` needs the package math-verify(.|\n)*llmkit\[rl\]"):
        Math(type="math").check_setup(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{3} \boxed{5}", "5"),
        (r"\boxed{3} \boxed{5", "3"),
        (r"{ \boxed{3}", "3"),
        (r"} \boxed{3}", "3"),
        (r"\boxed{a \boxed{5}}", r"a \boxed{5}"),
        (r"\boxed{}", ""),
        ("boxed{5}", None),
        (r"\boxed{5", None),
        (r"\boxed{5\}", None),
    ],
)
def test_the_last_complete_box(text: str, expected: str | None) -> None:
    assert boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer> 5 </answer>", "5"),
        ("<answer>3</answer><answer>5</answer>", "5"),
        ("<answer>3</answer> <answer>5", "3"),
        ("</answer><answer>", None),
        ("<answer>5", None),
        ("</answer>", None),
        ("", None),
    ],
)
def test_the_last_complete_tags(text: str, expected: str | None) -> None:
    assert tagged(text) == expected
