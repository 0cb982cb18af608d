"""Numeric: which number of a completion counts, and how it is read."""

from __future__ import annotations

import doctest
import json
import time
from fractions import Fraction
from pathlib import Path

import pytest

from llmkit.data.shapes import RowError
from llmkit.rewards import numeric
from llmkit.rewards.numeric import Numeric, final_number

GSM8K = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gsm8k" / "test.jsonl"


def test_the_example() -> None:
    assert doctest.testmod(numeric).failed == 0


READ = [
    # plain numbers, the last one
    ("5", 5),
    ("It is 5.", 5),
    ("5.0", 5),
    ("7 apples and 5 pears", 5),
    ("12 - 7 = 5", 5),
    ("007", 7),
    ("1,234", 1234),
    ("1,234,567.89", "1234567.89"),
    ("1.234", "1.234"),
    ("1234", 1234),
    ("1,23", 23),
    (".5", "0.5"),
    ("so it is .25", "0.25"),
    ("wait...5", 5),
    ("version 1.2.3", 3),
    # signs
    ("-5", -5),
    ("\u22125", -5),
    ("+5", 5),
    ("(-5)", -5),
    ("x=-5", -5),
    ("16-3", 3),
    ("16 - 3", 3),
    ("5-10", 10),
    ("COVID-19", 19),
    # units
    ("$18", 18),
    ("$18.50", "18.5"),
    ("-$18", -18),
    ("$-18", -18),
    ("$ 18", 18),
    ("\\$18", 18),
    ("€1,000", 1000),
    ("50%", 50),
    ("50\\%", 50),
    ("18 dollars", 18),
    ("18kg", 18),
    ("100m2", 100),
    ("20 m^2", 20),
    ("20 \\text{ m}^{2}", 20),
    ("45^\\circ", 45),
    ("**18**", 18),
    ("x2 has 4 and y_3", 4),
    # fractions, mixed numbers, scientific
    ("3/4", "3/4"),
    ("3 / 4", "3/4"),
    ("-3/4", "-3/4"),
    ("2 1/2", "5/2"),
    ("-2 1/2", "-5/2"),
    ("\\frac{3}{4}", "3/4"),
    ("-\\dfrac{3}{4}", "-3/4"),
    ("2\\frac{1}{2}", "5/2"),
    ("3/4/2020", 2020),
    ("30 km/h", 30),
    ("1.5e3", 1500),
    ("1E-3", "0.001"),
    ("1.5 x 10^3", 1500),
    ("1.5 \\times 10^{-3}", "0.0015"),
    ("2 * 10**3", 2000),
    ("1{,}234", 1234),
    ("10\\,000", 10000),
    # none
    ("", None),
    ("five", None),
    ("1/0", None),
    ("2^3", None),
    ("2**3", None),
    ("9" * 101, None),
    ("1e9999", None),
    # the order of marks
    ("\\boxed{5} and then #### 6, <answer>7</answer>, the answer is 8. 9", 5),
    ("\\boxed{4} no, \\boxed{5}. 9", 5),
    ("\\boxed{\\frac{1}{2}} of 9", "1/2"),
    ("\\boxed{x = 5} 9", 5),
    ("\\boxed{no idea} 9", None),
    ("\\boxed{9", 9),
    ("#### 6\n<answer>7</answer> the answer is 8. 9", 6),
    ("#### 5\n#### 6 dollars\nDone in 3 steps", 6),
    ("#### $1,234", 1234),
    ("#### 3. Add them up\nthat makes 18", 18),
    ("#### Step 3\nthat makes 18", 18),
    ("<answer>7</answer> the answer is 8. 9", 7),
    ("<answer>\n3 + 4 = 7 eggs\n</answer> 9", 7),
    ("<answer>7", 7),
    ("The answer is 8 because 3 > 2.", 8),
    ("The answer is: **$8**, not 9", 8),
    ("Answer: 8\n(in 9 steps)", 8),
    ("the final answer is about 8, or 9", 8),
    ("The answer is 7? No, the answer is 8, not 9.", 8),
    ("The answer is \\(8\\) 9", 8),
    # equations behind a mark
    ("The answer is 3 + 4 = 7.", 7),
    ("So the answer is $9 \\times 2 = 18$.", 18),
    ("The answer is \\(9\\times2=18\\) or 5", 18),
    ("#### 9 * 2 = 18", 18),
    ("#### 9 * 2 = 18 dollars\nDone in 3 steps", 18),
    ("The answer is 16 - 3 = 13", 13),
    ("The answer is 16-3=13.", 13),
    ("The answer is 3 - 7 = -4, not 4", -4),
    ("The answer is **$5 x 3 = $15**, not 9", 15),
    ("The answer is (3 + 4) * 2 = 14, not 9", 14),
    ("The answer is 3 apples + 4 pears = 7 fruits of 9", 7),
    ("The answer is 10 + 5 + 3 = 15 + 3 = 18, not 9", 18),
    ("The answer is 3 + 4 = 7 = 2 + 5", 7),
    ("The answer is 7 = 3 + 4", 7),
    ("The answer is 2 hours = 120 minutes", 2),
    ("The answer is 50% = 0.5", 50),
    ("The answer is **36** (2 * 9 = 18, twice)", 36),
    ("The answer is 8 because 3 + 4 = 7", 8),
    ("The answer is 8. 3 + 4 = 7", 8),
    ("The answer is 8, as 3 + 4 = 7", 8),
    ("The answer is 3 + y = 7", 3),
    ("The answer is 8\n3 + 4 = 7", 8),
    ("The answer is easy to find: 3 and 5 make 8", 8),
]


@pytest.mark.parametrize(("text", "expected"), READ)
def test_the_final_number(text: str, expected: str | int | None) -> None:
    assert final_number(text) == (None if expected is None else Fraction(expected))


@pytest.mark.parametrize(
    ("answer", "number"),
    [("18", 18), (18, 18), (0.5, "1/2"), ("$1,234", 1234), ("1/2", "1/2"), ("3 of 4\n#### 7", 7), (-2, -2), ("5%", 5)],
)
def test_the_rows_number(answer: object, number: str | int) -> None:
    row = {"answer": answer}
    Numeric(type="numeric").check_row(row)
    assert numeric.gold(row, "answer", "numeric") == Fraction(number)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "no number in column 'answer'"),
        (True, "no number in column 'answer'"),
        ("five", "holds 0 numbers"),
        ("3 of 4", "holds 2 numbers"),
        ("3\n#### none", "holds 0 numbers"),
        (float("nan"), "holds 0 numbers"),
        ("1/0", "divides by zero"),
    ],
)
def test_a_row_without_one_number_is_refused(answer: object, message: str) -> None:
    with pytest.raises(RowError, match=message):
        Numeric(type="numeric").check_row({"answer": answer})


def test_the_tolerance_is_a_share_of_the_right_number() -> None:
    row = {"n": "200"}
    loose = Numeric(type="numeric", column="n", tolerance=0.01)
    assert [loose.score(text, row) for text in ("198", "202", "197.9", "202.1")] == [1.0, 1.0, 0.0, 0.0]
    exact = Numeric(type="numeric", column="n", tolerance=0)
    assert [exact.score(text, row) for text in ("200.0", "200.0000001")] == [1.0, 0.0]
    assert Numeric(type="numeric").score("0.33333333", {"answer": "1/3"}) == 1.0
    assert Numeric(type="numeric").score("0.333", {"answer": "1/3"}) == 0.0
    # Unless a tolerance is set, a large whole number is not right when it is off by one.
    assert Numeric(type="numeric").score("1450001", {"answer": 1450000}) == 0.0
    assert Numeric(type="numeric").score("1450000.5", {"answer": 1450000}) == 1.0
    assert Numeric(type="numeric", tolerance=1e-6).score("1450001", {"answer": 1450000}) == 1.0
    # Near zero there is no share: only zero itself is right.
    assert [loose.score(text, {"n": 0}) for text in ("0", "-0.0", "0.0001")] == [1.0, 1.0, 0.0]


@pytest.mark.skipif(not GSM8K.is_file(), reason="no shared GSM8K on this machine")
def test_all_of_gsm8k() -> None:
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 1319
    reward = Numeric(type="numeric")
    for row in rows:
        reward.check_row(row)
        right = row["answer"].rpartition("#### ")[2]
        number = int(right.replace(",", ""))
        for good in (reward.golden(row) or "", right, f"The answer is ${number}.", f"\\boxed{{{number:,}}} for 2 days"):
            assert reward.score(good, row) == 1.0, (good, row)
        for bad in (f"#### {number + 1}", f"{right} or {number * 10 + 7}", f"\\boxed{{-{number + 1}}} {right}", "none"):
            assert reward.score(bad, row) == 0.0, (bad, row)


@pytest.mark.parametrize(
    "unit",
    [
        "1",
        "1 ",
        "1,",
        "1,111",
        "\\boxed{",
        "{",
        "<answer>",
        "####",
        "#### 1. x\n",
        "answer is ",
        "answer is 1",
        "1 + ",
        "1 = ",
        "1+1=",
        "1/",
        "^{",
        "$",
        " ",
    ],
)
def test_long_nonsense_takes_no_time(unit: str) -> None:
    start = time.perf_counter()
    final_number(unit * (100_000 // len(unit)) + "x")
    final_number("answer is 1" + unit * (100_000 // len(unit)) + "!")
    assert time.perf_counter() - start < 2.0
