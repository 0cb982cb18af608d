"""Counts of what goes through a model, against batches whose tokens and pairs are counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmkit.model.passes import Passed, Passes, count_batch

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
PADDED = {"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": MASK}
# Rows of 3 and 2 tokens, and padding; then one row of 4 and 2 places of padding.
PACKED = {
    "input_ids": torch.ones(2, 6, dtype=torch.long),
    "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]]),
}
WHOLE = {"input_ids": torch.ones(2, 3, dtype=torch.long)}


@pytest.mark.parametrize(
    ("batch", "tokens", "pairs"), [(PADDED, 7, 6 + 10), (PACKED, 9, 6 + 3 + 10), (WHOLE, 6, 6 + 6)]
)
def test_a_batch_is_counted_without_its_padding(batch: dict[str, Any], tokens: int, pairs: int) -> None:
    assert count_batch(batch).tolist() == [tokens, pairs, 0, 0]


def test_passes_with_and_without_gradients_are_told_apart(model: Any) -> None:
    model.train()
    passes = Passes(model)
    model(**PADDED, use_cache=False)
    with torch.no_grad():
        model(**WHOLE, use_cache=False)
    assert passes.take() == Passed(7, 16, 6, 12)
    assert passes.take() == Passed()
    model(WHOLE["input_ids"], use_cache=False)
    assert passes.take() == Passed(6, 12)


def test_evaluation_and_sampling_are_not_counted(model: Any) -> None:
    passes = Passes(model)
    model(**PADDED)
    assert passes.take() == Passed()
    model.train()
    model.generate(WHOLE["input_ids"], max_new_tokens=3, do_sample=False)
    assert passes.take() == Passed()


def test_a_reference_beside_the_model_is_read(model: Any) -> None:
    import copy

    reference = copy.deepcopy(model).eval()
    model.train()
    passes = Passes(model, reference)
    model(**PADDED)
    with torch.no_grad():
        reference(**PADDED)
    assert passes.take() == Passed(7, 16, 7, 16)
    passes.close()
    model(**PADDED)
    assert passes.take() == Passed()


def test_an_adapter_that_is_switched_off_reads(model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.train()
    passes = Passes(adapted)
    adapted(**PADDED)
    with torch.no_grad(), adapted.disable_adapter():
        adapted(**PADDED)
    assert passes.take() == Passed(7, 16, 7, 16)


def test_a_model_that_is_compiled_whole_is_counted(model: Any) -> None:
    model.train()
    passes = Passes(model)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        compiled(**PADDED, use_cache=False)
    assert passes.take() == Passed(14, 32)


def test_counts_add_up() -> None:
    assert Passed(1, 2, 3, 4) + Passed(10, 20, 30, 40) == Passed(11, 22, 33, 44)
