"""Reward models: a score for each answer, learnt from pairs of a better and a worse one (Bradley-Terry)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmkit.data.shapes import Shape
from llmkit.errors import DataError
from llmkit.methods.base import Job, Method, keep_adapter_precision, one_device
from llmkit.model.heads import CLASSIFIER, hold_head_in_float32

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import RewardTrainer

    from llmkit.data.splits import Row


class Reward(Method):
    """Train a sequence classifier with one label by TRL's RewardTrainer; full, or with an adapter and a quantized base.

    The loss of a pair is -log sigmoid(score of chosen - score of rejected - margin).
    """

    type: Literal["reward"]
    """The name of this variant."""

    accepts: ClassVar[frozenset[Shape]] = frozenset({Shape.PREFERENCE})
    config: ClassVar[str] = "RewardConfig"
    model_class: ClassVar[str] = CLASSIFIER

    def build_trainer(self, job: Job) -> RewardTrainer:
        """Build the trainer on pairs that are already tokenized and audited (TRL leaves such rows as they are).

        Raises DataError where some of the rows have a margin and others have none.
        """
        from trl import RewardConfig

        from llmkit.methods._by_length import GroupedRewardTrainer

        # The rows are within `max_length` already, and each of them is in the ledger: TRL would drop rows in silence.
        args = one_device(RewardConfig(**{**job.training_kwargs(), "max_length": None}))
        evaluates = str(args.eval_strategy.value) != "no"
        trainer = GroupedRewardTrainer(
            model=job.model,
            args=args,
            processing_class=job.tokenizer,
            train_dataset=pairs(job.splits.train),
            eval_dataset=pairs(job.splits.eval) if evaluates else None,
            peft_config=job.recipe.adapter.build(job.plan) if job.recipe.adapter and not job.adapted else None,
            callbacks=list(job.callbacks),
        )
        keep_adapter_precision(trainer, job)
        # TRL casts what is trained on a quantized base to bfloat16, and the head with it.
        hold_head_in_float32(trainer.model)
        if job.tokenizer.pad_token_id == job.tokenizer.eos_token_id:
            job.narrate("the pad token is the end token: a score is read at the last token before the end")
        return trainer


def pairs(rows: Sequence[Row]) -> Dataset:
    """Return the pairs as TRL's columns: `chosen_ids` and `rejected_ids` with the prompt in them, and `margin` if any.

    Raises DataError where some rows have a margin and others have none.
    """
    from datasets import Dataset

    columns: dict[str, list[Any]] = {
        name: [row.tokens["prompt_ids"] + row.tokens[name] for row in rows] for name in ("chosen_ids", "rejected_ids")
    }
    without = next((row for row in rows if "margin" not in row.example), None)
    if without is None:
        columns["margin"] = [float(row.example["margin"]) for row in rows]
    elif any("margin" in row.example for row in rows):
        raise DataError(
            "the row has no `margin`, and others have one",
            where=without.where,
            remedy="Give every row a margin (0 where there is none), or no row.",
        )
    return Dataset.from_dict(columns)
