"""4-bit weights: gradients stay right after an evaluation, and the trained model is what gets merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmkit.exports.merged import merge
from llmkit.model.loading import keep_4bit_weights_in_place
from llmkit.recipe.recipe import Recipe
from llmkit.runs.prepare import Prepared, prepare

Maker = Callable[..., Recipe]
# The planned compute data type on this machine may be bf16; float32 shows equality to the last digits.
EXACT = ("model.dtype=float32", "quantization.bnb_4bit_compute_dtype=float32", "training.bf16=false")


def gradients(prepared: Prepared) -> list[torch.Tensor]:
    rows = [{"input_ids": r.input_ids, "labels": r.labels} for r in prepared.splits.train[:4]]
    batch = prepared.trainer.data_collator(rows)
    model = prepared.model.train()
    model.zero_grad()
    prepared.trainer.compute_loss(model, dict(batch)).backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]


def with_nonzero_adapter(prepared: Prepared) -> Prepared:
    # A fresh LoRA has B = 0, so half of its gradients would be zero whatever the base computes.
    torch.manual_seed(0)
    for name, parameter in prepared.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return prepared


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_gradients_after_an_evaluation_equal_those_of_the_dequantized_twin(recipe: Maker, kind: str) -> None:
    quantized = with_nonzero_adapter(prepare(recipe(f"quantization.type={kind}", *EXACT)))
    before = gradients(quantized)
    quantized.model.eval()
    with torch.no_grad():
        quantized.model(input_ids=torch.tensor([[5, 6, 7]]))
    after = gradients(quantized)

    twin = prepare(recipe("model.dtype=float32", "training.bf16=false"))
    # TRL rounds a quantized model's fresh adapter to bf16: the twin takes the very same one.
    twin.model.load_state_dict({n: p for n, p in quantized.model.state_dict().items() if "lora_" in n}, strict=False)
    from peft.utils.integrations import dequantize_module_weight

    layers = dict(quantized.model.named_modules())
    for name, module in twin.model.named_modules():
        if name.endswith(".base_layer"):
            with torch.no_grad():
                module.weight.copy_(dequantize_module_weight(layers[name]))
    expected = gradients(twin)
    assert len(before) == len(after) == len(expected) > 0
    for one, two, three in zip(before, after, expected, strict=True):
        torch.testing.assert_close(one, two, atol=0, rtol=0)
        torch.testing.assert_close(two, three, atol=1e-5, rtol=1e-3)


def test_no_layer_may_repack_its_weights(recipe: Maker) -> None:
    """The guard, on any CPU: bitsandbytes repacks only where the layer still says that the CPU supports it."""
    import bitsandbytes as bnb

    prepared = prepare(recipe("quantization.type=nf4"))
    layers = [m for m in prepared.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    layers[0].support_avx512bf16_for_cpu = True
    keep_4bit_weights_in_place(prepared.model)
    assert not layers[0].support_avx512bf16_for_cpu


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj]"])
def test_merging_keeps_what_the_quantized_weights_stand_for(recipe: Maker, targets: str) -> None:
    from llmkit.exports.base import Trained
    from llmkit.exports.merged import compare, logits_of

    prepared = with_nonzero_adapter(
        prepare(recipe("quantization.type=nf4", f"adapter.target_modules={targets}", *EXACT))
    )
    folder = prepared.trainer.args.output_dir + "/model"
    prepared.trainer.save_model(folder)
    trained = Trained(prepared.recipe, prepared.plan, prepared.model, prepared.tokenizer, prepared.splits, Path(folder))
    rows = prepared.splits.eval
    checks = compare(logits_of(prepared.model, rows), logits_of(merge(trained), rows))
    assert checks["mean_kl"] < 1e-6
    assert checks["top1_agreement"] == 1.0
