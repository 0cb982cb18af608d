"""How much arithmetic training needs: FLOPs by weights, tokens and attended pairs. Pure numbers; torch is not imported.

One multiplication and one addition of a matrix product are 2 FLOPs. A token that passes a matrix of E elements costs

    2 E   forward
    2 E   gradient of the product's input, which hands the loss on to the layers below
    2 E   gradient of the matrix, where it is trained

so inference needs 2 per element and token, training through a frozen matrix 4, and training of the matrix itself 6
(Kaplan et al., arXiv:2001.08361, appendix of section 2.1, has the same 2 and 6 for full training). What is needed is
what no implementation can leave out. Padding, recomputation (gradient checkpointing), logits at positions without a
label, the upper half of causal attention, and elementwise work are not needed: they lower the share of the ceiling.

What a step of a method needs is a sum of `needed_flops`:

    sft                   one pass that learns: all real tokens; `scored` are the trained ones
    dpo                   one over prompt + chosen and prompt + rejected; the answers are `scored`; one more with
                          `matrices.reference` and `learn=False`, unless the reference is computed beforehand
    orpo, simpo           as dpo without a reference
    kto                   one pass; `learn=False` over the same tokens with `matrices.reference`, and over the
                          mismatched answers (the KL estimate) with both
    reward                one over both texts; `head` is the score's row, `scored` 1 per text
    grpo, rloo            `learn=False` over prompts and completions for sampling (the head at each completion token),
                          the same again for each reading of log-probabilities, one that learns per iteration
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

FORWARD = INPUT_GRADIENT = WEIGHT_GRADIENT = 2
"""FLOPs per matrix element and token."""

ATTENTION = 4
"""FLOPs per attended pair of tokens and unit of width, forward: 2 for the scores, 2 for the weighted sum of values."""


@dataclass(frozen=True)
class Matrices:
    """What the tokens of a model are multiplied with, in elements; packed (4- and 8-bit) weights count unpacked.

    Embeddings are looked up and cost no product. A tied head is counted as the head, once.
    """

    frozen: float
    """Elements of the matrices that every token passes and that are not trained. Of experts, the share in use."""

    trained: float
    """Elements of those that are trained: all of them, or an adapter's."""

    head: float
    """Elements of the LM head (vocabulary x hidden), which only scored positions need."""

    head_trained: bool
    """Whether the head is trained."""

    layers: int
    """Layers with attention."""

    width: int
    """Width of attention: query heads x size of a head; the hidden size in most models."""

    @property
    def reference(self) -> Matrices:
        """What a reference model computes with: the same without the adapter, or a whole second model."""
        return replace(self, trained=0) if self.frozen else self


def causal_pairs(lengths: Iterable[int]) -> int:
    """Return the pairs of a token and one that it sees, itself included: T (T + 1) / 2 for a sequence of T tokens."""
    return sum(length * (length + 1) // 2 for length in lengths)


def needed_flops(matrices: Matrices, *, tokens: float, scored: float, pairs: float, learn: bool = True) -> float:
    """Return the FLOPs that one pass over some sequences needs; with `learn`, forward and backward.

    `tokens` are real ones (no padding), `scored` those whose logits are needed, `pairs` see `causal_pairs`; a packed
    sequence counts as the rows in it. A sum over many sequences or a mean per token both work: it is linear. What the
    first layer's frozen matrices save (nothing below them is trained) is left in: under 1% from 30 layers on.
    """
    frozen = FORWARD + (INPUT_GRADIENT if learn else 0)
    trained = frozen + (WEIGHT_GRADIENT if learn else 0)
    # The backward pass of a product of two activations is two products of the same size.
    attention = ATTENTION * (3 if learn else 1) * matrices.layers * matrices.width
    per_token = frozen * matrices.frozen + trained * matrices.trained
    per_scored = (trained if matrices.head_trained else frozen) * matrices.head
    return per_token * tokens + per_scored * scored + attention * pairs
