"""KTO: learning from single answers that are marked good or bad (arXiv:2402.01306)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmkit.data.shapes import Shape
from llmkit.data.splits import Row
from llmkit.errors import DataError
from llmkit.methods._pairs_checks import check_reference, refuse
from llmkit.methods.base import Job, Method, keep_adapter_precision, one_device

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import KTOTrainer

    from llmkit.recipe.recipe import Recipe

LARGEST_RATIO = 4 / 3
"""Eq. (8) of arXiv:2402.01306: the weighted good rows are between 1 and 4/3 times the weighted bad ones."""


class Kto(Method):
    """Kahneman-Tversky optimization with TRL's KTOTrainer; full, or with an adapter and a quantized base.

    Rows need no partner: each answer is good or bad by itself. The loss compares an answer's gain over the reference
    with the average gain of mismatched pairs (a prompt with the answer of another row of the batch), so a batch holds
    at least 2 rows, and rows are read in one order, shuffled once. `training.loss_type: apo_zero_unpaired` needs no
    such average. The reference is that of `dpo`.
    """

    type: Literal["kto"]
    """The name of this variant."""

    accepts: ClassVar[frozenset[Shape]] = frozenset({Shape.UNPAIRED})
    config: ClassVar[str] = "KTOConfig"

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse batches and orders that the mismatched pairs can't come from; raises RecipeError."""
        check_reference(recipe)
        training = recipe.training.kwargs()
        if training.get("loss_type", "kto") != "kto":
            return
        if training.get("per_device_train_batch_size", 2) < 2:
            what = "the KL term comes from the prompt of one row with the answer of another, and a batch of 1 has none"
            refuse(recipe, "per_device_train_batch_size", what, "Set 2 or more; accumulation does not count.")
        if training.get("train_sampling_strategy", "sequential") != "sequential":
            what = "mismatched pairs are made once, so rows must be read in that order (llmkit has shuffled them)"
            refuse(recipe, "train_sampling_strategy", what, "Remove it.")

    def build_trainer(self, job: Job) -> KTOTrainer:
        """Build the trainer on shuffled, tokenized rows; says where good and bad rows are out of balance.

        Raises DataError for a split of one row, which has no mismatched pair.
        """
        from trl import KTOConfig

        from llmkit.methods._pairs import TokenizedKTOTrainer, reference_copy

        args = one_device(KTOConfig(**job.training_kwargs()))
        evaluates = str(args.eval_strategy.value) != "no"
        rows = random.Random(args.seed).sample(job.splits.train, len(job.splits.train))
        for line in advice(rows, args.desirable_weight, args.undesirable_weight):
            job.narrate(line)
        size = args.per_device_train_batch_size if args.loss_type == "kto" else None
        trainer = TokenizedKTOTrainer(
            model=job.model,
            ref_model=reference_copy(job, args),
            args=args,
            processing_class=job.tokenizer,
            train_dataset=_dataset(rows, size),
            eval_dataset=_dataset(job.splits.eval, size) if evaluates else None,
            peft_config=job.recipe.adapter.build(job.plan) if job.recipe.adapter and not job.adapted else None,
            callbacks=list(job.callbacks),
            narrate=job.narrate,
        )
        keep_adapter_precision(trainer, job)
        return trainer


def _dataset(rows: Sequence[Row], batch_size: int | None) -> Dataset:
    """Return TRL's columns; with the mismatched answers for batches of `batch_size` rows unless it is None."""
    from datasets import Dataset

    answers = [row.tokens["completion_ids"] for row in rows]
    columns: dict[str, list[Any]] = {
        "prompt_ids": [row.tokens["prompt_ids"] for row in rows],
        "completion_ids": answers,
        "label": [row.example["label"] for row in rows],
    }
    if batch_size is not None:
        columns["KL_completion_ids"] = mismatched(answers, batch_size)
    return Dataset.from_dict(columns)


def mismatched(answers: Sequence[list[int]], batch_size: int) -> list[list[int]]:
    """Return for each row the answer of another row of its batch: the one before it, for the first the last one.

    A row that is alone in the last batch takes the answer of the row before it; TRL would take its own, and the KL term
    would be that row's own reward. Raises DataError if there is only one row.
    """
    if len(answers) == 1:
        raise DataError(
            "KTO estimates its KL term from the prompt of one row with the answer of another, and there is one row",
            remedy="Add rows, or set `training.loss_type: apo_zero_unpaired`, which has no KL term.",
        )
    found: list[list[int]] = []
    for start in range(0, len(answers), batch_size):
        batch = list(answers[start : start + batch_size])
        found += [answers[start - 1]] if len(batch) == 1 else [batch[-1], *batch[:-1]]
    return found


def advice(rows: Sequence[Row], desirable_weight: float, undesirable_weight: float) -> list[str]:
    """Return what to say about the balance of good and bad rows: a line, or none where the weights suit them."""
    good = sum(bool(row.example["label"]) for row in rows)
    bad = len(rows) - good
    if not good or not bad:
        return [f"all {len(rows)} rows are {'good' if good else 'bad'}: KTO has nothing to tell apart"]
    weights = (desirable_weight, undesirable_weight)
    least, most = undesirable_weight * bad / good, desirable_weight * good / bad
    ranges = ((least, least * LARGEST_RATIO), (most / LARGEST_RATIO, most))
    # Two decimals, as the advice has: a weight that follows it is not told off.
    if any(round(low, 2) <= weight <= round(high, 2) for weight, (low, high) in zip(weights, ranges, strict=True)):
        return []
    desirable, undesirable = (f"between {low:.2f} and {high:.2f}" for low, high in ranges)
    return [
        f"{good} good and {bad} bad rows with weights {desirable_weight:g} and {undesirable_weight:g}: set "
        f"training.desirable_weight {desirable}, or training.undesirable_weight {undesirable} "
        "(arXiv:2402.01306, eq. 8)"
    ]
