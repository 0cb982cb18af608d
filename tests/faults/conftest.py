"""The zygote that starts runs, and two of them that nothing happens to."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `harness` and `cases`, which the tests here share
from cases import GRPO, PLAIN, SFT, Case, write_recipe  # noqa: E402
from harness import Zygote  # noqa: E402


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have one process of `pytest -n ... --dist loadgroup` take all of these: each other would need its own zygote."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.xdist_group("faults"))


@pytest.fixture(scope="session")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of runs: one thread, because those that a zygote had started would be gone in a child."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYDANTIC_DISABLE_PLUGINS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "LLMKIT_CACHE": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory, environ: dict[str, str]) -> Iterator[Zygote]:
    """Starts runs without a hub."""
    made = Zygote(tmp_path_factory.mktemp("zygote"), environ)
    yield made
    made.close()


@pytest.fixture(scope="session")
def undisturbed(
    zygote: Zygote, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, dict[str, Any]], Case]:
    """Return what runs a recipe to its end, for others to be compared with."""

    def straight(name: str, parts: dict[str, Any], **training: Any) -> Case:
        recipe = write_recipe(tmp_path_factory.mktemp(name), parts, tiny_folder, **training)
        out = tmp_path_factory.mktemp(f"straight-{name}") / "run"
        ended = zygote.llmkit("run", recipe, "--out", out)
        assert ended.code == 0, ended.said
        return Case(zygote, recipe, out, ended.seconds)

    return straight


@pytest.fixture(scope="session")
def sft(undisturbed: Callable[[str, dict[str, Any]], Case]) -> Case:
    return undisturbed("sft", SFT)


@pytest.fixture(scope="session")
def plain(undisturbed: Callable[[str, dict[str, Any]], Case]) -> Case:
    return undisturbed("plain", PLAIN)


@pytest.fixture(scope="session")
def grpo(undisturbed: Callable[[str, dict[str, Any]], Case]) -> Case:
    return undisturbed("grpo", GRPO)
