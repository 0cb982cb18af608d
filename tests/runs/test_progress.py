"""The live line and the samples on the terminal: what is in the logs is what is shown."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from llmkit.runs.progress import Narrator, Speed, note, outcome, shortened, training_callback


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        ({"loss": 1.25, "grad_norm": 3.0}, "loss 1.2500 · 820 tokens/s"),
        (
            {"loss": 0.61, "rewards/accuracies": 0.75, "rewards/margins": 0.5, "logps/chosen": -3.0},
            "loss 0.6100 · accuracy 75% · margin 0.500 · 820 tokens/s",
        ),
        ({"loss": 0.6, "accuracy": 0.5, "margin": 0.1}, "loss 0.6000 · accuracy 50% · margin 0.100 · 820 tokens/s"),
        (
            {
                "loss": 0.0,
                "reward": 0.375,
                "kl": 0.0123,
                "frac_reward_zero_std": 0.5,
                "time/generate": 2.0,
                "time/score": 0.5,
                "time/learn": 1.25,
            },
            "reward 0.375 · KL 0.0123 · 50% of groups without signal · "
            "3.8 s/step (generate 2.0 + score 0.5 + learn 1.2) · 820 tokens/s",
        ),
        ({"loss": 0.0, "reward": None}, "loss 0.0000 · 820 tokens/s"),
    ],
)
def test_the_live_line_shows_what_is_logged(logs: dict[str, Any], line: str) -> None:
    assert note(logs, 820.4) == line


def test_an_unknown_speed_is_left_out() -> None:
    assert note({"loss": 1.0}, 0.0) == "loss 1.0000"


def test_the_outcome_is_that_of_the_headline() -> None:
    losses = [{"loss": 2.0}, {"eval_loss": 9.0}, {"loss": 1.5}, {"loss": 0.5}, {"train_loss": 1.3}]
    assert outcome(losses) == "loss 2.0000 -> 0.5000"
    rewards = [{"loss": 0.0, "reward": value} for value in (0.0, 0.5, 1.0)]
    assert outcome(rewards) == "reward 0.0000 -> 1.0000"
    many = [{"loss": 0.0, "reward": float(value)} for value in range(20)]
    assert outcome([*many, {"loss": 0.0}]) == "reward 0.5000 -> 18.5000 (means of 2 steps)"


def test_samples_are_printed_with_their_rewards() -> None:
    said = io.StringIO()
    sample = {
        "step": 3,
        "where": "rows.jsonl:7",
        "prompt": "what is\n[bold]2 + 3[/bold]?",
        "completion": "5",
        "rewards": {"exact_match": 1.0, "length": -0.25},
        "reward": 0.75,
        "advantage": 0.5,
    }
    Narrator(Console(file=said, width=200)).show_samples([sample])
    lines = [line.strip() for line in said.getvalue().splitlines()]
    assert lines[0].endswith("step 3 · rows.jsonl:7 · reward 0.75 (exact_match 1 + length -0.25)")
    assert lines[1:] == ["? what is [bold]2 + 3[/bold]?", "> 5"]


def test_long_texts_keep_their_end() -> None:
    text = "begin " + "x" * 500 + " the answer is 4"
    assert shortened("a\n  b") == "a b"
    assert shortened(text).startswith("begin xx")
    assert shortened(text).endswith(" the answer is 4")
    assert len(shortened(text)) < 260


def test_the_speed_goes_on_from_where_a_checkpoint_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 14.0])
    monkeypatch.setattr("llmkit.runs.progress.time.monotonic", lambda: next(clock))
    speed = Speed(5000.0)
    assert speed.measured({"num_tokens": 5400.0}) == {"tokens_per_second": 200.0}
    assert speed.measured({"loss": 1.0}) == {}
    assert speed.measured({"num_tokens": 5600.0}) == {"tokens_per_second": 100.0}


def test_a_step_without_a_reward_keeps_the_last_one_in_the_line() -> None:
    callback = training_callback(Narrator(), None)
    state = SimpleNamespace(max_steps=9, global_step=1, is_world_process_zero=True, num_input_tokens_seen=0)
    callback.on_train_begin(None, state, None)
    callback.on_log(None, state, None, logs={"loss": 0.0, "reward": 0.5, "kl": 0.1})
    callback.on_log(None, state, None, logs={"loss": 0.2, "kl": 0.3})
    assert callback.note == "reward 0.500 · KL 0.3000"
    callback.on_log(None, state, None, logs={"eval_loss": 0.2, "eval_reward": 0.9})
    assert callback.note == "reward 0.500 · KL 0.3000"
    callback.on_train_end(None, state, None)
