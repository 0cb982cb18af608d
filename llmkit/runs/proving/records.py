"""What a run writes down about its own files, so that `llmkit verify` can tell whether they are still the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.model.loading import converted_place
from llmkit.model.sources import locate
from llmkit.recipe.places import file_hash, text_hash

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe
    from llmkit.runs.folder import RunFolder

SEAL = "seal"
"""Entry of lock.json that is the hash of all others."""

PLANNED = ("recipe.yaml", "resolved.yaml", "plan.json", "audit.json")
"""Files of a run that are final before it trains."""

RESULTS = (
    "ledger.json",
    "quarantine.jsonl",
    "metrics.jsonl",
    "samples.jsonl",
    "speed.json",
    "stopped.json",
    "evaluation.json",
    "gates.json",
    "regressions.jsonl",
    "model/manifest.json",
)
"""Files of a run that are final when it ends. Not among them: log.txt and what trackers write."""

CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")


def seal(lock: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all entries of a lock but the seal."""
    entries = {name: value for name, value in lock.items() if name != SEAL}
    return text_hash(json.dumps(entries, sort_keys=True, default=str))


def record(folder: RunFolder, *names: str) -> None:
    """Note in lock.json the SHA-256 of those of the files that are there; they are final now."""
    known = folder.read_json("lock.json").get("files", {})
    found = {name: file_hash(folder.path / name) for name in names if (folder.path / name).is_file()}
    folder.update_lock(files={**known, **found})


def weight_files(recipe: Recipe) -> dict[str, Path]:
    """Return the files that the base model is read from, by the names that lock.json has for them.

    Of a GGUF file also its converted copy, as far as there is one; of an adapter to go on from, its own under
    `adapter/`. None of a hub model, whose bytes its commit stands for. Raises SetupError where there is no model.
    """
    source = locate(recipe.model, recipe.folder)
    path = Path(source.path)
    found = {path.name: path} if source.kind == "gguf" else {}
    places = {} if source.kind == "hub" else {"": converted_place(path) if source.kind == "gguf" else path}
    if source.adapter is not None:
        places["adapter/"] = source.adapter
    read = (*CONFIGS, *recipe.model.allow_pickle)
    for prefix, folder in places.items():
        files = sorted(file for file in folder.glob("*") if file.suffix == ".safetensors" or file.name in read)
        found |= {prefix + file.name: file for file in files}
    return found
