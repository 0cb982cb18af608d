"""Decisions of the methods that learn from rewards or preferences: the reference, its KL term, the sampling engine."""

from __future__ import annotations

import importlib.util

from llmkit.planning.batches import accumulation_steps, batch_size
from llmkit.planning.case import Case
from llmkit.planning.hardware import GIB
from llmkit.planning.memory import SAMPLERS, WEIGHT_BYTES
from llmkit.planning.plan import Decision
from llmkit.planning.precision import bf16, dtype, fp16
from llmkit.planning.reference import Reference, beta, reference

_CONTINUOUS_FROM = 32
"""Completions at once from which continuous batching beats padded batches on a GPU (A100; trl pull request 5765)."""


def reference_model(case: Case) -> Decision | None:
    """Say which model the trained one is compared with, and what that costs."""
    kind = reference(case)
    if kind is Reference.NONE and beta(case) is None:
        return None
    return Decision("method.reference", kind.value, _reference_reason(case, kind))


def _reference_reason(case: Case, kind: Reference) -> str:
    size = case.size.parameters * WEIGHT_BYTES[case.value(dtype)] / GIB if case.size else None
    copy = f"{size:.1f} GiB" if size is not None else "as much memory as the weights"
    if kind is Reference.NONE:
        kept = f"saves {copy} and" if case.full else "saves"
        return f"beta is 0: no KL term holds the model near the base; {kept} one forward pass per step"
    term = f"beta is {beta(case):g}: the KL to the base is held small; " if beta(case) is not None else ""
    if kind is Reference.ADAPTER_OFF:
        return f"{term}no second copy: the base is there below the adapter; one more forward pass per step"
    if kind is Reference.COMPUTED_ONCE:
        return "the log-probabilities of the base are computed before training and kept: no second copy"
    return f"{term}a frozen copy of the base takes {copy} more, and one more forward pass per step"


def kl_weight(case: Case) -> Decision | None:
    """Say that TRL's default for GRPO is no KL term at all."""
    if case.config != "GRPOConfig":
        return None
    reason = (
        "TRL's default: no KL term and no reference model, so nothing but the learning rate holds the model near the "
        "base; DeepSeekMath (arXiv:2402.03300) used 0.04"
    )
    return Decision("training.beta", 0.0, reason)


def vllm(case: Case) -> Decision | None:
    """Decide whether vLLM samples the completions."""
    if case.config not in SAMPLERS:
        return None
    key, installed = "training.use_vllm", importlib.util.find_spec("vllm") is not None
    if case.hardware.kind != "cuda":
        return Decision(key, False, "vLLM's weights are updated over CUDA only (TRL 1.16); `generate` with a cache")
    if not installed:
        return Decision(key, False, "vLLM is not installed; with it sampling is several times faster: pip install vllm")
    if case.recipe.quantization is not None:
        return Decision(key, False, "vLLM can't take over quantized weights from the trainer")
    return Decision(key, True, "vLLM is installed: the fastest engine; it shares the training GPU (`vllm_mode`)")


def continuous_batching(case: Case) -> Decision | None:
    """Decide whether transformers' continuous batching samples the completions where vLLM does not."""
    engine = vllm(case)
    if engine is None or case.given.get(engine.key, engine.value):
        return None
    key = "training.use_transformers_continuous_batching"
    if case.hardware.kind != "cuda":
        return Decision(key, False, "on a CPU it takes 3.7 times as long as `generate` with a cache (16 completions)")
    if case.recipe.quantization is not None:
        return Decision(key, False, "it casts the model in place, which quantized weights don't survive")
    if case.value(bf16) or case.value(fp16):
        return Decision(key, False, "with autocast, TRL 1.16 would cast the trained weights to 16 bits for good")
    at_once = _at_once(case)
    if at_once < _CONTINUOUS_FROM:
        return Decision(key, False, f"{at_once} completions at once: it pays from {_CONTINUOUS_FROM} on (trl 5765)")
    return Decision(key, True, f"{at_once} completions of different lengths at once: no padding (trl 5765)")


def _at_once(case: Case) -> int:
    return int(case.value(batch_size)) * int(case.value(accumulation_steps))
