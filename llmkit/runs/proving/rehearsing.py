"""A rehearsal: the whole recipe, run for real on a small model and a few rows, before the long run.

A run that breaks after nine hours mostly breaks where it would have broken in a minute: at the first checkpoint, score,
export or reload. So all of them are done once, by the code that the run itself calls.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.audit import refuse
from llmkit.data.splits import Row, Splits
from llmkit.errors import RecipeError, RunError
from llmkit.evaluation.base import Score, Subject
from llmkit.exports.base import Exported, Trained
from llmkit.exports.merged import compare, logits_of, tolerance
from llmkit.methods.base import Job
from llmkit.model.heads import gives_scores
from llmkit.model.shrinking import shrink
from llmkit.model.sources import locate
from llmkit.planning.plan import Plan
from llmkit.recipe.functions import announcements
from llmkit.recipe.recipe import Recipe
from llmkit.runs.checks import check, setting
from llmkit.runs.folder import RunFolder, captured_logs
from llmkit.runs.measuring import as_rows
from llmkit.runs.needs import needs
from llmkit.runs.prepare import plan, prepare_data, rewarded_rows
from llmkit.runs.progress import Narrator
from llmkit.runs.proving import rehearsal_trials as trials
from llmkit.runs.proving.rehearsal_recipe import SAVED, STEPS, noted, small_recipe
from llmkit.runs.proving.rehearsal_rows import Excerpt, excerpts_of
from llmkit.runs.proving.rehearsal_stages import Ended, Rehearsal, Stages
from llmkit.runs.reopen import open_model
from llmkit.runs.runner import RunResult, run

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

ROWS_COMPARED = 2
"""Rows that the reloaded model and the trained one are compared on."""

CLOSE = 1e-3
"""Largest difference of a weight after resuming on a GPU, as a share of the largest: sums vary in order there."""


def rehearse(recipe: Recipe, narrator: Narrator | None = None, *, out: Path = Path("runs")) -> Rehearsal:
    """Run `recipe` once through on a small model of its architecture and a few of its rows.

    `out` is where the run folder would be made; nothing is left there or elsewhere. What fails is in the result, with
    the stage and the error that the run would have ended with; nothing of it is raised.
    """
    stages = Stages(narrator or Narrator(), _names(recipe))
    with (
        tempfile.TemporaryDirectory(prefix="llmkit-rehearsal-", ignore_cleanup_errors=True) as scratch,
        captured_logs(logging.NullHandler()),
        suppress(Ended),
    ):
        stages.call(scratch, "the rehearsal's folder")
        stages.call(str(Path(scratch) / "run"), "the run folder")
        _go_through(recipe, stages, Path(scratch), out)
    return stages.result()


def _names(recipe: Recipe) -> list[str]:
    """Return the stages of a rehearsal of `recipe`, in their order."""
    scores = [evaluation.type for evaluation in recipe.evaluation]
    return [
        "check",
        "run folder",
        "plan",
        "disk",
        "rows",
        "model",
        "prepare",
        *(["rewards"] if recipe.rewards else []),
        "build",
        *([] if recipe.training.kwargs().get("report_to") in ("none", []) else ["trackers"]),
        *(f"base: {name}" for name in scores),
        "train",
        *([] if setting(recipe, "eval_strategy") in (None, "no") else ["evaluate"]),
        *([] if setting(recipe, "save_strategy") == "no" else ["checkpoint"]),
        "save",
        *(f"tuned: {name}" for name in scores),
        *(f"export {export.type}" for export in recipe.export),
        *(["best checkpoint"] if _wants_best(recipe) else []),
        "reload",
        "resume",
    ]


def _go_through(recipe: Recipe, stages: Stages, scratch: Path, out: Path) -> None:
    with stages.stage("check"):
        check(recipe)
    for line in announcements(recipe):
        stages.narrator.say(line)
    with stages.stage("run folder", goes_on=True):
        trials.make_folder(out)
    with stages.stage("plan"):
        the_plan = plan(recipe)
        needed = needs(recipe, the_plan)
        stages.say(trials.memory_sentence(needed), warning=needed.fits is False)
    with stages.stage("disk", goes_on=True):
        stages.say(trials.space(out, needed))
    with stages.stage("rows"):
        data, excerpts = excerpts_of(recipe, scratch)
        stages.words += [one.in_its_words for one in excerpts]
        stages.say(_rows_said(excerpts))
    with stages.stage("model"):
        if locate(recipe.model, recipe.folder).kind == "hub":
            trials.reach_weights(recipe)
        shrunk = shrink(recipe, scratch / "model")
        stages.call(str(shrunk.folder), recipe.model.name)
        stages.say(shrunk.sentence())
    small = small_recipe(recipe, the_plan, shrunk.folder, data)
    with stages.stage("prepare"):
        prepared = prepare_data(small)
        refuse(prepared.findings)
        stages.say("; ".join(finding.sentence() for finding in prepared.findings), warning=bool(prepared.findings))
    if recipe.rewards:
        with stages.stage("rewards"):
            stages.say(trials.try_rewards(small, rewarded_rows(small, prepared.splits)))
    _run(small, stages, scratch)


def _rows_said(excerpts: Sequence[Excerpt]) -> str:
    taken, read = sum(one.count for one in excerpts), sum(one.read for one in excerpts)
    unread = [one.original.path for one in excerpts if one.places and not one.whole]
    said = f"{taken:,} of {read:,} rows that were looked at"
    return f"{said}; not all of {', '.join(unread)}" if unread else said


def _wants_best(recipe: Recipe) -> bool:
    asked = recipe.training.kwargs()
    return bool(
        recipe.checkpoints.keep.best or asked.get("load_best_model_at_end") or asked.get("metric_for_best_model")
    )


# --- The run ---------------------------------------------------------------------------------------------------------


@dataclass
class _Session:
    """What the first run leaves for the stages after it."""

    stages: Stages
    job: Job | None = None
    trainer: Trainer | None = None
    scores: dict[tuple[int, bool], Score] = field(default_factory=dict)
    exported: dict[int, Exported] = field(default_factory=dict)
    resumed: bool = False


def _run(small: Recipe, stages: Stages, scratch: Path) -> None:
    session = _Session(stages)
    watched = _watched(small, session)
    folder = RunFolder(scratch / "run")
    with stages.stage("build"):
        result = run(watched, out=folder.path)
    assert session.job is not None
    assert session.trainer is not None
    if _wants_best(small):
        with stages.stage("best checkpoint", goes_on=True):
            _require_best(small, session.trainer)
    # The run has ended the capture that was around it.
    with captured_logs(logging.NullHandler()), stages.stage("reload"):
        stages.say(_reload(session.job, session.trainer, folder))
    earlier = [p for p in folder.checkpoints.glob("checkpoint-*") if int(p.name.rpartition("-")[2]) < STEPS]
    if not earlier:
        stages.skip("resume", "the recipe saves no checkpoint before the last step (`training.save_strategy`)")
        return
    with stages.stage("resume"):
        session.resumed = True
        stages.say(_resume(watched, session.job.plan, result, folder, scratch / "resumed"))


def _watched(small: Recipe, session: _Session) -> Recipe:
    """Return the recipe with methods that say which stage begins; what they do is the same.

    When it is resumed, scores and exports are those of the first time.
    """

    def building(build: Callable[[Job], Trainer]) -> Callable[[Job], Trainer]:
        def build_trainer(job: Job) -> Trainer:
            trainer = build(replace(job, splits=_few(job.splits, _rows_trained(small))))
            if not session.resumed:
                session.job, session.trainer = job, trainer
                unmatched = trials.require_modules(trainer, small)
                session.stages.say(unmatched, warning=bool(unmatched))
                trials.try_trackers(trainer, session.stages)
                session.stages.begin("build")
                trainer.add_callback(_stage_callback(session.stages))
            return trainer

        return build_trainer

    copies = {
        "method": noted(small.method, "build_trainer", building),
        "evaluation": tuple(noted(e, "score", _scoring(session, i, e.type)) for i, e in enumerate(small.evaluation)),
        "export": tuple(noted(e, "export", _exporting(session, i, e.type)) for i, e in enumerate(small.export)),
        "rewards": tuple(noted(reward, "scores", trials.uneven) for reward in small.rewards),
    }
    return small.model_copy(update=copies)


Scoring = Callable[[Subject], Score]
Exporting = Callable[[Trained, Path], Exported]


def _scoring(session: _Session, index: int, name: str) -> Callable[[Scoring], Scoring]:
    def made(score: Scoring) -> Scoring:
        def scored(subject: Subject) -> Score:
            tuned = subject.base is not None
            if not session.resumed:
                session.stages.begin(f"{'tuned' if tuned else 'base'}: {name}")
                session.scores[index, tuned] = score(subject)
                session.stages.begin("save" if tuned else "build")
            return session.scores[index, tuned]

        return scored

    return made


def _exporting(session: _Session, index: int, name: str) -> Callable[[Exporting], Exporting]:
    def made(export: Exporting) -> Exporting:
        def exported(trained: Trained, folder: Path) -> Exported:
            if not session.resumed:
                session.stages.begin(f"export {name}")
                session.exported[index] = export(trained, folder)
                session.stages.begin("save")
            return session.exported[index]

        return exported

    return made


def _stage_callback(stages: Stages) -> TrainerCallback:
    """Return the callback that says what training does: steps, scores in between, checkpoints."""
    from transformers import TrainerCallback

    class Mark(TrainerCallback):
        """Names the stage; it goes behind transformers' own, which decide what follows a step."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            stages.begin("train")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if control.should_evaluate:
                stages.begin("evaluate")
            elif control.should_save:
                stages.begin("checkpoint")

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # What the scores decide, and the checkpoint that may follow.
            stages.begin("checkpoint" if control.should_save else "evaluate")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            stages.begin("train")

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            stages.begin("train")

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            stages.begin("save")

    return Mark()


def _rows_trained(small: Recipe) -> int | None:
    """Return the rows that the steps take; None for packed ones, of which nobody knows how many fill a sequence."""
    given = small.training.kwargs()
    if given.get("packing"):
        return None
    return STEPS * int(given["per_device_train_batch_size"]) * int(given["gradient_accumulation_steps"])


def _few(splits: Splits, count: int | None) -> Splits:
    """Return the splits with `count` training rows, half of them the longest: each is trained on within the steps."""
    import numpy as np

    if splits.stream is not None or count is None or len(splits.train) <= count:
        return splits
    rows = as_rows(splits.train)
    by_length = np.argsort(-rows.lengths, kind="stable")
    half = (count + 1) // 2
    others = np.sort(by_length[half:])
    spread = others[np.arange(count - half) * len(others) // max(1, count - half)]
    return replace(splits, train=rows.take(np.sort(np.concatenate([by_length[:half], spread]))))


# --- After the run ---------------------------------------------------------------------------------------------------


def _require_best(small: Recipe, trainer: Trainer) -> None:
    if trainer.state.best_metric is None:
        raise RecipeError(
            "the best checkpoint is asked for (`checkpoints.keep.best`, `training.metric_for_best_model` or "
            "`load_best_model_at_end`), and no score was computed while training",
            where=small.origin(("checkpoints", "keep", "best")),
            remedy="Set `training.eval_strategy: steps` with `eval_steps`, and `training.metric_for_best_model`.",
        )


def _reload(job: Job, trainer: Trainer, folder: RunFolder) -> str:
    """Load the trained model as `llmkit chat RUN` does; raises RunError if it computes something else than before."""
    trained = Trained(job.recipe, job.plan, trainer.model, job.tokenizer, job.splits, folder.model)
    rows: Sequence[Row] = (job.splits.eval or job.splits.train)[:ROWS_COMPARED]
    expected = logits_of(trainer.model, rows)
    checks = compare(expected, logits_of(open_model(job.recipe, folder).model, rows))
    name = "score_difference" if gives_scores(trainer.model) else "mean_kl"
    limit = tolerance(trained, str(job.recipe.model.dtype or job.plan["model.dtype"]), name)
    if not checks[name] <= limit:
        raise RunError(
            f"the trained model, loaded from the run folder, computes something else than before it was saved: {name} "
            f"is {checks[name]:.2e}, and {limit:.0e} is what the number formats explain",
            remedy="Something that was trained is not saved, or not loaded again: `adapter.modules_to_save` first.",
        )
    return f"{name} {checks[name]:.1e}"


def _resume(watched: Recipe, the_plan: Plan, straight: RunResult, first: RunFolder, again: Path) -> str:
    """Go on from step `SAVED` in a copy of the run; raises RunError unless it ends where the first one did."""
    shutil.copytree(first.path, again)
    for place in ("model", "export", f"checkpoints/checkpoint-{STEPS}"):
        shutil.rmtree(again / place, ignore_errors=True)
    resumed = run(watched, out=again, resume=True)
    found = _differing(first.model, again / "model", exact=the_plan.hardware.kind == "cpu")
    if found or (the_plan.hardware.kind == "cpu" and resumed.losses != straight.losses):
        what = found or f"its losses are {resumed.losses}, and were {straight.losses}"
        raise RunError(
            f"a run that is resumed at step {SAVED} does not end as one that was never stopped: {what}",
            remedy="Some state is not in the checkpoint, or not restored; don't count on --resume for this recipe.",
        )
    return f"step {STEPS} from checkpoint-{SAVED} is that of the run that was not stopped"


def _differing(one: Path, other: Path, *, exact: bool) -> str:
    """Return how the weights in two folders differ; an empty string if they are the same (nearly, if not `exact`)."""
    import torch
    from safetensors.torch import load_file

    names = sorted(p.name for p in one.glob("*.safetensors"))
    if names != sorted(p.name for p in other.glob("*.safetensors")):
        return "its weights are in other files"
    first, second = ({k: v for name in names for k, v in load_file(folder / name).items()} for folder in (one, other))
    if first.keys() != second.keys():
        return f"{len(first.keys() ^ second.keys())} tensors are in one of them alone"
    gaps = {
        name: float((value.double() - second[name].double()).abs().max())
        for name, value in first.items()
        if not torch.equal(value, second[name])
    }
    far = {name: gap for name, gap in gaps.items() if exact or gap > CLOSE * max(1.0, float(first[name].abs().max()))}
    if not far:
        return ""
    worst = max(far, key=lambda name: far[name])
    return f"{len(far)} of {len(first)} tensors differ, {worst} by {far[worst]:.1e}"
