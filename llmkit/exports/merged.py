"""The adapter merged into its base: one model that needs neither PEFT nor llmkit, checked against what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmkit.data.splits import Row
from llmkit.errors import RunError
from llmkit.exports.base import Export, Exported, Trained
from llmkit.model.generation import eval_mode
from llmkit.model.heads import gives_scores
from llmkit.model.loading import agree_on_ends, load_base

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHECKED_ROWS = 8
"""Held-out rows (or training rows, where none are held out) whose sequences are compared."""

TOLERANCES = {"mean_kl": (1e-6, 1e-2, 5e-2), "score_difference": (1e-4, 5e-2, 0.25)}
"""By check: what float32 explains, what 16-bit weights do, and what training in int8 does."""


class Merged(Export):
    """Merges in float32, then casts; quantized base weights are dequantized first, so that what was trained is kept."""

    type: Literal["merged"]
    """The name of this variant."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Data type of the saved weights; that of the trained model if unset."""

    max_kl: float | None = None
    """Largest mean KL divergence, in nats per token, between the trained model's next-token distribution and the merged
    one's; the run fails above it. If unset: 1e-6 for float32, 1e-2 for 16-bit weights and 5e-2 after int8 training."""

    max_score_difference: float | None = None
    """For a reward model: largest difference of a score, as a share of the largest score (at least of 1); the run fails
    above it. If unset: 1e-4 for float32, 5e-2 for 16-bit weights and 0.25 after int8 training."""

    needs_adapter: ClassVar[bool] = True

    def export(self, trained: Trained, folder: Path) -> Exported:
        """Write the merged model and tokenizer to `folder`, load it again and compare it with the trained model.

        Raises RunError if they differ by more than `max_kl`, or `max_score_difference` for a reward model.
        """
        import torch

        dtype = self.dtype or str(trained.recipe.model.dtype or trained.plan["model.dtype"])
        rows = (trained.splits.eval or trained.splits.train)[:CHECKED_ROWS]
        expected = logits_of(trained.model, rows)
        merged = merge(trained)
        agree_on_ends(merged, trained.tokenizer)
        merged.to(dtype=getattr(torch, dtype))
        merged.save_pretrained(folder)
        trained.tokenizer.save_pretrained(folder)
        del merged
        again = reload(folder, trained.recipe.method.model_class, trained.recipe.model.trust_remote_code)
        checks = compare(expected, logits_of(again, rows))
        name, limit = self._limit(trained, dtype)
        if not checks[name] <= limit:
            values = ", ".join(f"{key} {value:.2e}" for key, value in checks.items())
            raise RunError(
                f"the merged model computes something else than the trained one: {name} is more than {limit:.0e} "
                f"({values}; {len(expected)} sequences)",
                where=str(folder),
                remedy="Merge in float32 (export: [{type: merged, dtype: float32}]), or state a tolerance in "
                "`max_kl` (for a reward model in `max_score_difference`).",
            )
        return Exported("merged", folder, checks)

    def _limit(self, trained: Trained, dtype: str) -> tuple[str, float]:
        """Return the check that decides, and the largest value it may have."""
        name = "score_difference" if gives_scores(trained.model) else "mean_kl"
        stated = self.max_score_difference if name == "score_difference" else self.max_kl
        return name, tolerance(trained, dtype, name) if stated is None else stated


def tolerance(trained: Trained, dtype: str, check: str) -> float:
    """Return the largest value of `check` that the number formats themselves explain."""
    in_float32, in_16_bits, after_int8 = TOLERANCES[check]
    if trained.recipe.quantization is not None and trained.recipe.quantization.bits == 8:
        # int8 products round their activations as well; the merged weights have no counterpart of that.
        return after_int8
    computed = {**trained.plan.section("quantization"), **_quantization_keys(trained)}.get("bnb_4bit_compute_dtype")
    exact = {dtype, str(trained.model.dtype).removeprefix("torch."), computed or "float32"} == {"float32"}
    return in_float32 if exact else in_16_bits


def _quantization_keys(trained: Trained) -> dict[str, Any]:
    return trained.recipe.quantization.kwargs() if trained.recipe.quantization is not None else {}


def merge(trained: Trained) -> PreTrainedModel:
    """Return the base with the trained adapter merged into it, in float32 on the CPU."""
    from peft import PeftModel

    # Nothing runs through it: eager is the one kernel that transformers has for every architecture.
    base = load_base(trained.recipe, dtype="float32", attn_implementation="eager")
    if trained.recipe.quantization is not None:
        _take_dequantized(base, trained.model)
    return PeftModel.from_pretrained(base, trained.folder).merge_and_unload(safe_merge=True)


def _take_dequantized(base: PreTrainedModel, trained: PreTrainedModel) -> None:
    """Overwrite the linear weights of `base` by what the quantized layers of `trained` stand for."""
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.integrations import dequantize_bnb_weight

    weights = dict(base.named_parameters())
    for name, module in trained.named_modules():
        if not isinstance(module, (Linear4bit, Linear8bitLt)) or isinstance(module, BaseTunerLayer):
            continue
        # Layers without an adapter are quantized as well, and were trained around.
        key = name.removeprefix("base_model.model.").removesuffix(".base_layer") + ".weight"
        with torch.no_grad():
            # Not PEFT's `dequantize_module_weight`: on CPUs it leaves an int8 layer without its scales.
            weight = dequantize_bnb_weight(module.weight, state=getattr(module, "state", None))
            weights[key].copy_(weight.to("cpu", torch.float32))


def reload(folder: Path, model_class: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a saved model as anyone would, with `from_pretrained` alone, in float32."""
    import torch
    import transformers

    auto_class = getattr(transformers, model_class)
    return auto_class.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust_remote_code)


def logits_of(model: PreTrainedModel, rows: Sequence[Row]) -> list[torch.Tensor]:
    """Return the logits of each sequence of `rows`, float32 on the CPU.

    Of shape (tokens, vocabulary), or (1,) for a reward model: the score.
    """
    import torch

    found = []
    with eval_mode(model):
        for sequence in (ids for row in rows for ids in row.sequences):
            ids = torch.tensor([sequence], device=model.device)
            with torch.no_grad():
                found.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float().cpu())
    return found


def compare(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> dict[str, float]:
    """Compare what `logits_of` gives for two models: next-token distributions, or scores."""
    return (_compare_scores if expected[0].ndim == 1 else _compare_tokens)(expected, found)


def _compare_tokens(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> dict[str, float]:
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


def _compare_scores(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> dict[str, float]:
    """Return the largest difference of a score, and the same as a share of the largest score (at least of 1)."""
    pairs = [(float(a), float(b)) for a, b in zip(expected, found, strict=True)]
    largest = max(abs(a - b) for a, b in pairs)
    return {"max_score_difference": largest, "score_difference": largest / max(1.0, *(abs(a) for a, _ in pairs))}
