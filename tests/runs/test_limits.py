"""Limits on a tiny model: where training ends, what is written, and that it goes on as if nothing had been."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from llmkit.errors import RecipeError, SetupError
from llmkit.recipe.recipe import Limits, Recipe
from llmkit.runs import limits
from llmkit.runs.folder import RunFolder
from llmkit.runs.limits import Watchman, require_left
from llmkit.runs.measuring import tokens_of
from llmkit.runs.progress import Narrator
from llmkit.runs.recovery.manifest import write_manifest
from llmkit.runs.report import print_result
from llmkit.runs.runner import run

Maker = Callable[..., Recipe]
SETTINGS = ("training.max_steps=6", "adapter.lora_dropout=0.1", "training.logging_steps=1")


def told(text: io.StringIO) -> Narrator:
    return Narrator(Console(file=text, width=1000))


def weights(folder: Path) -> bytes:
    return (folder / "model" / "adapter_model.safetensors").read_bytes()


def test_a_run_that_a_limit_stops_scores_exports_and_goes_on_bit_for_bit(recipe: Maker, tmp_path: Path) -> None:
    whole = (*SETTINGS, "evaluation=[{type: perplexity}]", "export=[{type: merged}]")
    straight = run(recipe(*whole), out=tmp_path / "straight")
    assert straight.stopped_by is None
    assert not (tmp_path / "straight" / "stopped.json").exists()
    tokens = tokens_of(tmp_path / "straight" / "checkpoints" / "checkpoint-6")
    assert tokens is not None

    out, text = tmp_path / "cut", io.StringIO()
    cut = run(recipe(*whole, f"limits.tokens={tokens // 2}"), out=out, narrator=told(text))
    assert cut.stopped_by == "limits.tokens"
    stopped = json.loads((out / "stopped.json").read_text())
    step = stopped["step"]
    assert (stopped["by"], stopped["limit"], stopped["steps"]) == ("limits.tokens", tokens // 2, 6)
    assert 2 <= step < 6
    assert len(cut.losses) == step
    # The step that reached it is the last one, and the one before had not.
    assert stopped["tokens"] >= tokens // 2
    assert (out / stopped["checkpoint"] / "trainer_state.json").is_file()
    assert stopped["checkpoint"] == f"checkpoints/checkpoint-{step}"
    assert tokens_of(out / stopped["checkpoint"]) == stopped["tokens"]
    assert cut.tuned[0].metrics["loss"] != cut.base[0].metrics["loss"]
    assert (cut.exported[0].path / "model.safetensors").is_file()
    assert f"stopped by limits.tokens ({tokens // 2:,}) after step {step} of 6" in text.getvalue()
    assert "--resume --set limits.tokens=" in text.getvalue()

    with pytest.raises(RecipeError, match="has learnt from .* tokens, and `limits.tokens` is") as caught:
        run(recipe(*whole, f"limits.tokens={tokens // 2}"), out=out, resume=True)
    assert "Raise it" in str(caught.value.remedy)

    resumed = run(recipe(*whole, f"limits.tokens={10 * tokens}"), out=out, resume=True)
    assert resumed.stopped_by is None
    assert resumed.losses == straight.losses
    assert weights(out) == weights(straight.folder)
    assert tokens_of(out / "checkpoints" / "checkpoint-6") == tokens
    assert not (out / "stopped.json").exists()
    assert "limits" in (out / "recipe.yaml").read_text()


def test_hours_count_per_session_and_only_limits_may_change(recipe: Maker, tmp_path: Path) -> None:
    out, text = tmp_path / "run", io.StringIO()
    mine = recipe(*SETTINGS, "limits.hours=1.0e-9")
    for step in (1, 2):
        result = run(mine, out=out, resume=step > 1, narrator=told(text))
        assert result.stopped_by == "limits.hours"
        assert json.loads((out / "stopped.json").read_text())["step"] == step
    assert f"`llmkit run {out / 'recipe.yaml'} --resume` continues" in text.getvalue()
    with pytest.raises(RecipeError, match="differs from the one"):
        run(recipe(*SETTINGS, "training.learning_rate=1e-3"), out=out, resume=True)
    done = run(recipe(*SETTINGS), out=out, resume=True)
    assert done.stopped_by is None
    assert len(done.losses) == 6
    printed = io.StringIO()
    for one in (result, done):
        print_result(one, Console(file=printed, width=200))
    assert printed.getvalue().count("stopped by: limits.hours; --resume continues") == 1


def test_what_is_reached_is_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: clock)
    gauge = cast(Any, SimpleNamespace(tokens=0))
    watchman = Watchman(Limits(hours=0.5, tokens=1000), gauge, began=100.0)
    assert not watchman.step(1, 9)
    clock, gauge.tokens = 100.0 + 1799, 999
    assert not watchman.step(2, 9)
    clock += 1
    assert not watchman.step(9, 9)
    assert watchman.step(3, 9)
    assert watchman.stopped is not None
    assert (watchman.stopped.by, watchman.stopped.limit, watchman.stopped.step) == ("limits.hours", 0.5, 3)
    gauge.tokens = 1000
    assert watchman.step(4, 9)
    assert watchman.stopped.by == "limits.tokens"


def test_without_limits_nothing_stops() -> None:
    watchman = Watchman(Limits(), cast(Any, SimpleNamespace(tokens=10**12)), began=-1e9)
    assert not watchman.step(1, 2)


def test_a_checkpoint_without_a_count_can_not_be_held_to_tokens(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    write_manifest(checkpoint)
    folder = RunFolder(tmp_path)
    require_left(folder, Limits(hours=1))
    with pytest.raises(SetupError, match="checkpoint-4 doesn't say how many tokens"):
        require_left(folder, Limits(tokens=5))


def test_a_damaged_checkpoint_is_not_asked_how_many_tokens_there_were(tmp_path: Path) -> None:
    for step, tokens in ((4, 40), (8, 80)):
        checkpoint = tmp_path / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "tokens.json").write_text(json.dumps({"tokens": tokens}))
        write_manifest(checkpoint)
    with pytest.raises(RecipeError, match="has learnt from 80 tokens, and `limits.tokens` is 50"):
        require_left(RunFolder(tmp_path), Limits(tokens=50))
    (checkpoint / "tokens.json").write_text('{"tok')
    require_left(RunFolder(tmp_path), Limits(tokens=50))


@pytest.mark.parametrize("wrong", ["hours=0", "hours=-1", "tokens=0", "hours=.inf", "tokens=1.5", "steps=3"])
def test_limits_are_positive_numbers(recipe: Maker, wrong: str) -> None:
    with pytest.raises(RecipeError, match="limits"):
        recipe(f"limits.{wrong}")


def test_an_hour_may_be_a_whole_number(recipe: Maker) -> None:
    assert recipe("limits.hours=2").limits == Limits(hours=2.0)
