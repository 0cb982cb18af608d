"""What every quantization is: a Spec that builds the config transformers loads the weights with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from llmkit.recipe.spec import LibrarySpec, Variant

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

    from llmkit.planning.plan import Plan


class Quantization(Variant, LibrarySpec):
    """Base of the quantizations; keys are those of BitsAndBytesConfig."""

    table: ClassVar[str] = "BitsAndBytesConfig"

    reserved: ClassVar[dict[str, str]] = {
        "load_in_4bit": "the quantization's `type` says it",
        "load_in_8bit": "the quantization's `type` says it",
        "bnb_4bit_quant_type": "use `type: nf4` or `type: fp4`",
    }

    bits: ClassVar[int]
    """Bits per quantized weight."""

    def build(self, plan: Plan) -> BitsAndBytesConfig:
        """Build the quantization config; `plan` has the compute data type."""
        raise NotImplementedError
