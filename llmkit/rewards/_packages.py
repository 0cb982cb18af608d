"""Packages that only some rewards need: `pip install "llmkit[rl]"` brings them."""

from __future__ import annotations

import importlib.util

from llmkit.errors import SetupError


def check_package(module: str, package: str, reward: str) -> None:
    """Raise SetupError where `module` is not installed, for the reward of that name; imports nothing."""
    if importlib.util.find_spec(module) is None:
        raise SetupError(
            f"reward `{reward}` needs the package {package}, which is not installed",
            remedy='pip install "llmkit[rl]"',
        )
