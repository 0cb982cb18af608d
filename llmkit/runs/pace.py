"""How fast a run with rewards will be: completions per step, steps of the run, and the time of a step as measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.errors import SetupError
from llmkit.model.generation import Continuation
from llmkit.planning.plan import Plan
from llmkit.recipe.recipe import Recipe
from llmkit.runs.checks import is_adapter, planned
from llmkit.runs.reopen import Reopened

ENGINES = {"use_vllm": "vLLM", "use_transformers_continuous_batching": "continuous batching"}
"""What samples in the run where it is not `generate`, by the training field that says so."""

READ_AGAIN = frozenset({"RLOOConfig"})
"""Configs whose trainer always computes the log-probabilities of what was sampled once more."""


@dataclass(frozen=True)
class Pace:
    """Seconds of one optimizer step as measured here, and the steps of the run."""

    generate: float
    score: float
    learn: float
    completions: float
    """Completions sampled and scored per step."""
    steps: int
    engine: str | None = None
    """What samples in the run where it is not `generate`, which is what `generate` was measured with."""

    @property
    def seconds(self) -> float:
        """Seconds per step."""
        return self.generate + self.score + self.learn

    @property
    def hours(self) -> float:
        """Hours of training; loading, evaluation and export come on top."""
        return self.seconds * self.steps / 3600


def engine_of(recipe: Recipe, the_plan: Plan) -> str | None:
    """Return what samples in the run, by its name; None for `generate`."""
    return next((name for field, name in ENGINES.items() if planned(recipe, the_plan, field)), None)


def completions_per_step(recipe: Recipe, the_plan: Plan) -> float:
    """Return how many completions are sampled and scored per optimizer step; several iterations share theirs."""
    batch = int(planned(recipe, the_plan, "per_device_train_batch_size") or 8)
    accumulated = int(planned(recipe, the_plan, "gradient_accumulation_steps") or 1)
    return batch * accumulated / int(planned(recipe, the_plan, "num_iterations") or 1)


def generation_batch(recipe: Recipe, the_plan: Plan) -> float:
    """Return how many completions the trainer samples at once (TRL's `generation_batch_size`, one process)."""
    whole = planned(recipe, the_plan, "generation_batch_size")
    if whole is not None:
        return float(whole)
    steps = planned(recipe, the_plan, "steps_per_generation")
    if steps is None:
        steps = planned(recipe, the_plan, "gradient_accumulation_steps") or 1
    return float(int(planned(recipe, the_plan, "per_device_train_batch_size") or 8) * int(steps))


def steps_of_run(recipe: Recipe, the_plan: Plan, rows: int) -> int:
    """Return the optimizer steps of the whole run over `rows` training rows, of which a share may be held out."""
    most = int(planned(recipe, the_plan, "max_steps") or -1)
    if most > 0:
        return most
    if isinstance(recipe.data.eval, float):
        rows -= max(1, round(rows * recipe.data.eval))
    epochs = float(planned(recipe, the_plan, "num_train_epochs"))
    completions = rows * int(planned(recipe, the_plan, "num_generations"))
    return max(1, round(epochs * completions / completions_per_step(recipe, the_plan)))


def pace_of(
    recipe: Recipe, the_plan: Plan, rows: int, answers: int, generating: float, scoring: float, learning: float
) -> Pace:
    """Return the time of a step from the seconds of `answers` completions, and of learning from one."""
    completions = completions_per_step(recipe, the_plan)
    return Pace(
        generate=generating / answers * completions,
        score=scoring / answers * completions,
        learn=learning * completions,
        completions=completions,
        steps=steps_of_run(recipe, the_plan, rows),
        engine=engine_of(recipe, the_plan),
    )


def learning_seconds(opened: Reopened, prompts: Sequence[list[int]], found: Sequence[Continuation]) -> float:
    """Return the seconds of learning from one completion: forward and backward over one micro-batch, twice.

    Forward passes without gradients, for a reference (`beta`) or the log-probabilities at the time of sampling, count
    as well. The gradients are thrown away. Raises SetupError if the micro-batch doesn't fit in memory.
    """
    import torch

    recipe, the_plan = opened.recipe, opened.plan
    count = min(int(planned(recipe, the_plan, "per_device_train_batch_size") or 8), len(found))
    chosen = [i * len(found) // count for i in range(count)]
    model = _trainable(opened)
    batch = _padded([prompts[i] for i in chosen], [list(found[i].tokens) for i in chosen], model, opened.tokenizer)
    try:
        # The first pass also sets up kernels and memory.
        learning = min(_timed_pass(model, the_plan, recipe, batch, learn=True) for _ in range(2))
        others = _extra_passes(recipe, the_plan)
        forward = _timed_pass(model, the_plan, recipe, batch, learn=False) if others else 0.0
    except torch.OutOfMemoryError as error:
        raise SetupError(
            f"learning from {count} completions at once doesn't fit in memory",
            remedy="Lower `training.per_device_train_batch_size`, and raise `gradient_accumulation_steps` in turn.",
        ) from error
    finally:
        model.zero_grad(set_to_none=True)
    iterations = int(planned(recipe, the_plan, "num_iterations") or 1)
    return (iterations * learning + others * forward) / count


def _extra_passes(recipe: Recipe, the_plan: Plan) -> int:
    """Return the forward passes per completion before it is learnt from, as TRL 1.16 makes them."""
    reference = int((planned(recipe, the_plan, "beta") or 0) > 0)
    accumulated = int(planned(recipe, the_plan, "gradient_accumulation_steps") or 1)
    batch = int(planned(recipe, the_plan, "per_device_train_batch_size") or 8)
    every = generation_batch(recipe, the_plan) / batch * int(planned(recipe, the_plan, "num_iterations") or 1)
    return reference + int(accumulated % every != 0 or recipe.method.config in READ_AGAIN)


def _trainable(opened: Reopened) -> Any:
    """Return the model as it will be trained: with a new adapter, and with checkpointing where the plan has it."""
    recipe, the_plan = opened.recipe, opened.plan
    model: Any = opened.model
    if recipe.adapter is not None and not is_adapter(recipe):
        from peft import get_peft_model

        model = get_peft_model(model, recipe.adapter.build(the_plan))
    if planned(recipe, the_plan, "gradient_checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    return model


def _padded(prompts: Sequence[list[int]], answers: Sequence[list[int]], model: Any, tokenizer: Any) -> dict[str, Any]:
    """Return a batch as TRL makes it: prompts padded on the left, answers on the right, labels -100 at padding."""
    import torch

    wide, long, pad = max(map(len, prompts)), max(map(len, answers)), tokenizer.pad_token_id
    ids = [[pad] * (wide - len(p)) + p + a + [pad] * (long - len(a)) for p, a in zip(prompts, answers, strict=True)]
    mask = [
        [0] * (wide - len(p)) + [1] * (len(p) + len(a)) + [0] * (long - len(a))
        for p, a in zip(prompts, answers, strict=True)
    ]
    labels = [a + [-100] * (long - len(a)) for a in answers]
    columns = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.tensor(values, device=model.device) for name, values in columns.items()}


def _timed_pass(model: Any, the_plan: Plan, recipe: Recipe, batch: dict[str, Any], *, learn: bool) -> float:
    """Return the seconds of one pass over `batch` (see `_padded`), with gradients if it learns."""
    import torch

    kind = model.device.type
    half = [name for name in ("bf16", "fp16") if planned(recipe, the_plan, name)]
    dtype = torch.float16 if half == ["fp16"] else torch.bfloat16
    labels = batch["labels"]
    began = time.perf_counter()
    with torch.set_grad_enabled(learn), torch.autocast(kind, dtype=dtype, enabled=bool(half)):
        # The logits of the answer's tokens are those one place earlier.
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            logits_to_keep=labels.shape[1] + 1,
            use_cache=False,
        ).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
    if learn:
        loss.backward()  # type: ignore[no-untyped-call]
    if kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
