"""NF4: base weights held in 4 bits by bitsandbytes, NormalFloat4 of QLoRA (arXiv:2305.14314)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from llmkit.model.quantization.base import Quantization

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

    from llmkit.planning.plan import Plan


class Nf4(Quantization):
    """4-bit weights, dequantized block by block in each matrix product; keys are BitsAndBytesConfig's."""

    type: Literal["nf4"]
    """The name of this variant."""

    bits: ClassVar[int] = 4

    def build(self, plan: Plan) -> BitsAndBytesConfig:
        """Build the config; what the recipe leaves open comes from the planner (compute data type, double quant)."""
        from transformers import BitsAndBytesConfig

        keys = {**plan.section("quantization"), **self.kwargs()}
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **keys)
