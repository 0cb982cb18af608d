"""TRL's ORPO and CPO trainers, which come from `trl.experimental`, on rows that are already tokenized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from peft import get_peft_model
from transformers import set_seed
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from llmkit.data.splits import Row
from llmkit.methods._by_length import GroupsByLength
from llmkit.methods.base import Job, keep_adapter_precision, one_device


class TokenizedORPOTrainer(GroupsByLength, ORPOTrainer):
    """ORPOTrainer on the columns that `sequences` makes."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """Return the row as it is; TRL's own tokenizes text, adds end tokens and cuts."""
        return feature


class TokenizedCPOTrainer(GroupsByLength, CPOTrainer):
    """CPOTrainer on the columns that `sequences` makes."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """Return the row as it is; TRL's own tokenizes text, adds end tokens and cuts."""
        return feature


def build(trainer_class: type, config: type, job: Job) -> Any:
    """Build the trainer of one of them; evaluation rows only where the recipe asks for evaluation while training."""
    args = arguments(config, job.training_kwargs())
    trainer = trainer_class(
        model=adapted_model(job, args),
        args=args,
        processing_class=job.tokenizer,
        train_dataset=sequences(job.splits.train),
        eval_dataset=sequences(job.splits.eval) if args.eval_strategy != "no" else None,
        callbacks=list(job.callbacks),
    )
    keep_adapter_precision(trainer, job)
    return trainer


def arguments(config: type, values: dict[str, Any]) -> Any:
    """Return the config; the collator needs columns that the model's forward does not name."""
    return one_device(config(**{**values, "remove_unused_columns": False}))


def adapted_model(job: Job, args: Any) -> Any:
    """Return the model with its adapter, over base weights in the data types that they were loaded in.

    These trainers would first cast every weight that is not quantized to float32, embeddings and LM head among them,
    which no memory plan has room for; the other trainers don't.
    """
    if job.recipe.adapter is None or job.adapted:
        return job.model
    set_seed(args.seed)  # PEFT draws the adapter's first weights
    return get_peft_model(job.model, job.recipe.adapter.build(job.plan))


def sequences(rows: Sequence[Row]) -> Dataset:
    """Return each pair as two whole sequences in the collator's columns; labels are -100 on the prompt."""
    columns: dict[str, list[list[int]]] = {}
    for row in rows:
        prompt = row.tokens["prompt_ids"]
        for name in ("chosen", "rejected"):
            answer = row.tokens[f"{name}_ids"]
            columns.setdefault(f"{name}_input_ids", []).append(prompt + answer)
            columns.setdefault(f"{name}_attention_mask", []).append([1] * len(prompt + answer))
            columns.setdefault(f"{name}_labels", []).append([-100] * len(prompt) + answer)
    return Dataset.from_dict(columns)
