"""What verify, reproduce and diff print: nothing is wider than the terminal, and the curves are where they belong."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from llmkit.runs.proving.checked import Checked
from llmkit.runs.proving.differences import compare
from llmkit.runs.proving.proof_report import plot, print_difference, print_reproduced, print_verified
from llmkit.runs.proving.reproducing import judge
from llmkit.runs.proving.verifying import Verified, verify

if TYPE_CHECKING:
    from conftest import Made

Writer = Callable[..., Path]


def printed(show: Callable[[Any, Console], None], found: Any, width: int = 100) -> str:
    stream = io.StringIO()
    show(found, Console(file=stream, width=width))
    return stream.getvalue()


def verified(*checked: Checked) -> Verified:
    return Verified(Path("runs/mine"), "finished, 4 steps", checked, "f" * 64)


# --- verify ----------------------------------------------------------------------------------------------------------


def test_a_whole_run_is_said_in_a_few_lines(made: Made) -> None:
    text = printed(print_verified, verify(made.finished))
    assert "Nothing has changed" in text
    assert "checkpoint-2, checkpoint-4" in text
    assert verify(made.finished).lock in text
    assert "missing" not in text


def test_each_fault_has_a_line_and_brackets_are_no_markup() -> None:
    found = verified(
        Checked("record", "plan.json", "same"),
        Checked("inputs", "made:orders[3]", "not recorded", "[bold]"),
        Checked("inputs", "rows.jsonl", "changed", "SHA-256 was 1, is 2"),
        Checked("inputs", "rows.py", "missing"),
        Checked("environment", "torch", "other version", "was 1, is 2"),
    )
    text = printed(print_verified, found)
    assert "Not what it was: 1 changed and 1 missing; 1 things are what they were." in text
    assert "made:orders[3]" in text
    assert "[bold]" in text
    [line] = [line for line in text.splitlines() if "rows.jsonl" in line]
    assert line.split() == ["inputs", "changed", "rows.jsonl", "SHA-256", "was", "1,", "is", "2"]


def test_what_a_library_says_is_printed_without_secrets() -> None:
    url = "https://me:pass4word@hub/x"
    found = verified(
        Checked("inputs", "tokenizer", "changed", f"it can't be loaded: {url}"),
        Checked("inputs", "base", "same", url),
    )
    text = printed(print_verified, found, 200)
    assert text.count("https://me:***@hub/x") == 2
    assert "pass4word" not in text


def test_many_files_are_counted() -> None:
    text = printed(print_verified, verified(*(Checked("inputs", f"{i}.jsonl", "same") for i in range(400))))
    assert "0.jsonl, 1.jsonl" in text
    assert "and 392 more" in text
    assert "Nothing has changed: 400 things" in text


# --- diff ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 100])
def test_differences_fit_the_terminal(width: int, by_hand: Writer) -> None:
    a = by_hand(
        "a",
        *({"step": step, "loss": 2.0 / step, "grad_norm": 1.0} for step in range(1, 1001)),
        resolved="training.learning_rate: 0.1  # r.yaml:3\nsame: 1  # r.yaml:4\n"
        + f'long: "{"x" * 300}"  # r.yaml:4\n',
        lock={"data": {"rows.jsonl": "1" * 64}, "git": "a" * 40, "git_clean": True},
        speed={"per_second": 141, "unit": "tokens", "seconds_per_step": 2},
    )
    b = by_hand(
        "b",
        *({"step": step, "loss": 2.0 / step + step / 1e4, "grad_norm": 1.0 + (step > 5)} for step in range(1, 501)),
        resolved="training.learning_rate: 0.2  # r.yaml:3\nsame: 1  # r.yaml:4\n",
        lock={"data": {"rows.jsonl": "2" * 64}, "git": "a" * 40, "git_clean": False},
        evaluation=[
            {"evaluation": {"type": "f1"}, "base": {"metrics": {"f1": 0.5}}, "tuned": {"metrics": {"f1": 0.75}}}
        ],
    )
    text = printed(print_difference, compare(a, b), width)
    # Two lines name folders, which are copied whole; the plot has its own width.
    limit = max(width, 12 + 72)
    assert [line for line in text.splitlines()[2:] if len(line) > limit] == []
    if width < 100:
        return
    assert "settings  training.learning_rate  0.1" in text
    assert "111111111111" in text
    assert "1" * 13 not in text
    assert "aaaaaaaaaaaa with changes" in text
    assert "1 of settings" in text
    assert "The loss parts at step 1. It is more than 1% apart first at step " in text
    assert "Other figures that part: grad_norm at step 6." in text
    assert "A  141 tokens/s (2 s/step)" in text
    [score] = [line for line in text.splitlines() if line.startswith("f1.f1")]
    assert score.split() == ["f1.f1", "–", "0.5", "–", "0.75", "–"]


def test_runs_that_are_the_same_say_so(by_hand: Writer) -> None:
    one = {"step": 1, "loss": 2.0}
    text = printed(print_difference, compare(by_hand("a", one), by_hand("b", one)))
    assert "Nothing that the runs were made of." in text
    assert "All figures are the same to the bit at the 1 steps" in text
    assert "Speed" not in text


def test_runs_without_a_step_in_common_have_no_plot(by_hand: Writer) -> None:
    text = printed(print_difference, compare(by_hand("a"), by_hand("b", {"step": 1, "loss": 2.0})))
    assert "The runs have no logged step in common." in text


# --- curves ----------------------------------------------------------------------------------------------------------


def test_a_plot_has_each_value_at_its_place() -> None:
    lines = plot(({1: 10.0, 2: 5.0, 3: 0.0}, {1: 10.0, 2: 0.0}), width=5, height=3)
    assert lines == [
        "        10 │*",
        "         5 │  +",
        "         0 │  x +",
        "      step  1   3",
        "            A +   B x   both *",
    ]


def test_a_plot_draws_the_mean_of_a_column_and_no_infinite_value() -> None:
    curve = {step: float(step % 2) for step in range(1000)}
    lines = plot((curve, {3: float("nan"), 4: float("inf")}), width=10, height=3)
    assert not any("x" in line for line in lines[:-1])
    assert lines[0].startswith("       0.5 │") or "0.5" in lines[0] + lines[1] + lines[2]
    assert plot(({1: float("nan")}, {})) == ["no finite value"]
    assert plot(({1: 1.0, 2: 1.0}, {}), width=4, height=2)[0] == "         1 │+  +"


# --- reproduce -------------------------------------------------------------------------------------------------------

STEP = {"step": 1, "loss": 2.0}
CPU = {"hardware": {"kind": "cpu"}}


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (2.0, ["Reproduced to the bit: 1 logged step compared.", "That was to be expected"]),
        (2.001, ["Reproduced, and not to the bit", "more than 0.01 apart", "depends on chance"]),
        (3.0, ["Not reproduced", "loss is 2 at step 1, and 3 in the reproduction"]),
    ],
)
def test_the_verdict_says_what_was_to_be_expected(loss: float, said: list[str], by_hand: Writer) -> None:
    found = judge(compare(by_hand("a", STEP, plan=CPU), by_hand("b", {**STEP, "loss": loss}, plan=CPU)))
    text = " ".join(printed(print_reproduced, found).split())
    assert [part for part in said if part not in text] == []
    assert "The run kept no weights of this step to compare with." in text


def test_other_versions_stand_beside_the_verdict(by_hand: Writer) -> None:
    a = by_hand("a", STEP, plan=CPU, lock={"packages": {"torch": "2.13"}})
    b = by_hand("b", {**STEP, "loss": 2.001}, plan=CPU, lock={"packages": {"torch": "2.14"}})
    text = printed(print_reproduced, judge(compare(a, b)))
    assert "Not the same around the runs" in text
    [line] = [line for line in text.splitlines() if line.startswith("versions")]
    assert line.split() == ["versions", "torch", "2.13", "2.14"]
    assert "was not to be expected" in text
