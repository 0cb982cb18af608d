"""Decisions on number formats: weights, computation, attention kernel, what quantized weights are unpacked to."""

from __future__ import annotations

from llmkit.planning.case import Case
from llmkit.planning.plan import Decision


def dtype(case: Case) -> Decision:
    """Decide on the data type of the weights."""
    key, hardware = "model.dtype", case.hardware
    if case.full:
        return Decision(key, "float32", "all weights are trained: updates below 1/256 of a weight vanish in bfloat16")
    if hardware.bf16:
        return Decision(key, "bfloat16", "the base weights are frozen: bfloat16 is faster and takes half the memory")
    if hardware.kind == "cuda":
        return Decision(key, "float16", f"no bf16 units on {hardware.name}; frozen weights do well in float16")
    if hardware.kind == "mps":
        return Decision(key, "float32", "this macOS has no bfloat16 for its GPU (macOS 14 has)")
    return Decision(key, "float32", "no bf16 units on this CPU: bf16 matmuls are 3 to 4 times slower than fp32 here")


WITHOUT_SDPA = frozenset(
    [
        "deepseek_v4",
        "flint",
        "gemma2",
        "gemma4",
        "gemma4_text",
        "got_ocr2",
        "gpt_oss",
        "granite_swa",
        "granitemoe_swa",
        "hy_v4",
        "inkling2_text",
        "mimo_v2_flash",
        "vaultgemma",
    ]
)
"""Architectures that transformers 5.23 refuses to run with torch's fused attention: it knows no caps and no sinks."""


def attention(case: Case) -> Decision:
    """Decide on the attention kernel."""
    key, hardware = "model.attn_implementation", case.hardware
    flash = hardware.attention[0].startswith("flash") and case.value(dtype) != "float32"
    if case.size is not None and case.size.family in WITHOUT_SDPA and not flash:
        return Decision(key, "eager", f"transformers has no fused attention for {case.size.family}")
    if hardware.kind != "cuda":
        return Decision(key, "sdpa", "torch's own fused attention, the kernel that every device has")
    if case.value(dtype) == "float32":
        return Decision(key, "sdpa", "flash attention needs 16-bit weights, and these are float32")
    best = hardware.attention[0]
    reason = "flash-attn is installed" if best == "flash_attention_2" else "flash-attn is not installed"
    return Decision(key, best, reason)


def bf16(case: Case) -> Decision:
    """Decide on autocast to bfloat16."""
    key, hardware, weights = "training.bf16", case.hardware, case.value(dtype)
    if case.given.get("training.fp16"):
        return Decision(key, False, "the recipe asks for fp16")
    if not hardware.bf16:
        return Decision(key, False, f"no bf16 in hardware ({hardware.summary}); TRL would turn it on")
    if weights == "float16":
        return Decision(key, False, "the weights are float16")
    if weights == "float32":
        return Decision(key, True, "float32 weights are computed in bfloat16 (autocast), 2.5 times faster on a CPU")
    if hardware.kind == "cuda":
        return Decision(key, True, "autocast computes the float32 adapters in bfloat16 too, at no cost")
    return Decision(key, False, "the weights are bfloat16 already: autocast costs 5 to 12% on a CPU and gains nothing")


def fp16(case: Case) -> Decision:
    """Decide on autocast to float16 with loss scaling.

    The scaler needs trained weights in float32. PEFT makes adapters float32, but TRL's trainers cast those on a
    quantized base to bfloat16, which the scaler refuses ("not implemented for 'BFloat16'"): a method that runs with
    fp16 has to cast them back once its trainer is built.
    """
    key, hardware, weights = "training.fp16", case.hardware, case.value(dtype)
    if case.given.get("training.bf16"):
        return Decision(key, False, "the recipe asks for bf16")
    if hardware.kind != "cuda":
        return Decision(key, False, "float16 with loss scaling is for CUDA devices")
    if hardware.bf16 and weights != "float16":
        return Decision(key, False, "bf16 needs no loss scaling")
    if case.full and weights != "float32":
        return Decision(key, False, f"loss scaling needs trained weights in float32, and these are {weights}")
    return Decision(key, True, f"{hardware.name} computes float16 fast; loss scaling keeps small gradients")


def compute_dtype(case: Case) -> Decision | None:
    """Decide on what 4-bit weights are unpacked to."""
    if not case.recipe.quantization or case.recipe.quantization.bits != 4:
        return None
    reason = "4-bit weights are unpacked to the data type of the other weights"
    return Decision("quantization.bnb_4bit_compute_dtype", case.value(dtype), reason)


def double_quant(case: Case) -> Decision | None:
    """Decide on quantizing the 4-bit weights' scales too."""
    if not case.recipe.quantization or case.recipe.quantization.bits != 4:
        return None
    reason = "saves 0.4 bits per weight at no measurable loss (QLoRA, arXiv:2305.14314)"
    return Decision("quantization.bnb_4bit_use_double_quant", True, reason)
