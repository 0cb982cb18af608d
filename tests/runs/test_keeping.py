"""What is kept of a prompt's answers follows from their rewards; no prompt and no answer is lost in the account."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.sources import load_format
from llmkit.errors import RecipeError
from llmkit.runs.drawing import Sampled
from llmkit.runs.keeping import KEEPINGS, Rules, Tally, choose, way

RULES = Rules(limit=8)
ASKED = {"prompt": [{"role": "user", "content": "what is 2 plus 2?"}], "answer": "4"}


def said(text: str, reward: float = 0.0, *, clipped: bool = False) -> Sampled:
    return Sampled("sums.jsonl:3", "what is 2 plus 2?", text, 8 if clipped else 3, clipped, reward, {"x": reward})


def kept(name: str, answers: Sequence[Sampled], **rules: Any) -> list[str] | str:
    """Return the texts of what is kept, or why nothing is."""
    found = choose(way(name), answers, Rules(limit=8, **rules))
    return found if isinstance(found, str) else [answer.completion for answer in found]


# --- choosing --------------------------------------------------------------------------------------------------------


def test_the_best_is_the_first_of_those_that_earn_most() -> None:
    answers = [said("a", 0.5), said("b", 1.0), said("c", 1.0), said("d", -1.0)]
    assert kept("best", answers) == ["b"]
    assert kept("best", answers, threshold=1.0) == ["b"]
    assert kept("best", answers, threshold=1.5) == "no answer reached 1.5"


def test_rewards_that_round_reach_the_threshold() -> None:
    assert kept("best", [said("a", 0.1 + 0.2)], threshold=0.3) == ["a"]
    assert kept("best", [said("a", 0.7 + 0.1)], threshold=0.8) == ["a"]


def test_an_answer_that_was_cut_off_is_not_kept_unless_asked() -> None:
    answers = [said("right but", 1.0, clipped=True), said("wrong", 0.0)]
    assert kept("best", answers) == ["wrong"]
    assert kept("best", answers, threshold=1.0) == "cut off at 8 tokens"
    assert kept("best", answers, threshold=1.0, truncated=True) == ["right but"]
    assert kept("pairs", answers) == "cut off at 8 tokens"
    assert kept("pairs", answers, truncated=True) == ["right but", "wrong"]
    assert kept("all", answers) == ["wrong"]
    assert kept("all", answers[:1]) == "cut off at 8 tokens"


def test_an_answer_without_text_is_never_kept() -> None:
    answers = [said("", 1.0), said(" \n", 1.0)]
    for name in KEEPINGS:
        assert kept(name, answers) == "no answer has any text"
        assert kept(name, answers, truncated=True) == "no answer has any text"
    assert kept("pairs", [*answers, said("a", 0.5)]) == "no answer has any text", "one is left, and none to compare"
    assert kept("best", [*answers, said("a", 0.5)]) == ["a"]


def test_half_a_character_is_never_kept() -> None:
    answers = [said("caf\ufffd", 1.0), said("tea", 0.0)]
    assert kept("best", answers) == ["tea"]
    assert kept("best", answers, threshold=1.0) == "no answer reached 1"
    assert kept("pairs", answers) == kept("all", answers[:1], truncated=True) == "no answer is whole text"


def test_the_commonest_reason_is_told() -> None:
    cut = [said("a", 1.0, clipped=True), said("b", 1.0, clipped=True)]
    assert kept("best", [said("", 1.0), *cut]) == "cut off at 8 tokens"
    assert kept("best", [said("", 1.0), said(" ", 1.0), cut[0]]) == "no answer has any text"


def test_a_pair_is_the_best_against_the_worst() -> None:
    answers = [said("b", 0.5), said("a", 1.0), said("d", -1.0), said("c", 0.0)]
    assert kept("pairs", answers) == ["a", "d"]
    assert kept("pairs", answers, margin=2.0) == ["a", "d"]
    assert kept("pairs", answers, margin=2.1) == "the rewards differ by less than 2.1"
    assert kept("pairs", answers, threshold=1.0) == ["a", "d"]
    assert kept("pairs", answers, threshold=1.1) == "no answer reached 1.1"


def test_equal_rewards_are_no_pair() -> None:
    assert kept("pairs", [said("a", 0.3), said("b", 0.1 + 0.2)]) == "all answers earn the same"


def test_the_same_answer_counts_once() -> None:
    answers = [said("a", 1.0), said("a", 1.0), said("b", 0.0), said("a", 1.0)]
    assert kept("all", answers) == ["a", "b"]
    assert kept("pairs", [said("a", 1.0)] * 4) == "all answers are the same"
    # White space is part of what is learnt.
    assert kept("all", [said("a", 1.0), said(" a", 1.0)]) == ["a", " a"]


def test_an_unknown_way_is_named() -> None:
    with pytest.raises(RecipeError, match=r"must be one of best, pairs, all, not 'pair' \(did you mean 'pairs'\?\)"):
        way("pair")


# --- rows ------------------------------------------------------------------------------------------------------------


def row(name: str, example: dict[str, Any], *chosen: Sampled) -> dict[str, Any]:
    """Return the row as its format reads it."""
    keeping = KEEPINGS[name]
    made = keeping.row(example, chosen)
    read = load_format(keeping.text if isinstance(example["prompt"], str) else keeping.messages).convert(made)
    assert made["where"] == "sums.jsonl:3"
    return read


def test_a_conversation_is_learnt_from_its_best_answer() -> None:
    assert KEEPINGS["best"].row(ASKED, [said("4", 1.0)]) == {
        "messages": [{"role": "user", "content": "what is 2 plus 2?"}, {"role": "assistant", "content": "4"}],
        "reward": 1.0,
        "where": "sums.jsonl:3",
    }
    assert row("best", ASKED, said("4"))["messages"][-1] == {"role": "assistant", "content": "4"}


def test_what_the_assistant_says_in_the_prompt_is_not_learnt() -> None:
    turns = [("system", "be brief"), ("user", "1+1?"), ("assistant", "2"), ("user", "2+2?")]
    asked = {"prompt": [{"role": role, "content": text} for role, text in turns]}
    found = row("best", asked, said("4"))["messages"]
    assert [turn.get("weight") for turn in found] == [None, None, 0, None, None]
    assert "weight" not in asked["prompt"][2], "the prompt itself is as it was"


def test_a_string_is_continued() -> None:
    assert row("best", {"prompt": "2 + 2 ="}, said(" 4")) == {"prompt": "2 + 2 =", "completion": " 4"}
    pair = row("pairs", {"prompt": "2 + 2 ="}, said(" 4", 1.0), said(" 5", 0.25))
    assert pair == {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5", "margin": 0.75}


def test_a_pair_has_the_difference_as_its_margin() -> None:
    assert row("pairs", ASKED, said("4", 1.0), said("5", 0.25)) == {
        "prompt": ASKED["prompt"],
        "chosen": [{"role": "assistant", "content": "4"}],
        "rejected": [{"role": "assistant", "content": "5"}],
        "margin": 0.75,
    }


def test_scored_answers_are_read_as_best_against_worst() -> None:
    made = KEEPINGS["all"].row(ASKED, [said("5", 0.25), said("4", 1.0), said("6", 0.0)])
    assert (made["completions"], made["scores"]) == (["5", "4", "6"], [0.25, 1.0, 0.0])
    pair = load_format("scored").convert(made)
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("4", "6")


@pytest.mark.parametrize("name", list(KEEPINGS))
def test_tools_stay_with_the_prompt(name: str) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    chosen = [said("4", 1.0), said("5", 0.0)][: 1 if name == "best" else 2]
    assert row(name, {**ASKED, "tools": tools}, *chosen)["tools"] == tools


# --- the account -----------------------------------------------------------------------------------------------------

ANSWERS = st.lists(
    st.builds(
        said, st.sampled_from(["", "a", "b", " b", "\ufffd"]), st.sampled_from([0.0, 0.5, 1.0]), clipped=st.booleans()
    ),
    min_size=1,
    max_size=5,
)


@given(
    groups=st.lists(ANSWERS, max_size=6),
    name=st.sampled_from(list(KEEPINGS)),
    threshold=st.sampled_from([None, 0.5, 1.0]),
    margin=st.sampled_from([0.0, 0.75]),
    truncated=st.booleans(),
)
def test_every_prompt_and_answer_is_accounted_for(
    groups: list[list[Sampled]], name: str, threshold: float | None, margin: float, truncated: bool
) -> None:
    rules = Rules(8, threshold, margin, truncated)
    tally = Tally(prompts=len(groups))
    for group in groups:
        tally.sampled(group, level=0.5)
        found = choose(way(name), group, rules)
        if isinstance(found, str):
            tally.drop(found)
            continue
        tally.keep(found[: way(name).learnt])
        texts = [answer.completion for answer in found]
        assert len(texts) == len(set(texts))
        assert all(text.strip() and text != "\ufffd" for text in texts)
        assert truncated or not any(answer.clipped for answer in found)
        if name == "best":
            assert threshold is None or found[0].total >= threshold
        if name == "pairs":
            assert found[0].total - found[1].total >= max(margin, 0.5), "rewards here are multiples of a half"
    assert tally.done == tally.answered == len(groups)
    assert tally.answers == sum(map(len, groups))
    assert tally.passed == sum(answer.total >= 0.5 for group in groups for answer in group)
    assert Tally.from_dict(tally.to_dict()) == tally


def test_means_are_those_of_all_answers_and_of_what_is_learnt() -> None:
    tally = Tally(prompts=2)
    tally.sampled([said("a", 1.0), said("b", 0.0), said("b", 0.0, clipped=True)], level=1.0)
    tally.keep([said("a", 1.0)])
    tally.sampled([said("c", 0.5), said("d", 0.0), said("e", 0.0)], level=1.0)
    tally.drop("no answer reached 1")
    assert (tally.mean_reward, tally.mean_kept_reward) == (0.25, 1.0)
    assert (tally.passed, tally.repeated, tally.clipped, tally.tokens) == (1, 1, 1, 23)
    assert Tally().mean_reward == Tally().mean_kept_reward == Tally().tokens_per_second == 0


def test_an_account_that_does_not_sum_is_refused() -> None:
    tally = Tally(prompts=1)
    tally.drop("no answer has any text")
    tally.drop("no answer has any text")
    with pytest.raises(AssertionError):
        tally.to_dict()
