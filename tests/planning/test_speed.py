"""FLOPs that are needed: every figure worked out by hand, and one held against a count of torch's own."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.planning.speed import Matrices, causal_pairs, needed_flops

# 2 layers of width 4; 100 frozen elements, 10 trained ones, a head of 7.
LORA = Matrices(frozen=100, trained=10, head=7, head_trained=False, layers=2, width=4)
FULL = Matrices(frozen=0, trained=110, head=7, head_trained=True, layers=2, width=4)


def test_pairs_are_the_lower_half_with_the_diagonal() -> None:
    assert causal_pairs([1]) == 1
    assert causal_pairs([4]) == 10
    # Two rows in one packed sequence don't see each other.
    assert causal_pairs([3, 2]) == 6 + 3
    assert causal_pairs([]) == 0


@pytest.mark.parametrize(
    ("matrices", "learn", "needed"),
    [
        # 5 tokens, 3 scored, 15 pairs; forward attention: 15 pairs x 4 x width 4 x 2 layers = 480.
        (LORA, True, 5 * (4 * 100 + 6 * 10) + 3 * 4 * 7 + 3 * 480),
        (LORA, False, 5 * 2 * 110 + 3 * 2 * 7 + 480),
        (FULL, True, 5 * 6 * 110 + 3 * 6 * 7 + 3 * 480),
        (FULL, False, 5 * 2 * 110 + 3 * 2 * 7 + 480),
    ],
)
def test_a_pass_is_counted_by_hand(matrices: Matrices, learn: bool, needed: int) -> None:
    assert needed_flops(matrices, tokens=5, scored=3, pairs=15, learn=learn) == needed


def test_a_reference_computes_without_the_adapter_and_a_full_one_with_everything() -> None:
    assert needed_flops(LORA.reference, tokens=1, scored=0, pairs=0, learn=False) == 2 * 100
    assert needed_flops(FULL.reference, tokens=1, scored=0, pairs=0, learn=False) == 2 * 110


def test_unscored_positions_cost_no_head_and_padding_costs_nothing() -> None:
    some = needed_flops(LORA, tokens=8, scored=2, pairs=36)
    all_ = needed_flops(LORA, tokens=8, scored=8, pairs=36)
    assert all_ - some == 6 * 4 * 7


def test_smollm2_with_lora_needs_about_half_a_gigaflop_per_token() -> None:
    # 30 layers of 576 x (576 + 2 x 192 + 576) + 3 x 576 x 1536; r = 16 beside each of the 7; head 49,152 x 576, tied.
    layer = 576 * (576 + 192 + 192 + 576) + 3 * 576 * 1536
    adapter = 16 * ((576 + 576) * 2 + (576 + 192) * 2 + (576 + 1536) * 3)
    smollm = Matrices(30 * layer, 30 * adapter, 49152 * 576, False, layers=30, width=576)
    assert smollm.frozen == 106_168_320
    assert smollm.trained == 4_884_480
    assert needed_flops(smollm, tokens=1, scored=0.5, pairs=128.5) / 1e9 == pytest.approx(0.537, abs=0.001)


def test_torch_counts_the_same_for_full_training_of_a_model_without_a_causal_half(model: Any) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from llmkit.model.matrices import matrices_of

    ids = torch.arange(24).reshape(2, 12) % 7
    # The products of eager attention are seen by torch's counter; it computes the masked half as well.
    model.set_attn_implementation("eager")
    model.train()
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    needed = needed_flops(matrices_of(model), tokens=24, scored=24, pairs=2 * 12 * 12)
    # Rotary embeddings take small products of their own (positions x frequencies, 2 x 12 x 4).
    assert counter.get_total_flops() == pytest.approx(needed, rel=1e-3)
    assert counter.get_total_flops() >= needed
