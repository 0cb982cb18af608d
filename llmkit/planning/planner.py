"""Recipe x Hardware -> Plan: every value that the recipe leaves open and the libraries' defaults get wrong.

`plan` is a pure function without torch. Each decision is one small function with its own reason; a decision that needs
another asks for its value (`Case.value`), so that what the recipe sets counts everywhere. What neither the recipe nor
the plan names is left to the libraries, e.g. `training.optim`, whose default is already the fused AdamW.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmkit.errors import RecipeError
from llmkit.planning.hardware import GIB, Hardware
from llmkit.planning.plan import Decision, Plan
from llmkit.planning.size import ModelSize

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe


@dataclass(frozen=True)
class Case:
    """What the decisions look at."""

    recipe: Recipe
    hardware: Hardware
    size: ModelSize | None

    @cached_property
    def given(self) -> Mapping[str, Any]:
        """The values that the recipe sets itself, by dotted key."""
        recipe = self.recipe
        model = {"dtype": recipe.model.dtype, "attn_implementation": recipe.model.attn_implementation}
        sections = {
            "model": {key: value for key, value in model.items() if value is not None},
            "training": recipe.training.kwargs(),
            "adapter": recipe.adapter.kwargs() if recipe.adapter else {},
            "quantization": recipe.quantization.kwargs() if recipe.quantization else {},
        }
        given = {f"{name}.{key}": value for name, keys in sections.items() for key, value in keys.items()}
        # transformers has two names for the same switch, and the new one counts where both are set.
        for end in ("checkpointing", "checkpointing_kwargs"):
            if given.get(f"training.activation_{end}") is not None:
                given[f"training.gradient_{end}"] = given[f"training.activation_{end}"]
        return given

    def value(self, decide: Callable[[Case], Decision]) -> Any:
        """Return what the recipe sets for the key that `decide` is about, or else what it decides."""
        decision = decide(self)
        return self.given.get(decision.key, decision.value)

    @property
    def full(self) -> bool:
        """Whether all weights are trained."""
        return self.recipe.adapter is None

    @property
    def config(self) -> str:
        """Name of the TRL config class of the method."""
        return self.recipe.method.config


def plan(recipe: Recipe, hardware: Hardware, size: ModelSize | None) -> Plan:
    """Decide what `recipe`, which `check` has accepted, leaves open for a model of `size` (None: unknown)."""
    case = Case(recipe, hardware, size)
    decided = (decide(case) for decide in _DECISIONS)
    return Plan(hardware, size, tuple(d for d in decided if d is not None and d.key not in case.given))


def check(recipe: Recipe) -> None:
    """Raise RecipeError for what no hardware can do: sections that exclude each other, batches of nothing."""
    if recipe.quantization and not recipe.adapter:
        bits = recipe.quantization.bits
        raise RecipeError(
            f"{bits}-bit quantization together with full training: quantized weights can't be trained",
            remedy="Add `adapter: {type: lora}` or remove `quantization`.",
        )
    training = recipe.training.kwargs()
    if training.get("bf16") and training.get("fp16"):
        raise RecipeError("`training.bf16` and `training.fp16` are both true", remedy="Remove one of them.")
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if training.get(key, 1) < 1:
            raise RecipeError(f"`training.{key}` must be at least 1, not {training[key]}")


# --- Where ---------------------------------------------------------------------------------------------------------


def _device(case: Case) -> Decision:
    # Decided even where the recipe names a device: `auto` is a wish, this is the device that was found for it.
    asked = case.recipe.hardware.device
    reason = "the best device found" if asked == "auto" else f"the recipe asks for {asked}"
    return Decision("hardware.device", case.hardware.kind, f"{reason}: {case.hardware.summary}")


def _threads(case: Case) -> Decision:
    cores, processes = case.hardware.cpu_cores, case.hardware.count
    reason = f"{cores} usable CPU cores" + (f", shared by {processes} processes" if processes > 1 else "")
    return Decision("hardware.threads", max(1, cores // processes), reason)


def _use_cpu(case: Case) -> Decision | None:
    if case.hardware.kind != "cpu":
        return None
    return Decision("training.use_cpu", True, "TRL's configs refuse to run without a GPU unless this is set")


# --- Number formats ------------------------------------------------------------------------------------------------


def _dtype(case: Case) -> Decision:
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


def _attention(case: Case) -> Decision:
    key, hardware = "model.attn_implementation", case.hardware
    if hardware.kind != "cuda":
        return Decision(key, "sdpa", "torch's own fused attention, the kernel that every device has")
    if case.value(_dtype) == "float32":
        return Decision(key, "sdpa", "flash attention needs 16-bit weights, and these are float32")
    best = hardware.attention[0]
    reason = "flash-attn is installed" if best == "flash_attention_2" else "flash-attn is not installed"
    return Decision(key, best, reason)


def _bf16(case: Case) -> Decision:
    key, hardware, dtype = "training.bf16", case.hardware, case.value(_dtype)
    if case.given.get("training.fp16"):
        return Decision(key, False, "the recipe asks for fp16")
    if not hardware.bf16:
        return Decision(key, False, f"no bf16 in hardware ({hardware.summary}); TRL would turn it on")
    if dtype == "float16":
        return Decision(key, False, "the weights are float16")
    if dtype == "float32":
        return Decision(key, True, "float32 weights are computed in bfloat16 (autocast), 2.5 times faster on a CPU")
    if hardware.kind == "cuda":
        return Decision(key, True, "autocast computes the float32 adapters in bfloat16 too, at no cost")
    return Decision(key, False, "the weights are bfloat16 already: autocast costs 5 to 12% on a CPU and gains nothing")


def _fp16(case: Case) -> Decision:
    """Decide on autocast to float16 with loss scaling.

    The scaler needs trained weights in float32. PEFT makes adapters float32, but TRL's trainers cast those on a
    quantized base to bfloat16, which the scaler refuses ("not implemented for 'BFloat16'"): a method that runs with
    fp16 has to cast them back once its trainer is built.
    """
    key, hardware, dtype = "training.fp16", case.hardware, case.value(_dtype)
    if case.given.get("training.bf16"):
        return Decision(key, False, "the recipe asks for bf16")
    if hardware.kind != "cuda":
        return Decision(key, False, "float16 with loss scaling is for CUDA devices")
    if hardware.bf16 and dtype != "float16":
        return Decision(key, False, "bf16 needs no loss scaling")
    if case.full and dtype != "float32":
        return Decision(key, False, f"loss scaling needs trained weights in float32, and these are {dtype}")
    return Decision(key, True, f"{hardware.name} computes float16 fast; loss scaling keeps small gradients")


def _compute_dtype(case: Case) -> Decision | None:
    if not case.recipe.quantization or case.recipe.quantization.bits != 4:
        return None
    reason = "4-bit weights are unpacked to the data type of the other weights"
    return Decision("quantization.bnb_4bit_compute_dtype", case.value(_dtype), reason)


def _double_quant(case: Case) -> Decision | None:
    if not case.recipe.quantization or case.recipe.quantization.bits != 4:
        return None
    reason = "saves 0.4 bits per weight at no measurable loss (QLoRA, arXiv:2305.14314)"
    return Decision("quantization.bnb_4bit_use_double_quant", True, reason)


# --- The adapter ---------------------------------------------------------------------------------------------------


def _target_modules(case: Case) -> Decision | None:
    adapter = case.recipe.adapter
    # `target_parameters` names the experts of a mixture instead of modules.
    if adapter is None or adapter.table != "LoraConfig" or "adapter.target_parameters" in case.given:
        return None
    reason = (
        "LoRA matches full fine-tuning only on all linear layers (QLoRA, arXiv:2305.14314); PEFT's default takes the "
        "attention's q and v, and fails for architectures that it doesn't know"
    )
    return Decision("adapter.target_modules", "all-linear", reason)


def _task_type(case: Case) -> Decision | None:
    if case.full:
        return None
    if case.config == "RewardConfig":
        return Decision("adapter.task_type", "SEQ_CLS", "a reward model scores a sequence, and its head is trained too")
    return Decision("adapter.task_type", "CAUSAL_LM", "the model predicts the next token")


_ADAPTER_RATES = MappingProxyType(
    {
        "SFTConfig": 2e-4,
        "DPOConfig": 1e-5,
        "KTOConfig": 1e-5,
        "GRPOConfig": 1e-5,
        "RLOOConfig": 1e-5,
        "DistillationConfig": 1e-5,
        "ORPOConfig": 1e-5,
        "CPOConfig": 1e-5,
    }
)
"""Ten times TRL's defaults, which are for full fine-tuning (RewardConfig's 1e-4 already suits an adapter)."""


def _learning_rate(case: Case) -> Decision | None:
    if case.full or case.config not in _ADAPTER_RATES:
        return None
    rate = _ADAPTER_RATES[case.config]
    reason = f"TRL's default of {rate / 10:g} is for full fine-tuning; an adapter needs about 10 times that"
    if case.config == "SFTConfig":
        reason += " (QLoRA, arXiv:2305.14314, used 2e-4)"
    return Decision("training.learning_rate", rate, reason)


# --- Memory --------------------------------------------------------------------------------------------------------

_WEIGHT_BYTES = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})
_ADAPTER_SHARE = 0.02
"""Adapter weights per base weight: rank 16 on all linear layers of small and large models makes 0.5 to 4%."""

# KTO, DPO and RLOO compare with a frozen copy of the model; with an adapter that is the model with it switched off.
_WITH_REFERENCE = frozenset({"DPOConfig", "KTOConfig", "RLOOConfig"})

_BATCH = "training.per_device_train_batch_size"
_STEPS = "training.gradient_accumulation_steps"

_USABLE = 0.85
"""Share of the memory that a plan fills: the rest is fragmentation, kernels' workspace and other programs."""


def state_bytes(case: Case) -> int | None:
    """Estimate the bytes per device of weights, gradients and Adam's two moments; None for a model of unknown size.

    With P parameters of b bytes each: full fine-tuning P x 4b (16 bytes in float32), and P x b more for a reference
    model; with an adapter P x b, where a quantized weight takes its bits and half a bit for its scales, and 16 bytes
    for each of 0.02 P adapter weights. Activations come on top (`activation_bytes`).
    """
    if case.size is None:
        return None
    quantization = case.recipe.quantization
    weight = (quantization.bits + 0.5) / 8 if quantization else _WEIGHT_BYTES[case.value(_dtype)]
    if not case.full:
        per_parameter = weight + _ADAPTER_SHARE * 16
    else:
        per_parameter = weight * (5 if case.config in _WITH_REFERENCE else 4)
    return round(case.size.parameters * per_parameter)


_AUTOCAST_BYTES, _PLAIN_BYTES = 60, 92
"""Kept for the backward pass per token, layer and unit of hidden size, with autocast to 16 bits and without.

Measured on layers of Llama and Qwen2 with fused attention: 47 to 77 with autocast, 65 to 127 without (an adapter in
float32 on a 16-bit base copies its inputs). Qwen's wide MLPs make the upper ends, but its models have fewer layers or
smaller ones than `_shape` guesses: the product is what has to be right."""


def _shape(parameters: int) -> tuple[float, float]:
    """Guess hidden size and layers from P = 12 x layers x hidden^2: hidden = 128 x layers, but at least 28 layers."""
    layers = max(28, (parameters / (12 * 128**2)) ** (1 / 3))
    return math.sqrt(parameters / (12 * layers)), layers


def activation_bytes(case: Case, batch: int, *, checkpointed: bool) -> int:
    """Estimate the bytes per device that `batch` full rows keep for the backward pass; 0 for a model of unknown size.

    Every layer keeps what it computes for each token (`_AUTOCAST_BYTES`), or with checkpointing only its input (in the
    data type of the weights), and one layer at a time the rest. A chunked loss is assumed: no logits, as in TRL's SFT.
    """
    if case.size is None:
        return 0
    hidden, layers = _shape(case.size.parameters)
    layer = hidden * (_AUTOCAST_BYTES if case.value(_bf16) or case.value(_fp16) else _PLAIN_BYTES)
    kept = hidden * _WEIGHT_BYTES[case.value(_dtype)]
    tokens = batch * (case.given.get("training.max_length") or 1024)
    return round(tokens * (layer + kept * layers if checkpointed else layer * layers))


def _fits(case: Case, batch: int, *, checkpointed: bool) -> bool:
    state = state_bytes(case)
    needed = (state or 0) + activation_bytes(case, batch, checkpointed=checkpointed)
    return state is not None and needed <= _USABLE * case.hardware.memory_bytes


def _share_text(case: Case) -> str:
    state = state_bytes(case)
    if state is None:
        return "the size of the model is unknown"
    memory = case.hardware.memory_bytes
    where = "RAM" if case.hardware.kind != "cuda" else "each GPU"
    return (
        f"weights, gradients and optimizer take about {state / GIB:.1f} GiB, {state / memory:.0%} of the "
        f"{memory / GIB:.0f} GiB of {where}" + (" (this does not fit)" if state > memory else "")
    )


def _checkpointing(case: Case) -> Decision:
    key, batch = "training.gradient_checkpointing", case.given.get(_BATCH, 4)
    needed = not _fits(case, batch, checkpointed=False) if case.size else case.hardware.kind != "cpu"
    activations = activation_bytes(case, batch, checkpointed=False) / GIB
    plural = "s" if batch != 1 else ""
    rows = f", activations of {batch} row{plural} up to {activations:.1f} GiB" if case.size else ""
    effect = "recomputing activations saves memory" if needed else "recomputing activations would cost 30% of the time"
    return Decision(key, needed, f"{_share_text(case)}{rows}: {effect}")


def _checkpointing_kwargs(case: Case) -> Decision | None:
    if not case.value(_checkpointing):
        return None
    reason = 'DDP with LoRA and reentrant checkpointing fails with "mark variable ready only once"'
    return Decision("training.gradient_checkpointing_kwargs", {"use_reentrant": False}, reason)


# --- Batches -------------------------------------------------------------------------------------------------------

# GRPO and RLOO count completions, and refuse a global batch that splits the group of one prompt (TRL's defaults).
_GROUPS = MappingProxyType({"GRPOConfig": 8, "RLOOConfig": 2})


def _target(case: Case) -> int:
    """Sequences per optimizer step: enough for a steady gradient, few enough for many steps on small data."""
    return 8 if case.hardware.kind == "cpu" else 16


def _largest_batch(case: Case) -> int:
    if case.size is None:
        return 8 if case.hardware.kind == "cpu" else 2
    checkpointed = bool(case.value(_checkpointing))
    return next((n for n in (8, 4, 2) if _fits(case, n, checkpointed=checkpointed)), 1)


def _batch_reason(case: Case, largest: int) -> str:
    if case.hardware.kind == "cpu" and largest == 8:
        return "a CPU gains nothing from more"
    if case.size is None:
        return _share_text(case)
    fits = _fits(case, largest, checkpointed=bool(case.value(_checkpointing)))
    effect = "the largest batch of 8, 4, 2, 1 that fits" if fits else "even one full row may not fit"
    return f"{_share_text(case)}; {effect}"


def _whole_groups(case: Case, least: int, unit: int) -> int:
    """Return the smallest n >= `least` for which n x `unit` sequences hold whole groups of completions."""
    group = case.given.get("training.num_generations") or _GROUPS.get(case.config, 1)
    return next(n for n in count(least) if n * unit % group == 0)


def _batch(case: Case) -> Decision:
    largest, devices = _largest_batch(case), case.hardware.count
    reason = _batch_reason(case, largest)
    if _STEPS not in case.given:
        return Decision(_BATCH, largest, reason)
    steps = case.given[_STEPS]
    batch = min(largest, math.ceil(_target(case) / (steps * devices)))
    # KTO estimates its KL term from mismatched pairs within a batch, and refuses a batch of one.
    batch = _whole_groups(case, max(batch, 2 if case.config == "KTOConfig" else 1), steps * devices)
    return Decision(_BATCH, batch, f"{batch} x {steps} accumulated x {devices} devices; {reason}")


def _accumulation(case: Case) -> Decision:
    batch, devices = case.value(_batch), case.hardware.count
    steps = _whole_groups(case, math.ceil(_target(case) / (batch * devices)), batch * devices)
    total = batch * devices * steps
    reason = f"{batch} per device x {devices} device{'s' if devices > 1 else ''} x {steps} = {total} sequences per step"
    return Decision(_STEPS, steps, reason)


# --- Loading and logging -------------------------------------------------------------------------------------------


def _pin_memory(case: Case) -> Decision | None:
    if case.hardware.kind == "cuda":
        return None
    return Decision("training.dataloader_pin_memory", False, "only copies to a CUDA device gain; others get a warning")


def _workers(case: Case) -> Decision:
    return Decision("training.dataloader_num_workers", 0, "the rows are tokenized before training: nothing to work on")


def _logging(case: Case) -> Decision:
    return Decision("training.logging_steps", 1, "a line of metrics per step is cheap, and shows a bad start at once")


def _report_to(case: Case) -> Decision:
    key = "training.report_to"
    if importlib.util.find_spec("tensorboard") is not None:
        return Decision(key, ["tensorboard"], "tensorboard is installed; its files go to the run folder")
    return Decision(key, "none", "tensorboard is not installed; metrics.jsonl has every number")


_DECISIONS: tuple[Callable[[Case], Decision | None], ...] = (
    _device,
    _threads,
    _dtype,
    _attention,
    _compute_dtype,
    _double_quant,
    _target_modules,
    _task_type,
    _use_cpu,
    _bf16,
    _fp16,
    _checkpointing,
    _checkpointing_kwargs,
    _batch,
    _accumulation,
    _learning_rate,
    _pin_memory,
    _workers,
    _logging,
    _report_to,
)
