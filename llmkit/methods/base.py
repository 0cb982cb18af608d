"""What every training method is: a Spec that names its TRL config class and builds its trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from llmkit.data.shapes import Shape
from llmkit.data.splits import Row, Splits
from llmkit.model.sources import locate
from llmkit.recipe.spec import Variant

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

    from llmkit.planning.plan import Plan
    from llmkit.recipe.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """Everything a method needs to build its trainer: the only bag that is handed around."""

    recipe: Recipe
    plan: Plan
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    splits: Splits
    output_dir: Path
    callbacks: tuple[TrainerCallback, ...] = ()
    narrate: Callable[[str], None] = lambda text: None
    """Says a line to the person who watches the run."""
    keep_samples: Callable[[Sequence[dict[str, Any]]], None] = lambda samples: None
    """Writes sampled completions to the run's `samples.jsonl`."""
    adapted: bool = False
    """Whether the model already carries the adapter that training continues from."""

    def training_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments of the TRL config: the planner's values, then the recipe's over them.

        Without those on compiling: transformers would compile the model as a whole (see `model/compiling.py`).
        """
        given = {**self.plan.section("training"), **self.recipe.training.kwargs()}
        kept = {name: value for name, value in given.items() if not name.startswith("torch_compile")}
        return {**kept, "output_dir": str(self.output_dir)}

    @staticmethod
    def token_dataset(rows: Sequence[Row]) -> Dataset:
        """Return the tokens of `rows` as a dataset, in their order; its columns are TRL's (see `Row.tokens`)."""
        from llmkit.data.store import token_dataset

        return token_dataset(rows)


class Method(Variant):
    """Base of the methods; the file name is the `type`."""

    accepts: ClassVar[frozenset[Shape]]
    """Shapes of rows that this method can learn from; anything else is refused before a download."""

    config: ClassVar[str]
    """Name of the TRL config class whose fields `training` takes."""

    model_class: ClassVar[str] = "AutoModelForCausalLM"
    """The transformers class that the base model is loaded with."""

    needs_rewards: ClassVar[bool] = False
    """Whether the recipe must have `rewards`; it must not where this is false."""

    def defaults(self, training: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return this method's own values by training key, where the TRL config's defaults are another method's.

        `training` is what the recipe sets; the planner leaves those keys alone.
        """
        return {}

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse what this method can't do, before torch is imported; raises RecipeError."""

    def build_trainer(self, job: Job) -> Trainer:
        """Build the TRL trainer for `job`; the only call of a run that depends on the method."""
        raise NotImplementedError


def keep_adapter_precision(trainer: Trainer, job: Job) -> None:
    """Undo TRL's cast of an adapter on a quantized base to bfloat16 where the plan computes in another data type.

    bfloat16 is emulated on CPUs without it, and float16's gradient scaler refuses it. An adapter that training
    continues from gets its own values back, which the cast has rounded. (TRL 1.16, SFTTrainer.__init__)
    """
    import torch

    if job.recipe.quantization is None or job.plan.get("model.dtype", job.recipe.model.dtype) == "bfloat16":
        return
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.to(torch.float32)
    if job.adapted:
        from peft import load_peft_weights, set_peft_model_state_dict

        folder = locate(job.recipe.model, job.recipe.folder).adapter
        set_peft_model_state_dict(trainer.model, load_peft_weights(str(folder), device=str(trainer.model.device)))


def one_device(args: Any) -> Any:
    """Keep the Trainer from spreading one process over all visible GPUs (nn.DataParallel), which TRL refuses."""
    if args.n_gpu > 1:
        args._n_gpu = 1
    return args
