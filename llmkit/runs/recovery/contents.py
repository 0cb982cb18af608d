"""What the weights of a checkpoint must hold, by the model that is trained; looked up in the files on disk."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import RunError
from llmkit.runs.recovery.carried import CARRIED

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """The tensors that a checkpoint must hold."""

    files: str
    """Pattern of the files with the weights, below the checkpoint."""

    groups: tuple[frozenset[str], ...]
    """Names of which one must be there: more than one for a tensor that the model uses in several places."""

    shapes: Mapping[str, Shape]
    """Shapes of all tensors that may be there."""

    trained: int
    """Numbers that are trained."""

    zero: frozenset[str] = frozenset()
    """Trained tensors of an adapter that begin as nothing but zeros (LoRA's B)."""

    state: tuple[str, ...] = ()
    """Files that a run goes on with; transformers passes silently over one that is missing."""

    def check(self, checkpoint: Path, *, learnt: bool) -> None:
        """Open the files of `checkpoint` again; raises RunError where they are not what was to be saved.

        `learnt` says that a step was taken with a gradient and a learning rate: then an adapter can't be all zero.
        """
        found = _shapes(checkpoint, self.files)
        self._check_names(checkpoint, found)
        missing = [name for name in self.state if not (checkpoint / name).is_file()]
        if missing:
            raise _broken(checkpoint, f"{' and '.join(missing)} can't be found")
        for file in (*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")):
            # torch writes zip files, whose table of contents comes last.
            if not zipfile.is_zipfile(file):
                raise _broken(checkpoint, f"{file.name} is cut off")
        if learnt and self.zero and _all_zero(checkpoint, self.files, self.zero):
            raise RunError(
                f"the adapter in {checkpoint.name} is all zero: its gradients were not, and yet nothing was learnt",
                remedy="Something sets its weights back, or its updates vanish in their data type: train it in float32 "
                "(`model.dtype: float32`), or raise `training.learning_rate`.",
            )

    def _check_names(self, checkpoint: Path, found: Mapping[str, Shape]) -> None:
        if not set(found) <= set(self.shapes):
            # transformers saves some architectures under the names of their first release, joined or split.
            wanted = sum(math.prod(self.shapes[min(group)]) for group in self.groups)
            numbers = sum(map(math.prod, found.values()))
            if numbers != wanted:
                raise _broken(checkpoint, f"it holds {numbers:,} numbers, and the model has {wanted:,}")
            return
        lacking = [min(group) for group in self.groups if not group & set(found)]
        if lacking:
            raise _broken(checkpoint, f"{len(lacking)} of {len(self.groups)} tensors are missing, e.g. {lacking[0]}")
        for name, shape in found.items():
            if shape != self.shapes[name]:
                raise _broken(checkpoint, f"{name} has the shape {shape}, and the model's is {self.shapes[name]}")
        if sum(map(math.prod, found.values())) < self.trained:
            raise _broken(checkpoint, f"it holds fewer numbers than the {self.trained:,} that are trained")


def contents_of(trainer: Trainer) -> Contents:
    """Return what a checkpoint of `trainer` must hold: the whole model, or the adapter that is trained."""
    from peft import PeftModel

    model: Any = trainer.model
    trained = {id(p): p for p in model.parameters() if p.requires_grad}
    numbers = sum(p.numel() for p in trained.values())
    if isinstance(model, PeftModel):
        return replace(_of_adapter(model, {p.data_ptr() for p in trained.values()}, numbers), state=_state_of(trainer))
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in ignored}
    return Contents("model*.safetensors", _tied(state), _shapes_of(state), numbers, state=_state_of(trainer))


def _state_of(trainer: Any) -> tuple[str, ...]:
    """Return the files beside the weights that a run goes on with."""
    always = ("trainer_state.json", CARRIED)
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or trainer.args.world_size > 1:
        return always  # the others have names of their own there, and one for each process
    scaler = ("scaler.pt",) if trainer.accelerator.scaler is not None else ()
    return ("optimizer.pt", "scheduler.pt", "rng_state.pth", *scaler, *always)


def _of_adapter(model: Any, trained: set[int], numbers: int) -> Contents:
    from peft import get_peft_model_state_dict

    name = model.active_adapters[0]
    state = model.state_dict()
    # Embeddings are saved with an adapter in some cases; they may be there, and need not.
    own = get_peft_model_state_dict(model, state_dict=state, adapter_name=name, save_embedding_layers=False)
    zero = {key for key, tensor in own.items() if tensor.data_ptr() in trained and not tensor.any()}
    files = "adapter_model.safetensors" if name == "default" else f"{name}/adapter_model.safetensors"
    groups = tuple(frozenset({key}) for key in own)
    return Contents(files, groups, _shapes_of({**state, **own}), numbers, frozenset(zero))


def _tied(state: Mapping[str, torch.Tensor]) -> tuple[frozenset[str], ...]:
    """Return the names in groups that share their memory: of each, transformers saves one."""
    groups: dict[Any, set[str]] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape)) if tensor.data_ptr() else name
        groups.setdefault(place, set()).add(name)
    return tuple(map(frozenset, groups.values()))


def _shapes_of(state: Mapping[str, Any]) -> dict[str, Shape]:
    # bitsandbytes puts names of data types among its tensors.
    return {name: tuple(tensor.shape) for name, tensor in state.items() if hasattr(tensor, "shape")}


def _shapes(checkpoint: Path, pattern: str) -> dict[str, Shape]:
    """Return the shapes of all tensors in the files of `pattern`; all other safetensors files are opened too."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Shape] = {}
    weights = set(checkpoint.glob(pattern))
    for file in sorted({*weights, *checkpoint.rglob("*.safetensors")}):
        try:
            with safe_open(file, "pt") as opened:
                shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise _broken(checkpoint, f"{file.name} can't be opened again: {error}") from error
        if file in weights:
            found |= shapes
    return found


def _all_zero(checkpoint: Path, pattern: str, names: frozenset[str]) -> bool:
    from safetensors import safe_open

    for file in checkpoint.glob(pattern):
        with safe_open(file, "pt") as opened:
            if any(bool(opened.get_tensor(name).any()) for name in names.intersection(opened.keys())):
                return False
    return True


def _broken(checkpoint: Path, what: str) -> RunError:
    return RunError(
        f"{checkpoint.name} was not written as it should be: {what}",
        remedy="The checkpoint before it is whole. Look at the disk, then continue with --resume.",
    )


def has_learnt(trainer: Trainer) -> bool:
    """Whether a logged step had a gradient and a learning rate above zero: a warm-up begins with a rate of zero."""
    return any(
        0 < (entry.get("grad_norm") or 0) < math.inf and (entry.get("learning_rate") or 0) > 0
        for entry in trainer.state.log_history
    )
