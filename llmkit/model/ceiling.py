"""The ceiling of a device, measured: how fast it multiplies square matrices when nothing else is asked of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SIZES = (256, 512, 1024, 2048, 4096)
"""Sides of the square matrices to choose from. Larger ones than the largest that fits in the time are no faster."""

PRODUCT_SECONDS = 0.04
"""A product should last no longer: then several fit in the time."""

BUDGET_SECONDS = 0.2
"""Products are repeated for this long."""


def gemm_ceiling(device: torch.device | str, dtype: torch.dtype) -> float:
    """Return the FLOP/s of `device` for matrix products in `dtype`: the median of several, in less than 0.5 s.

    The threads and precisions in force (`torch.get_num_threads()`, TF32) are measured, and what other programs leave
    of the machine. A CPU without bf16 units emulates bfloat16 at a third of float32's speed: that is its ceiling in
    that type. The random state of the run is not touched.
    """
    import torch

    place = torch.device(device)
    with torch.inference_mode(), torch.autocast(place.type, enabled=False):
        multiply = _product(place, dtype, SIZES[0])
        size, first = SIZES[0], multiply()
        for smaller, larger in pairwise(SIZES):
            if first * (larger / smaller) ** 3 > PRODUCT_SECONDS or not _has_room(place, larger, dtype):
                break
            multiply = _product(place, dtype, larger)
            size, first = larger, multiply()
        found, began = [first], time.perf_counter()
        while len(found) < 3 or time.perf_counter() - began < BUDGET_SECONDS:
            found.append(multiply())
    return 2 * size**3 / median(found)


def _has_room(place: torch.device, size: int, dtype: torch.dtype) -> bool:
    """Whether three matrices take at most a tenth of what is free: training beside them must not run out of memory."""
    import torch

    if place.type != "cuda":
        return True
    free = torch.cuda.mem_get_info(place)[0]
    free += torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
    return 3 * size * size * dtype.itemsize <= free / 10


def _product(place: torch.device, dtype: torch.dtype, size: int) -> Callable[[], float]:
    """Return what multiplies two matrices of `size` x `size` and returns the seconds; it has been called once."""
    import torch

    # A generator of its own: the run's must not move. Zeros would be faster on a GPU than any weights are.
    generator = torch.Generator(place).manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator, device=place).to(dtype) for _ in range(2))
    # The first product sets up kernels and memory.
    product = torch.mm(left, right)

    def multiply() -> float:
        _wait_for(place)
        began = time.perf_counter()
        torch.mm(left, right, out=product)
        _wait_for(place)
        return time.perf_counter() - began

    return multiply


def _wait_for(place: torch.device) -> None:
    import torch

    if place.type != "cpu":
        torch.accelerator.synchronize(place)
