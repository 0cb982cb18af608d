"""`llmkit diff`: a planted difference is named with both values, and so is the step at which the curves part."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmkit.errors import SetupError
from llmkit.runs.folder import RunFolder
from llmkit.runs.proving.differences import Curve, Difference, compare, hardware_of, relative, stage

if TYPE_CHECKING:
    from conftest import Made

Writer = Callable[..., Path]


def keys(found: Difference, section: str) -> dict[str, tuple[str | None, str | None]]:
    return {entry.key: (entry.a, entry.b) for entry in found.entries if entry.section == section}


# --- planted differences in real runs --------------------------------------------------------------------------------


def test_a_run_does_not_differ_from_its_copy(made: Made, copied: Path) -> None:
    found = compare(made.finished, copied)
    assert found.entries == ()
    assert found.parted == []
    assert found.equal["settings"] > 100
    assert found.equal["data"] == found.equal["code"] == 1
    assert found.equal["rows"] == 2
    assert all(score.same for score in found.scores)
    assert found.stages == ("finished, 4 steps", "finished, 4 steps")


def test_another_learning_rate_is_named_and_seen_from_the_first_update_on(made: Made, tmp_path: Path) -> None:
    from llmkit.runs.runner import run

    run(made.recipe("training.learning_rate=2.0e-2"), out=tmp_path / "other")
    found = compare(made.finished, tmp_path / "other")
    assert [(entry.section, entry.key) for entry in found.entries] == [("settings", "training.learning_rate")]
    assert (found.entries[0].a, found.entries[0].b, found.entries[0].by) == ("0.01", "0.02", "recipe")
    assert found.headline is not None
    assert found.headline.name == "loss"
    assert found.headline.steps == [1, 2, 3, 4]
    # The first step's loss is that of the untouched model.
    assert found.headline.parts() == 2
    assert found.curves["learning_rate"].parts() == 1
    [loss] = [score for score in found.scores if score.name == "perplexity.loss"]
    assert loss.base[0] == loss.base[1]
    assert loss.tuned[0] != loss.tuned[1]


def test_another_row_and_seed_are_named(made: Made, tmp_path: Path) -> None:
    from llmkit.runs.runner import run

    other = made.change_row(3, "it is blue")
    settings = ("training.max_steps=1", "training.seed=43", f"data.train.0.path={other}", "export=[]")
    run(made.recipe(*settings), out=tmp_path / "other")
    found = compare(made.finished, tmp_path / "other")
    assert set(keys(found, "settings")) >= {"training.seed", "data.train.0.path", "training.max_steps", "export.0.type"}
    assert keys(found, "settings")["training.seed"] == ("42", "43")
    assert keys(found, "settings")["export.0.type"] == ('"merged"', None)
    data = keys(found, "data")
    assert data["rows.jsonl"][1] is None
    assert data["others.jsonl"][0] is None
    assert set(keys(found, "rows")) == {"train", "eval"}
    assert keys(found, "weights") == keys(found, "versions") == keys(found, "hardware") == {}


def test_an_unfinished_run_is_compared_as_far_as_it_goes(made: Made) -> None:
    found = compare(made.finished, made.cut)
    assert found.entries == ()
    assert found.stages[1].startswith("unfinished: 2 of 4 steps")
    assert found.headline is not None
    assert found.headline.steps == [1, 2]
    assert found.parted == []
    assert {score.tuned[1] for score in found.scores} == {None}


def test_what_is_no_run_is_refused(made: Made, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SetupError, match="is not a run folder"):
        compare(made.finished, tmp_path)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_the_reward_is_the_curve_that_training_is_about(by_hand: Writer) -> None:
    a = by_hand("a", {"step": 1, "reward": 0.5, "loss": 0.0, "time/score": 1})
    b = by_hand("b", {"step": 1, "reward": 0.75, "loss": 0.0, "time/score": 2, "train_runtime": 3})
    c = by_hand("c", {"step": 1, "reward": 0.75, "loss": 0.25, "time/score": 2})
    assert compare(a, b).headline is None  # the line of b is a summary
    found = compare(a, c)
    assert found.headline is not None
    assert found.headline.name == "reward"
    assert {curve.name for curve in found.parted} == {"reward", "loss"}
    assert found.headline.largest == pytest.approx(0.25 / 0.75)
    assert "time/score" not in found.curves


def test_a_run_with_rewards_and_one_without_are_compared_by_loss(by_hand: Writer) -> None:
    a = by_hand("a", {"step": 1, "reward": 0.5, "loss": 0.0})
    b = by_hand("b", {"step": 1, "loss": 0.0})
    found = compare(a, b).headline
    assert found is not None
    assert found.name == "loss"


def test_who_decided_a_setting_is_told(by_hand: Writer) -> None:
    a = 'model.dtype: "float32"  # planner: no bf16  # here\nx.y: [1, "# "]  # r.yaml:3\nz: 1  # SFTConfig default\n'
    b = 'model.dtype: "bfloat16"  # r.yaml:2\nx.y: [1, "# "]  # other.yaml:9\nz: 2  # --set z=\n2\n'
    found = compare(by_hand("a", resolved=a), by_hand("b", resolved=b))
    assert [(entry.key, entry.a, entry.b, entry.by) for entry in found.entries] == [
        ("model.dtype", '"float32"', '"bfloat16"', "planner / recipe"),
        ("z", "1", "2", "library / recipe"),
    ]
    assert found.equal["settings"] == 1


def test_versions_threads_and_commits_are_compared(by_hand: Writer) -> None:
    one = {"packages": {"torch": "2.13", "rensa": None}, "python": "3.11", "git": "a" * 40, "git_clean": True}
    two = {"packages": {"torch": "2.14", "rensa": None}, "python": "3.11", "git": "a" * 40, "git_clean": False}
    a = by_hand("a", lock={**one, "threads": 2})
    b = by_hand("b", lock={**two, "threads": 8})
    found = compare(a, b)
    assert keys(found, "versions") == {"torch": ("2.13", "2.14"), "git": ("a" * 40, "a" * 40 + " with changes")}
    assert keys(found, "hardware") == {"threads": ("2", "8")}
    assert found.equal["versions"] == 1


def test_scores_of_the_same_kind_are_kept_apart(by_hand: Writer) -> None:
    def scored(*values: float) -> list[dict[str, Any]]:
        return [{"evaluation": {"type": "f1"}, "base": {"metrics": {"f1": value}}} for value in values]

    a = by_hand("a", evaluation=scored(0.1, 0.2))
    b = by_hand("b", evaluation=scored(0.1, 0.3), speed={"per_second": 10, "unit": "tokens", "seconds_per_step": 2})
    found = compare(a, b)
    assert [(score.name, score.base, score.same) for score in found.scores] == [
        ("f1.f1", (0.1, 0.1), True),
        ("f1.f1'", (0.2, 0.3), False),
    ]
    assert found.speeds == (None, "10 tokens/s (2 s/step)")


def test_broken_files_are_as_good_as_none(by_hand: Writer) -> None:
    a, b = by_hand("a"), by_hand("b")
    for name in ("plan.json", "speed.json", "evaluation.json", "lock.json"):
        (b / name).write_text("[1, ", encoding="utf-8")
    (b / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n[]\n{"step": 2, "lo', encoding="utf-8")
    found = compare(a, b)
    assert found.entries == ()
    assert found.curves["loss"].b == {1: 2.0}


def test_how_far_a_run_has_come(by_hand: Writer) -> None:
    assert stage(RunFolder(by_hand("a"))) == "unfinished: nothing is trained yet"
    lines = [{"step": 3, "loss": 1.0}]
    assert stage(RunFolder(by_hand("b", *lines))) == "unfinished: 3 steps logged, no checkpoint"
    stopped = by_hand("c", *lines, evaluation=[])
    (stopped / "stopped.json").write_text('{"by": "limits.hours", "step": 3, "steps": 9000}', encoding="utf-8")
    assert stage(RunFolder(stopped)) == "stopped by limits.hours after step 3 of 9,000"


# --- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "scale", "expected"),
    [
        (2.0, 2.0, 0.0, 0.0),
        (2.0, 1.0, 0.0, 0.5),
        (0.0, 1e-9, 1.0, 1e-9),
        (math.nan, math.nan, 0.0, 0.0),
        (math.nan, 1.0, 0.0, math.inf),
        (math.inf, math.inf, 0.0, 0.0),
        (math.inf, 1.0, 0.0, math.inf),
    ],
)
def test_relative_differences(a: float, b: float, scale: float, expected: float) -> None:
    assert relative(a, b, scale) == expected
    assert relative(b, a, scale) == expected


def test_curves_part_at_a_step_and_visibly_at_another() -> None:
    curve = Curve("loss", {1: 1.0, 2: 1.0, 3: 1.0, 9: 5.0}, {1: 1.0, 2: 1.0 + 1e-7, 3: 0.5, 8: 1.0})
    assert curve.steps == [1, 2, 3]
    assert curve.parts() == 2
    assert curve.parts(0.01) == 3
    assert curve.parts(0.6) is None
    assert curve.largest == pytest.approx(0.5)


def test_hardware_is_told_in_words() -> None:
    assert hardware_of({"kind": "cpu", "memory_bytes": 2**30, "attention": []}) == {"kind": "cpu", "memory": "1.0 GiB"}
