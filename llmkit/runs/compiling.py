"""Compiling the layers of a run: decided once its rows are known, because only a long run repays it."""

from __future__ import annotations

from dataclasses import replace

from llmkit.errors import RecipeError
from llmkit.model.ceiling import gemm_ceiling
from llmkit.model.compiling import compile_layers
from llmkit.model.passes import Passed
from llmkit.planning.compiling import KEY, missing, worth_compiling
from llmkit.planning.plan import Decision
from llmkit.runs.measuring import as_rows, computing_dtype, workload
from llmkit.runs.prepare import Prepared

SHARE = 0.5
"""Share of the ceiling of matrix products that training is taken to reach."""

SLOWEST = 2e10
"""FLOP/s that any CPU of today trains at: a run that is short even so needs no measurement."""


def compiled(prepared: Prepared) -> Prepared:
    """Compile the layers where the recipe says so or the run is long enough; returns the run with that decision."""
    given = prepared.recipe.training.kwargs()
    # As in transformers, naming a backend or a mode asks for it.
    named = True if {"torch_compile_backend", "torch_compile_mode"} & set(given) else None
    # A run that goes on has been decided on: what is measured today may be another number.
    asked = given.get("torch_compile", named or prepared.plan.get(KEY))
    decision = _decide(prepared) if asked is None else None
    reentrant = (prepared.trainer.args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    if reentrant and prepared.trainer.args.gradient_checkpointing:
        # Its first pass has no gradients and so runs as it is: dropout would differ from that of the second one.
        if asked:
            raise RecipeError(
                "`training.torch_compile` with reentrant checkpointing: both passes would draw other dropout",
                remedy="Leave out `use_reentrant: true`, or `torch_compile`.",
            )
        return prepared
    if asked or (decision is not None and decision.value):
        compile_layers(
            prepared.model,
            backend=given.get("torch_compile_backend") or "inductor",
            mode=given.get("torch_compile_mode"),
        )
    if decision is None:
        return prepared
    return replace(prepared, plan=replace(prepared.plan, decisions=(*prepared.plan.decisions, decision)))


def _decide(prepared: Prepared) -> Decision:
    hardware, quantized = prepared.plan.hardware, prepared.recipe.quantization is not None
    lacking = missing(hardware)
    known = hardware.kind == "cpu" and lacking is None and not quantized
    seconds = expected_seconds(prepared) if known else None
    return worth_compiling(hardware, seconds=seconds, quantized=quantized, lacking=lacking)


def expected_seconds(prepared: Prepared) -> float | None:
    """Return the seconds of training on this CPU, by the arithmetic of its rows; None where that is not known.

    The CPU is measured only if the run is not short on any: that takes half a second.
    """
    flops = expected_flops(prepared)
    if flops is None:
        return None
    if flops < 60 * SLOWEST:
        return flops / SLOWEST
    trainer = prepared.trainer
    return flops / (SHARE * gemm_ceiling(trainer.args.device, computing_dtype(trainer)))


def expected_flops(prepared: Prepared) -> float | None:
    """Return what learning from all rows needs, over all epochs; None for streams and for sampled answers."""
    work, args = workload(prepared), prepared.trainer.args
    if work.tokens is None or work.completions is not None:
        return None
    totals = as_rows(prepared.splits.train).totals.astype("int64")
    epoch = work.flops(Passed(tokens=int(totals.sum()), pairs=int((totals * (totals + 1) // 2).sum())))
    return float(epoch) * _epochs(prepared, args.max_steps, args.num_train_epochs)


def _epochs(prepared: Prepared, max_steps: int, epochs: float) -> float:
    if max_steps <= 0:
        return epochs
    args = prepared.trainer.args
    rows_per_step = args.train_batch_size * args.gradient_accumulation_steps
    return float(max_steps * rows_per_step / len(prepared.trainer.train_dataset))
