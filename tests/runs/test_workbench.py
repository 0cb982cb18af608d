"""The workbench flags rewards that can be had for nothing, and lets honest ones pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from llmkit.data.splits import Row
from llmkit.errors import DataError, RecipeError, RunError
from llmkit.recipe.recipe import Recipe
from llmkit.rewards.base import Reward
from llmkit.rewards.exact_match import ExactMatch
from llmkit.rewards.numeric import Numeric
from llmkit.runs import workbench
from llmkit.runs.probes import form_of, golden_answers, prompt_text
from llmkit.runs.workbench import Flag, Line, Workbench, completions_per_step, spread_out, try_rewards

WITHOUT_GOLDEN = ["empty", "very long", "copied prompt", "refusal"]


class Own(Reward):
    """A reward made of a function, as one from a user's file is."""

    type: Literal["own"] = "own"
    call: Any = None
    told: Any = None

    def score(self, completion: str, row: Mapping[str, Any]) -> float:
        return self.call(completion, row)  # type: ignore[no-any-return]

    def golden(self, row: Mapping[str, Any]) -> str | None:
        return self.told(row) if self.told else None


class AtOnce(Own):
    """A reward that scores many at once."""

    def scores(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        return list(self.call(completions, rows))


def exact(**fields: Any) -> ExactMatch:
    return ExactMatch(type="exact_match", **fields)


@pytest.fixture
def rewarded(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Recipe]:
    """Return a maker of GRPO recipes over 24 sums, with the rewards given; `answer` makes the answer of row i."""

    def make(
        *rewards: Reward, answer: Callable[[int], Any] = lambda i: str(i + i % 5), overrides: Sequence[str] = ()
    ) -> Recipe:
        rows = [{"prompt": f"what is {i} plus {i % 5}?", "answer": answer(i)} for i in range(24)]
        (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        made = recipe(
            "method={type: grpo}",
            "data={train: [{path: sums.jsonl, format: prompt}]}",
            "training.num_generations=4",
            "rewards=[{type: exact_match}]",
            *overrides,
        )
        return made.model_copy(update={"rewards": rewards})

    return make


def means(found: Workbench) -> dict[str, float]:
    return {line.probe: line.mean for line in found.total.lines}


def errors(found: Workbench) -> list[str]:
    return [flag.text for flag in found.flags if flag.error]


# --- honest rewards --------------------------------------------------------------------------------------------------


def test_an_honest_reward_has_no_flag(rewarded: Callable[..., Recipe]) -> None:
    found = try_rewards(rewarded(exact()))
    assert (found.rows, found.flags, found.passed, found.golden) == (24, (), True, "told by exact_match")
    assert means(found) == {
        "golden": 1.0,
        **dict.fromkeys(WITHOUT_GOLDEN, 0.0),
        "repeated answer": 0.0,
        "format only": 0.0,
        "another row's answer": 0.0,
        "one answer for all": pytest.approx(1 / 24),  # no two rows have the same sum
    }
    golden = found.total.line("golden")
    assert golden is not None
    assert (golden.reached, golden.spread, len(golden.scores)) == (1.0, 0.0, 24)
    line = Line("x", (0, 1, 2, 3), (0.0, 0.0, 3.0, 3.0), 0.5)
    assert (line.mean, line.spread) == (1.5, 1.5)


@pytest.mark.parametrize("rewards", [[Numeric(type="numeric")], [Numeric(type="numeric"), exact(weight=0.5)]])
def test_an_honest_number_has_no_flag(rewarded: Callable[..., Recipe], rewards: list[Reward]) -> None:
    found = try_rewards(rewarded(*rewards))
    assert found.flags == ()
    golden = found.total.line("golden")
    assert golden is not None
    assert golden.mean == sum(reward.weight for reward in rewards)


def test_an_offset_and_a_weight_change_no_verdict(rewarded: Callable[..., Recipe]) -> None:
    right = exact().score
    assert try_rewards(rewarded(exact(weight=7.0))).passed
    # What each completion gets anyway is no signal: -5 for a wrong answer, -4 for the right one.
    assert try_rewards(rewarded(Own(call=lambda c, r: right(c, r) - 5, told=lambda r: r["answer"]))).passed


def test_no_probe_is_longer_than_an_answer_can_get(rewarded: Callable[..., Recipe]) -> None:
    longest = 0

    def measured(completion: str, row: Mapping[str, Any]) -> float:
        nonlocal longest
        longest = max(longest, len(completion))
        return exact().score(completion, row)

    few = ["training.max_completion_length=16"]
    assert try_rewards(rewarded(Own(call=measured, told=lambda r: r["answer"]), overrides=few)).passed
    assert longest == 16 * 4


def test_some_rows_only_and_evenly_spread() -> None:
    rows = [Row(str(i), {}) for i in range(10)]
    assert [row.where for row in spread_out(rows, 4)] == ["0", "2", "5", "7"]
    assert spread_out(rows, 10) == spread_out(rows, 99) == rows


# --- rewards that can be had for nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hack", "got"),
    [
        (lambda c, r: min(len(c), 1000) / 1000, ["very long filler (1)", "golden: 0.00"]),
        (lambda c, r: float("the" in c), ["very long filler (1)"]),
        (lambda c, r: float("what" in c or c == r["answer"]), ["a copied prompt (1)"]),
        (lambda c, r: float(c.strip().isdecimal()), ["the right form without the content (1)", "to another row (1)"]),
        (lambda c, r: float(len(c) < 5), ["an empty answer (1)", "one answer for all rows (1)"]),
        (lambda c, r: -len(c) / 1000, ["an empty answer (0)"]),
        (lambda c, r: float("sorry" in c or r["answer"] == c), ["a refusal (1)"]),
    ],
    ids=["length", "keyword", "prompt", "form", "short", "negative", "refusal"],
)
def test_a_planted_hack_is_an_error(
    rewarded: Callable[..., Recipe], hack: Callable[[str, Any], float], got: list[str]
) -> None:
    found = try_rewards(rewarded(Own(call=hack, label="hack")))
    assert not found.passed
    text = " | ".join(errors(found))
    assert text.startswith("`hack` gives its full reward")
    assert "it can be had for nothing" in text
    assert [word for word in got if word not in text] == []


def test_labels_that_are_all_alike_are_had_with_one_answer(rewarded: Callable[..., Recipe]) -> None:
    found = try_rewards(rewarded(exact(), answer=lambda i: "no" if i == 7 else "yes"))
    assert means(found)["one answer for all"] == pytest.approx(23 / 24)
    assert errors(found) == [
        "`exact_match` gives its full reward (golden: 1) to one answer for all rows (0.958): it can be had for nothing"
    ]
    assert not try_rewards(rewarded(exact(), answer=lambda i: "yes")).passed
    assert try_rewards(rewarded(exact(), answer=lambda i: "yes" if i % 2 else "no")).passed


def test_repetition_that_pays_is_an_error(rewarded: Callable[..., Recipe]) -> None:
    found = try_rewards(rewarded(Own(call=lambda c, r: c.split().count(r["answer"]), told=lambda r: r["answer"])))
    assert any(
        "pays for repetition: the golden answer again and again scores 20, once 1" in text for text in errors(found)
    )


def test_a_right_answer_said_again_is_no_hack(rewarded: Callable[..., Recipe]) -> None:
    last = Own(call=lambda c, r: float(c.split()[-1:] == [r["answer"]]), told=lambda r: r["answer"])
    found = try_rewards(rewarded(last))
    assert means(found)["repeated answer"] == 1.0
    assert found.flags == ()


# --- rewards and rows that are wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
def test_a_constant_is_no_signal(rewarded: Callable[..., Recipe], value: float) -> None:
    found = try_rewards(rewarded(Own(call=lambda c, r: value)))
    assert errors(found) == [
        f"`own` gives {value:.3g} to all probes and golden answers: there is no signal to learn from"
    ]


def test_golden_answers_that_score_low_name_the_first_row(rewarded: Callable[..., Recipe]) -> None:
    half = Own(call=lambda c, r: float(c == r["answer"] and int(c) > 9), told=lambda r: r["answer"])
    found = try_rewards(rewarded(half))
    (text,) = errors(found)
    low = sum(i + i % 5 <= 9 for i in range(24))
    mean = f"{(24 - low) / 24:.3g}"
    assert f"golden answers score only {mean} by `own`, and 1 at best: the reward or the rows are wrong" in text
    assert f"({low} of 24 rows; the first is sums.jsonl:1)" in text


def test_scales_that_differ_by_row_are_a_warning(rewarded: Callable[..., Recipe]) -> None:
    # Every golden answer earns more than nothing does, and those of some rows a tenth of the others'.
    scaled = Own(
        call=lambda c, r: exact().score(c, r) * (10 if int(r["answer"]) > 9 else 1), told=lambda r: r["answer"]
    )
    found = try_rewards(rewarded(scaled))
    low = sum(i + i % 5 <= 9 for i in range(24))
    assert found.passed
    (flag,) = found.flags
    assert f"scored on different scales, or some are wrong ({low} of 24 rows; the first is sums.jsonl:1)" in flag.text
    # Only the rows whose golden answer earns no more than an empty one are wrong.
    planted = Own(
        call=lambda c, r: (r["answer"] != "12") * scaled.call(c, r),  # 11 + 1 alone
        told=lambda r: r["answer"],
    )
    (text,) = errors(try_rewards(rewarded(planted)))
    assert "the reward or the rows are wrong (1 of 24 rows; the first is sums.jsonl:12)" in text


def test_golden_answers_that_score_least_are_an_error(rewarded: Callable[..., Recipe]) -> None:
    found = try_rewards(rewarded(Own(call=lambda c, r: float(c != r["answer"]), told=lambda r: r["answer"])))
    assert any("it can be had for nothing" in text for text in errors(found))


def test_without_golden_answers_nothing_is_judged_but_silence(rewarded: Callable[..., Recipe]) -> None:
    length = Own(call=lambda c, r: len(c))
    found = try_rewards(rewarded(length, answer=lambda i: None))
    assert found.passed
    assert found.golden == "none"
    assert [line.probe for line in found.total.lines] == WITHOUT_GOLDEN
    assert "nobody can say what `own` should give: name one with --golden" in found.flags[0].text
    silent = try_rewards(rewarded(Own(call=lambda c, r: 1), answer=lambda i: None))
    assert "`own` gives 1 to all probes: there is no signal to learn from" in silent.flags[1].text


def test_a_reward_that_raises_names_the_row(rewarded: Callable[..., Recipe]) -> None:
    broken = Own(call=lambda c, r: 1 / (r["answer"] != "3") if c else 0.0, told=lambda r: r["answer"])
    with pytest.raises(RunError, match=r"sums\.jsonl:\d+: reward `own` raised ZeroDivisionError") as failure:
        try_rewards(rewarded(broken, answer=lambda i: str(i)))
    assert failure.value.where == "sums.jsonl:4"
    with pytest.raises(RunError, match="returned nan"):
        try_rewards(rewarded(Own(call=lambda c, r: float("nan"))))


def test_a_row_that_cannot_be_scored_is_refused_although_it_is_not_tried(rewarded: Callable[..., Recipe]) -> None:
    made = rewarded(exact(), answer=lambda i: None if i == 23 else str(i))
    with pytest.raises(DataError, match=r"sums\.jsonl:24: no column 'answer'"):
        try_rewards(made, rows=2)


def test_a_method_without_rewards_is_refused(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match="learns from its rows alone: there is no reward to try"):
        try_rewards(recipe())


# --- several parts ---------------------------------------------------------------------------------------------------


def form(completion: str, row: Mapping[str, Any]) -> float:
    return float(completion.startswith("<a>") and completion.endswith("</a>"))


def inner(completion: str, row: Mapping[str, Any]) -> float:
    return float(completion.removeprefix("<a>").removesuffix("</a>") == row["answer"])


def test_parts_are_held_against_their_own_golden_answers(rewarded: Callable[..., Recipe]) -> None:
    tags = Own(call=form, told=lambda r: "<a>words</a>", label="tags", weight=0.5)
    number = Own(call=inner, told=lambda r: r["answer"], label="number")
    found = try_rewards(rewarded(tags, number))
    assert found.golden == "told by tags, number"
    assert [(part.name, part.lines[0].mean) for part in found.parts] == [("tags", 1.0), ("number", 1.0)]
    # The number alone earns 1 in all, the tags alone 0.5: the better one is golden for the total.
    assert means(found)["golden"] == 1.0
    assert means(found)["format only"] == 0.5
    assert found.passed
    (warned,) = found.flags
    assert warned == Flag(
        False,
        "`tags` gives its full reward (golden: 1) to the right form without the content (1) and one answer for all "
        "rows (1): it can be had for nothing",
    )


def test_a_template_names_the_answer_that_earns_all_parts(rewarded: Callable[..., Recipe]) -> None:
    tags = Own(call=form, told=lambda r: "<a>words</a>", label="tags", weight=0.5)
    number = Own(call=inner, told=lambda r: r["answer"], label="number")
    made = rewarded(tags, number)
    found = try_rewards(made, golden="<a>$answer</a>")
    assert means(found)["golden"] == 1.5
    assert means(found)["another row's answer"] == 0.5
    assert found.golden == "the template"
    with pytest.raises(
        RecipeError, match=r"--golden names \$anser, and the row has only prompt, answer \(did you mean"
    ):
        try_rewards(made, golden="<a>$anser</a>")
    with pytest.raises(RecipeError, match=r"Write a dollar sign itself as \$\$"):
        try_rewards(made, golden="cost: $")


def test_a_hackable_part_is_a_warning_as_long_as_the_total_holds(rewarded: Callable[..., Recipe]) -> None:
    def length(completion: str, row: Mapping[str, Any]) -> float:
        return min(len(completion) / 1000, 1.0)

    found = try_rewards(rewarded(exact(), Own(call=length, label="length", weight=0.1)))
    assert found.passed
    assert [flag.text.split(" (")[0] for flag in found.flags] == ["`length` gives its full reward"]
    heavy = try_rewards(rewarded(exact(), Own(call=length, label="length", weight=2.0)))
    assert errors(heavy)[0].startswith("the total of the rewards gives its full reward (golden: 1) to very long filler")
    # A penalty's own scores say nothing about what is good.
    penalty = try_rewards(rewarded(exact(), Own(call=length, label="length", weight=-0.1)))
    assert penalty.flags == ()


# --- time ------------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that only rewards move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(workbench.time, "perf_counter", lambda: self.now)

    def spend(self, seconds: float) -> None:
        self.now += seconds


def test_a_slow_reward_says_what_a_step_costs(rewarded: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def slow(completion: str, row: Mapping[str, Any]) -> float:
        clock.spend(9.0 if len(completion) == 512 * 4 else 3.2)
        return exact().score(completion, row)

    batch = ["training.per_device_train_batch_size=8", "training.gradient_accumulation_steps=8"]
    found = try_rewards(rewarded(Own(call=slow, told=lambda r: r["answer"]), overrides=batch))
    assert found.passed
    assert [flag.text for flag in found.flags] == ["`own` takes 3.2 s per completion: 64 completions a step = 205 s"]
    (part,) = found.parts
    assert (part.seconds, part.slowest) == (pytest.approx(3.2), pytest.approx(9.0))


def test_what_is_scored_at_once_is_timed_at_once(
    rewarded: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    calls = []

    def scores(completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        calls.append(len(completions))
        clock.spend(2.4)
        return [exact().score(completion, row) for completion, row in zip(completions, rows, strict=True)]

    found = try_rewards(rewarded(AtOnce(call=scores, told=lambda r: r["answer"])))
    assert calls[0] == 24
    assert found.parts[0].seconds == pytest.approx(0.1)


def test_completions_per_step_are_those_of_the_run(rewarded: Callable[..., Recipe]) -> None:
    from llmkit.runs.prepare import plan

    batch = ["training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=6"]
    made = rewarded(exact(), overrides=batch)
    assert completions_per_step(made, plan(made)) == 24
    twice = rewarded(exact(), overrides=[*batch, "training.num_iterations=2"])
    assert completions_per_step(twice, plan(twice)) == 12


# --- what is made of a row -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("5", "0"),
        ("1,024.5 km", "6,579.0 xx"),
        ("<think>so</think> <answer>12</answer>", "<think>xx</think> <answer>67</answer>"),
        (r"\boxed{x + 3}", r"\boxed{y + 8}"),
        ('{"item": "tea", "count": 2}', '{"item": "xxx", "count": 7}'),
        ("#### 7", "#### 2"),
        ("--", "--"),
    ],
)
def test_the_form_stays_and_the_content_goes(text: str, other: str) -> None:
    assert form_of(text) == other


def test_the_prompt_is_what_the_user_said_last() -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert prompt_text(Row("", {"prompt": turns})) == "hi"
    assert prompt_text(Row("", {"prompt": "hello"})) == "hello"


def test_the_rows_own_answers_stand_in_where_no_reward_tells_one() -> None:
    rows = [Row("", {"answer": 5}), Row("", {"solution": "x"}), Row("", {"completion": [{"role": "assistant"}]})]
    told, source = golden_answers([Own()], rows)
    assert told == [["5", "x", None]]
    assert source.startswith("the rows' own answers")
    assert golden_answers([Own(), exact()], rows[:1]) == ([[None], ["5"]], "told by exact_match")
