"""Recipe x Hardware -> Plan: every value that the recipe leaves open and the libraries' defaults get wrong.

`plan` is a pure function without torch. Each decision is one small function with its own reason; a decision that needs
another asks for its value (`Case.value`), so that what the recipe sets counts everywhere. What neither the recipe nor
the plan names is left to the libraries.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmkit.planning import batches, filling, precision, sampling
from llmkit.planning.case import Case, Trace
from llmkit.planning.hardware import Hardware
from llmkit.planning.plan import Decision, Plan
from llmkit.planning.size import ModelSize

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe


def plan(recipe: Recipe, hardware: Hardware, size: ModelSize | None, trace: Trace | None = None) -> Plan:
    """Decide what `recipe`, which `check` has accepted, leaves open for a model of `size` (None: unknown).

    `trace` counts what the model takes; without it, its shape is guessed by its size.
    """
    case = Case(recipe, hardware, size, trace)
    decided = (*(decide(case) for decide in _DECISIONS), *_published(case))
    return Plan(hardware, size, tuple(d for d in decided if d is not None and d.key not in case.given))


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


def _optimizer(case: Case) -> Decision:
    reason = "AdamW in one kernel for all weights, which changes nothing about the numbers; two moments in their dtype"
    return Decision("training.optim", "adamw_torch_fused", reason)


def _liger(case: Case) -> Decision | None:
    if case.hardware.kind != "cuda":
        return None
    reason = "TRL 1.16 deprecates Liger, and its own Triton head already keeps the logits out of memory"
    return Decision("training.use_liger_kernel", False, reason)


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


def _published(case: Case) -> tuple[Decision, ...]:
    """Return the method's own values, where the defaults of its TRL config are another method's."""
    method = case.recipe.method
    reason = f"{method.type} as published; {method.config} defaults to another method's value"
    values = method.defaults(case.recipe.training.kwargs())
    return tuple(Decision(f"training.{key}", value, reason) for key, value in values.items())


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
    precision.dtype,
    precision.attention,
    precision.compute_dtype,
    precision.double_quant,
    _target_modules,
    _task_type,
    _use_cpu,
    precision.bf16,
    precision.fp16,
    batches.checkpointing,
    batches.checkpointing_kwargs,
    batches.batch_size,
    batches.accumulation_steps,
    filling.sampling_strategy,
    filling.packing,
    _optimizer,
    _liger,
    sampling.reference_model,
    sampling.kl_weight,
    sampling.vllm,
    sampling.continuous_batching,
    _learning_rate,
    _pin_memory,
    _workers,
    _logging,
    _report_to,
)
