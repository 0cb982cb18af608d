"""Supervised fine-tuning: next-token loss on what the assistant says (or on every token of plain text)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from llmkit.data.shapes import Shape
from llmkit.methods.base import Job, Method, keep_adapter_precision, one_device

if TYPE_CHECKING:
    from trl import SFTTrainer


class Sft(Method):
    """Supervised fine-tuning with TRL's SFTTrainer; full, or with an adapter and a quantized base."""

    type: Literal["sft"]
    """The name of this variant."""

    accepts: ClassVar[frozenset[Shape]] = frozenset({Shape.CONVERSATION, Shape.PROMPT_COMPLETION, Shape.TEXT})
    config: ClassVar[str] = "SFTConfig"

    def build_trainer(self, job: Job) -> SFTTrainer:
        """Build the trainer on rows that are already tokenized, masked and audited (TRL leaves such rows as they are).

        Evaluation rows are given to the trainer only where the recipe asks for evaluation while training.
        """
        from trl import SFTConfig

        from llmkit.methods._trained_tokens import TrainedTokensTrainer

        args = one_device(SFTConfig(**job.training_kwargs()))
        evaluates = str(args.eval_strategy.value) != "no"
        trainer = TrainedTokensTrainer(
            model=job.model,
            args=args,
            processing_class=job.tokenizer,
            train_dataset=job.token_dataset(job.splits.train),
            eval_dataset=job.token_dataset(job.splits.eval) if evaluates else None,
            peft_config=job.recipe.adapter.build(job.plan) if job.recipe.adapter and not job.adapted else None,
            callbacks=list(job.callbacks),
        )
        keep_adapter_precision(trainer, job)
        return trainer
