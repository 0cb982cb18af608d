"""Going on with a run: what of its recipe may have changed, and with which decisions on which machine it goes on."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import LlmkitError, RecipeError, SetupError
from llmkit.planning.hardware import Hardware
from llmkit.planning.plan import Decision, Plan
from llmkit.recipe import fields
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.secrets import redact
from llmkit.recipe.spec import LibrarySpec, Spec, Variant
from llmkit.runs.checks import setting
from llmkit.runs.folder import RunFolder, environment
from llmkit.runs.recovery.checkpoints import Checkpoints

if TYPE_CHECKING:
    from transformers import Trainer

    from llmkit.recipe.recipe import Recipe
    from llmkit.recipe.spec import KeyPath

FREE = (
    *("limits", "checkpoints", "stability", "evaluation", "gates", "export"),
    *("training.max_steps", "training.num_train_epochs", "training.run_name", "training.report_to"),
    *("training.logging_*", "training.save_*"),
)
"""Sections and keys that may be other ones when a run goes on: none of them changes what a step computes."""

STEADY = frozenset({"constant", "reduce_lr_on_plateau", "greedy"})
"""Schedules of the learning rate that don't depend on the number of steps."""

WARMED_UP = frozenset({"constant_with_warmup", "inverse_sqrt"})
"""Those that depend on it only where the warm-up is a share of it."""

OF_THE_DEVICE = ("hardware.*", "training.use_cpu", "training.dataloader_pin_memory", "training.use_liger_kernel")
"""Decisions that follow the device which the run goes on on."""


# --- The recipe ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One value of the recipe that is not what it was."""

    path: KeyPath
    was: Any
    now: Any

    @property
    def key(self) -> str:
        """The place as a dotted key."""
        return ".".join(map(str, self.path))

    @property
    def free(self) -> bool:
        """Whether a run may go on with it."""
        return _is_free(self.key)

    def sentence(self) -> str:
        """Return what it was and is."""
        return f"`{self.key}`: was {_shown(self.was)}, is {_shown(self.now)}"


def _is_free(key: str) -> bool:
    return any(fnmatch(key, free) or key.startswith(f"{free}.") for free in FREE)


def require_same_recipe(folder: RunFolder, recipe: Recipe, narrate: Callable[[str], None]) -> None:
    """Raise RecipeError where `recipe` would change what the run in `folder` computes; says what else is changed.

    Values are compared, and not text: a key that is left out is what the run's plan or the library made of it.
    """
    try:
        before = load_recipe(folder.path / "recipe.yaml")
    except LlmkitError as error:
        raise folder.damaged("recipe.yaml", str(error)) from error
    decided = {decision.key: decision.value for decision in _planned(folder)[1]}
    changes = list(_changes(before, recipe, partial(_left_out, _tables(before), decided)))
    refused = [change for change in changes if not change.free]
    if refused:
        lines = "\n".join(f"  {recipe.origin(change.path)}: {change.sentence()}" for change in refused)
        raise RecipeError(
            f"the recipe differs from the one that {folder.path} was started with:\n{lines}",
            remedy=f"Only these may change: {', '.join(FREE)}. Continue the run as it was: llmkit run "
            f"{folder.path / 'recipe.yaml'} --resume; or start a new one, from its weights if you like "
            f"(`model.name: {folder.model}`).",
        )
    for change in changes:
        narrate(f"{change.sentence()} ({recipe.origin(change.path)})")
    if any(change.key in ("training.max_steps", "training.num_train_epochs") for change in changes):
        _require_steps_left(folder, recipe)
        _tell_of_schedule(recipe, decided, narrate)


def _tables(recipe: Recipe) -> dict[str, str]:
    """Return by section the config class whose fields its keys are."""
    found = {"training": recipe.method.config}
    for section, spec in (("adapter", recipe.adapter), ("quantization", recipe.quantization)):
        if spec is not None:
            found[section] = spec.table
    return found


def _left_out(tables: Mapping[str, str], decided: Mapping[str, Any], path: KeyPath) -> Any:
    """Return what a key that a recipe leaves out stood for: the planner's value, or the library's, or None."""
    key = ".".join(map(str, path))
    if key in decided:
        return decided[key]
    known = fields.describe(tables[str(path[0])]) if path[0] in tables and len(path) == 2 else {}
    return known[str(path[1])].default if path[-1] in known else None


def _changes(was: Any, now: Any, left_out: Callable[[KeyPath], Any], path: KeyPath = ()) -> Iterator[Change]:
    """Yield where two recipes, or two of their sections, differ."""
    if isinstance(was, Spec) and type(was) is type(now):
        for name in dict.fromkeys([*_names(was), *_names(now)]):
            here = (*path, name)
            one, other = (_part(spec, name, left_out, here) for spec in (was, now))
            yield from _changes(one, other, left_out, here)
    elif _has_sections(was) and _has_sections(now) and len(was) == len(now):
        for index, (one, other) in enumerate(zip(was, now, strict=True)):
            yield from _changes(one, other, left_out, (*path, index))
    elif isinstance(was, Variant) and isinstance(now, Variant):
        yield Change((*path, "type"), was.type, now.type)
    elif _plain(was) != _plain(now):
        yield Change(path, was, now)


def _names(spec: Spec) -> list[str]:
    return [*type(spec).model_fields, *_own(spec)]


def _own(spec: Spec) -> dict[str, Any]:
    return spec.kwargs() if isinstance(spec, LibrarySpec) else {}


def _part(spec: Spec, name: str, left_out: Callable[[KeyPath], Any], path: KeyPath) -> Any:
    own = _own(spec)
    if name in own:
        return own[name]
    found = getattr(spec, name) if name in type(spec).model_fields else None
    # Null and `hardware.device: auto` leave the choice to the planner.
    return left_out(path) if found is None or (found == "auto" and path[0] == "hardware") else found


def _has_sections(value: Any) -> bool:
    return isinstance(value, tuple) and any(isinstance(item, Spec) for item in value)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, and as the run folder has it: passwords are not written there."""
    return json.loads(redact(json.dumps(value, default=_of_section)))


def _of_section(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Spec) else str(value)


def _shown(value: Any) -> str:
    if isinstance(value, Spec):
        value = value.model_dump(mode="json", exclude_unset=True)
    text = json.dumps(_plain(value), ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _require_steps_left(folder: RunFolder, recipe: Recipe) -> None:
    """Raise RecipeError where the run has taken more steps or epochs than `recipe` now has."""
    found = Checkpoints(folder.checkpoints, recipe.checkpoints.keep, lambda text: None).last()
    if found is None:
        return
    state = json.loads((found / "trainer_state.json").read_text(encoding="utf-8"))
    steps, epochs = int(setting(recipe, "max_steps")), float(setting(recipe, "num_train_epochs"))
    if 0 < steps < state["global_step"]:
        key, now, taken = "max_steps", float(steps), f"{state['global_step']} steps"
    elif steps <= 0 and epochs < state["epoch"] - 1e-6:
        key, now, taken = "num_train_epochs", epochs, f"{state['epoch']:.2f} epochs"
    else:
        return
    raise RecipeError(
        f"`training.{key}` is {now:g}, and {folder.path} has learnt for {taken} already",
        where=recipe.origin(("training", key)),
        remedy="Raise it; or start a new run: a shorter one has another schedule from its first step on.",
    )


def _tell_of_schedule(recipe: Recipe, decided: Mapping[str, Any], narrate: Callable[[str], None]) -> None:
    schedule = decided.get("training.lr_scheduler_type", setting(recipe, "lr_scheduler_type"))
    share = 0 < (setting(recipe, "warmup_steps") or 0) < 1
    if schedule not in STEADY | WARMED_UP or (share and schedule in WARMED_UP):
        narrate(
            f"the learning rate follows the {schedule} schedule of the new number of steps from here on: the run is "
            "another one than that many steps from the start would have been"
        )


# --- The plan --------------------------------------------------------------------------------------------------------


def as_planned(folder: RunFolder, plan: Plan, narrate: Callable[[str], None]) -> Plan:
    """Return the plan by which the run in `folder` goes on: its own decisions, on the device that `plan` is for.

    Says what is different here and may change the last bits. Raises SetupError where this device can't do as planned.
    """
    earlier, before = _planned(folder)
    here = {decision.key: decision for decision in plan.decisions}
    shaping = [decision for decision in before if not _is_new(decision.key)]
    decisions = (*(here[key] for key in here if _is_new(key)), *shaping)
    planned_so = Plan(plan.hardware, plan.size, tuple(decisions))
    _require_able(folder, planned_so)
    for line in _differences(earlier, before, planned_so, folder.read_json("lock.json").get("packages", {})):
        narrate(line)
    return planned_so


def _planned(folder: RunFolder) -> tuple[Hardware, list[Decision]]:
    """Return what the run in `folder` was planned for, and with; raises SetupError where that can't be read."""
    kept = folder.read_json("plan.json")
    try:
        hardware = Hardware(**{**kept["hardware"], "attention": tuple(kept["hardware"]["attention"])})
        return hardware, [Decision(**entry) for entry in kept["decisions"]]
    except (KeyError, TypeError) as error:
        raise folder.damaged("plan.json", f"{type(error).__name__}: {error}") from error


def _is_new(key: str) -> bool:
    """Whether a decision is that of this session: on its device, or on what may change."""
    return _is_free(key) or any(fnmatch(key, pattern) for pattern in OF_THE_DEVICE)


def _require_able(folder: RunFolder, plan: Plan) -> None:
    """Raise SetupError for what the run was planned with and this device lacks."""
    hardware = plan.hardware
    kernel = str(plan.get("model.attn_implementation", ""))
    lacking = {
        f"`{kernel}`": kernel.startswith("flash") and kernel not in hardware.attention,
        "float16 with loss scaling": bool(plan.get("training.fp16")) and hardware.kind != "cuda",
        "bfloat16": _computes_bf16(plan) and hardware.kind == "mps" and not hardware.bf16,
        "vLLM": bool(plan.get("training.use_vllm"))
        and (hardware.kind != "cuda" or importlib.util.find_spec("vllm") is None),
    }
    missing = [what for what, lacks in lacking.items() if lacks]
    if missing:
        raise SetupError(
            f"{folder.path} was planned with {' and '.join(missing)}, which is not to be had here ({hardware.summary})",
            remedy="Continue it on a machine like the one it was started on; or start a new run from its weights "
            f"(`model.name: {folder.model}`).",
        )


def _computes_bf16(plan: Plan) -> bool:
    return bool(plan.get("training.bf16")) or plan.get("model.dtype") == "bfloat16"


def _differences(
    earlier: Hardware, before: list[Decision], plan: Plan, packages: Mapping[str, str | None]
) -> Iterator[str]:
    """Yield what is different from when the run was started, and may change the last bits or the speed."""
    now, threads = plan.hardware, {d.key: d.value for d in before}.get("hardware.threads")
    rounded = "sums may be rounded in another order, so that the last bits differ from those of the undisturbed run"
    if (earlier.kind, earlier.name) != (now.kind, now.name):
        yield f"started on {earlier.name} ({earlier.kind}), and going on on {now.name} ({now.kind}): {rounded}"
    elif now.kind == "cpu" and threads != plan.get("hardware.threads"):
        yield f"started with {threads} CPU threads, and going on with {plan.get('hardware.threads')}: {rounded}"
    if now.memory_bytes < 0.9 * earlier.memory_bytes:
        yield f"planned for {earlier.summary}, and going on with less memory: {now.summary}"
    if _computes_bf16(plan) and earlier.bf16 and not now.bf16:
        yield f"planned with bfloat16, which is slow here: {now.summary}"
    versions: Mapping[str, str | None] = environment()["packages"]
    others = [f"{name} {was} -> {versions[name]}" for name, was in packages.items() if versions.get(name, was) != was]
    if others:
        yield f"other versions than when the run was started, which may change numbers: {', '.join(others)}"


# --- The training ----------------------------------------------------------------------------------------------------


def train_on(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train to the end, from `checkpoint` if there is one; where that is the end already, it is only loaded.

    transformers would take a step more, with a batch that the run never had.
    """
    from transformers import TrainerState

    if checkpoint is None:
        trainer.train()
        return
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    if state.global_step < steps:
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = state
    named = state.best_model_checkpoint
    # By its name: the run folder may have been moved.
    best = checkpoint.with_name(Path(named).name) if named else None
    if trainer.args.load_best_model_at_end and best is not None and best.is_dir():
        state.best_model_checkpoint = str(best)
        trainer._load_best_model()
    trainer.control = trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
