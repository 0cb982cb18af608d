"""The adapter alone: a few megabytes that load over the base model with `from_pretrained`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import ClassVar, Literal

from llmkit.errors import RunError
from llmkit.exports.base import Export, Exported, Trained


class Adapter(Export):
    """Copies the trained adapter with its tokenizer, and checks that it is whole and not zero."""

    type: Literal["adapter"]
    """The name of this variant."""

    needs_adapter: ClassVar[bool] = True

    def export(self, trained: Trained, folder: Path) -> Exported:
        """Write the adapter to `folder`; raises RunError if tensors are missing, misshapen or all zero."""
        shutil.copytree(trained.folder, folder, dirs_exist_ok=True)
        return Exported("adapter", folder, check_adapter(trained, folder))


def check_adapter(trained: Trained, folder: Path) -> dict[str, float]:
    """Compare the adapter file in `folder` with the adapter in memory, tensor by tensor.

    Returns the number of tensors and of parameters. Raises RunError if they differ, or if every B matrix is zero
    (sharded saves have been seen to write such files: trl 4416, peft 2892).
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(folder / "adapter_model.safetensors")
    expected = {k: tuple(v.shape) for k, v in get_peft_model_state_dict(trained.model).items()}
    found = {k: tuple(v.shape) for k, v in saved.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[:3]
        raise RunError(f"the saved adapter is not whole: {len(found)} of {len(expected)} tensors, e.g. {wrong}")
    updates = [tensor for name, tensor in saved.items() if "lora_B" in name]
    if updates and not any(bool(tensor.any()) for tensor in updates):
        raise RunError(
            "the saved adapter is zero: the run changed nothing",
            remedy="metrics.jsonl tells why: a learning rate of 0, or steps without any signal (all rewards alike).",
        )
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if not config.get("base_model_name_or_path"):
        raise RunError("the saved adapter does not name its base model")
    return {"tensors": float(len(saved)), "parameters": float(sum(t.numel() for t in saved.values()))}
