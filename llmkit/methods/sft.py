"""Supervised fine-tuning: next-token loss on what the assistant says (or on every token of plain text)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from llmkit.data.shapes import Shape
from llmkit.errors import RecipeError, SetupError
from llmkit.methods.base import Job, Method, keep_adapter_precision, one_device

if TYPE_CHECKING:
    from trl import SFTConfig, SFTTrainer

    from llmkit.recipe.recipe import Recipe


class Sft(Method):
    """Supervised fine-tuning with TRL's SFTTrainer; full, or with an adapter and a quantized base."""

    type: Literal["sft"]
    """The name of this variant."""

    accepts: ClassVar[frozenset[Shape]] = frozenset({Shape.CONVERSATION, Shape.PROMPT_COMPLETION, Shape.TEXT})
    config: ClassVar[str] = "SFTConfig"

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse ways of packing that mix rows or that the rows were not made for; raises RecipeError."""
        training = recipe.training.kwargs()
        packing = training.get("packing", False)
        if training.get("eval_packing") and not packing:
            raise RecipeError(
                "`training.eval_packing` without `training.packing`: batches are made in one way for both",
                where=recipe.origin(("training", "eval_packing")),
                remedy="Set `training.packing: true`, or leave out `eval_packing`.",
            )
        if not packing:
            return
        if training.get("max_length", 1024) is None:
            raise RecipeError(
                "`training.packing` fills sequences up to `training.max_length`, and that is null",
                where=recipe.origin(("training", "max_length")),
                remedy="Set `training.max_length` to the longest sequence that fits in memory.",
            )
        self._check_strategy(recipe, training.get("packing_strategy", "bfd"))

    @staticmethod
    def _check_strategy(recipe: Recipe, strategy: str) -> None:
        where = recipe.origin(("training", "packing_strategy"))
        if strategy == "wrapped":
            raise RecipeError(
                "`training.packing_strategy: wrapped` cuts rows anywhere, and lets each see the rest of its sequence",
                where=where,
                remedy="Use `bfd`, the default: rows stay whole and apart, and hardly anything is left unfilled.",
            )
        if strategy == "bfd_split" and recipe.data.overflow != "split":
            raise RecipeError(
                f"`training.packing_strategy: bfd_split` splits long rows, but `data.overflow: {recipe.data.overflow}` "
                "is what happens to them",
                where=where,
                remedy="Set `data.overflow: split`.",
            )

    def build_trainer(self, job: Job) -> SFTTrainer:
        """Build the trainer on rows that are already tokenized, masked and audited (TRL leaves such rows as they are).

        Evaluation rows are given to the trainer only where the recipe asks for evaluation while training. Raises
        RecipeError for rows that can't be weighed, SetupError where packed rows would see each other.
        """
        from trl import SFTConfig

        from llmkit.methods._trained_tokens import TrainedTokensTrainer

        args = one_device(SFTConfig(**job.training_kwargs()))
        if args.padding_free and not args.packing:
            args.max_length = None  # TRL refuses a length that it doesn't enforce; the rows have it already
        _check_kernel(job, args)
        evaluates = str(args.eval_strategy.value) != "no"
        trainer = TrainedTokensTrainer(
            model=job.model,
            args=args,
            processing_class=job.tokenizer,
            train_dataset=job.splits.stream() if job.splits.stream else job.token_dataset(job.splits.train),
            eval_dataset=job.token_dataset(job.splits.eval) if evaluates else None,
            peft_config=job.recipe.adapter.build(job.plan) if job.recipe.adapter and not job.adapted else None,
            callbacks=list(job.callbacks),
        )
        keep_adapter_precision(trainer, job)
        for split, packed in trainer.packed.items():
            job.narrate(f"{split}: {packed.sentence()}")
        return trainer


def _check_kernel(job: Job, args: SFTConfig) -> None:
    kernel = job.model.config._attn_implementation
    if kernel == "flex_attention" and job.model.device.type == "cpu" and (args.packing or args.padding_free):
        raise SetupError(
            "flex_attention has no backward pass on CPUs, so packed rows can't be trained with it here",
            remedy="Set `model.attn_implementation: sdpa`, or leave it out.",
        )
