"""Recipe -> everything that trains: model, tokenizer, audited rows, trainer. Used by `run` and by custom loops."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.audit import Finding, audit, refuse
from llmkit.data.checking import eval_sources
from llmkit.data.ledger import Ledger
from llmkit.data.prepare import load_splits, stop
from llmkit.data.shapes import RowError, Shape
from llmkit.data.sources import format_of
from llmkit.data.splits import Row, Splits
from llmkit.data.store import digests
from llmkit.data.templates import training_template
from llmkit.errors import DataError
from llmkit.methods.base import Job
from llmkit.model.footprint import tracer
from llmkit.model.loading import load_model, load_stop_ids, load_tokenizer, will_convert
from llmkit.planning.hardware import Hardware, probe
from llmkit.planning.plan import Plan
from llmkit.planning.planner import plan as make_plan
from llmkit.planning.size import model_size
from llmkit.recipe.functions import announcements
from llmkit.recipe.places import cache_folder
from llmkit.recipe.recipe import Recipe
from llmkit.runs.checks import check, is_adapter, setting
from llmkit.runs.progress import Narrator

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train. The trainer owns the model; a custom loop takes `loop()` instead."""

    recipe: Recipe
    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    splits: Splits
    ledger: Ledger
    findings: list[Finding]
    """What the audit warns of."""
    trainer: Trainer

    @property
    def model(self) -> PreTrainedModel:
        """The model with its adapter, on its device."""
        return self.trainer.model

    def loop(self) -> Loop:
        """Return what a training loop of one's own needs; the same rows in the same order as `llmkit run`."""
        from transformers import set_seed

        trainer = self.trainer
        args = trainer.args
        # The trainer does the same when it starts: batches and dropout depend on this state.
        set_seed(args.seed)
        loader = trainer.get_train_dataloader()
        steps = args.max_steps
        if steps <= 0:  # a stream has no length, and always a number of steps
            steps = math.ceil(-(-len(loader) // args.gradient_accumulation_steps) * args.num_train_epochs)
        trainer.create_optimizer_and_scheduler(num_training_steps=steps)
        model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        return Loop(
            model,
            loader,
            optimizer,
            trainer.lr_scheduler,
            trainer.accelerator,
            steps,
            args.gradient_accumulation_steps,
            args.max_grad_norm,
        )


@dataclass(frozen=True)
class Loop:
    """The parts of a training loop: everything is placed and prepared by accelerate."""

    model: PreTrainedModel
    loader: DataLoader[dict[str, Any]]
    optimizer: Optimizer
    scheduler: LRScheduler
    accelerator: Accelerator
    steps: int
    """Optimizer steps that `llmkit run` would take."""
    accumulation: int
    """Batches per optimizer step; the last step of an epoch takes those that are left."""
    max_grad_norm: float


def plan(recipe: Recipe, hardware: Hardware | None = None) -> Plan:
    """Decide everything that the recipe leaves open, for `hardware` (default: this machine), with reasons."""
    # One process drives one device.
    hardware = hardware or replace(probe(recipe.hardware.device), count=1)
    return make_plan(recipe, hardware, model_size(recipe.model.name, recipe.folder), tracer(recipe))


def prepare(
    recipe: Recipe,
    *,
    output_dir: str | Path | None = None,
    plan_: Plan | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    narrator: Narrator | None = None,
    keep_samples: Callable[[Sequence[dict[str, Any]]], None] = lambda samples: None,
) -> Prepared:
    """Load, audit and build everything up to the trainer; nothing is trained.

    `output_dir` is where the trainer would write checkpoints (default: a temporary folder); `keep_samples` is given the
    completions that a method samples while it trains. Raises RecipeError,
    DataError or SetupError with the place of what is wrong.
    """
    check(recipe)
    narrator = narrator or Narrator()
    the_plan = plan_ or plan(recipe)
    output = Path(output_dir) if output_dir else Path(tempfile.mkdtemp(prefix="llmkit-"))
    _use_threads(the_plan)
    if will_convert(recipe):
        narrator.say(f"converting {recipe.model.name} to safetensors (once; kept in {cache_folder()})")
    data = prepare_data(recipe, narrator=narrator)
    tokenizer, splits = data.tokenizer, data.splits
    refuse(data.findings)
    for finding in data.findings:
        narrator.say(finding.sentence())
    set_up_rewards(recipe, rewarded_rows(recipe, splits))
    model = load_model(recipe, the_plan, tokenizer)
    narrator.say(f"loaded {recipe.model.name}: {_describe(model, the_plan)}")
    job = Job(
        recipe=recipe,
        plan=the_plan,
        model=model,
        tokenizer=tokenizer,
        splits=splits,
        output_dir=output,
        callbacks=callbacks,
        narrate=narrator.say,
        keep_samples=keep_samples,
        adapted=is_adapter(recipe),
    )
    from llmkit.runs.compiling import compiled  # it takes what is prepared here

    trainer = recipe.method.build_trainer(job)
    _quiet(trainer)
    return compiled(Prepared(recipe, the_plan, tokenizer, splits, data.ledger, data.findings, trainer))


@dataclass(frozen=True)
class PreparedData:
    """The audited rows of a recipe, with the tokenizer that made them; no model is loaded for them."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    stops: frozenset[int]
    """Token ids that generation stops on."""
    splits: Splits
    ledger: Ledger
    findings: list[Finding]
    """What is wrong with the rows, errors first; none of them has stopped anything yet."""


def prepare_data(recipe: Recipe, *, narrator: Narrator | None = None, look: bool = False) -> PreparedData:
    """Read, tokenize, mask and audit the rows; raises RecipeError, DataError or SetupError.

    With `look`, a source with too many broken or unusable rows is a finding as well, and not an error at once.
    """
    narrator = narrator or Narrator()
    problems: list[DataError] = []
    tokenizer = load_tokenizer(recipe)
    stops = load_stop_ids(recipe, tokenizer)
    splits, ledger = load_rows(recipe, tokenizer, stops, narrator, problems.append if look else stop)
    if splits.shape is Shape.CONVERSATION:
        narrator.say(training_template(tokenizer).note)
    for name, sources in (("train", recipe.data.train), ("eval", eval_sources(recipe))):
        for source in sources:
            if source.format == "auto":
                chosen = format_of(source, recipe.folder)
                narrator.say(f"{name}: {source.path}: format {chosen.format.name}, because {chosen.reason}")
    for line in ledger.sentences():
        narrator.say(line)
    findings = [
        Finding("unusable_rows", "error", error.what, where=(error.where or "",), remedy=error.remedy)
        for error in problems
    ]
    findings += audit(splits, ledger, tokenizer, stops, recipe)
    return PreparedData(recipe, tokenizer, stops, splits, ledger, findings)


def row_hashes(splits: Splits) -> dict[str, str]:
    """Return a hash of what the model reads of each split, in its order; of a stream, of its first rows."""
    found = {"train": splits.train, "eval": splits.eval}
    return {name: hashlib.sha256(digests(rows).tobytes()).hexdigest() for name, rows in found.items()}


def load_rows(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    stops: frozenset[int],
    narrator: Narrator,
    refuse: Callable[[DataError], None] = stop,
) -> tuple[Splits, Ledger]:
    """Read, tokenize and mask the rows with the recipe's `max_length` and seed; raises what `load_splits` raises.

    The code that the recipe names is announced first: every command that runs some of it comes by here.
    """
    for line in announcements(recipe):
        narrator.say(line)
    length, seed = setting(recipe, "max_length"), int(setting(recipe, "seed"))
    return load_splits(recipe, tokenizer, stops, max_length=length, seed=seed, narrate=narrator.say, refuse=refuse)


def rewarded_rows(recipe: Recipe, splits: Splits) -> list[Row]:
    """Return the rows whose answers the recipe's rewards score: in training, or held out for an evaluation."""
    learns = recipe.method.needs_rewards
    held_out = learns or any(one.needs_rewards and one.requires_rows() for one in recipe.evaluation)
    return [*(splits.train if learns else ()), *(splits.eval if held_out else ())]


def set_up_rewards(recipe: Recipe, rows: Sequence[Row]) -> None:
    """Check that every row has what the recipe's rewards need, and load what they score with.

    Raises DataError with the place of the first row that can't be scored.
    """
    for reward in recipe.rewards:
        for row in rows:
            try:
                reward.check_row(row.example)
            except RowError as error:
                raise DataError(str(error), where=row.where) from error
        reward.set_up(recipe.folder)


def _use_threads(the_plan: Plan) -> None:
    # accelerate launch sets OMP_NUM_THREADS=1 when it is unset, which leaves cores idle: the plan knows better.
    import torch

    chosen = os.environ.get("OMP_NUM_THREADS")
    launched = "LOCAL_RANK" in os.environ and chosen == "1"
    if the_plan.hardware.kind == "cpu" and (chosen is None or launched):
        torch.set_num_threads(int(the_plan["hardware.threads"]))


def _describe(model: PreTrainedModel, the_plan: Plan) -> str:
    total = model.num_parameters()
    dtype = str(model.dtype).removeprefix("torch.")
    return f"{total / 1e6:,.0f} M parameters, {dtype}, on {the_plan['hardware.device']}"


def _quiet(trainer: Trainer) -> None:
    """Remove the trainer's own printing; llmkit's callback draws the line."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
