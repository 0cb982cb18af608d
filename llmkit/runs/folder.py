"""The run folder: everything a run was and found, each file written whole or not at all."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.cache import source_hashes
from llmkit.errors import DataError, SetupError
from llmkit.recipe.places import file_hash

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe

LOCKED_PACKAGES = (
    "llmkit", "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers", "numpy",
    "reasoning-gym",
)  # fmt: skip


class RunFolder:
    """One run on disk. JSON and YAML files are replaced atomically; the `.jsonl` files and `log.txt` only grow."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make a new run folder; raises SetupError if `path` already holds something or can't be written."""
        if path.is_dir() and any(path.iterdir()):
            what = "another run" if (path / "recipe.yaml").exists() else "other files"
            raise SetupError(
                f"{path} holds {what}, and llmkit never overwrites",
                remedy="Choose a new name (--out FOLDER), or continue that run with --resume.",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise SetupError(f"{path} is not a folder that can be made: {error.strerror}") from error
        except PermissionError as error:
            raise SetupError(f"{path} can't be written: {error.strerror}", remedy="Choose --out FOLDER.") from error
        return cls(path)

    @classmethod
    def numbered(cls, parent: Path, name: str) -> RunFolder:
        """Make `parent/name`, or `parent/name-2`, `-3`, ... if that is taken."""
        path, number = parent / name, 1
        while path.exists() and (not path.is_dir() or any(path.iterdir())):
            number += 1
            path = parent / f"{name}-{number}"
        return cls.create(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder; raises SetupError if `path` is none."""
        missing = [name for name in ("recipe.yaml", "lock.json") if not (path / name).is_file()]
        if missing:
            raise SetupError(f"{path} is not a run folder (it has no {' and no '.join(missing)})")
        return cls(path)

    @property
    def model(self) -> Path:
        """Folder of the trained model (or adapter) with its tokenizer; loadable with `from_pretrained`."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Folder of the trainer's checkpoints."""
        return self.path / "checkpoints"

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint, or None."""
        found = [p for p in self.checkpoints.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
        return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)

    def write_text(self, name: str, text: str) -> None:
        """Write a file beside its place and move it there, so that no reader ever sees half of it."""
        target = self.path / name
        scratch = target.with_name(f".{target.name}.tmp")
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, target)

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as indented JSON, atomically."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def append_samples(self, samples: Sequence[dict[str, Any]]) -> None:
        """Append lines to samples.jsonl."""
        with (self.path / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)

    def forget_steps_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl and samples.jsonl behind `step`: a resumed run takes those steps again."""
        for path in (self.path / "metrics.jsonl", self.path / "samples.jsonl"):
            if path.is_file():
                # Not splitlines(): a sampled answer may hold other separators, which JSON leaves as they are.
                lines = path.read_text(encoding="utf-8").split("\n")
                self.write_text(path.name, "".join(f"{line}\n" for line in lines if _is_up_to(step, line)))

    def update_lock(self, **entries: Any) -> None:
        """Add entries to lock.json."""
        name = "lock.json"
        known = self.read_json(name) if (self.path / name).is_file() else {}
        self.write_json(name, {**known, **entries})

    @contextmanager
    def logging(self) -> Iterator[logging.Handler]:
        """Send what the libraries log and warn to log.txt, and none of it to the terminal."""
        handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        with closing(handler), captured_logs(handler), _tensorboard_in(self.path / "tensorboard"):
            yield handler


def _is_up_to(step: int, line: str) -> bool:
    """Whether a JSON line is of `step` or before; one that a kill cut off is not."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except json.JSONDecodeError:
        return False


@contextmanager
def _tensorboard_in(folder: Path) -> Iterator[None]:
    """Have transformers' tensorboard callback, which knows only this variable, write to `folder`."""
    name = "TENSORBOARD_LOGGING_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def captured_logs(handler: logging.Handler) -> Iterator[None]:
    """Route the logs and warnings of all libraries to `handler` alone, and silence their progress bars."""
    _silence_progress_bars()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers, root.level = [handler], logging.WARNING
    libraries = [logging.getLogger(n) for n in ("transformers", "datasets", "trl", "accelerate", "huggingface_hub")]
    theirs = [(logger, list(logger.handlers), logger.propagate) for logger in libraries]
    for logger in libraries:
        logger.handlers, logger.propagate = [], True
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            yield
    finally:
        logging.captureWarnings(False)
        root.handlers, root.level = before, level
        for logger, handlers, propagate in theirs:
            logger.handlers, logger.propagate = handlers, propagate


def _silence_progress_bars() -> None:
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    # Adds transformers' own handler now rather than later, so that the caller can take it away.
    transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    disable_progress_bars()


def environment() -> dict[str, Any]:
    """Return the versions of everything that a run depends on, and the git commit it was started from."""
    versions: dict[str, str | None] = {}
    for package in LOCKED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "packages": versions,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "git": _git("rev-parse", "HEAD"),
        "git_clean": _git("status", "--porcelain") == "",
    }


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def data_hashes(recipe: Recipe) -> dict[str, str | None]:
    """Return the SHA-256 of every local data file (of all files of a folder); None for made and hub data."""
    held_out = recipe.data.eval if isinstance(recipe.data.eval, tuple) else ()
    found: dict[str, str | None] = {}
    for source in (*recipe.data.train, *held_out):
        found |= source_hashes(source, recipe.folder)
    return found


def code_hashes(recipe: Recipe) -> dict[str, str]:
    """Return the SHA-256 of every Python file that the recipe names as `path/to/file.py:name`: rewards, tools."""
    named = set(re.findall(r'"([^"]+\.py):\w+"', json.dumps(recipe.model_dump(exclude_unset=True), default=str)))
    return {name: file_hash(recipe.folder / Path(name).expanduser()) for name in sorted(named)}


def require_same_rows(folder: RunFolder, hashes: Mapping[str, str]) -> None:
    """Raise DataError if the rows of a split are not those that the run was started with (`hashes` by split)."""
    locked = folder.read_json("lock.json").get("rows", {})
    changed = [split for split, found in hashes.items() if locked.get(split, found) != found]
    if changed:
        raise DataError(
            f"the {' and '.join(changed)} rows are not those that {folder.path} was started with: a file, a data set "
            "of the hub, the template or llmkit itself has changed",
            remedy="Put them back as they were, or start a new run.",
        )


def require_space(path: Path, needed_bytes: int) -> None:
    """Raise SetupError if the disk of `path` has less than `needed_bytes` free."""
    free = shutil.disk_usage(path).free
    if free < needed_bytes:
        raise SetupError(
            f"the run needs about {needed_bytes / 1e9:.1f} GB on the disk of {path}, and {free / 1e9:.1f} GB are free",
            remedy="Free some space, or choose another disk with --out FOLDER.",
        )


@contextmanager
def disk_full_explained(path: Path) -> Iterator[None]:
    """Turn "no space left on device", in the words of whichever library met it, into a SetupError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_disk_full(error, path):
            raise
        raise SetupError(
            f"no space is left on the disk of {path}",
            remedy="Free some space, then continue with --resume, or start again with --out on another disk.",
        ) from error


def _is_disk_full(error: Exception, path: Path) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # torch says only that a write failed, safetensors quotes the system's message.
    writing = "No space left" in str(error) or "write failed" in str(error) or "writing file" in str(error)
    return writing and shutil.disk_usage(path).free < 100_000_000


def quiet_handler() -> logging.Handler:
    """Return a handler for commands without a run folder: errors of the libraries only, on standard error."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.ERROR)
    return handler
