"""The measured speed: medians, shares and projections by hand, and what a run says and writes of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from rich.console import Console

from llmkit.model.passes import Passed
from llmkit.planning.hardware import CATALOGUE
from llmkit.planning.speed import Matrices, needed_flops
from llmkit.recipe.recipe import Recipe
from llmkit.runs import measuring
from llmkit.runs.folder import RunFolder
from llmkit.runs.measuring import (
    Gauge,
    Measured,
    Tempo,
    Workload,
    flops,
    measured,
    projection,
    seconds_left,
    slow_line,
    tokens_of,
)
from llmkit.runs.progress import Narrator
from llmkit.runs.runner import run

Maker = Callable[..., Recipe]
MATRICES = Matrices(frozen=100, trained=10, head=7, head_trained=False, layers=2, width=4)
WORK = Workload(MATRICES, scored=0.5, tokens=600, completions=None)


def tempo_of(*steps: tuple[float, int]) -> Tempo:
    """Four steps of setting up, then `steps` of (seconds, tokens); each token attends to 2."""
    tempo = Tempo()
    for seconds, tokens in [(99.0, 1)] * 4 + list(steps):
        tempo.add(seconds, Passed(tokens, 2 * tokens))
    return tempo


def test_the_first_steps_do_not_count_and_one_hiccup_does_not_either() -> None:
    tempo = tempo_of((1.0, 10), (2.0, 10), (90.0, 10))
    assert tempo.settled == 3
    assert tempo.seconds_per_step() == 2.0
    assert tempo.tokens_per_second() == 5.0
    assert tempo.passed == Passed(30, 60)


def test_the_share_is_needed_work_over_the_ceiling() -> None:
    found = measured(tempo_of((2.0, 10), (2.0, 10), (2.0, 10)), WORK, "cpu", "float32", ceiling=1e5)
    assert found is not None
    # 5 tokens a second, half of them scored, 2 pairs a token.
    needed = needed_flops(MATRICES, tokens=5, scored=2.5, pairs=10)
    assert found.flops_per_second == pytest.approx(needed)
    assert found.share == pytest.approx(needed / 1e5)
    assert (found.unit, found.per_second, found.seconds_per_step, found.steps) == ("tokens", 5.0, 2.0, 3)


def test_passes_of_a_reference_count_without_the_adapter() -> None:
    learnt, read = WORK.flops(Passed(10, 20)), WORK.flops(Passed(10, 20, 10, 20)) - WORK.flops(Passed(10, 20))
    assert learnt == 10 * (4 * 100 + 6 * 10) + 5 * 4 * 7 + 20 * 12 * 8
    assert read == 10 * 2 * 100 + 5 * 2 * 7 + 20 * 4 * 8


def test_methods_that_sample_are_measured_in_completions() -> None:
    work = Workload(MATRICES, 0.5, None, completions=12.0)
    # Two of three steps learn again from the same completions: the mean is what the run goes by.
    found = measured(tempo_of((10.0, 9), (1.0, 9), (1.0, 9)), work, "cpu", "float32", None)
    assert found is not None
    assert (found.unit, found.seconds_per_step, found.per_second, found.share) == ("completions", 4.0, 3.0, None)
    assert found.sentence() == "3 completions/s (4 s/step)"


def test_a_method_whose_passes_are_not_seen_is_measured_in_steps() -> None:
    found = measured(tempo_of((0.5, 0)), WORK, "cuda", "bfloat16", None)
    assert found is not None
    assert found.sentence() == "0.5 s/step"


def test_too_few_steps_give_no_figure() -> None:
    assert measured(tempo_of(), WORK, "cpu", "float32", 1.0) is None


def test_the_words() -> None:
    speed = Measured(16, 1.5, "tokens", 141.2, "cpu", "float32", 7.54e10, 1.3e11)
    assert speed.sentence() == "141 tokens/s, 58% of the 130 GFLOP/s that this CPU reaches in float32"
    line = projection(speed, 480, 3725.0, datetime(2026, 11, 22, 13, 30))
    assert line == f"{speed.sentence()}; 480 steps left take 1:02:05, until about 14:32"
    line = projection(speed, 1, 3725.0, datetime(2026, 11, 22, 23, 30))
    assert line.endswith("; 1 step left take 1:02:05, until about 2026-11-23 00:32")
    assert flops(6.4e14) == "640 TFLOP/s"
    assert flops(8.5e11) == "850 GFLOP/s"


def test_the_time_left_is_that_of_mean_steps_and_not_of_the_long_rows_that_come_first() -> None:
    # An epoch of 600 tokens in 60 steps: 10 tokens a step, although the first steps had 40.
    found = measured(tempo_of((4.0, 40)), WORK, "cpu", "float32", None)
    assert found is not None
    assert seconds_left(found, WORK, 30, 60) == pytest.approx(30 * 1.0)
    assert seconds_left(found, WORK, 30, None) == pytest.approx(30 * 4.0)


def test_twenty_slow_steps_in_a_row_are_noticed_once() -> None:
    tempo = tempo_of(*[(1.0, 10)] * 16)
    assert not tempo.turned_slow()

    def after(count: int, seconds: float, tokens: int) -> int:
        noticed = 0
        for _ in range(count):
            tempo.add(seconds, Passed(tokens, tokens))
            noticed += tempo.turned_slow()
        return noticed

    assert after(19, 2.1, 10) == 0
    assert after(1, 1.0, 10) == 0
    # Long rows take longer, and short ones have fewer tokens: neither is slow.
    assert after(30, 2.1, 20) == 0
    assert after(30, 1.0, 4) == 0
    assert after(60, 2.1, 10) == 1
    assert tempo.slow_speed() == (2.1, 1.0)


def test_what_slows_a_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.os, "getloadavg", lambda: (5.23, 0.0, 0.0))
    line = slow_line(2.1, 1.0, CATALOGUE["cpu"])
    assert line.startswith("the last 20 steps took 2.1 s each, and the first ones 1 s: another program may take the")
    assert "(load 5.2 on 8)" in line
    assert "another program may use Tesla T4" in slow_line(2.1, 1.0, CATALOGUE["t4"])


@pytest.fixture
def ceiling(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the measured ceiling; returns what it was asked for."""
    asked: list[Any] = []

    def measure(device: torch.device, dtype: torch.dtype) -> float:
        asked.append((device.type, dtype))
        return 1e12

    monkeypatch.setattr(measuring, "gemm_ceiling", measure)
    return asked


def test_a_run_says_its_speed_after_twenty_steps_and_at_the_end(
    recipe: Maker, rows_file: Path, tmp_path: Path, ceiling: list[Any]
) -> None:
    text = io.StringIO()
    mine = recipe("training.max_steps=22", "training.eval_strategy=steps", "training.eval_steps=10")
    result = run(mine, out=tmp_path / "run", narrator=Narrator(Console(file=text, width=1000)))
    (line,) = [line for line in text.getvalue().splitlines() if "steps left" in line]
    assert "tokens/s, " in line
    assert "of the 1,000 GFLOP/s that this CPU reaches in float32; 2 steps left take 0:0" in line
    assert ceiling == [("cpu", torch.float32)]

    speed = result.speed
    assert speed is not None
    assert speed.steps == 18
    kept = json.loads((result.folder / "speed.json").read_text())
    assert kept == speed.to_dict()
    assert kept["share"] == pytest.approx(kept["flops_per_second"] / 1e12)
    (last,) = [line for line in text.getvalue().splitlines() if "trained 22 steps" in line]
    assert last.endswith(speed.sentence())
    # What the trainer itself counts, evaluations left out.
    counted = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    seen = max(entry.get("num_tokens", 0) for entry in counted)
    assert tokens_of(result.folder / "checkpoints" / "checkpoint-22") == seen


def test_a_short_run_says_nothing_and_a_resumed_one_counts_on(
    recipe: Maker, tmp_path: Path, ceiling: list[Any]
) -> None:
    settings, text = ("training.max_steps=8", "training.save_steps=4"), io.StringIO()
    out = tmp_path / "run"
    first = run(recipe(*settings, "limits.hours=1.0e-9"), out=out, narrator=Narrator(Console(file=text, width=1000)))
    assert first.speed is None
    assert "tokens/s," not in text.getvalue()
    assert ceiling == []
    assert not (out / "speed.json").exists()
    resumed = run(recipe(*settings), out=out, resume=True)
    assert resumed.speed is not None
    assert resumed.speed.steps == 7 - 4
    whole = run(recipe(*settings), out=tmp_path / "whole")
    last = "checkpoints/checkpoint-8"
    assert tokens_of(out / last) == tokens_of(whole.folder / last)


def test_pairs_are_counted_with_their_reference(
    recipe: Maker, rows_file: Path, tmp_path: Path, ceiling: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"{i} is", "chosen": f" number {i}", "rejected": " none"} for i in range(24)]
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    taken: list[Passed] = []
    monkeypatch.setattr(Tempo, "add", lambda self, seconds, passed: taken.append(passed))
    run(recipe("data.train.0.format=preference", "method.type=dpo"), out=tmp_path / "run")
    assert len(taken) == 3
    for passed in taken:
        assert passed.tokens > 0
        assert (passed.read_tokens, passed.read_pairs) == (passed.tokens, passed.pairs)


def test_sampling_runs_are_measured_in_completions(
    grpo_file: Callable[..., Path], tmp_path: Path, ceiling: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.recipe.loading import load_recipe
    from llmkit.rewards.exact_match import ExactMatch

    monkeypatch.setattr(ExactMatch, "score", lambda self, completion, row: sum(c.isalpha() for c in completion) / 10)

    rows = [{"prompt": f"{i} is", "answer": str(i)} for i in range(8)]
    path = grpo_file("sums", rows, max_steps=5, max_completion_length=4)
    result = run(load_recipe(path), out=tmp_path / "run")
    assert result.speed is not None
    assert result.speed.unit == "completions"
    assert result.speed.per_second == pytest.approx(8 / result.speed.seconds_per_step)
    assert ceiling == []
    # Prompts and completions, learnt from once.
    assert (tokens_of(tmp_path / "run" / "checkpoints" / "checkpoint-5") or 0) > 5 * 8


def test_what_lies_between_steps_is_not_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(measuring.time, "monotonic", lambda: clock)
    gauge = Gauge.__new__(Gauge)
    gauge.tempo, gauge.tokens, gauge.folder = Tempo(), 0, RunFolder(tmp_path)
    gauge.passes = cast(Any, SimpleNamespace(take=lambda: Passed(10, 10)))
    gauge.begin(None)
    clock = 3.0
    gauge.step(1, 100, None)
    clock = 50.0
    gauge.skip()
    clock = 52.0
    gauge.step(2, 100, None)
    assert gauge.tempo.seconds == [3.0, 2.0]
    assert gauge.tokens == 20
