"""The straight line: recipe -> plan -> run folder -> rows -> training -> scores -> exports."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import DataError, RecipeError, RunError, SetupError
from llmkit.evaluation.base import Score
from llmkit.exports.adapter import check_adapter
from llmkit.exports.base import Exported, Trained
from llmkit.model.loading import loadable, will_convert
from llmkit.model.sources import locate
from llmkit.planning.plan import Plan
from llmkit.recipe.places import file_hash, text_hash
from llmkit.recipe.recipe import Recipe
from llmkit.runs import scoring
from llmkit.runs.checks import check, setting
from llmkit.runs.exporting import export_all
from llmkit.runs.folder import (
    RunFolder,
    code_hashes,
    data_hashes,
    disk_full_explained,
    environment,
    require_same_rows,
    require_space,
)
from llmkit.runs.limits import Watchman, limit_callback, require_left, same_but_limits
from llmkit.runs.measuring import Gauge, Measured, gauge_callback
from llmkit.runs.prepare import Prepared, plan, prepare, row_hashes
from llmkit.runs.progress import Narrator, outcome, training_callback
from llmkit.runs.resolved import resolved_yaml

if TYPE_CHECKING:
    from transformers import Trainer


@dataclass(frozen=True)
class RunResult:
    """What a run produced; `base` and `tuned` are in the order of the recipe's `evaluation`."""

    folder: Path
    base: list[Score]
    tuned: list[Score]
    exported: list[Exported]
    losses: list[float]
    """Training loss of each logged step; for SFT in nats per trained token."""
    answers: bool
    """Whether the trained model answers prompts; a reward model scores answers instead."""
    speed: Measured | None = None
    """How fast training was; None for fewer than five steps."""
    stopped_by: str | None = None
    """The limit that ended training (`limits.hours`, `limits.tokens`); None where it came to its end."""


def run(
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    name: str = "run",
    resume: bool = False,
    narrator: Narrator | None = None,
    watch: bool = False,
) -> RunResult:
    """Fine-tune, evaluate and export as `recipe` says; everything is kept in the run folder.

    `out` is the run folder (default: `runs/NAME`, numbered if taken). With `resume`, the run in `out` goes on from its
    last checkpoint. With `watch`, completions that a method samples while it trains are printed as they come.
    Raises RecipeError, DataError or SetupError before anything is trained, RunError if what was
    trained or exported does not pass its check.
    """
    began = time.monotonic()
    narrator = narrator or Narrator()
    check(recipe)
    the_plan = plan(recipe)
    folder = _open(out, name, resume, recipe)
    progress = training_callback(narrator, folder)
    with folder.logging(), disk_full_explained(folder.path), closing(progress):
        with _nothing_left_behind(folder, resume):
            _record(folder, recipe, the_plan)
            narrator.say(f"{folder.path}: {the_plan.hardware.summary}")
            with _weights_hashed_beside(recipe):
                prepared = prepare(
                    recipe,
                    output_dir=folder.checkpoints,
                    plan_=the_plan,
                    callbacks=(progress,),
                    narrator=narrator,
                    keep_samples=_sample_keeper(folder, narrator if watch else None),
                )
            _record_inputs(folder, prepared, resume)
            base = _score(prepared, "base", narrator)
        return _train_and_judge(prepared, base, folder, resume, narrator, began)


def _sample_keeper(folder: RunFolder, narrator: Narrator | None) -> Callable[[Sequence[dict[str, Any]]], None]:
    """Return what writes sampled completions to the run folder, and shows them if there is a narrator."""

    def keep(samples: Sequence[dict[str, Any]]) -> None:
        folder.append_samples(samples)
        if narrator is not None:
            narrator.show_samples(samples)

    return keep


@contextmanager
def _weights_hashed_beside(recipe: Recipe) -> Iterator[None]:
    """Hash the weights' files on another core meanwhile: seconds for each gigabyte, and `file_hash` remembers."""

    refused = threading.Event()

    def hash_them() -> None:
        folder = Path(loadable(locate(recipe.model, recipe.folder)))
        for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
            if not refused.is_set():
                file_hash(file)

    with ThreadPoolExecutor(max_workers=1) as beside:
        if not will_convert(recipe):
            beside.submit(hash_them)
        try:
            yield
        except BaseException:
            refused.set()
            raise


@contextmanager
def _nothing_left_behind(folder: RunFolder, resume: bool) -> Iterator[None]:
    """Remove the new run folder if the recipe, the rows or the machine are refused before anything is trained.

    Otherwise the corrected recipe would be told that the folder holds another run.
    """
    try:
        yield
    except (RecipeError, DataError, SetupError):
        if not resume:
            shutil.rmtree(folder.path)
        raise


def _open(out: str | Path | None, name: str, resume: bool, recipe: Recipe) -> RunFolder:
    if not resume:
        return RunFolder.create(Path(out)) if out else RunFolder.numbered(Path("runs"), name)
    folder = RunFolder.open(Path(out or Path("runs") / name))
    written = (folder.path / "recipe.yaml").read_text(encoding="utf-8")
    if not same_but_limits(recipe.written, written):
        raise RecipeError(
            f"the recipe differs from the one that {folder.path} was started with",
            remedy=f"Continue it as it was: llmkit run {folder.path / 'recipe.yaml'} --resume; or start a new run.",
        )
    lock = folder.read_json("lock.json")
    for what, hashes in (("data", data_hashes(recipe)), ("code", code_hashes(recipe))):
        changed = [name for name, found in hashes.items() if lock.get(what, hashes).get(name) != found]
        if changed:
            raise DataError(
                f"the {what} has changed since {folder.path} was started: {', '.join(changed)}",
                remedy="Put the files back as they were, or start a new run.",
            )
    require_left(folder, recipe.limits)
    return folder


def _record(folder: RunFolder, recipe: Recipe, the_plan: Plan) -> None:
    """Write what is going to happen, before anything is downloaded."""
    folder.write_text("resolved.yaml", resolved_yaml(recipe, the_plan))
    folder.write_json("plan.json", the_plan.to_dict())
    folder.update_lock(
        **environment(),
        data=data_hashes(recipe),
        code=code_hashes(recipe),
        seed=setting(recipe, "seed"),
        folder=str(recipe.folder),
    )
    # Last: a folder with a recipe is a run that can be opened again.
    folder.write_text("recipe.yaml", recipe.written)
    size = the_plan.size.parameters if the_plan.size else 0
    # Full training keeps weights and two moments per checkpoint; an adapter adds little to one exported copy.
    require_space(folder.path, size * (4 if recipe.adapter else 24) + 100_000_000)


def _record_inputs(folder: RunFolder, prepared: Prepared, resume: bool) -> None:
    """Write what was read: the ledger of the rows, what the audit found, hashes of tokenizer, template and weights.

    The plan is written again: some of it is decided only when the rows are known.
    """
    folder.write_text("resolved.yaml", resolved_yaml(prepared.recipe, prepared.plan))
    folder.write_json("plan.json", prepared.plan.to_dict())
    hashes = row_hashes(prepared.splits)
    if resume:
        require_same_rows(folder, hashes)
    _record_rows(folder, prepared)
    folder.write_json("audit.json", [asdict(finding) for finding in prepared.findings])
    backend = getattr(prepared.tokenizer, "backend_tokenizer", None)
    weights = Path(str(prepared.model.config._name_or_path))
    folder.update_lock(
        rows=hashes,
        tokenizer=text_hash(backend.to_str()) if backend is not None else None,
        chat_template=text_hash(str(prepared.tokenizer.chat_template)) if prepared.tokenizer.chat_template else None,
        weights={p.name: file_hash(p) for p in sorted(weights.glob("*.safetensors"))} if weights.is_dir() else {},
        commit=getattr(prepared.model.config, "_commit_hash", None),
    )


def _record_rows(folder: RunFolder, prepared: Prepared) -> None:
    """Write what became of every row, and which could not be read and why."""
    packed = getattr(prepared.trainer, "packed", {})
    prepared.ledger.packed = {split: asdict(found) for split, found in packed.items()}
    folder.write_json("ledger.json", prepared.ledger.to_dict())
    broken = [json.dumps(asdict(row), ensure_ascii=False) for row in prepared.ledger.broken()]
    if broken:
        folder.write_text("quarantine.jsonl", "\n".join(broken) + "\n")


def _train_and_judge(
    prepared: Prepared, base: list[Score], folder: RunFolder, resume: bool, narrator: Narrator, began: float
) -> RunResult:
    recipe = prepared.recipe
    trainer = prepared.trainer
    checkpoint = _checkpoint(folder, resume, narrator)
    gauge = Gauge(prepared, folder, narrator)
    watchman = Watchman(recipe.limits, gauge, began)
    watchman.record(folder)
    trainer.add_callback(gauge_callback(gauge, checkpoint))
    trainer.add_callback(limit_callback(watchman))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    speed, stopped = gauge.result(), watchman.stopped
    watchman.record(folder)
    # accelerate leaves its autocast around the model: what is scored and exported computes as it will when loaded.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if prepared.splits.stream is not None:
        _record_rows(folder, prepared)
        for line in prepared.ledger.sentences():
            narrator.say(line)
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    _save(prepared, folder)
    if losses:
        pace = f", {speed.sentence()}" if speed else ""
        narrator.say(f"trained {trainer.state.global_step} steps, {outcome(trainer.state.log_history)}{pace}")
    if stopped:
        narrator.say(stopped.sentence(folder))
    tuned = _score(prepared, "tuned", narrator, base=base)
    if trainer.is_world_process_zero():
        folder.write_json("evaluation.json", scoring.to_dict(recipe.evaluation, base=base, tuned=tuned))
    trained = Trained(recipe, prepared.plan, prepared.model, prepared.tokenizer, prepared.splits, folder.model)
    if recipe.adapter is not None:
        check_adapter(trained, folder.model)
    exported = export_all(trained, folder, narrator)
    answers = prepared.model.can_generate()
    stopped_by = stopped.by if stopped else None
    return RunResult(folder.path, base, tuned, exported, losses, answers, speed, stopped_by)


def _checkpoint(folder: RunFolder, resume: bool, narrator: Narrator) -> Path | None:
    found = folder.last_checkpoint() if resume else None
    if resume:
        narrator.say(f"continuing from {found.name}" if found else "no checkpoint yet: starting at step 0")
        folder.forget_steps_after(int(found.name.rpartition("-")[2]) if found else 0)
    return found


def _score(prepared: Prepared, name: str, narrator: Narrator, base: list[Score] | None = None) -> list[Score]:
    return scoring.score(
        prepared.recipe.evaluation,
        prepared.model,
        prepared.tokenizer,
        prepared.splits.eval,
        seed=prepared.trainer.args.seed,
        folder=prepared.recipe.folder,
        narrator=narrator,
        name=name,
        rewards=prepared.recipe.rewards,
        base=base,
    )


def _save(prepared: Prepared, folder: RunFolder) -> None:
    trainer: Trainer = prepared.trainer
    trainer.save_model(str(folder.model))
    # A pickle of the arguments: resolved.yaml says the same, and nobody has to unpickle it.
    (folder.model / "training_args.bin").unlink(missing_ok=True)
    # TRL keeps the reference of an adapter that training continues from as a second adapter of this name.
    shutil.rmtree(folder.model / "ref", ignore_errors=True)
    if trainer.is_world_process_zero():
        prepared.tokenizer.save_pretrained(folder.model)
    if not any(folder.model.glob("*.safetensors")):
        raise RunError(f"the trainer saved no weights in {folder.model}")
