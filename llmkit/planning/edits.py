"""Edits of a recipe that save memory: each is planned again, with the bytes that it saves and what it costs in time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from llmkit.errors import RecipeError, SetupError
from llmkit.planning.batches import batch_size, checkpointing
from llmkit.planning.candidates import Candidate, Ladder, ladders_of
from llmkit.planning.case import Case, Trace
from llmkit.planning.checks import check
from llmkit.planning.memory import USABLE, Estimate, estimate
from llmkit.planning.sharding import Sharding, Type

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe

_LEAST_SHARE = 0.01
"""Share of the peak that an edit must save to be worth a line."""

_TOGETHER = 3
"""Most edits that are tried together."""


@dataclass(frozen=True)
class Edit:
    """One change of a recipe, or several that belong together, and what the plan says of the recipe with it."""

    settings: Mapping[str, Any]
    """Values by dotted key, as `--set` takes them; empty for what is not said in a recipe (several devices)."""

    saves: int
    """Bytes by which the peak per device falls."""

    peak: int
    """Peak per device with the edit, in bytes."""

    slower: float
    """Factor of the time of a step; 1 where nothing is lost."""

    fits: bool
    """Whether the run fits with it."""

    why: str
    """What it does, and what it changes, in a sentence for the user."""

    same: bool = True
    """Whether the same is learnt, but for rounding."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """The settings as `--set` takes them, e.g. `training.gradient_checkpointing=true`."""
        return tuple(f"{key}={_spelled(value)}" for key, value in self.settings.items())

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as JSON has it."""
        return {**vars(self), "settings": dict(self.settings), "overrides": list(self.overrides)}


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Planned:
    """The memory of one recipe as it is planned."""

    case: Case

    @cached_property
    def batch(self) -> int:
        """Rows per device and pass."""
        return int(self.case.value(batch_size))

    @cached_property
    def checkpointed(self) -> bool:
        """Whether activations are recomputed."""
        return bool(self.case.value(checkpointing))

    def estimate(self, sharding: Sharding | None = None) -> Estimate | None:
        """Estimate the memory per device; of several devices each holds everything (DDP), or as `sharding` says."""
        count = self.case.hardware.count
        how = sharding or (Sharding("ddp", count) if count > 1 else None)
        return estimate(self.case, self.batch, checkpointed=self.checkpointed, sharding=how)


def room(case: Case) -> int:
    """Return the bytes per device that a plan may fill."""
    return int(USABLE * case.hardware.memory_bytes)


def ranked(case: Case, traced: Callable[[Recipe], Trace | None] | None = None) -> tuple[Edit, ...]:
    """Return the edits that save memory: those that fit alone, the cheapest in time first, then the others.

    Where none fits alone, up to three together are tried, and those that fit come first. `traced` makes the
    `Case.trace` of an edited recipe; without it, a recipe with another adapter or quantization is not traced. Nothing
    is returned for a model of unknown size.
    """
    before = Planned(case).estimate()
    if before is None:
        return ()
    found = _Found(case, before, traced)
    ladders = list(ladders_of(case))
    single = [edit for ladder in ladders if (edit := found.first_that_fits(ladder)) is not None]
    worth = [edit for edit in single if edit.saves >= _LEAST_SHARE * before.peak]
    fitting = [edit for edit in worth if edit.fits] or found.together(ladders)
    others = sorted((edit for edit in worth if not edit.fits), key=lambda e: -e.saves)
    return (*sorted(fitting, key=_rank), *others, *_divided(case, before))


def _rank(edit: Edit) -> tuple[Any, ...]:
    return (not edit.fits, round(edit.slower, 3), not edit.same, len(edit.settings), -edit.saves)


@dataclass(frozen=True)
class _Found:
    """What planning again says of candidates."""

    case: Case
    before: Estimate
    traced: Callable[[Recipe], Trace | None] | None

    def edit(self, candidate: Candidate) -> Edit | None:
        """Plan with `candidate`; None where the recipe would be refused."""
        recipe = edited(self.case.recipe, candidate.settings)
        after = Planned(self._case(recipe)).estimate() if recipe is not None else None
        if after is None:
            return None
        return Edit(
            settings=candidate.settings,
            saves=self.before.peak - after.peak,
            peak=after.peak,
            slower=candidate.slower,
            fits=after.peak <= room(self.case),
            why=candidate.why,
            same=candidate.same,
        )

    def _case(self, recipe: Recipe) -> Case:
        if self.traced is not None:
            return replace(self.case, recipe=recipe, trace=self.traced(recipe))
        old = self.case.recipe
        same = (recipe.model.name, recipe.adapter, recipe.quantization) == (
            old.model.name,
            old.adapter,
            old.quantization,
        )
        return replace(self.case, recipe=recipe, trace=self.case.trace if same else None)

    def first_that_fits(self, ladder: Ladder) -> Edit | None:
        """Return the first candidate that fits, or else the last that is not refused."""
        last = None
        for candidate in ladder:
            edit = self.edit(candidate)
            if edit is not None and edit.fits:
                return edit
            last = edit or last
        return last

    def together(self, ladders: Iterable[Ladder]) -> list[Edit]:
        """Return what fits of two candidates together, or else of three."""
        every = list(ladders)
        for size in range(2, _TOGETHER + 1):
            found = [edit for some in combinations(every, size) if (edit := self._joined(some)) is not None]
            if found:
                return found
        return []

    def _joined(self, ladders: tuple[Ladder, ...]) -> Edit | None:
        keys = [key for ladder in ladders for key in ladder[-1].settings]
        if len(set(keys)) < len(keys):
            return None
        chosen = [ladder[-1] for ladder in ladders]
        best = self._fitting(chosen)
        if best is None:
            return None
        # All that can be had was taken; now take no more of each than is needed.
        for place, ladder in enumerate(ladders):
            for milder in ladder[:-1]:
                there = [*chosen[:place], milder, *chosen[place + 1 :]]
                edit = self._fitting(there)
                if edit is not None:
                    chosen, best = there, edit
                    break
        return best

    def _fitting(self, candidates: list[Candidate]) -> Edit | None:
        edit = self.edit(_sum(candidates))
        return edit if edit is not None and edit.fits else None


def _sum(candidates: Iterable[Candidate]) -> Candidate:
    first, *others = candidates
    for other in others:
        first = first + other
    return first


def edited(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe | None:
    """Return `recipe` with `settings` as `--set` would make it, or None where it would be refused."""
    values = _lists(recipe.model_dump(exclude_unset=True))
    for key, value in settings.items():
        *sections, name = key.split(".")
        node = values
        for section in sections:
            if isinstance(node, dict) and node.get(section) is None:
                node[section] = {}
            node = node[int(section) if isinstance(node, list) else section]
        node[name] = value
    try:
        made = type(recipe).model_validate(values).placed(recipe.folder, origin=recipe.origin)
        check(made)
        made.method.check_recipe(made)
    except (ValidationError, RecipeError, SetupError):
        return None
    return made


def _lists(value: Any) -> Any:
    """Return `value` with lists in the place of tuples, as YAML has them."""
    if isinstance(value, dict):
        return {key: _lists(inner) for key, inner in value.items()}
    return [_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def _divided(case: Case, before: Estimate) -> Iterator[Edit]:
    """Yield what dividing the states between the devices that there are would save; nothing that a recipe says."""
    quantization, count = case.recipe.quantization, case.hardware.count
    storage = str(case.given.get("quantization.bnb_4bit_quant_storage", "uint8"))
    names: tuple[Type, ...] = ("fsdp", "zero3")
    for name in names:
        way = Sharding(name, count)
        if count == 1 or way.refusal(bits=quantization.bits if quantization else None, storage=storage):
            continue
        after = Planned(case).estimate(way)
        if after is None or after.peak >= before.peak:
            continue
        yield Edit(
            settings={},
            saves=before.peak - after.peak,
            peak=after.peak,
            slower=_SENT,
            fits=after.peak <= room(case),
            why=f"{way.title} divides weights, gradients and optimizer states between the {count} GPUs; llmkit trains "
            "in one process so far",
        )


_SENT = 1.5
"""Weights are sent twice a step where DDP sends gradients once: 1.5 times the traffic (ZeRO, arXiv:1910.02054)."""
