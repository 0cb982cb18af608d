"""The measured ceiling: its arithmetic with a clock that is given, its choice of a size, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmkit.model import ceiling
from llmkit.model.ceiling import gemm_ceiling


def pretend(monkeypatch: pytest.MonkeyPatch, rate: float) -> list[int]:
    """Have products take as long as a device of `rate` FLOP/s needs; returns the sizes that are measured."""
    sizes: list[int] = []
    clock = 0.0

    def product(place: Any, dtype: Any, size: int) -> Callable[[], float]:
        def multiply() -> float:
            nonlocal clock
            sizes.append(size)
            clock += 2 * size**3 / rate
            return 2 * size**3 / rate

        return multiply

    monkeypatch.setattr(ceiling, "_product", product)
    monkeypatch.setattr(ceiling.time, "perf_counter", lambda: clock)
    return sizes


@pytest.mark.parametrize(("rate", "size"), [(1e8, 256), (1e10, 512), (1e11, 1024), (1e12, 2048), (1e15, 4096)])
def test_the_largest_product_that_is_short_enough_is_measured(
    monkeypatch: pytest.MonkeyPatch, rate: float, size: int
) -> None:
    sizes = pretend(monkeypatch, rate)
    assert gemm_ceiling("cpu", torch.float32) == pytest.approx(rate)
    assert sizes[-1] == size
    assert sizes.count(size) >= 3


def test_the_median_counts_and_not_one_slow_product(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.0, 1.0, 1.0, 50.0, 1.0])
    clock = iter([0.0, 0.0, 9.0])
    monkeypatch.setattr(ceiling, "_product", lambda *_: lambda: next(seconds))
    monkeypatch.setattr(ceiling.time, "perf_counter", lambda: next(clock))
    assert gemm_ceiling("cpu", torch.float32) == 2 * 256**3


def test_a_real_device_is_measured_and_the_random_state_stays() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = gemm_ceiling("cpu", torch.float32)
    assert torch.equal(before, torch.get_rng_state())
    assert 1e8 < found < 1e14


def test_little_free_memory_of_a_gpu_means_a_small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (20_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda place: 50_000_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda place: 10_000_000)
    # A tenth of 60 MB takes three bfloat16 matrices of 1000 x 1000.
    place = torch.device("cuda")
    assert ceiling._has_room(place, 1000, torch.bfloat16)
    assert not ceiling._has_room(place, 1001, torch.bfloat16)
