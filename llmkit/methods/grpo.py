"""GRPO: several answers to each prompt are rewarded, and learnt from by how they compare (arXiv:2402.03300)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from llmkit.errors import RecipeError
from llmkit.methods._policy import PolicyMethod, check_rows, check_sampling, policy_kwargs, prompt_dataset
from llmkit.methods._tools import (
    check_environment,
    check_tool,
    load_environment,
    load_tools,
    require_messages,
    require_tool_template,
)
from llmkit.methods.base import Job, keep_adapter_precision, one_device

if TYPE_CHECKING:
    from trl import GRPOTrainer

    from llmkit.recipe.recipe import Recipe


class Grpo(PolicyMethod):
    """Group relative policy optimization with TRL's GRPOTrainer and all its loss types (`training.loss_type`).

    `training.beta` is 0 unless it is set: then there is no KL term and no reference model. GSPO is
    `training.importance_sampling_level: sequence` with `training.loss_type: grpo`.
    """

    type: Literal["grpo"]
    """The name of this variant."""

    tools: tuple[str, ...] = Field(default=(), strict=False)
    """Functions that the model may call while it answers, each `path/to/file.py:function`; typed, with `Args:`."""

    environment: str | None = None
    """Class `path/to/file.py:Class` whose public methods are tools, one instance per answer; `reset` gets the row."""

    config: ClassVar[str] = "GRPOConfig"

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse groups that don't come out whole, and tools that are missing or that the model can't be told about."""
        super().check_recipe(recipe)
        asking = [evaluation.type for evaluation in recipe.evaluation]
        if (self.tools or self.environment) and asking:
            raise RecipeError(
                f"evaluation {', '.join(asking)} asks the model without the tools that it learns to use",
                where=recipe.origin(("evaluation",)),
                remedy="Leave out `evaluation`: metrics.jsonl and samples.jsonl have the rewards.",
            )
        for index, reference in enumerate(self.tools):
            with recipe.at("method", "tools", index):
                check_tool(reference, recipe.folder)
        if self.environment is not None:
            with recipe.at("method", "environment"):
                check_environment(self.environment, recipe.folder)

    def build_trainer(self, job: Job) -> GRPOTrainer:
        """Build the trainer on the prompts; the rewards get the whole row of each.

        Raises RecipeError, DataError or SetupError for what shows only with the model and the rows loaded.
        """
        from trl import GRPOConfig

        from llmkit.methods._rollouts import WatchedGRPOTrainer

        args = one_device(GRPOConfig(**policy_kwargs(job)))
        check_sampling(job, args)
        check_rows(job, args)
        for line in oddities(args):
            job.narrate(line)
        folder, rows = job.recipe.folder, (*job.splits.train, *job.splits.eval)
        if self.tools or self.environment:
            require_tool_template(job.tokenizer)
            require_messages(rows)
        trainer = WatchedGRPOTrainer(
            job,
            self.max_kl,
            model=job.model,
            args=args,
            processing_class=job.tokenizer,
            train_dataset=prompt_dataset(job, held_out=False),
            eval_dataset=prompt_dataset(job, held_out=True) if args.eval_strategy != "no" else None,
            peft_config=job.recipe.adapter.build(job.plan) if job.recipe.adapter and not job.adapted else None,
            callbacks=list(job.callbacks),
            tools=load_tools(self.tools, folder) or None,
            environment_factory=load_environment(self.environment, folder, rows) if self.environment else None,
        )
        keep_adapter_precision(trainer, job)
        return trainer


def oddities(args: Any) -> list[str]:
    """Return what is legal, and not what the papers of the loss types do. (TRL warns of these in a log.)"""
    loss, level = args.loss_type, args.importance_sampling_level
    if loss == "cispo" and (args.epsilon_high or args.epsilon) < 1:
        return [
            "loss_type cispo cuts the weights of tokens off at `training.epsilon_high` itself: below 1, all are scaled "
            "down to it (ScaleRL takes 5.0)"
        ]
    if loss == "luspo" and level != "sequence":
        return ["loss_type luspo: its paper weights whole sequences (`training.importance_sampling_level: sequence`)"]
    if loss == "vespo" and level != "token":
        return ["loss_type vespo weights sequences itself: leave out `training.importance_sampling_level: sequence`"]
    if level == "sequence" and loss in ("bnpo", "dr_grpo", "dapo", "cispo"):
        return [
            f"importance_sampling_level sequence with loss_type {loss} gives long answers more weight: GSPO's paper "
            "takes `training.loss_type: grpo`"
        ]
    return []
