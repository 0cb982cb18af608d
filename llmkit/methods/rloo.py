"""RLOO: REINFORCE with the mean reward of the other answers to a prompt as the baseline (arXiv:2402.14740)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from llmkit.methods._policy import PolicyMethod, check_rows, check_sampling, policy_kwargs, prompt_dataset
from llmkit.methods.base import Job, keep_adapter_precision, one_device

if TYPE_CHECKING:
    from trl import RLOOTrainer


class Rloo(PolicyMethod):
    """REINFORCE leave-one-out with TRL's RLOOTrainer; the KL term is part of the reward (`training.beta`, 0.05)."""

    type: Literal["rloo"]
    """The name of this variant."""

    config: ClassVar[str] = "RLOOConfig"

    def build_trainer(self, job: Job) -> RLOOTrainer:
        """Build the trainer on the prompts; the rewards get the whole row of each.

        Raises RecipeError or DataError for what shows only with the model and the rows loaded.
        """
        from trl import RLOOConfig

        from llmkit.methods._rollouts import WatchedRLOOTrainer

        args = one_device(RLOOConfig(**policy_kwargs(job)))
        check_sampling(job, args)
        check_rows(job, args)
        trainer = WatchedRLOOTrainer(
            job,
            self.max_kl,
            model=job.model,
            args=args,
            processing_class=job.tokenizer,
            train_dataset=prompt_dataset(job, held_out=False),
            eval_dataset=prompt_dataset(job, held_out=True) if args.eval_strategy != "no" else None,
            peft_config=job.recipe.adapter.build(job.plan) if job.recipe.adapter and not job.adapted else None,
            callbacks=list(job.callbacks),
        )
        keep_adapter_precision(trainer, job)
        return trainer
