"""Which answers are on the page, and beside which others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmkit.runs.report_answers import SHOWN, regressions, rollouts, samples
from llmkit.runs.reported import Answer, Evaluated, Ledger, Regression, Reported, Sampled, Scores


def run(*evaluations: Evaluated) -> Reported:
    return Reported(
        path=Path("run"),
        stage="finished",
        recipe="",
        plan={},
        settings={},
        facts={},
        curves={},
        train_seconds=None,
        evaluations=evaluations,
        gates=(),
        regressions=(),
        sampled=(),
        ledger=Ledger(),
        lengths=None,
        findings=None,
        needs=None,
        speed=None,
        sessions=(),
        exports=(),
        unread=(),
    )


def evaluated(name: str, base: list[str], tuned: list[str]) -> Evaluated:
    def scores(answers: list[str]) -> Scores:
        return Scores(
            {}, len(answers), tuple(Answer(f"a:{i}", f"p{i}", "four", text) for i, text in enumerate(answers))
        )

    return Evaluated({"type": name}, scores(base), scores(tuned))


def test_answers_that_evaluations_share_are_shown_once() -> None:
    same = ["two", "five"], ["four", "five"]
    shelf = samples(
        [run(evaluated("exact_match", *same), evaluated("f1", *same), evaluated("f1", ["x", "y"], ["z", "z"]))]
    )
    assert shelf.more == ()
    assert [card.title for card in shelf.first] == ["exact_match", "exact_match", "f1", "f1"]
    first, second, *_ = shelf.first
    assert [said.heading for said in first.answers] == ["base", "tuned"]
    assert [said.right for said in first.answers] == [False, True]
    assert (first.note, second.note) == ("hardly a word in common", "the same answer")


def test_a_run_without_tuned_answers_shows_those_of_the_base() -> None:
    base = replace(evaluated("exact_match", ["two"], []), tuned=None)
    [card] = samples([run(base)]).first
    assert [said.heading for said in card.answers] == ["base"]


def test_of_several_runs_the_prompts_in_common_are_shown() -> None:
    one = run(evaluated("exact_match", ["b"], ["it is four"]))
    two = run(evaluated("exact_match", ["b", "b"], ["it is five", "only here"]))
    [card] = samples([one, two]).first
    assert [said.run for said in card.answers] == [0, 1]
    assert [[piece.text for piece in said.text.pieces if piece.own] for said in card.answers] == [["four"], ["five"]]


def test_the_best_and_the_worst_of_three_steps_are_shown() -> None:
    rewards = {1: [0.5, 0.1, 0.3], 2: [0.2], 3: [0.4, 0.6], 4: [0.9], 5: [1.0, 0.7]}
    sampled = tuple(
        Sampled(step, "a", "p", f"{reward}", reward, {"only": reward})
        for step, many in rewards.items()
        for reward in many
    )
    found = rollouts(replace(run(), sampled=sampled))
    assert [(one.step, one.reward) for one in found] == [(1, 0.5), (1, 0.1), (3, 0.6), (3, 0.4), (5, 1.0), (5, 0.7)]
    assert (found[1].share, found[4].share) == (0.0, 1.0)
    assert found[0].parts == ()
    assert rollouts(run()) == []


def test_regressions_mark_what_has_changed() -> None:
    answers = ("it is four", "it is four", "it is five")
    many = tuple(Regression("exact_match", None, f"a:{i}", "p", *answers) for i in range(9))
    shelf = regressions(replace(run(), regressions=many))
    assert len(shelf.first) == SHOWN
    assert len(shelf.more) == 9 - SHOWN
    assert [(said.heading, said.right) for said in shelf.first[0].answers] == [("base", None), ("tuned", None)]
    assert [piece.text for piece in shelf.first[0].answers[1].text.pieces if piece.own] == ["five"]
