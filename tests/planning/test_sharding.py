"""What several devices divide, what they send, and what does not work: against the tables of the ZeRO paper."""

from __future__ import annotations

import pytest

from llmkit.planning.sharding import TYPES, Sharding, ways


def states(way: Sharding, parameters: float) -> float:
    """Bytes per device of Adam in mixed precision: 2 for weights, 2 for gradients, 12 for the optimizer."""
    return parameters * (2 / way.weights + 2 / way.gradients + 12 / way.optimizer)


@pytest.mark.parametrize(
    ("name", "devices", "gigabytes"),
    [  # ZeRO, arXiv:1910.02054, table 1, 7.5B parameters
        ("zero1", 64, 31.4),
        ("zero2", 64, 16.6),
        ("zero3", 64, 1.88),
        ("zero1", 4, 52.5),
        ("zero2", 4, 41.3),
        ("zero3", 4, 30),
        ("ddp", 64, 120),
    ],
)
def test_states_per_device_are_those_of_the_paper(name: str, devices: int, gigabytes: float) -> None:
    assert states(Sharding(name, devices), 7.5e9) / 1e9 == pytest.approx(gigabytes, rel=0.005)  # type: ignore[arg-type]


def test_fsdp_divides_what_stage_3_divides() -> None:
    fsdp, zero3 = Sharding("fsdp", 8), Sharding("zero3", 8)
    assert (
        (fsdp.weights, fsdp.gradients, fsdp.optimizer) == (zero3.weights, zero3.gradients, zero3.optimizer) == (8, 8, 8)
    )


def test_ddp_sends_a_second_copy_of_the_gradients() -> None:
    buffers = Sharding("ddp", 2).buffers(elements=1000, unit=100, trained=40, width=2)
    assert buffers == 40 * 4
    assert Sharding("ddp", 2).buffers(elements=1000, unit=100, trained=40, width=2, gradient_width=2) == 80


def test_accelerate_leaves_ddp_its_own_buckets() -> None:
    """The source of the second copy: an upgrade that changes it changes the estimate."""
    from accelerate import DistributedDataParallelKwargs

    assert DistributedDataParallelKwargs().gradient_as_bucket_view is False


def test_fsdp_gathers_two_units_and_scatters_one() -> None:
    # Two units of 100 elements in 2 bytes, the gradients of one in 4.
    assert Sharding("fsdp", 8).buffers(elements=1000, unit=100, trained=1000, width=2) == 2 * 100 * 2 + 100 * 4
    # With an adapter of 8 elements, only its gradients are scattered.
    assert Sharding("fsdp", 8).buffers(elements=1000, unit=100, trained=8, width=2) == 2 * 100 * 2 + 8 * 4


def test_zero_buckets_are_deepspeeds_or_all_there_is() -> None:
    small = {"elements": 1000, "unit": 100, "trained": 1000, "width": 2}
    assert Sharding("zero1", 8).buffers(**small) == Sharding("zero2", 8).buffers(**small) == 2 * 1000 * 2
    large = {"elements": 7 * 10**9, "unit": 10**8, "trained": 7 * 10**9, "width": 2}
    assert Sharding("zero2", 8).buffers(**large) == 2 * 5 * 10**8 * 2
    assert Sharding("zero3", 8).buffers(**large) == 10**9 * 2 + 5 * 10**8 * 2


@pytest.mark.parametrize("name", TYPES)
def test_one_device_divides_and_sends_nothing(name: str) -> None:
    way = Sharding(name, 1)  # type: ignore[arg-type]
    assert (way.weights, way.gradients, way.optimizer) == (1, 1, 1)
    assert way.buffers(elements=1000, unit=100, trained=1000, width=2) == 0
    assert way.refusal(bits=8) is None


@pytest.mark.parametrize(
    ("name", "bits", "storage", "divided", "refused"),
    [
        ("ddp", 4, "uint8", 1, False),
        ("zero2", 8, "uint8", 1, False),
        ("fsdp", 4, "uint8", 1, False),  # accelerate leaves them whole on each device
        ("fsdp", 4, "bfloat16", 8, False),
        ("zero3", 4, "uint8", 1, True),
        ("zero3", 4, "bfloat16", 8, False),
        ("fsdp", 8, "uint8", 1, True),
        ("zero3", 8, "bfloat16", 1, True),
    ],
)
def test_quantized_weights(name: str, bits: int, storage: str, divided: int, refused: bool) -> None:
    way = Sharding(name, 8)  # type: ignore[arg-type]
    assert way.quantized(bits=bits, storage=storage) == divided
    assert (way.refusal(bits=bits, storage=storage) is not None) == refused


def test_weights_that_are_not_quantized_are_never_refused() -> None:
    assert all(way.refusal(bits=None) is None for way in ways(8))


def test_ways_are_all_there_are() -> None:
    assert [way.title for way in ways(4)] == ["DDP", "FSDP2", "ZeRO-1", "ZeRO-2", "ZeRO-3"]


def test_no_device_is_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        Sharding("ddp", 0)
