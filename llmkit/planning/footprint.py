"""What one look at a model counts: its elements, and what it keeps for the backward pass. Pure data, no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps for the backward pass."""

    token: float
    """Bytes per token."""

    pair: float = 0.0
    """Bytes per pair of tokens of one sequence (length squared): attention that is written out, and masks."""

    once: float = 0.0
    """Bytes whatever the number of tokens, e.g. the 16-bit copies of weights that autocast makes."""

    def bytes(self, rows: int, length: int) -> float:
        """Return the bytes for `rows` sequences of `length` tokens."""
        return rows * length * (self.token + length * self.pair) + self.once

    def times(self, factor: float) -> Kept:
        """Return `factor` times as many."""
        return Kept(self.token * factor, self.pair * factor, self.once * factor)


@dataclass(frozen=True)
class Footprint:
    """What one trace of a model with its adapter counted, in one data type and with one attention kernel."""

    frozen: int
    """Elements of weights that are not trained; those that quantization packs are among them. Tied ones count once."""

    trained: int
    """Elements of weights that are trained: the adapter, or everything."""

    packed: int
    """Elements, of the frozen ones, that the recipe's quantization packs; 0 without one."""

    unpacked: int
    """Elements of the largest weight that is packed; 0 without quantization."""

    largest: int
    """Elements of the largest weight."""

    layers: int
    hidden: int
    """Size of the vector that goes from layer to layer."""

    vocabulary: int
    """Logits per position; 0 where it is not known, or where there is no LM head."""

    cache: int
    """Elements of keys and values that generation keeps per token, over all layers."""

    layer: Kept
    """What one layer keeps (the mean over the layers where they differ)."""

    ends: Kept
    """What is kept outside of the layers, without the LM head: embeddings, last norm, masks."""

    trained_bytes: int = 4
    """Bytes per trained element: PEFT makes adapters float32, full training has the data type of the weights."""

    stored_bytes: int = 4
    """Bytes per element in the files that the weights are read from."""

    plain_head: bool = True
    """Whether the logits are a matrix product and nothing more: no adapter on the head, not capped or scaled."""

    exact: bool = True
    """Whether the elements were counted in the model's own structure; else they are guessed from its size."""

    @property
    def elements(self) -> int:
        """Elements of all weights, the adapter included."""
        return self.frozen + self.trained

    def kept(self, rows: int, length: int) -> float:
        """Return the bytes that `rows` sequences of `length` tokens keep, all layers together."""
        return self.layers * self.layer.bytes(rows, length) + self.ends.bytes(rows, length)

    def to_dict(self) -> dict[str, Any]:
        """Return the footprint as JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Footprint:
        """Return what `to_dict` wrote."""
        return cls(**{**found, "layer": Kept(**found["layer"]), "ends": Kept(**found["ends"])})
