"""The fused head at labelled positions alone: TRL's numbers and gradients, and generation as before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from llmkit.methods._trained_head import PER_TOKEN, score_trained_positions

FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")


def batch() -> dict[str, torch.Tensor]:
    """Three rows of different lengths; the labels differ in place and number, and one row has none."""
    ids = torch.arange(3, 33).reshape(3, 10)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = torch.full_like(ids, -100)
    labels[0, 4:9], labels[1, 2:6] = ids[0, 4:9], ids[1, 2:6]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def results(model: Any) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    model.zero_grad()
    found = model(**batch(), fused_lm_head=True)
    (found.log_probs.sum() + 0.3 * found.entropy.sum()).backward()
    return (
        {name: getattr(found, name).detach() for name in (*PER_TOKEN, "loss")},
        [p.grad.clone() for p in model.parameters() if p.grad is not None],
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_every_position(model: Any, temperature: float) -> None:
    add_fused_lm_head(model, temperature=temperature, outputs=FIELDS)
    expected, gradients = results(model)
    score_trained_positions(model)
    found, ours = results(model)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=1e-5, rtol=1e-5, msg=name)
    assert len(ours) == len(gradients) > 0
    for one, other in zip(ours, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_head_sees_the_labelled_positions_only(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer import utils

    from llmkit.methods import _chunked_head

    theirs, ours = [], []
    for function, rows in ((utils._ChunkedLogProbFunction, theirs), (_chunked_head._LogProbs, ours)):
        real = function.apply
        monkeypatch.setattr(function, "apply", lambda h, *a, rows=rows, real=real: rows.append(len(h)) or real(h, *a))
    add_fused_lm_head(model)
    model(**batch(), fused_lm_head=True)
    assert (theirs, ours) == ([3 * 9], [])
    score_trained_positions(model)
    model(**batch(), fused_lm_head=True)
    assert (theirs, ours) == ([3 * 9], [5 + 4])


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logit_scale", "an adapter"])
def test_a_head_that_is_more_than_a_matrix_is_left_to_trl(
    model: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from peft import LoraConfig, get_peft_model

    from llmkit.methods import _chunked_head

    monkeypatch.setattr(_chunked_head._LogProbs, "apply", lambda *_: pytest.fail("llmkit's head was taken"))
    if name == "an adapter":
        get_peft_model(model, LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    else:
        setattr(model.config, name, 0.5)
    add_fused_lm_head(model, outputs=FIELDS)
    expected, gradients = results(model)
    score_trained_positions(model)
    found, ours = results(model)
    torch.testing.assert_close(found["log_probs"], expected["log_probs"])
    assert len(ours) == len(gradients) > 0


def test_a_batch_without_labels_gives_zeros_with_a_gradient(model: Any) -> None:
    add_fused_lm_head(model)
    score_trained_positions(model)
    inputs = batch()
    found = model(**{**inputs, "labels": torch.full_like(inputs["labels"], -100)}, fused_lm_head=True)
    assert found.log_probs.tolist() == torch.zeros(3, 9).tolist()
    found.log_probs.sum().backward()


def test_an_adapter_is_trained_through_it_and_generation_is_as_before(model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    ids = batch()["input_ids"]
    before = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    add_fused_lm_head(model)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=True))
    score_trained_positions(adapted)
    adapted(**batch(), fused_lm_head=True).log_probs.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in adapted.parameters() if p.requires_grad)
    after = adapted.generate(input_ids=ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert after.tolist() == before.tolist()
    assert adapted(input_ids=ids).logits.shape == (3, 10, model.config.vocab_size)
