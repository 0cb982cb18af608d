"""A run once more, from its own recipe and plan: does it take the same steps and end with the same weights?"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmkit.errors import RecipeError, SetupError
from llmkit.recipe.loading import load_recipe
from llmkit.recipe.recipe import Limits, Recipe
from llmkit.runs.folder import RunFolder
from llmkit.runs.limits import STOPPED_FILE
from llmkit.runs.prepare import plan
from llmkit.runs.progress import Narrator
from llmkit.runs.proving.checked import INPUTS, MODEL, RECORD, Checked, digest
from llmkit.runs.proving.differences import (
    Difference,
    Entry,
    checkpoints_of,
    compare,
    read_object,
    relative,
    section_of,
)
from llmkit.runs.proving.verifying import verify
from llmkit.runs.recovery.resuming import as_planned
from llmkit.runs.runner import run

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback

TOLERANCE = 0.01
"""Relative difference up to which a figure is said to be reproduced, where it is not the same to the bit."""

SCHEDULED = ("learning_rate", "epoch", "num_tokens", "num_input_tokens_seen")
"""Figures that no kernel computes: they are the same on every machine."""

JUDGED = ("loss", "grad_norm", "reward", "eval_loss")
"""Computed figures that the verdict rests on; others, such as the longest answer of a step, jump at a trifle."""

INPUT_SECTIONS = ("data", "code", "rows", "weights")
ELSEWHERE = ("settings", "versions", "hardware")
LIMITS = ("limits",)
"""Section of a recipe that a reproduction does without: it ends at the step at which the run did."""

LEFT_OUT = ("evaluation", "gates", "export", "rewards")
"""Sections of a recipe that a part of a run does without."""

Verdict = Literal["identical", "close", "different"]


@dataclass(frozen=True)
class Weights:
    """The saved weights of a run and of its reproduction."""

    of: str
    """What they are the weights of: `model`, or a checkpoint."""

    same: Mapping[str, bool]
    """Whether a file holds the same bytes, by its name."""

    apart: float | None = None
    """Length of the difference of all weights relative to their length; None where they are the same or don't match."""

    @property
    def identical(self) -> bool:
        """Whether every file holds the same bytes."""
        return bool(self.same) and all(self.same.values())


@dataclass(frozen=True)
class Reproduced:
    """How a run compares with its reproduction."""

    difference: Difference
    """A is the run, B the reproduction."""

    steps: int
    """Logged steps that both have."""

    weights: Weights | None
    """None where the run kept none to compare with."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """What is different, if something is."""

    exact: bool
    """Whether equality to the bit was to be expected: the same versions on the same CPU."""

    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the run was reproduced, to the bit or within the tolerance."""
        return self.verdict != "different"


def reproduce(
    target: Path,
    out: Path | None = None,
    narrator: Narrator | None = None,
    *,
    steps: int | None = None,
    tolerance: float = TOLERANCE,
) -> Reproduced:
    """Run the recipe of the run in `target` again by the same plan, and compare what both have logged, step by step.

    `out` is the folder of the new run (default: the run's own name with `-again`, numbered if taken). With `steps`,
    training ends after so many, on the schedule of the whole run, and nothing is scored or exported. A run that a limit
    ended is ended at the same step. Raises SetupError where the run, or what it was made from, has changed or is not
    there any more, and what `run` raises.
    """
    narrator = narrator or Narrator()
    if steps is not None and steps < 1:
        raise RecipeError(f"a run has steps from 1 on, and not {steps}")
    folder = RunFolder.open(target)
    _require_unchanged(folder, narrator)
    recipe = load_recipe(folder.path / "recipe.yaml").placed(Path(folder.read_json("lock.json")["folder"]))
    the_plan = as_planned(folder, plan(recipe), narrator.say)
    if out is None:
        home = folder.path if folder.path.name not in ("", "..") else folder.path.resolve()
        out = RunFolder.numbered(home.parent, f"{home.name}-again").path
    last = _last_step(folder, steps)
    callbacks = () if last is None else (_stop_after(last),)
    # Hours are other steps on another machine.
    recipe = (recipe if steps is None else _bare(recipe)).model_copy(update={"limits": Limits()})
    again = run(recipe, out=out, plan_=the_plan, callbacks=callbacks, narrator=narrator)
    return judge(compare(folder.path, again.folder), tolerance, steps)


def _require_unchanged(folder: RunFolder, narrator: Narrator) -> None:
    found = verify(folder.path, narrator.say, rows=True, parts=(RECORD, INPUTS, MODEL))
    if not found.passed:
        said = "; ".join(_said(one) for one in found.failed)
        raise SetupError(
            f"{folder.path} can't be reproduced: {said}",
            remedy=f"Put it back as it was; `llmkit verify {folder.path}` lists everything.",
        )


def _said(found: Checked) -> str:
    verb = "is missing" if found.state == "missing" else "has changed"
    return f"{found.what} {verb}" + (f" ({found.detail})" if found.detail else "")


def _last_step(folder: RunFolder, steps: int | None) -> int | None:
    """Return the step to end with: that at which a limit ended the run, or `steps` if they are fewer; None for all."""
    stopped = read_object(folder.path / STOPPED_FILE).get("step")
    given = [step for step in (steps, stopped) if isinstance(step, int)]
    return min(given, default=None)


def _bare(recipe: Recipe) -> Recipe:
    """Return `recipe` without what happens before and after training."""
    rewards = recipe.rewards if recipe.method.needs_rewards else ()
    return recipe.model_copy(update={"evaluation": (), "gates": (), "export": (), "rewards": rewards})


def _stop_after(steps: int) -> TrainerCallback:
    """Return the callback that ends training after `steps`, with a checkpoint; the schedule is the whole run's."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        """Ends training as transformers' own callbacks do."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= steps:
                control.should_save = control.should_training_stop = True

    return Stop()


# --- the verdict -----------------------------------------------------------------------------------------------------


def judge(difference: Difference, tolerance: float = TOLERANCE, steps: int | None = None) -> Reproduced:
    """Say whether run B of `difference` reproduces run A, of which only the first `steps` count where that is given."""
    left_out = LIMITS if steps is None else (*LIMITS, *LEFT_OUT)
    entries = tuple(entry for entry in difference.entries if not _is_setting(entry, left_out))
    difference = replace(difference, entries=entries, scores=() if steps is not None else difference.scores)
    weights = _weights(difference, steps)
    reasons = [*_other_inputs(difference, whole=steps is None), *_other_steps(difference, steps)]
    reasons += [*_other_curves(difference, tolerance), *_other_scores(difference, tolerance)]
    headline = difference.headline
    if headline is None:
        reasons.append("no step was logged by both")
    same = not difference.parted and all(score.same for score in difference.scores)
    same = same and (weights is None or weights.identical)
    verdict: Verdict = "different" if reasons else "identical" if same else "close"
    count = len(headline.steps) if headline else 0
    return Reproduced(difference, count, weights, verdict, tuple(reasons), _expects_identity(difference), tolerance)


def _is_setting(entry: Entry, sections: Collection[str]) -> bool:
    return entry.section == "settings" and entry.key.split(".")[0] in sections


def _other_inputs(difference: Difference, *, whole: bool) -> list[str]:
    """Name the inputs that differ; those that a bare reproduction lacks are of what was left out."""
    return [
        f"{entry.section}: {entry.key} is another one"
        for entry in difference.entries
        if entry.section in INPUT_SECTIONS and (whole or entry.b is not None)
    ]


def _other_steps(difference: Difference, steps: int | None) -> list[str]:
    """Say so where the reproduction lacks a step that the run has logged."""
    headline = difference.headline
    if headline is None:
        return []
    lacking = [step for step in headline.a if step not in headline.b and (steps is None or step <= steps)]
    return [f"step {min(lacking)} of the run was not logged again"] if lacking else []


def _other_curves(difference: Difference, tolerance: float) -> list[str]:
    found = []
    for curve in difference.parted:
        # Rounding of the last digit, as other math libraries do it, is no other schedule.
        allowed = 1e-9 if curve.name in SCHEDULED else tolerance
        step = curve.parts(allowed) if curve.name in (*SCHEDULED, *JUDGED) else None
        if step is not None:
            found.append(
                f"{curve.name} is {curve.a[step]:.6g} at step {step}, and {curve.b[step]:.6g} in the reproduction"
            )
    return found


def _other_scores(difference: Difference, tolerance: float) -> list[str]:
    found = []
    for score in difference.scores:
        for model, (one, two) in (("base", score.base), ("tuned", score.tuned)):
            # An unfinished run has no scores to compare with.
            if one is not None and (two is None or relative(one, two) > tolerance):
                said = "none" if two is None else f"{two:.6g}"
                found.append(f"{score.name} of the {model} model is {one:.6g}, and {said} in the reproduction")
    return found


def _expects_identity(difference: Difference) -> bool:
    elsewhere = any(entry.section in ELSEWHERE for entry in difference.entries)
    hardware = section_of(read_object(difference.a / "plan.json"), "hardware")
    return hardware.get("kind") == "cpu" and not elsewhere


# --- the weights -----------------------------------------------------------------------------------------------------


def _weights(difference: Difference, steps: int | None) -> Weights | None:
    """Compare the saved weights: of the models, or for a part of a run of the checkpoints at its end."""
    of = "model"
    if steps is not None:
        newest = checkpoints_of(RunFolder(difference.b))[-1:]
        of = f"checkpoints/{newest[0].name}" if newest else "checkpoints"
    names = {path.name for path in (difference.a / of).glob("*.safetensors")}
    if not names:
        return None
    names |= {path.name for path in (difference.b / of).glob("*.safetensors")}
    same = {name: _same(difference.a / of / name, difference.b / of / name) for name in sorted(names)}
    apart = None if all(same.values()) else distance(difference.a / of, difference.b / of)
    return Weights(of, same, apart)


def _same(a: Path, b: Path) -> bool:
    return a.is_file() and b.is_file() and digest(a) == digest(b)


def distance(a: Path, b: Path) -> float | None:
    """Return the length of the difference of all weights in two folders, relative to the length of those in `a`.

    None where their tensors don't match, or can't be read. One tensor of each is in memory at a time.
    """
    from safetensors import SafetensorError

    try:
        one, two = _tensors(a), _tensors(b)
        if {name: shape for name, (_, shape) in one.items()} != {name: shape for name, (_, shape) in two.items()}:
            return None
        sizes, apart = [], []
        for name, (file, _) in one.items():
            x, y = _read(file, name), _read(two[name][0], name)
            sizes.append(float(x.square().sum()))
            apart.append(float((x - y).square().sum()))
    except SafetensorError:
        return None
    total = math.fsum(sizes)
    return math.sqrt(math.fsum(apart) / total) if total else None


def _tensors(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Return the file and the shape of each tensor in a folder."""
    from safetensors import safe_open

    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= {name: (file, tuple(opened.get_slice(name).get_shape())) for name in opened.keys()}  # noqa: SIM118
    return found


def _read(file: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        found: torch.Tensor = opened.get_tensor(name).double()
    return found
