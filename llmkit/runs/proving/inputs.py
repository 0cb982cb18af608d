"""What a run was made from, against its lock: data, code, base model, tokenizer, template and prepared rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.checking import eval_sources
from llmkit.data.sources import local_path
from llmkit.errors import LlmkitError, RecipeError
from llmkit.model.loading import load_stop_ids, load_tokenizer
from llmkit.model.sources import locate
from llmkit.recipe.functions import announcements, hooks
from llmkit.recipe.places import text_hash
from llmkit.recipe.recipe import Recipe, Source
from llmkit.runs.prepare import load_rows, row_hashes
from llmkit.runs.progress import Narrator
from llmkit.runs.proving.checked import FAILED, INPUTS, Checked, State, file_checked
from llmkit.runs.proving.differences import section_of
from llmkit.runs.proving.records import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGE = 10**9
"""Bytes of weights from which it is said that they are hashed."""


def inputs(
    lock: Mapping[str, Any], recipe: Recipe | None, narrate: Callable[[str], None], *, rows: bool
) -> Iterator[Checked]:
    """Yield how the data, code, weights, tokenizer and, with `rows`, the prepared rows compare with the lock.

    `recipe` is the run's, or None where it is not what it was: then nothing that it alone names is touched.
    """
    home = Path(str(lock.get("folder", ".")))
    found = [_data(name, locked, home, rows=rows) for name, locked in section_of(lock, "data").items()]
    found += _code(section_of(lock, "code"), home, recipe)
    if recipe is None:
        lost = "the recipe that names them is not what it was"
        yield from (*found, Checked(INPUTS, "base model, tokenizer", "not recorded", lost))
        return
    found += _added(recipe, section_of(lock, "data"))
    if "weights" not in lock:
        lost = "the run ended before they were loaded"
        yield from (*found, Checked(INPUTS, "base model, tokenizer, rows", "not recorded", lost))
        return
    try:
        source = locate(recipe.model, recipe.folder)
    except LlmkitError as error:
        yield from (*found, Checked(INPUTS, "base model", "missing", error.what))
        return
    if source.kind == "hub":
        found.append(_commit(source.path, lock.get("commit")))
    if source.kind != "hub" or source.adapter is not None:
        found += _weights(recipe, lock, narrate)
    tokenizer, fault = _loaded(recipe, "missing" if source.kind == "hub" else "changed")
    found += _tokenizer(tokenizer, lock) if tokenizer is not None else fault
    yield from found
    if rows and tokenizer is not None and any(one.state in FAILED for one in found):
        yield Checked(INPUTS, "rows", "not recorded", "not prepared again: what they are made of is not what it was")
    elif rows and tokenizer is not None:
        yield from _rows(recipe, tokenizer, section_of(lock, "rows"), narrate)


def _loaded(recipe: Recipe, state: State) -> tuple[PreTrainedTokenizerBase | None, list[Checked]]:
    """Return the tokenizer; or what is wrong with it, which is in `state` then."""
    try:
        return load_tokenizer(recipe), []
    except LlmkitError as error:
        return None, [Checked(INPUTS, "tokenizer", state, error.what)]
    except Exception as error:  # noqa: BLE001 - tokenizers raises Exception itself for a file that it can't read
        return None, [Checked(INPUTS, "tokenizer", state, f"it can't be loaded: {error}")]


def _data(name: str, locked: object, home: Path, *, rows: bool) -> Checked:
    if locked is None:
        said = "made by llmkit, or from the hub" + ("" if rows else "; --rows compares what the model read of it")
        return Checked(INPUTS, name, "not recorded", said)
    try:
        path = local_path(Source(path=name), home)
    except LlmkitError as error:
        return Checked(INPUTS, name, "missing", error.what)
    return file_checked(INPUTS, name, path or home / name, locked)


def _code(known: Mapping[str, Any], home: Path, recipe: Recipe | None) -> Iterator[Checked]:
    """Compare the files of code that the recipe names; a module of a package is found by the recipe alone."""
    try:
        paths = {hook.reference.rpartition(":")[0]: hook.path for hook in hooks(recipe)} if recipe else {}
    except RecipeError as error:
        yield Checked(INPUTS, "code", "missing", error.what)
        return
    for name, locked in known.items():
        yield file_checked(INPUTS, name, paths.get(name, home / name), locked)


def _added(recipe: Recipe, known: Mapping[str, Any]) -> Iterator[Checked]:
    """Yield the files that have come into folders of data since."""
    for source in (*recipe.data.train, *eval_sources(recipe)):
        folder = recipe.folder / Path(source.path).expanduser()
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_file() and f"{source.path}/{path.name}" not in known:
                yield Checked(INPUTS, f"{source.path}/{path.name}", "changed", "it was not there")


def _weights(recipe: Recipe, lock: Mapping[str, Any], narrate: Callable[[str], None]) -> Iterator[Checked]:
    files = weight_files(recipe)
    size = sum(path.stat().st_size for path in files.values())
    if size > LARGE:
        narrate(f"hashing the {size / 1e9:.1f} GB of {recipe.model.name}")
    known = section_of(lock, "weights")
    if not known:
        # Once, nothing was locked of an adapter over a hub model.
        yield Checked(INPUTS, f"base model: {recipe.model.name}", "not recorded", "the lock has no hashes of its files")
        return
    # A converted copy is made again from the GGUF file when it is needed.
    source = next((name for name in files if name.endswith(".gguf") and name in known), None)
    for name, locked in known.items():
        what = f"base model: {name}"
        if name in files:
            yield file_checked(INPUTS, what, files[name], locked)
        elif source is None:
            yield Checked(INPUTS, what, "missing", f"{recipe.model.name} has no such file")
        else:
            yield Checked(INPUTS, what, "not recorded", f"the converted copy of {source} is not in the cache any more")
    for name in files:
        if name not in known and name.endswith(".safetensors"):
            yield Checked(INPUTS, f"base model: {name}", "changed", "it was not there")


def _commit(name: str, commit: object) -> Checked:
    """Look for the commit of the hub model `name` in the hub's cache; its files are not read."""
    from huggingface_hub import try_to_load_from_cache

    what = f"base model: {name}"
    if not isinstance(commit, str):
        return Checked(INPUTS, what, "not recorded", "the lock has no commit of the hub")
    found = try_to_load_from_cache(name, "config.json", revision=commit)
    if isinstance(found, str):
        return Checked(INPUTS, what, "same", f"commit {commit[:12]} is in the hub's cache; its bytes were not read")
    return Checked(INPUTS, what, "missing", f"commit {commit[:12]} is not in the hub's cache")


def _tokenizer(tokenizer: PreTrainedTokenizerBase, lock: Mapping[str, Any]) -> Iterator[Checked]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    template = tokenizer.chat_template
    now = {
        "tokenizer": text_hash(backend.to_str()) if backend is not None else None,
        "chat_template": text_hash(str(template)) if template else None,
    }
    for name, found in now.items():
        if name not in lock:
            yield Checked(INPUTS, name.replace("_", " "), "not recorded", "the lock has no hash of it")
        elif found == lock[name]:
            yield Checked(INPUTS, name.replace("_", " "), "same")
        else:
            was, said = (str(value)[:12] if value else "none" for value in (lock[name], found))
            yield Checked(INPUTS, name.replace("_", " "), "changed", f"SHA-256 was {was}, is {said}")


def _rows(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, known: Mapping[str, Any], narrate: Callable[[str], None]
) -> Iterator[Checked]:
    for line in ("preparing the rows again", *announcements(recipe)):
        narrate(line)
    try:
        now = row_hashes(load_rows(recipe, tokenizer, load_stop_ids(recipe, tokenizer), Narrator())[0])
    except LlmkitError as error:
        yield Checked(INPUTS, "rows", "changed", f"they can't be prepared any more: {error}")
        return
    for split, locked in known.items():
        same = now.get(split) == locked
        said = "" if same else "the model would read other rows: a file, the template or llmkit itself has changed"
        yield Checked(INPUTS, f"{split} rows", "same" if same else "changed", said)
