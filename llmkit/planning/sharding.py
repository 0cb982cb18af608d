"""How several GPUs divide a model's states between them, and the buffers that this takes.

ZeRO (arXiv:1910.02054) divides optimizer states (stage 1), gradients too (2), and weights too (3). FSDP2 is PyTorch's
`fully_shard`, which divides all three. DDP divides nothing. What accelerate 1.15, transformers 5.23 and torch 2.13 set
was read in their sources, DeepSpeed's values as well (0.19.8); none of it was measured on GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Type = Literal["ddp", "fsdp", "zero1", "zero2", "zero3"]

TYPES: tuple[Type, ...] = ("ddp", "fsdp", "zero1", "zero2", "zero3")
"""All ways, in the order of the tables."""

TITLES = MappingProxyType({"ddp": "DDP", "fsdp": "FSDP2", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"})
"""What they are called."""

_OPTIMIZER: frozenset[Type] = frozenset({"fsdp", "zero1", "zero2", "zero3"})
_GRADIENTS: frozenset[Type] = frozenset({"fsdp", "zero2", "zero3"})
_WEIGHTS: frozenset[Type] = frozenset({"fsdp", "zero3"})

_BUCKET = 500_000_000
"""DeepSpeed's defaults of `allgather_bucket_size` and `reduce_bucket_size`, in elements."""

_LIVE = 1_000_000_000
"""DeepSpeed's defaults of `stage3_max_live_parameters` and `stage3_max_reuse_distance`, in elements."""


@dataclass(frozen=True)
class Sharding:
    """One way of training a model on several devices; `devices` of 1 divides nothing and sends nothing."""

    type: Type
    """Which states are divided: none (ddp), optimizer (zero1), gradients too (zero2), weights too (fsdp, zero3)."""

    devices: int
    """Number of devices that share the states."""

    def __post_init__(self) -> None:
        """Raise ValueError for less than one device."""
        if self.devices < 1:
            raise ValueError(f"a model is trained on one device at least, not on {self.devices}")

    @property
    def title(self) -> str:
        """What it is called, e.g. `FSDP2`."""
        return TITLES[self.type]

    @property
    def weights(self) -> int:
        """Devices that the weights are divided between; 1 where each device holds all of them."""
        return self.devices if self.type in _WEIGHTS else 1

    @property
    def gradients(self) -> int:
        """Devices that the gradients are divided between."""
        return self.devices if self.type in _GRADIENTS else 1

    @property
    def optimizer(self) -> int:
        """Devices that the optimizer states are divided between."""
        return self.devices if self.type in _OPTIMIZER else 1

    def quantized(self, *, bits: int, storage: str = "uint8") -> int:
        """Return the devices that weights of `bits` are divided between; `storage` is `bnb_4bit_quant_storage`.

        accelerate leaves 4-bit weights that are stored as whole numbers out of FSDP2: each device holds all of them.
        See `refusal` for what does not work at all.
        """
        return self.weights if bits == 4 and storage in FLOATS else 1

    def buffers(self, *, elements: int, unit: int, trained: int, width: int, gradient_width: int = 4) -> int:
        """Return the bytes per device of gathered weights and of buckets that gradients are sent in.

        `elements` are those of all weights that are divided, `unit` those of the largest part that is gathered at once
        (a layer, or the embedding), `trained` those with a gradient; `width` is the bytes of a gathered weight.

        - DDP: a second copy of all gradients, in buckets: `gradient_as_bucket_view` is off in accelerate, and the
          Trainer does not set it.
        - FSDP2: the part in use and the one fetched ahead, and the gradients of one part before they are scattered.
        - ZeRO-1 and 2: one bucket of weights and one of gradients (DeepSpeed's sizes, or all of them if that is less).
        - ZeRO-3: weights stay gathered up to DeepSpeed's limit of 10^9, and one bucket of gradients.
        """
        if self.devices == 1:
            return 0
        if self.type == "ddp":
            return trained * gradient_width
        if self.type == "fsdp":
            return 2 * unit * width + min(unit, trained) * gradient_width
        bucket = min(trained, _BUCKET) * width
        gathered = min(elements, _LIVE) if self.type == "zero3" else min(trained, _BUCKET)
        return gathered * width + bucket

    def refusal(self, *, bits: int | None, storage: str = "uint8") -> str | None:
        """Say why weights quantized to `bits` can't be trained on this way, or None where they can.

        `storage` is `bnb_4bit_quant_storage`. DDP, ZeRO-1 and ZeRO-2 leave each device a whole copy of the weights,
        which may have any form.
        """
        if bits is None or self.devices == 1 or self.type not in _WEIGHTS:
            return None
        if bits == 8:
            return "8-bit weights would be cut up without the scales and outliers that belong to them"
        if self.type == "zero3" and storage not in FLOATS:
            return (
                "4-bit weights can be divided only where they are stored as floating-point numbers "
                "(quantization.bnb_4bit_quant_storage=bfloat16)"
            )
        return None


FLOATS = frozenset({"bfloat16", "float16", "float32"})
"""Values of `bnb_4bit_quant_storage` that FSDP and ZeRO-3 can divide."""


def ways(devices: int) -> tuple[Sharding, ...]:
    """Return all ways of training on `devices`, in the order of the tables."""
    return tuple(Sharding(name, devices) for name in TYPES)
