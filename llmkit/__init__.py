"""llmkit: fine-tuning that proves its own runs. The public names are loaded when they are first used."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Plan": "llmkit.planning.plan",
    "Prepared": "llmkit.runs.prepare",
    "Recipe": "llmkit.recipe.recipe",
    "RunResult": "llmkit.runs.runner",
    "evaluate": "llmkit.runs.reopen",
    "export": "llmkit.runs.reopen",
    "load_recipe": "llmkit.recipe.loading",
    "plan": "llmkit.runs.prepare",
    "prepare": "llmkit.runs.prepare",
    "run": "llmkit.runs.runner",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
