"""The checkpoints of a run: written beside their place, looked at, given a manifest, renamed, and pruned.

A checkpoint is in its place only when it is whole: a kill at any moment leaves the ones before it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import RunError
from llmkit.recipe.recipe import Keep
from llmkit.runs.recovery.carried import follow_schedule, go_on_logging, in_their_types, read_carried, write_carried
from llmkit.runs.recovery.contents import Contents, contents_of, has_learnt
from llmkit.runs.recovery.manifest import MANIFEST, faults, sync, write_manifest

if TYPE_CHECKING:
    from transformers import Trainer, TrainerState

SCRATCH = ".writing"
"""Folder beside the checkpoints for what is not whole yet; nothing in it is ever read."""

NAME = re.compile(r"checkpoint-\d+")


class Checkpoints:
    """The checkpoints in `folder`, which is the trainer's `output_dir`; `keep` says which of them stay."""

    def __init__(self, folder: Path, keep: Keep, narrate: Callable[[str], None]) -> None:
        self.folder, self.keep, self.narrate = folder, keep, narrate
        self.also: list[Callable[[Path], None]] = []
        """Each writes something of its own into a checkpoint, before that is whole."""
        self._scratch = folder / SCRATCH
        self._beside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._finishing: Future[None] | None = None
        self._whole: set[str] = set()
        self._damaged: set[str] = set()

    # --- Writing -----------------------------------------------------------------------------------------------------

    def attach(self, trainer: Trainer) -> None:
        """Have `trainer` write its checkpoints here, and go on from one exactly; before `trainer.train`.

        What a run that was killed has left in the scratch folder is removed.
        """
        shutil.rmtree(self._scratch, ignore_errors=True)
        found: Any = trainer
        write, load, contents = found._save_checkpoint, found._load_from_checkpoint, contents_of(trainer)
        begin = self._begin_callback(trainer)

        def save(model: Any, trial: Any = None) -> None:
            self._write(trainer, partial(write, model, trial), contents)

        def load_from(checkpoint: str, model: Any = None) -> None:
            types = {name: p.dtype for name, p in found.model.named_parameters() if p.requires_grad}
            load(checkpoint, model)
            in_their_types(trainer, types)
            read_carried(trainer, Path(checkpoint))
            begin.checkpoint = Path(checkpoint)
            trainer.args.eval_on_start = False  # the run has had that evaluation

        found._save_checkpoint, found._load_from_checkpoint = save, load_from
        trainer.args.restore_callback_states_from_checkpoint = True
        trainer.add_callback(begin)

    def _begin_callback(self, trainer: Trainer) -> Any:
        from transformers import TrainerCallback

        checkpoints = self

        class Begin(TrainerCallback):
            """Gives a run that goes on what is set anew when training begins."""

            checkpoint: Path | None = None

            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                # transformers takes the intervals of the checkpoint: those of the recipe may be other ones now.
                state.compute_steps(args, state.max_steps)
                if self.checkpoint is not None:
                    # transformers forgets one that isn't where it was: the run folder may have been moved.
                    state.best_model_checkpoint = state.best_model_checkpoint or _best_of(self.checkpoint)
                    go_on_logging(trainer, self.checkpoint)
                    follow_schedule(kwargs["optimizer"], kwargs["lr_scheduler"])
                    checkpoints._name_best(state)

        return Begin()

    def _write(self, trainer: Trainer, write: Callable[[], None], contents: Contents) -> None:
        """Write the checkpoint of this step; what is done with it then is done in the background."""
        self.wait()
        state = trainer.state
        beside = self._scratch / f"checkpoint-{state.global_step}"
        shutil.rmtree(beside, ignore_errors=True)
        with _written_to(trainer, self._scratch):
            write()
        # A pickle of the arguments: resolved.yaml says the same, and nobody has to unpickle it.
        (beside / "training_args.bin").unlink(missing_ok=True)
        write_carried(trainer, beside)
        if self._name_best(state):
            state.save_to_json(str(beside / "trainer_state.json"))
        for add in self.also:
            add(beside)
        held = _held(trainer)
        finish = partial(self._finish, beside, contents, has_learnt(trainer), self._scores(trainer), held)
        if held is None:
            self._finishing = self._beside.submit(finish)
        else:
            finish()  # transformers loads the best one when training ends, and does not wait

    def _name_best(self, state: TrainerState) -> bool:
        """Have the state name the best checkpoint by its place, and return whether it named another one.

        It would name the scratch folder, or the place where the run folder was before it was moved. Where the best step
        was not saved, it stays with the best one that was.
        """
        if state.best_global_step is None:
            return False
        best, before = self.folder / f"checkpoint-{state.best_global_step}", state.best_model_checkpoint
        there = best.is_dir() or state.best_global_step == state.global_step
        old = self.folder / Path(before).name if before else None
        named = str(best) if there else str(old) if old is not None and old.is_dir() else None
        state.best_model_checkpoint = named
        return bool(named != before)

    def _scores(self, trainer: Trainer) -> dict[int, float]:
        """Return by step how the model scored while it was trained, the larger the better."""
        args = trainer.args
        metric = "eval_" + (args.metric_for_best_model or "loss").removeprefix("eval_")
        entries = [entry for entry in trainer.state.log_history if any(map(_is_score, entry))]
        if self.keep.best and entries and not any(metric in entry for entry in entries):
            names = sorted({name.removeprefix("eval_") for entry in entries for name in entry if _is_score(name)})
            raise RunError(
                f"`checkpoints.keep.best`: evaluation while training gives no {metric.removeprefix('eval_')}",
                remedy=f"Set `training.metric_for_best_model` to one of {', '.join(names)}.",
            )
        sign = 1.0 if args.greater_is_better else -1.0
        found = {int(entry["step"]): sign * float(entry[metric]) for entry in entries if metric in entry}
        return {step: score for step, score in found.items() if math.isfinite(score)}

    def _finish(
        self, beside: Path, contents: Contents, learnt: bool, scores: Mapping[int, float], held: int | None
    ) -> None:
        """Look at what was written, move it to its place, and remove the checkpoints that don't stay."""
        contents.check(beside, learnt=learnt)
        write_manifest(beside)
        self._put(beside)
        self._prune(scores, held)

    def prune(self, trainer: Trainer) -> None:
        """Remove the checkpoints that don't stay: a run that was killed may have come to its last one, not further."""
        self._prune(self._scores(trainer), _held(trainer))

    def _prune(self, scores: Mapping[int, float], held: int | None) -> None:
        whole = {_step(path): path for path in self._found() if self._seems_whole(path)}
        for step in set(whole) - kept(whole, scores, self.keep) - {held}:
            self._remove(whole[step])
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _put(self, beside: Path) -> None:
        """Move a whole checkpoint to its place, and have the disk keep that; one of the same step is replaced."""
        place, gone = self.folder / beside.name, self._scratch / f"{beside.name}.removed"
        if place.exists():
            os.replace(place, gone)
        os.replace(beside, place)
        sync(self.folder)
        # Only now: removing takes a while, and a kill in it would leave the run without this step.
        shutil.rmtree(gone, ignore_errors=True)
        self._damaged.discard(place.name)
        self._whole.add(place.name)

    def _remove(self, path: Path) -> None:
        # Moved first: half a checkpoint is never seen in the place of a whole one.
        self._scratch.mkdir(exist_ok=True)
        gone = self._scratch / f"{path.name}.removed"
        os.replace(path, gone)
        self._whole.discard(path.name)
        shutil.rmtree(gone)

    def wait(self) -> None:
        """Return when the last checkpoint is whole; raises what went wrong with it."""
        finishing, self._finishing = self._finishing, None
        if finishing is not None:
            finishing.result()

    # --- Reading -----------------------------------------------------------------------------------------------------

    def last(self) -> Path | None:
        """Return the newest whole checkpoint, or None; says which newer ones are passed over, and why.

        One that is being finished is waited for; raises what went wrong with it.
        """
        self.wait()
        for path in sorted(self._found(), key=_step, reverse=True):
            if path.name not in self._whole | self._damaged:
                self._look_at(path)
            if path.name in self._whole:
                return path
        return None

    def _look_at(self, path: Path) -> None:
        wrong = faults(path)
        if not wrong:
            self._whole.add(path.name)
            return
        self._damaged.add(path.name)
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        self.narrate(f"{path.name} is damaged, and the one before it is used: {wrong[0]}{more}")

    def _found(self) -> list[Path]:
        return [path for path in self.folder.glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_dir()]

    def _seems_whole(self, path: Path) -> bool:
        return path.name not in self._damaged and (path / MANIFEST).is_file()


def kept(steps: Iterable[int], scores: Mapping[int, float], keep: Keep) -> set[int]:
    """Return the steps whose checkpoints stay: the newest, the best of those scored, and the multiples of `every`."""
    newest = sorted(steps, reverse=True)
    best = sorted((step for step in newest if step in scores), key=lambda step: scores[step], reverse=True)
    regular = {step for step in newest if keep.every is not None and step % keep.every == 0}
    return {*newest[: keep.last], *best[: keep.best], *regular}


def _held(trainer: Trainer) -> int | None:
    """Return the step whose checkpoint transformers loads when training ends, if it does."""
    best: str | None = trainer.state.best_model_checkpoint
    return _step(Path(best)) if best and trainer.args.load_best_model_at_end else None


def _best_of(checkpoint: Path) -> str | None:
    """Return the best checkpoint by what `checkpoint` says; its folder may be another one by now."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    found: str | None = state.get("best_model_checkpoint")
    return found


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _is_score(name: str) -> bool:
    return name.startswith("eval_")


@contextmanager
def _written_to(trainer: Any, folder: Path) -> Iterator[None]:
    """Have transformers and TRL write the checkpoint into `folder` instead of the output folder."""
    trainer._get_output_dir = lambda trial=None: str(folder)
    try:
        yield
    finally:
        del trainer._get_output_dir
