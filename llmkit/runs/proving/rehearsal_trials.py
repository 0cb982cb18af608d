"""What a rehearsal tries beside the run itself: memory and disk for the real sizes, the hub, trackers, rewards."""

from __future__ import annotations

import math
import numbers
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.splits import Row
from llmkit.errors import RecipeError, SetupError, did_you_mean
from llmkit.model.sources import locate
from llmkit.planning.hardware import GIB
from llmkit.recipe.recipe import Recipe
from llmkit.rewards.base import score_part
from llmkit.runs.needs import Needs, require_space
from llmkit.runs.prepare import set_up_rewards

if TYPE_CHECKING:
    from transformers import Trainer

    from llmkit.runs.proving.rehearsal_stages import Stages

ODD_ANSWERS = ("", ' 7\u2028<answer>[1, {"a": "</answer>\\boxed{ \U0001f9ea')
"""Completions that a model in training may well give: nothing, and marks that are opened and not closed."""

SCORED_AT_ONCE = 8
SECONDS = 6.0
"""Seconds that are spent on trying one reward."""

ANSWERS_WITHIN = 20.0
"""Seconds in which a tracker or the hub has to answer."""


# --- The real sizes --------------------------------------------------------------------------------------------------


def memory_sentence(found: Needs) -> str:
    """Say whether the real run fits in memory."""
    if found.memory is None:
        return "the size of the model is not known, so neither memory nor disk can be told"
    said = f"{_size(found.memory)} of the {_size(found.usable)} of memory that can be used"
    return said if found.fits else f"does not fit: {said}; `llmkit plan` says what would make it fit"


def make_folder(out: Path) -> None:
    """Raise SetupError unless a run folder can be made in `out`; nothing is left there."""
    standing = _standing(out)
    try:
        with tempfile.TemporaryDirectory(prefix=".llmkit-rehearsal-", dir=standing) as made:
            (Path(made) / "written").write_text("whole", encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{standing} can't be written: {error.strerror}", remedy="Choose --out FOLDER.") from error


def space(out: Path, what: Needs) -> str:
    """Say what the run keeps on disk; raises SetupError if there is less room than that."""
    if what.disk is None:
        return ""
    require_space(_standing(out), what)
    return f"{_size(what.disk)} of checkpoints, model and exports"


def _standing(path: Path) -> Path:
    """Return the folder nearest to `path` that is there."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{math.ceil(count / 2**20):,} MiB"


# --- What may be out of reach ----------------------------------------------------------------------------------------


def reach_weights(recipe: Recipe) -> None:
    """Raise SetupError unless the hub model's weights are in the cache, or the hub has them and gives them."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # Of an adapter that training goes on from, the base.
    name, revision = locate(recipe.model, recipe.folder).path, recipe.model.revision
    files = ("model.safetensors", "model.safetensors.index.json", *recipe.model.allow_pickle)
    if any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files):
        return
    problem = "HF_HUB_OFFLINE is set"
    if not constants.is_offline_mode():
        try:
            HfApi().model_info(name, revision=revision, timeout=ANSWERS_WITHIN)
            return
        except (OSError, HfHubHTTPError, OfflineModeIsEnabled) as error:
            problem = str(error).splitlines()[0]
    raise SetupError(
        f"`model.name`: the weights of {name} are not in the local cache, and {problem}",
        remedy="Check the name, log in for a gated model (`hf auth login`), or point `model.name` to a local folder.",
    )


def try_trackers(trainer: Trainer, stages: Stages) -> None:
    """Set up each tracker that the run reports to; one that fails is noted, and left out of the rest."""
    from transformers.integrations import get_reporting_integration_callbacks

    kinds = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
    for tracker in [found for found in trainer.callback_handler.callbacks if isinstance(found, kinds)]:
        stages.begin("trackers")
        begun = trainer.args, trainer.state, trainer.control
        problem = _within(ANSWERS_WITHIN, partial(tracker.on_train_begin, *begun, model=trainer.model))
        if problem is not None:
            name = type(tracker).__name__.removesuffix("Callback")
            stages.fail(SetupError(f"`training.report_to`: {name} can't be set up: {problem}"))
            trainer.remove_callback(tracker)


def _within(seconds: float, work: Callable[[], object]) -> str | None:
    """Return what goes wrong in `work`, or None; it is left behind where it takes longer than `seconds`."""
    problems: list[str | None] = []

    def do() -> None:
        try:
            work()
            problems.append(None)
        except Exception as error:  # noqa: BLE001 - a tracker's package may raise anything
            problems.append(f"{type(error).__name__}: {error}")

    # Not a pool: that one would wait for it when Python ends.
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)
    return problems[0] if problems else f"no answer within {seconds:.0f} s"


# --- The adapter ------------------------------------------------------------------------------------------------------


def require_modules(trainer: Trainer, recipe: Recipe) -> str:
    """Return the names in `adapter.target_modules` that nothing is called, in a sentence.

    Raises RecipeError for such a name in `modules_to_save`: PEFT passes over it, and it is neither trained nor saved.
    """
    given = recipe.adapter.kwargs() if recipe.adapter is not None else {}
    modules = [name for name, _ in trainer.model.named_modules()]

    def missing(key: str) -> list[str]:
        named = given.get(key)
        wanted = named if isinstance(named, list | tuple) else []
        return [name for name in wanted if not any(module.endswith(name) for module in modules)]

    for name in missing("modules_to_save"):
        last = {module.rpartition(".")[2] for module in modules}
        raise RecipeError(
            f"`adapter.modules_to_save`: no module of this model is called {name!r}{did_you_mean(name, last)}",
            where=recipe.origin(("adapter", "modules_to_save")),
            remedy="PEFT passes over it without a word: it would be neither trained nor saved.",
        )
    absent = missing("target_modules")
    return f"no module is called {', '.join(absent)} (`adapter.target_modules`)" if absent else ""


# --- Rewards ---------------------------------------------------------------------------------------------------------


def try_rewards(recipe: Recipe, rows: Sequence[Row]) -> str:
    """Score golden and odd answers to `rows`, from the last one; raises what a run would that came to such an answer.

    A reward that asks a service is asked once.
    """
    set_up_rewards(recipe, rows)
    said = []
    for reward in recipe.rewards:
        if hasattr(reward, "url"):
            score_part(reward, ODD_ANSWERS[1:], rows[:1])
            said.append(f"{reward.name} answers")
            continue
        until, count = time.monotonic() + SECONDS, 0
        for end in range(len(rows), 0, -SCORED_AT_ONCE):
            some = rows[max(0, end - SCORED_AT_ONCE) : end]
            golden = [(text, row) for row in some if (text := reward.golden(row.example)) is not None]
            cases = [*golden, *((text, row) for row in some for text in ODD_ANSWERS)]
            score_part(reward, [text for text, _ in cases], [row for _, row in cases])
            count += len(some)
            if time.monotonic() > until:
                break
        said.append(f"{reward.name} on {count} of {len(rows)} rows")
    return ", ".join(said)


def uneven(scores: Callable[..., list[float]]) -> Callable[..., list[float]]:
    """Return a reward's `scores` with every second one a little higher.

    A model with random weights earns the same with all its answers, and learns nothing from that. What is no number is
    left as it is: `score_part` has something to say about it.
    """

    def scored(completions: Sequence[str], rows: Sequence[Any]) -> list[float]:
        return [
            value + 0.1 * (index % 2) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value
            for index, value in enumerate(scores(completions, rows))
        ]

    return scored
