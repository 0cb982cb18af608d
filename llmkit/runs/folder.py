"""The run folder: everything a run was and found, each file written whole or not at all."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.cache import source_hashes
from llmkit.errors import DataError, SetupError
from llmkit.recipe.functions import hooks
from llmkit.recipe.links import leading_out
from llmkit.recipe.places import file_hash
from llmkit.recipe.secrets import redact
from llmkit.runs.proving.records import SEAL, seal

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe

LOCKED_PACKAGES = (
    "llmkit", "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers", "numpy",
    "reasoning-gym",
)  # fmt: skip


NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
BEFORE_RECIPE = frozenset({"resolved.yaml", "plan.json", "lock.json", "log.txt"})
"""What a run writes before its recipe, with which it can be opened again."""


class RunFolder:
    """One run on disk. JSON and YAML files are replaced atomically; the `.jsonl` files and `log.txt` only grow."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make a new run folder; raises SetupError if `path` already holds something or can't be written.

        What a run wrote that was killed before it had written its recipe counts for nothing.
        """
        if path.is_dir() and not _is_unbegun(path):
            what = "another run" if (path / "recipe.yaml").exists() else "other files"
            raise SetupError(
                f"{path} holds {what}, and llmkit never overwrites",
                remedy="Choose a new name (--out FOLDER), or continue that run with --resume.",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise SetupError(f"{path} is not a folder that can be made: {error.strerror}") from error
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
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
        if missing and path.is_dir() and any(path.iterdir()) and _is_unbegun(path):
            raise SetupError(f"{path} was stopped before it began", remedy="Start it again without --resume.")
        if missing:
            left = f"{path} is not a run folder (it has no {' and no '.join(missing)})"
            raise SetupError(left, remedy="Put that back as it was, or start a new run (--out FOLDER).")
        inside = (Path(place, name) for place, folders, files in os.walk(path) for name in (*folders, *files))
        for link in leading_out(inside, path):
            raise SetupError(
                f"{link} is a link to another place, and a run writes into its own folder alone",
                remedy="Put the files themselves there; the run folder as a whole may be a link.",
            )
        return cls(path)

    @property
    def model(self) -> Path:
        """Folder of the trained model (or adapter) with its tokenizer; loadable with `from_pretrained`."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Folder of the trainer's checkpoints."""
        return self.path / "checkpoints"

    def size(self) -> int:
        """Return the bytes of all files of the run."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint, or None; `Checkpoints.last` looks whether it is still whole."""
        found = [p for p in self.checkpoints.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
        return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)

    def write_text(self, name: str, text: str) -> None:
        """Write a file beside its place and move it there, so that no reader ever sees half of it."""
        target = self.path / name
        scratch = target.with_name(f".{target.name}.tmp")
        scratch.write_text(redact(text), encoding="utf-8")
        os.replace(scratch, target)

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as indented JSON, atomically."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run; raises SetupError if it is lost or damaged, or a lock doesn't fit its seal."""
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise self.damaged(name, "it is missing") from error
        except ValueError as error:
            raise self.damaged(name, str(error)) from error
        if name == "lock.json" and (not isinstance(found, dict) or found.get(SEAL, seal(found)) != seal(found)):
            raise self.damaged(name, "its entries don't fit its seal")
        return found

    def damaged(self, name: str, reason: str) -> SetupError:
        """Return the error for a file of the run that can't be trusted."""
        return SetupError(
            f"{self.path / name} is damaged: {reason}",
            remedy="Without it nobody can tell whether the run would go on as it was: put it back, or start a new run "
            f"(--out FOLDER). The weights so far are in {self.checkpoints}.",
        )

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(redact(json.dumps(entry, ensure_ascii=False)) + "\n")

    def append_samples(self, samples: Sequence[dict[str, Any]]) -> None:
        """Append lines to samples.jsonl."""
        with (self.path / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(redact(json.dumps(sample, ensure_ascii=False, default=str)) + "\n" for sample in samples)

    def forget_steps_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl and samples.jsonl behind `step`: a resumed run takes those steps again."""
        for path in (self.path / "metrics.jsonl", self.path / "samples.jsonl"):
            if path.is_file():
                # Not splitlines(): a sampled answer may hold other separators, which JSON leaves as they are.
                lines = [line for line in path.read_bytes().split(b"\n") if _is_up_to(step, line)]
                self.write_text(path.name, "".join(f"{line.decode()}\n" for line in lines))

    def restore_metrics(self, history: Sequence[Mapping[str, Any]]) -> int:
        """Have metrics.jsonl say what a checkpoint's `history` says: lines may have been lost or damaged.

        Returns how many were; they lack what llmkit alone measures. Every line that is there must be JSON.
        """
        file = self.path / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
        there = [json.loads(line) for line in lines if line]
        known = {_kind(entry): entry for entry in there}
        entries = [{"step": entry["step"], **known.get(_kind(entry), {}), **entry} for entry in history]
        written = set(map(_canonical, there))
        lost = sum(_canonical(entry) not in written for entry in entries)
        if lost:
            # What sums a session up is logged when that ends, behind its last checkpoint.
            entries += [entry for entry in there if "train_runtime" in entry]
            entries.sort(key=lambda entry: int(entry["step"]))
            self.write_text(file.name, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
        return lost

    def update_lock(self, **entries: Any) -> None:
        """Add entries to lock.json, and seal it anew: `llmkit verify` sees whether one was changed by hand."""
        name = "lock.json"
        known = self.read_json(name) if (self.path / name).is_file() else {}
        # As it will be read back: without secrets, and with nothing but what JSON has.
        lock = json.loads(redact(json.dumps({**known, **entries}, default=str)))
        self.write_json(name, {**lock, SEAL: seal(lock)})

    @contextmanager
    def logging(self) -> Iterator[logging.Handler]:
        """Send what the libraries log and warn to log.txt, and none of it to the terminal."""
        handler = _LogFile(self.path / "log.txt", encoding="utf-8")
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        with closing(handler), captured_logs(handler), _tensorboard_in(self.path / "tensorboard"):
            yield handler


class _LogFile(logging.FileHandler):
    """Holds nothing up: a disk that can't take a line of the log is said by what has to be written."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


class _Formatter(logging.Formatter):
    """Writes no secrets: libraries log addresses and headers, and tracebacks what was in them."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _is_unbegun(path: Path) -> bool:
    """Whether a folder holds nothing but what a run writes before its recipe."""
    return all(p.name in BEFORE_RECIPE or (p.name[:1] == "." and p.suffix == ".tmp") for p in path.iterdir())


def _kind(entry: Mapping[str, Any]) -> tuple[int, frozenset[str]]:
    """Return what tells a line of metrics.jsonl from the others: its step and its figures, without the measured."""
    return int(entry["step"]), frozenset(entry) - {"tokens_per_second"}


def _canonical(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True)


def _is_up_to(step: int, line: bytes) -> bool:
    """Whether a JSON line is of `step` or before; one that a kill cut off, or that no run has written, is not."""
    try:
        entry = json.loads(line.decode("utf-8"))
    except ValueError:
        return False
    found = entry.get("step") if isinstance(entry, dict) else None
    return isinstance(found, int) and found <= step


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
    for source in (*recipe.data.train, *held_out, *recipe.evaluated):
        found |= source_hashes(source, recipe.folder)
    return found


def code_hashes(recipe: Recipe) -> dict[str, str]:
    """Return the SHA-256 of every Python file or module that the recipe names with a function: rewards, tools."""
    return {hook.reference.rpartition(":")[0]: file_hash(hook.path) for hook in hooks(recipe)}


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


@contextmanager
def pickles_explained(path: Path) -> Iterator[None]:
    """Turn torch's refusal of a pickle with code in it, which was planted in `path`, into a SetupError."""
    from pickle import UnpicklingError

    try:
        yield
    except UnpicklingError as error:
        raise SetupError(
            f"a file of {path} holds something else than numbers: loading it could run code, so it was not loaded",
            remedy="Remove the checkpoint, and continue from the one before it with --resume. "
            "Who can write into that folder?",
        ) from error


def quiet_handler() -> logging.Handler:
    """Return a handler for commands without a run folder: errors of the libraries only, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    handler.setLevel(logging.ERROR)
    return handler
