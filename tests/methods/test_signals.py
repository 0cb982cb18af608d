"""Call-outs while a policy learns, on logs written by hand."""

from __future__ import annotations

from llmkit.methods._signals import Signals


def log(**figures: float) -> dict[str, float | None]:
    return {"frac_reward_zero_std": 0.0, "reward": 0.5, "entropy": 2.0, "completions/clipped_ratio": 0.0, **figures}


SILENT = {"frac_reward_zero_std": 1.0}


def observed(signals: Signals, logs: list[dict[str, float | None]]) -> list[list[str]]:
    return [signals.observe(step, entry) for step, entry in enumerate(logs, start=1)]


def test_lost_signal_is_said_at_the_third_step_and_once() -> None:
    said = observed(Signals(group=4), [log(**SILENT, reward=0.0)] * 6)
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 0, 0]
    assert said[2][0].startswith("3 steps in a row without any signal: all 4 answers to each prompt got the same")
    assert "(mean 0)" in said[2][0]
    assert "No answer earned anything" in said[2][0]
    assert "llmkit preflight RECIPE" in said[2][0]


def test_two_silent_steps_are_chance() -> None:
    logs = [log(**SILENT), log(**SILENT), log(), log(**SILENT), log(**SILENT), log(frac_reward_zero_std=0.99)]
    assert observed(Signals(group=4), logs) == [[]] * 6


def test_lost_signal_is_said_again_after_recovery() -> None:
    said = observed(Signals(group=4), [log(**SILENT)] * 4 + [log()] + [log(**SILENT)] * 4)
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 0, 0, 0, 1, 0]


def test_advice_depends_on_what_all_answers_earned() -> None:
    def advice(reward: float, full: float | None) -> str:
        return observed(Signals(group=2, full=full), [log(**SILENT, reward=reward)] * 3)[2][0]

    assert "No answer earned anything" in advice(0.0, 1.0)
    assert "Every answer earned everything" in advice(1.5, 1.5)
    assert "don't tell the answers to a prompt apart" in advice(0.5, 1.0)
    assert "don't tell the answers to a prompt apart" in advice(1.0, None)


def test_a_log_of_several_steps_counts_as_several() -> None:
    signals = Signals(group=4)
    lines = signals.observe(10, log(**SILENT))
    assert lines[0].startswith("10 steps in a row")


def test_steps_that_learn_again_from_the_same_answers_count() -> None:
    again = {"entropy": 2.0, "kl": 0.1}
    said = observed(Signals(group=4), [log(**SILENT), again, log(**SILENT), again, log(**SILENT)])
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 0]


def test_answers_that_are_cut_off() -> None:
    logs = [log(**{"completions/clipped_ratio": share}) for share in (0.6, 0.5, 0.6, 0.7, 0.8, 0.9)]
    said = observed(Signals(group=4, max_length=64), logs)
    assert [len(lines) for lines in said] == [0, 0, 0, 0, 1, 0]
    assert said[4][0].startswith("80% of the answers are cut off at `training.max_completion_length` (64 tokens)")


def test_entropy_that_falls_below_a_tenth() -> None:
    said = observed(Signals(group=4), [log(entropy=value) for value in (2.0, 0.21, 0.19, 0.1)])
    assert [len(lines) for lines in said] == [0, 0, 1, 0]
    assert said[2][0].startswith("the entropy fell from 2 to 0.19 nats per token")


def test_tools_that_fail() -> None:
    failing = log(**{"tools/failure_frequency": 0.75, "tools/call_frequency": 1.0})
    silent = log(**{"tools/failure_frequency": 0.0, "tools/call_frequency": 0.0})
    said = observed(Signals(group=4), [silent, failing, failing, failing, failing])
    assert [len(lines) for lines in said] == [0, 0, 0, 1, 0]
    assert said[3][0].startswith("75% of the tool calls failed")


def test_logs_of_evaluation_and_of_the_end_say_nothing() -> None:
    signals = Signals(group=4)
    for step in range(1, 9):
        assert signals.observe(step, {"eval_reward": 0.0, "train_runtime": 3.0}) == []
