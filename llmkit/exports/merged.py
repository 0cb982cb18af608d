"""The adapter merged into its base: one model that needs neither PEFT nor llmkit, checked against what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmkit.data.splits import Row
from llmkit.errors import RunError
from llmkit.exports.base import Export, Exported, Trained
from llmkit.model.loading import load_base

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHECKED_ROWS = 8
"""Held-out rows (or training rows, where none are held out) whose logits are compared."""


class Merged(Export):
    """Merges in float32, then casts; quantized base weights are dequantized first, so that what was trained is kept."""

    type: Literal["merged"]
    """The name of this variant."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Data type of the saved weights; that of the trained model if unset."""

    max_kl: float | None = None
    """Largest mean KL divergence, in nats per token, between the trained model's next-token distribution and the merged
    one's; the run fails above it. If unset: 1e-6 for float32, 1e-2 for 16-bit weights and 5e-2 after int8 training."""

    needs_adapter: ClassVar[bool] = True

    def export(self, trained: Trained, folder: Path) -> Exported:
        """Write the merged model and tokenizer to `folder`, load it again and compare it with the trained model.

        Raises RunError if the distributions differ by more than `max_kl`.
        """
        import torch

        dtype = self.dtype or str(trained.recipe.model.dtype or trained.plan["model.dtype"])
        rows = (trained.splits.eval or trained.splits.train)[:CHECKED_ROWS]
        expected = logits_of(trained.model, rows)
        merged = merge(trained)
        merged.to(dtype=getattr(torch, dtype))
        merged.save_pretrained(folder)
        trained.tokenizer.save_pretrained(folder)
        del merged
        checks = compare(expected, logits_of(reload(folder), rows))
        limit = self.max_kl if self.max_kl is not None else tolerance(trained, dtype)
        if not checks["mean_kl"] <= limit:
            raise RunError(
                f"the merged model computes something else than the trained one: mean KL {checks['mean_kl']:.2e} nats "
                f"per token on {len(rows)} rows, more than {limit:.0e}; largest logit difference "
                f"{checks['max_logit_difference']:.3g}",
                where=str(folder),
                remedy="Merge in float32 (export: [{type: merged, dtype: float32}]), or state a tolerance in `max_kl`.",
            )
        return Exported("merged", folder, checks)


def tolerance(trained: Trained, dtype: str) -> float:
    """Return the largest mean KL (nats per token) that the number formats themselves explain."""
    if trained.recipe.quantization is not None and trained.recipe.quantization.bits == 8:
        # int8 products round their activations as well; the merged weights have no counterpart of that.
        return 5e-2
    computed = {**trained.plan.section("quantization"), **_quantization_keys(trained)}.get("bnb_4bit_compute_dtype")
    exact = {dtype, str(trained.model.dtype).removeprefix("torch."), computed or "float32"} == {"float32"}
    return 1e-6 if exact else 1e-2


def _quantization_keys(trained: Trained) -> dict[str, Any]:
    return trained.recipe.quantization.kwargs() if trained.recipe.quantization is not None else {}


def merge(trained: Trained) -> PreTrainedModel:
    """Return the base with the trained adapter merged into it, in float32 on the CPU."""
    from peft import PeftModel

    base = load_base(trained.recipe, dtype="float32")
    if trained.recipe.quantization is not None:
        _take_dequantized(base, trained.model)
    return PeftModel.from_pretrained(base, trained.folder).merge_and_unload(safe_merge=True)


def _take_dequantized(base: PreTrainedModel, trained: PreTrainedModel) -> None:
    """Overwrite the linear weights of `base` by what the quantized layers of `trained` stand for."""
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.integrations import dequantize_module_weight

    weights = dict(base.named_parameters())
    for name, module in trained.named_modules():
        if not isinstance(module, (Linear4bit, Linear8bitLt)) or isinstance(module, BaseTunerLayer):
            continue
        # Layers without an adapter are quantized as well, and were trained around.
        key = name.removeprefix("base_model.model.").removesuffix(".base_layer") + ".weight"
        with torch.no_grad():
            weights[key].copy_(dequantize_module_weight(module).to("cpu", torch.float32))


def reload(folder: Path) -> PreTrainedModel:
    """Load a saved model as anyone would, with `from_pretrained` alone, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logits_of(model: PreTrainedModel, rows: tuple[Row, ...]) -> list[torch.Tensor]:
    """Return the logits of each row, float32 on the CPU, of shape (tokens, vocabulary)."""
    import torch

    was_training = model.training
    model.eval()
    found = []
    for row in rows:
        ids = torch.tensor([row.input_ids], device=model.device)
        with torch.no_grad():
            found.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float().cpu())
    model.train(was_training)
    return found


def compare(expected: list[Any], found: list[Any]) -> dict[str, float]:
    """Return largest logit difference, mean KL(expected || found) in nats per token, and top-1 agreement."""
    import torch

    largest, kl, agree, tokens = 0.0, 0.0, 0, 0
    for reference_TV, logits_TV in zip(expected, found, strict=True):
        largest = max(largest, float((reference_TV - logits_TV).abs().max()))
        p, q = torch.log_softmax(reference_TV.double(), -1), torch.log_softmax(logits_TV.double(), -1)
        kl += float((p.exp() * (p - q)).sum())
        agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        tokens += reference_TV.shape[0]
    return {"max_logit_difference": largest, "mean_kl": kl / tokens, "top1_agreement": agree / tokens}
