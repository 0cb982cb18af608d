"""INT8: base weights held in 8 bits by bitsandbytes, outlier columns in 16 (LLM.int8(), arXiv:2208.07339)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from llmkit.model.quantization.base import Quantization

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

    from llmkit.planning.plan import Plan


class Int8(Quantization):
    """8-bit weights with outliers kept in 16 bits; keys are BitsAndBytesConfig's."""

    type: Literal["int8"]
    """The name of this variant."""

    bits: ClassVar[int] = 8

    def build(self, plan: Plan) -> BitsAndBytesConfig:
        """Build the config; what the recipe leaves open comes from the planner."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_8bit=True, **{**plan.section("quantization"), **self.kwargs()})
