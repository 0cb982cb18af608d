"""The straight line: recipe -> plan -> run folder -> rows -> training -> scores -> exports."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.lengths import histogram, quantiles
from llmkit.errors import DataError, RecipeError, RunError, SetupError
from llmkit.evaluation.base import Score
from llmkit.exports.adapter import check_adapter
from llmkit.exports.base import Exported, Trained
from llmkit.model.loading import loadable, will_convert
from llmkit.model.sources import locate
from llmkit.planning.plan import Plan
from llmkit.recipe.gates import parse_gate
from llmkit.recipe.places import file_hash, text_hash
from llmkit.recipe.recipe import Recipe
from llmkit.runs import scoring
from llmkit.runs.checks import check, setting
from llmkit.runs.exporting import export_all
from llmkit.runs.folder import (
    RunFolder,
    code_hashes,
    data_hashes,
    environment,
    pickles_explained,
    require_same_rows,
)
from llmkit.runs.limits import Watchman, limit_callback, require_left
from llmkit.runs.measuring import Gauge, Measured, as_rows, gauge_callback
from llmkit.runs.needs import needs, require_space
from llmkit.runs.prepare import Prepared, plan, prepare, row_hashes
from llmkit.runs.progress import Narrator, outcome, training_callback
from llmkit.runs.proving.records import PLANNED, RESULTS, record, weight_files
from llmkit.runs.recovery.alone import alone
from llmkit.runs.recovery.checkpoints import Checkpoints
from llmkit.runs.recovery.machine import machine_explained
from llmkit.runs.recovery.manifest import write_manifest
from llmkit.runs.recovery.nonfinite import watch_finite
from llmkit.runs.recovery.resuming import as_planned, require_same_recipe, train_on
from llmkit.runs.recovery.stopping import Stopper
from llmkit.runs.recovery.trackers import guard_trackers
from llmkit.runs.report_page import REPORT_FILE, write_report
from llmkit.runs.resolved import resolved_yaml
from llmkit.runs.sessions import session

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

    from llmkit.evaluation.statistics.comparing import Compared
    from llmkit.evaluation.statistics.gating import Decided

OF_WEIGHTS = ("evaluation.json", "gates.json", "regressions.jsonl", "export.json", "report.html")
"""What an earlier session of a run has found of the weights that it had then."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run produced; `base` and `tuned` are in the order of the recipe's `evaluation`."""

    folder: Path
    base: list[Score]
    tuned: list[Score]
    compared: list[list[Compared]]
    """Base beside tuned by each evaluation, with intervals and tests."""
    gates: list[Decided]
    """What became of the recipe's gates; where one is missed, nothing was exported."""
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
    plan_: Plan | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    exits: bool = False,
) -> RunResult:
    """Fine-tune, evaluate and export as `recipe` says; everything is kept in the run folder.

    `out` is the run folder (default: `runs/NAME`, numbered if taken). With `resume`, the run in `out` goes on from its
    last whole checkpoint, by the plan that it was started with. With `watch`, completions that a method samples while
    it trains are printed as they come. `plan_` and `callbacks` take the place of a plan of this machine, and are added
    to the trainer. A signal ends the run at the end of its step; with `exits`, a second one ends the process, otherwise
    it raises KeyboardInterrupt.

    Raises RecipeError, DataError or SetupError before anything is trained, RunError if a step can't be taken or what
    was trained or exported does not pass its check, Interrupted where a signal ended the run.
    """
    began = time.monotonic()
    narrator = narrator or Narrator()
    with Stopper(narrator.say, exits=exits) as stopper:
        check(recipe)
        the_plan = plan_ or plan(recipe)
        folder = _open(out, name, resume, recipe, narrator)
        if resume:
            the_plan = as_planned(folder, the_plan, narrator.say)
        stopper.folder = folder
        progress = training_callback(narrator, folder)
        with alone(folder.path), machine_explained(folder.path), folder.logging(), closing(progress):
            with session(folder, the_plan.hardware.kind):
                with _nothing_left_behind(folder, resume):
                    _record(folder, recipe, the_plan)
                    narrator.say(f"{folder.path}: {the_plan.hardware.summary}")
                    with _weights_hashed_beside(recipe):
                        prepared = prepare(
                            recipe,
                            output_dir=folder.checkpoints,
                            plan_=the_plan,
                            callbacks=(progress, *callbacks),
                            narrator=narrator,
                            keep_samples=_sample_keeper(folder, narrator if watch else None),
                        )
                    _record_inputs(folder, prepared, resume)
                    base = _score(prepared, "base", narrator)
                    scoring.require_metrics(recipe, base)
                speed, stopped = _train(prepared, folder, resume, narrator, stopper, began)
                result = _judge(prepared, base, folder, narrator, speed, stopped)
            _report(folder, narrator)  # which shows this session as well
            return result


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

    Otherwise the corrected recipe would be told that the folder holds another run. The same for a signal that comes
    before there is a run to go on with.
    """
    try:
        yield
    except (RecipeError, DataError, SetupError, KeyboardInterrupt) as error:
        begun = isinstance(error, KeyboardInterrupt) and (folder.path / "recipe.yaml").is_file()
        if not resume and not begun:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def _open(out: str | Path | None, name: str, resume: bool, recipe: Recipe, narrator: Narrator) -> RunFolder:
    if not resume:
        return RunFolder.create(Path(out)) if out else RunFolder.numbered(Path("runs"), name)
    folder = RunFolder.open(Path(out or Path("runs") / name))
    require_same_recipe(folder, recipe, narrator.say)
    lock = folder.read_json("lock.json")
    # What evaluations read may change, as they may.
    trained = recipe.model_copy(update={"evaluation": ()})
    for what, hashes in (("data", data_hashes(trained)), ("code", code_hashes(trained))):
        changed = [name for name, found in hashes.items() if lock.get(what, hashes).get(name) != found]
        if changed:
            raise DataError(
                f"the {what} has changed since {folder.path} was started: {', '.join(changed)}",
                remedy="Put the files back as they were, or start a new run.",
            )
    require_left(folder, recipe.limits)
    return folder


def _report(folder: RunFolder, narrator: Narrator) -> None:
    try:
        write_report(folder.path)
    except Exception:  # noqa: BLE001 - the run is whole, and its page can be made again
        logger.warning("the report could not be written", exc_info=True)
        again = f"`llmkit report {folder.path}` tries again"
        narrator.say(f"{REPORT_FILE} could not be written (log.txt says why): {again}")


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
        files={},
    )
    # Last: a folder with a recipe is a run that can be opened again.
    folder.write_text("recipe.yaml", recipe.written)
    needed = needs(recipe, the_plan)
    folder.write_json("needs.json", asdict(needed))
    require_space(folder.path, needed, there=folder.size())


def _record_inputs(folder: RunFolder, prepared: Prepared, resume: bool) -> None:
    """Write what was read: the ledger of the rows, what the audit found, hashes of tokenizer, template and weights.

    The plan is written again: some of it is decided only when the rows are known.
    """
    import torch

    folder.write_text("resolved.yaml", resolved_yaml(prepared.recipe, prepared.plan))
    folder.write_json("plan.json", prepared.plan.to_dict())
    hashes = row_hashes(prepared.splits)
    if resume:
        require_same_rows(folder, hashes)
    _record_rows(folder, prepared)
    folder.write_json("audit.json", [asdict(finding) for finding in prepared.findings])
    backend = getattr(prepared.tokenizer, "backend_tokenizer", None)
    folder.update_lock(
        rows=hashes,
        tokenizer=text_hash(backend.to_str()) if backend is not None else None,
        chat_template=text_hash(str(prepared.tokenizer.chat_template)) if prepared.tokenizer.chat_template else None,
        weights={name: file_hash(path) for name, path in weight_files(prepared.recipe).items()},
        commit=getattr(prepared.model.config, "_commit_hash", None),
        threads=torch.get_num_threads(),
    )
    record(folder, *PLANNED)


def _record_rows(folder: RunFolder, prepared: Prepared) -> None:
    """Write what became of every row, and which could not be read and why."""
    packed = getattr(prepared.trainer, "packed", {})
    prepared.ledger.packed = {split: asdict(found) for split, found in packed.items()}
    folder.write_json("ledger.json", prepared.ledger.to_dict())
    rows = as_rows(prepared.splits.train)
    if len(rows):
        folder.write_json(
            "lengths.json",
            {
                "max_length": setting(prepared.recipe, "max_length"),
                "tokens_per_row": quantiles(rows.lengths),
                "trained_per_row": quantiles(rows.trained),
                "histogram": [asdict(one) for one in histogram(rows.lengths)],
            },
        )
    broken = [json.dumps(asdict(row), ensure_ascii=False) for row in prepared.ledger.broken()]
    if broken:
        folder.write_text("quarantine.jsonl", "\n".join(broken) + "\n")


def _train(
    prepared: Prepared, folder: RunFolder, resume: bool, narrator: Narrator, stopper: Stopper, began: float
) -> tuple[Measured | None, str | None]:
    """Train to the end, or to a limit; return how fast that was and the limit. Raises Interrupted for a signal."""
    recipe, trainer = prepared.recipe, prepared.trainer
    checkpoints = Checkpoints(folder.checkpoints, recipe.checkpoints.keep, narrator.say)
    checkpoint = _checkpoint(folder, checkpoints, resume, narrator)
    for name in OF_WEIGHTS:  # those that are trained from here on will have others
        (folder.path / name).unlink(missing_ok=True)
    checkpoints.attach(trainer)
    gauge = Gauge(prepared, folder, narrator)
    checkpoints.also.append(gauge.keep_tokens)
    watchman = Watchman(recipe.limits, gauge, began)
    watchman.record(folder)
    trainer.add_callback(gauge_callback(gauge, checkpoint))
    trainer.add_callback(limit_callback(watchman))
    trainer.add_callback(stopper.callback(checkpoints))
    # The last callback: it sees which steps will write a checkpoint.
    watch_finite(trainer, recipe.stability, folder, narrator.say, checkpoints.last)
    trackers = guard_trackers(trainer, folder, narrator.say)
    try:
        with pickles_explained(folder.checkpoints):
            train_on(trainer, checkpoint)
        checkpoints.wait()
        checkpoints.prune(trainer)
    except BaseException:
        # Not left to a thread that outlives the run; what is wrong with training is what counts.
        with suppress(Exception):
            checkpoints.wait()
        raise
    finally:
        trackers.close()
    watchman.record(folder)
    stopper.raise_if_stopped(folder)
    speed = gauge.result()
    if any("loss" in entry for entry in trainer.state.log_history):
        pace = f", {speed.sentence()}" if speed else ""
        narrator.say(f"trained {trainer.state.global_step} steps, {outcome(trainer.state.log_history)}{pace}")
    if watchman.stopped:
        narrator.say(watchman.stopped.sentence(folder))
    return speed, watchman.stopped.by if watchman.stopped else None


def _judge(
    prepared: Prepared,
    base: list[Score],
    folder: RunFolder,
    narrator: Narrator,
    speed: Measured | None,
    stopped_by: str | None,
) -> RunResult:
    """Save the trained model, score and export it."""
    recipe, trainer = prepared.recipe, prepared.trainer
    # accelerate leaves its autocast around the model: what is scored and exported computes as it will when loaded.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if prepared.splits.stream is not None:
        _record_rows(folder, prepared)
        for line in prepared.ledger.sentences():
            narrator.say(line)
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    _save(prepared, folder)
    tuned = _score(prepared, "tuned", narrator, base=base)
    compared, gates = _compare(prepared, base, tuned, folder, narrator)
    trained = Trained(recipe, prepared.plan, prepared.model, prepared.tokenizer, prepared.splits, folder.model)
    if recipe.adapter is not None:
        check_adapter(trained, folder.model)
    exported = export_all(trained, folder, narrator) if all(gate.held for gate in gates) else []
    record(folder, *RESULTS)
    answers = prepared.model.can_generate()
    return RunResult(folder.path, base, tuned, compared, gates, exported, losses, answers, speed, stopped_by)


def _compare(
    prepared: Prepared, base: list[Score], tuned: list[Score], folder: RunFolder, narrator: Narrator
) -> tuple[list[list[Compared]], list[Decided]]:
    """Compare base and tuned, decide the gates, and write what was found."""
    from llmkit.evaluation.statistics.gating import decide

    recipe = prepared.recipe
    compared = scoring.compared(base, tuned)
    writes = prepared.trainer.is_world_process_zero()
    if writes:
        folder.write_json("evaluation.json", scoring.to_dict(recipe.evaluation, base, tuned, compared))
    gates = decide([parse_gate(text) for text in recipe.gates], [one for part in compared for one in part])
    if not writes:
        return compared, gates
    lost = scoring.lost_rows(base, tuned)
    if gates:
        folder.write_json("gates.json", [asdict(gate) for gate in gates])
    if lost:
        folder.write_text("regressions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lost))
    if not all(gate.held for gate in gates):
        narrator.say(f"a gate is missed: nothing is exported (`llmkit export {folder.path}` does so all the same)")
    return compared, gates


def _checkpoint(folder: RunFolder, checkpoints: Checkpoints, resume: bool, narrator: Narrator) -> Path | None:
    found = checkpoints.last() if resume else None
    if resume:
        folder.forget_steps_after(int(found.name.rpartition("-")[2]) if found else 0)
        narrator.say(f"continuing from {found.name}" if found else "no checkpoint yet: starting at step 0")
        state = json.loads((found / "trainer_state.json").read_text(encoding="utf-8")) if found else {}
        restored = folder.restore_metrics(state.get("log_history", []))
        if restored:
            narrator.say(f"metrics.jsonl had lost {restored} lines: they are those of {state['global_step']:,} steps")
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
    write_manifest(folder.model)
