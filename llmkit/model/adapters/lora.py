"""LoRA: low-rank updates beside frozen weights (arXiv:2106.09685), with DoRA, rsLoRA and PEFT's initialisations."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from llmkit.model.adapters.base import Adapter

if TYPE_CHECKING:
    from peft import LoraConfig

    from llmkit.planning.plan import Plan


class Lora(Adapter):
    """Keys are LoraConfig's: `r`, `lora_alpha`, `use_dora`, `use_rslora`, `init_lora_weights` and the others."""

    type: Literal["lora"]
    """The name of this variant."""

    table: ClassVar[str] = "LoraConfig"
    reserved: ClassVar[dict[str, str]] = {
        "task_type": "the method decides it",
        "inference_mode": "llmkit trains with it off and evaluates with it on",
        "base_model_name_or_path": "use `model.name`",
        "peft_type": "it is LORA",
    }

    def build(self, plan: Plan) -> LoraConfig:
        """Build the LoraConfig: the planner's values, then the recipe's over them."""
        from peft import LoraConfig

        return LoraConfig(**{**plan.section("adapter"), **self.kwargs()})
