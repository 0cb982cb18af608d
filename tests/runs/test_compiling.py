from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.model.compiling import repeated_layers
from llmkit.planning import compiling as planning
from llmkit.recipe.recipe import Recipe
from llmkit.runs import compiling
from llmkit.runs.prepare import Prepared, prepare

KEY = "training.torch_compile"


@pytest.fixture
def prepared(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Prepared]:
    return lambda *overrides: prepare(recipe("data.eval=null", *overrides), output_dir=tmp_path / "out")


def layers_compiled(found: Prepared) -> list[bool]:
    return [layer._compiled_call_impl is not None for layer in repeated_layers(found.model)]


def test_a_short_run_is_not_compiled_nor_the_machine_measured(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "gemm_ceiling", lambda *_: pytest.fail("not for a run of a second"))
    found = prepared()
    assert found.plan[KEY] is False
    reason = next(d.reason for d in found.plan.decisions if d.key == KEY)
    assert "this run is expected to train for 0 s" in reason or "no C++ compiler" in reason or "headers" in reason
    assert layers_compiled(found) == [False, False]


def test_a_long_run_is_compiled(prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "missing", lambda _: None)
    monkeypatch.setattr("llmkit.model.compiling.compiler", lambda: "g++")
    monkeypatch.setattr(compiling, "SLOWEST", 1.0)
    short = compiling.expected_flops(prepared())
    assert short is not None
    # Twice what repays it, at half of the ceiling.
    seconds = 2 * planning.repaid_after()
    for factor, expected in ((1.01, True), (0.99, False)):
        monkeypatch.setattr(compiling, "gemm_ceiling", lambda *_, f=factor: short / seconds / f / compiling.SHARE)
        found = prepared()
        assert found.plan[KEY] is expected
        assert layers_compiled(found) == [expected, expected]


def test_epochs_and_steps_count_the_same_rows(prepared: Callable[..., Prepared]) -> None:
    by_steps = compiling.expected_flops(prepared("training.max_steps=12"))  # 4 rows each: 24 rows twice
    by_epochs = compiling.expected_flops(prepared("training.max_steps=-1", "training.num_train_epochs=2"))
    assert by_steps == by_epochs
    assert by_steps is not None
    assert by_steps > 0


@pytest.mark.parametrize(
    ("override", "expected"),
    [("torch_compile=true", True), ("torch_compile_backend=eager", True), ("torch_compile=false", False)],
)
def test_a_recipe_decides_and_transformers_compiles_nothing_itself(
    prepared: Callable[..., Prepared], override: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.model.compiling.compiler", lambda: "g++")
    found = prepared(f"training.{override}")
    assert found.plan.get(KEY) is None
    assert layers_compiled(found) == [expected, expected]
    assert not found.trainer.args.torch_compile
