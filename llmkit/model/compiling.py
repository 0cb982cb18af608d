"""torch.compile of the layers that are trained, one graph for all of them; what is compiled is kept between runs.

transformers' `training.torch_compile` compiles the whole model, and accelerate's regional way replaces modules: their
parameters get other names, embeddings and head are compiled too, and evaluation compiles everything again. Here each
decoder layer is compiled in place. Names, saving, adapters and checkpointing are as before, and only passes with a
gradient in training mode run compiled: evaluation and generation, where each length is new, do not.

The numbers are the same to rounding. Dropout draws other random numbers than uncompiled, the same in each run.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from llmkit.errors import SetupError
from llmkit.planning.compiling import compiler
from llmkit.recipe.places import cache_folder

if TYPE_CHECKING:
    import torch


def compile_layers(model: Any, *, backend: str = "inductor", mode: str | None = None) -> int:
    """Compile the repeated layers of `model` (PEFT or bare) in place; returns how many there are.

    Nothing is compiled before the first training step: that one takes a minute or two. Lengths and batch sizes are
    symbols in the graph, so that a new one compiles nothing. Raises SetupError where there is no compiler, or the model
    has no layers of one kind.
    """
    import torch

    layers = repeated_layers(model)
    if not layers:
        raise SetupError(
            f"{type(model).__name__} does not say which of its modules are layers, so it can't be compiled per layer",
            remedy="Leave out `training.torch_compile`.",
        )
    if next(layers[0].parameters()).device.type == "cpu" and compiler() is None:
        raise SetupError(
            "compiling layers for a CPU needs a C++ compiler, and there is none here",
            remedy="Install g++ (or set CXX), or leave out `training.torch_compile`.",
        )
    _keep_artefacts()
    for layer in layers:
        compiled = torch.compile(layer._call_impl, backend=backend, mode=mode, dynamic=True)
        # What `Module.compile` sets. It is no part of the state, and copies of the module are made without it.
        layer._compiled_call_impl = _only_in_training(layer, compiled)
    return len(layers)


def _keep_artefacts() -> None:
    """Have inductor keep what it compiles in llmkit's cache, unless somebody has chosen another place."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Merely importing parts of inductor sets the variable to torch's own place, which is a temporary folder.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / "compiled")


def uncompile(model: Any) -> None:
    """Undo `compile_layers`."""
    for layer in repeated_layers(model):
        layer._compiled_call_impl = None


def repeated_layers(model: Any) -> list[torch.nn.Module]:
    """Return the modules of the class that the model is never split within: its decoder layers."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    # What accelerate's device maps go by: each architecture names its layers, and sometimes its embeddings.
    named = set(getattr(bare, "_no_split_modules", None) or ())
    by_class: dict[str, list[torch.nn.Module]] = {}
    for module in bare.modules():
        if type(module).__name__ in named:
            by_class.setdefault(type(module).__name__, []).append(module)
    found = max(by_class.values(), key=len, default=[])
    return found if len(found) > 1 else []


def _only_in_training(layer: Any, compiled: Any) -> Any:
    import torch

    def call(*args: Any, **kwargs: Any) -> Any:
        if layer.training and torch.is_grad_enabled():
            return compiled(*args, **kwargs)
        return layer._call_impl(*args, **kwargs)

    return call
