"""The memory of the LM head: what scoring N positions against a vocabulary of V takes, as llmkit computes it.

Each value follows the tensors that are alive at once in the code that is named; none of them is fitted.
"""

from __future__ import annotations

from llmkit.planning.case import Case
from llmkit.planning.footprint import Footprint

_SUMMED = "SFTConfig"
_TILED = frozenset({"DPOConfig", "KTOConfig", "GRPOConfig", "RLOOConfig"})
"""TRL configs of the methods that score with TRL's fused head, or with llmkit's in its place."""

TRAINED_CHUNK_BYTES, FEWEST = 2**25, 32
"""Logits in float32 that a training step scores at once, and the fewest tokens (`llmkit.methods._chunked_head`)."""

_CHUNKS = 3
"""Chunks alive at once there: the logits, from which the entropy takes a copy, and the chunk before."""

_TILE_TOKENS, _TILE_VOCABULARY = 4096, 32768
"""Tile of TRL's fused LM head (`trl.kernels.chunked_logprob`, TRL 1.16)."""

_TORCH_TILES = 8.25
"""Tiles of float32 alive at once in the backward pass of TRL's head without Triton: logits, scaled logits twice,
log-probabilities, probabilities, gradient, target mask (a quarter) and two temporaries."""

CHUNK_BYTES = 2**26
"""Logits in float32 that held-out rows are scored with at once (`llmkit.model.likelihood`)."""


def logit_bytes(case: Case, model: Footprint, positions: int, computing: int) -> int:
    """Return the bytes that scoring `positions` for a training step takes; `computing` is the bytes of a product.

    On CUDA, TRL's head holds one tile, and in the backward pass the gradient of the hidden states and that of a head
    that is trained. Elsewhere llmkit's holds a few chunks and those gradients. A head that is more than a matrix is
    left to transformers or TRL: SFT then holds three times N x V in float32 (log-probabilities, their gradient, that of
    the logits), as ORPO and SimPO always do; other methods hold a few tiles.
    """
    if not model.vocabulary:
        return 0
    if case.config != _SUMMED and case.config not in _TILED:
        return positions * model.vocabulary * 3 * 4
    tile = min(positions, _TILE_TOKENS) * min(model.vocabulary, _TILE_VOCABULARY)
    gradients = 4 * (positions * model.hidden + (model.vocabulary * model.hidden if case.full else 0))
    if case.hardware.kind == "cuda":
        return tile * computing + gradients
    if model.plain_head:
        most = max(FEWEST, TRAINED_CHUNK_BYTES // (4 * model.vocabulary))
        return 4 * _CHUNKS * min(positions, most) * model.vocabulary + gradients
    if case.config in _TILED:
        return round(tile * 4 * _TORCH_TILES)
    return positions * model.vocabulary * 3 * 4


def scoring_bytes(model: Footprint, positions: int) -> int:
    """Return the bytes of scoring held-out rows: a chunk of logits, its copy in float32, its log-probabilities."""
    return 3 * min(positions * model.vocabulary * 4, max(CHUNK_BYTES, model.vocabulary * 4))


def sampling_bytes(model: Footprint, rows: int) -> int:
    """Return the bytes of choosing the next token of `rows` answers: logits, their copy in float32, probabilities."""
    return rows * model.vocabulary * 3 * 4
