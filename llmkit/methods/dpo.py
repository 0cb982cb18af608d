"""DPO: learning from pairs of a better and a worse answer, measured against a reference (arXiv:2305.18290)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmkit.data.shapes import Shape
from llmkit.methods._pairs_checks import check_reference, has_effect, refuse
from llmkit.methods.base import Job, Method, keep_adapter_precision, one_device

if TYPE_CHECKING:
    from trl import DPOTrainer

    from llmkit.recipe.recipe import Recipe

SMOOTHED = ("aot", "aot_unpaired", "exo_pair", "robust")
"""Losses that look at `label_smoothing` (TRL 1.16)."""

DIVERGENT = ("discopop", "exo_pair", "hinge", "ipo", "robust", "sft", "sigmoid", "sigmoid_norm")
"""Losses of the difference between both answers alone, for which another `f_divergence_type` is defined."""


class Dpo(Method):
    """Direct preference optimization with TRL's DPOTrainer; full, or with an adapter and a quantized base.

    `training.loss_type` is one of TRL's 15 losses, or a list of them that `training.loss_weights` weighs. The reference
    is the model that training starts from: a frozen copy of a full model, the base with the adapter off, or a frozen
    copy of the adapter that training continues from. `training.precompute_ref_log_probs: true` computes its
    log-probabilities once and keeps them in llmkit's cache, by content.
    """

    type: Literal["dpo"]
    """The name of this variant."""

    accepts: ClassVar[frozenset[Shape]] = frozenset({Shape.PREFERENCE})
    config: ClassVar[str] = "DPOConfig"

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse losses whose own settings are missing or would be ignored; raises RecipeError."""
        check_reference(recipe)
        training = recipe.training.kwargs()
        losses = loss_types(training)
        _check_mix(recipe, losses)
        has_effect(recipe, "label_smoothing", losses, SMOOTHED)
        has_effect(recipe, "discopop_tau", losses, ("discopop",))
        _check_smoothing(recipe, losses, float(training.get("label_smoothing", 0.0)))
        _check_divergence(recipe, losses)
        if training.get("use_weighting") and {"aot", "aot_unpaired"} & set(losses):
            what = "aot losses sort the pairs of a batch, so a weight would meet another pair's loss"
            refuse(recipe, "use_weighting", what, "Remove it, or choose another `training.loss_type`.")
        if training.get("padding_free"):
            refuse(recipe, "padding_free", "TRL 1.16 ignores it for DPO", "Remove it.")

    def build_trainer(self, job: Job) -> DPOTrainer:
        """Build the trainer on pairs that are already tokenized; evaluation rows only where the recipe asks for it."""
        from trl import DPOConfig

        from llmkit.methods._pairs import TokenizedDPOTrainer, reference_copy

        args = one_device(DPOConfig(**job.training_kwargs()))
        evaluates = str(args.eval_strategy.value) != "no"
        trainer = TokenizedDPOTrainer(
            model=job.model,
            ref_model=reference_copy(job, args),
            args=args,
            processing_class=job.tokenizer,
            train_dataset=job.token_dataset(job.splits.train),
            eval_dataset=job.token_dataset(job.splits.eval) if evaluates else None,
            peft_config=job.recipe.adapter.build(job.plan) if job.recipe.adapter and not job.adapted else None,
            callbacks=list(job.callbacks),
            narrate=job.narrate,
        )
        keep_adapter_precision(trainer, job)
        return trainer


def loss_types(training: dict[str, Any]) -> list[str]:
    """Return the losses that a recipe's `training` names; TRL's default is sigmoid alone."""
    named = training.get("loss_type", "sigmoid")
    return [named] if isinstance(named, str) else list(named)


def _check_mix(recipe: Recipe, losses: list[str]) -> None:
    weights = recipe.training.kwargs().get("loss_weights")
    if not losses:
        refuse(recipe, "loss_type", "the list is empty", "Name at least one loss, e.g. sigmoid.")
    if len(set(losses)) < len(losses):
        refuse(recipe, "loss_type", f"a loss is named twice in {losses}", "Name it once and give it a larger weight.")
    if weights is not None and len(weights) != len(losses):
        what = f"{len(weights)} weights for {len(losses)} losses ({', '.join(losses)})"
        refuse(recipe, "loss_weights", what, "Give one weight for each loss of `training.loss_type`.")
    if any(isinstance(w, bool) or not isinstance(w, int | float) for w in weights or ()):
        refuse(recipe, "loss_weights", f"weights are numbers, not {weights}", "Write e.g. [1.0, 0.5].")


def _check_smoothing(recipe: Recipe, losses: list[str], smoothing: float) -> None:
    if "exo_pair" in losses and not 0 < smoothing < 1:
        what = f"exo_pair takes the logarithm of `label_smoothing`, which is {smoothing:g}"
        refuse(recipe, "loss_type", what, "Set `training.label_smoothing: 0.001`, the value of arXiv:2402.00856.")
    if "robust" in losses and not 0 <= smoothing < 0.5:
        what = (
            f"robust divides by 1 - 2 x label_smoothing, so it must be at least 0 and less than 0.5, not {smoothing:g}"
        )
        refuse(recipe, "label_smoothing", what, "Set the share of pairs that you believe to be the wrong way round.")


def _check_divergence(recipe: Recipe, losses: list[str]) -> None:
    training = recipe.training.kwargs()
    divergence = training.get("f_divergence_type", "reverse_kl")
    wrong = [loss for loss in losses if loss not in DIVERGENT]
    if divergence != "reverse_kl" and wrong:
        what = f"{divergence} is not defined for {', '.join(wrong)}"
        refuse(recipe, "f_divergence_type", what, f"Remove it, or use one of {', '.join(DIVERGENT)}.")
    if "f_alpha_divergence_coef" in training and divergence != "alpha_divergence":
        what = f"no effect with f_divergence_type {divergence}"
        refuse(recipe, "f_alpha_divergence_coef", what, "Set `training.f_divergence_type: alpha_divergence`.")
