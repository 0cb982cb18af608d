"""The rows that a rehearsal reads: of each source the first, the longest, the odd, the last, and some in between.

They are copied to a file as they stand, before columns are mapped, so that all that a run does to a row is done to
them. What a run says of a row of that file is put back into the words of the source.
"""

from __future__ import annotations

import heapq
import json
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.checking import eval_sources
from llmkit.data.ledger import Account
from llmkit.data.mapping import mapped
from llmkit.data.readers import Placed
from llmkit.data.reading import too_many_broken
from llmkit.data.shapes import LeftOutError, RowError
from llmkit.data.sources import is_generated, local_path, read_rows

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Data, Recipe, Source

FIRST, SPREAD, LONGEST, LAST, ODD = 64, 32, 8, 16, 16
"""Rows of each sort that are taken from a source; some are of several."""

SCORED = 4
"""Of held-out rows so many times fewer are taken, the odd ones apart: all of them are scored twice."""

SECONDS, TOGETHER = 4.0, 10.0
"""Seconds that are spent on reading a source, and on reading all of them."""

TAIL = 2**20
"""Bytes at the end of a file that are read where the time was over before its last row."""

BROKEN = 0.1
"""Share of the rows that may be broken: so few can't tell 1% from 2%."""

HELD_OUT = 0.25
"""Share of the training rows that is held out, where the recipe holds out a smaller one."""

FORMS = 10_000
"""Forms of rows that are told apart."""


@dataclass(frozen=True)
class Excerpt:
    """Some rows of a source."""

    original: Source
    source: Source
    """What the rehearsal reads."""

    read: int
    """Rows that were looked at."""

    whole: bool
    """Whether those were all."""

    places: tuple[str, ...] = ()
    """Where each row stands, of those that were copied."""

    @property
    def count(self) -> int:
        """Rows that the rehearsal reads."""
        return len(self.places) or (self.source.max_rows or self.read)

    def in_its_words(self, text: str) -> str:
        """Return `text` with places in the copy as places in the source."""
        if not self.places:
            return text
        copied = re.escape(self.source.path)
        text = re.sub(rf"{copied}:(\d+)", lambda found: self.places[int(found[1]) - 1], text)
        return re.sub(copied, lambda _: self.original.path, text)


def excerpts_of(recipe: Recipe, folder: Path) -> tuple[Data, list[Excerpt]]:
    """Copy some rows of each source of `recipe` into `folder`; return the section that reads them, and what they are.

    Raises what reading the sources raises, and DataError for one with too many broken rows.
    """
    data, held_out = recipe.data, eval_sources(recipe)
    seconds = min(SECONDS, TOGETHER / (len(data.train) + len(held_out)))
    found = {
        split: [
            excerpt(source, recipe, folder / f"{split}-{index}.jsonl", seconds, fewer)
            for index, source in enumerate(sources)
        ]
        for split, sources, fewer in (("train", data.train, 1), ("eval", held_out, SCORED))
    }
    changes: dict[str, Any] = {
        "train": tuple(one.source for one in found["train"]),
        "broken": max(data.broken, BROKEN),
        "audit": data.audit.model_copy(
            update={"benchmarks": tuple(_first(source, FIRST) for source in data.audit.benchmarks)}
        ),
    }
    if held_out:
        changes["eval"] = tuple(one.source for one in found["eval"])
    elif isinstance(data.eval, float):
        changes["eval"] = max(data.eval, HELD_OUT)
    return data.model_copy(update=changes), [*found["train"], *found["eval"]]


def excerpt(source: Source, recipe: Recipe, file: Path, seconds: float, fewer: int = 1) -> Excerpt:
    """Copy some rows of `source` to `file`, having read for about `seconds`; of made ones, the first are made again."""
    if is_generated(source):
        few = _first(source, FIRST // fewer)
        return Excerpt(source, few, few.max_rows or FIRST, whole=False)
    picked, whole = _pick(source, recipe, seconds, fewer)
    if whole and (error := too_many_broken(picked.account, source, recipe.data.broken)):
        raise error
    if not whole:
        for where, row in _tail(source, recipe.folder):
            picked.add(where, row)
    chosen = picked.chosen()
    try:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for _, row in chosen]
        file.write_text("".join(lines), encoding="utf-8")
    except (TypeError, ValueError):  # dates, bytes: what parquet and the hub have besides JSON
        return Excerpt(source, _first(source, FIRST // fewer), picked.account.read, whole)
    # What says how the source is found and read has been done with.
    gone = {"split": None, "name": None, "revision": None, "header": (), "max_rows": None}
    copied = source.model_copy(update={"path": str(file), **gone})
    return Excerpt(source, copied, picked.account.read, whole, tuple(where for where, _ in chosen))


def _first(source: Source, count: int) -> Source:
    return source.model_copy(update={"max_rows": min(source.max_rows or count, count)})


@dataclass
class _Picked:
    """The rows that are taken so far, of each sort `fewer` times fewer."""

    fewer: int = 1
    account: Account = field(default_factory=Account)
    first: list[int] = field(default_factory=list)
    spread: list[int] = field(default_factory=list)
    longest: list[tuple[int, int]] = field(default_factory=list)
    odd: list[int] = field(default_factory=list)
    last: deque[int] = field(default_factory=deque)
    rows: dict[int, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    forms: set[Any] = field(default_factory=set)
    stride: int = 1

    def add(self, where: str, row: dict[str, Any]) -> None:
        """Look at the next row that can be used."""
        index = self.account.read
        self.account.read += 1
        self.rows[index] = (where, row)
        self.last.append(index)
        if len(self.last) > LAST // self.fewer:
            self.last.popleft()
        if len(self.first) < FIRST // self.fewer:
            self.first.append(index)
        if index % self.stride == 0:
            self.spread.append(index)
            if len(self.spread) > 2 * SPREAD // self.fewer:
                self.spread, self.stride = self.spread[::2], 2 * self.stride
        keep = heapq.heappush if len(self.longest) < LONGEST // self.fewer else heapq.heappushpop
        keep(self.longest, (len(str(row)), index))
        self._look_at_form(index, row)
        if len(self.rows) > 4 * (FIRST + SPREAD + LONGEST + LAST + ODD):
            taken = self._taken()
            self.rows = {index: placed for index, placed in self.rows.items() if index in taken}

    def _look_at_form(self, index: int, row: dict[str, Any]) -> None:
        form = form_of(row)
        if form in self.forms or len(self.forms) >= FORMS:
            return
        self.forms.add(form)
        if len(self.odd) < ODD:
            self.odd.append(index)

    def _taken(self) -> set[int]:
        longest = (index for _, index in self.longest)
        return {*self.first, *self.spread, *longest, *self.odd, *self.last}

    def chosen(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the rows that are taken, in their order, each after its place."""
        return [self.rows[index] for index in sorted(self._taken())]


def form_of(value: Any, key: str = "") -> Any:
    """Return what sort of value this is: rows that lack a column or leave one empty have another form than others."""
    if isinstance(value, Mapping):
        return tuple((name, form_of(value[name], name)) for name in sorted(value, key=str))
    if isinstance(value, list | tuple):
        forms = [form_of(inner) for inner in value]
        return (frozenset(forms), forms[0], forms[-1]) if forms else ()
    if isinstance(value, str):
        return value if key in ("role", "from") else bool(value.strip())
    return type(value).__name__


def _pick(source: Source, recipe: Recipe, seconds: float, fewer: int) -> tuple[_Picked, bool]:
    """Read the source for `seconds`; return the rows that are taken, and whether its end was reached.

    Each row is mapped too, so a function of the recipe's that fails on any of them says so here.
    """
    picked, until = _Picked(fewer), time.monotonic() + seconds
    for where, row, made in _as_they_stand(source, recipe.folder):
        if isinstance(made, LeftOutError):
            continue
        if isinstance(made, RowError):
            picked.account.quarantine(where, str(made))
        else:
            picked.add(where, row)
        if time.monotonic() > until:
            return picked, False
    return picked, True


def _as_they_stand(source: Source, folder: Path) -> Iterator[tuple[str, Any, dict[str, Any] | RowError]]:
    """Yield the rows of `source` with their places, and as the recipe maps them."""
    latest: list[Any] = [None]

    def noted() -> Placed:
        for where, row in read_rows(source, folder):
            latest[0] = row
            yield where, row

    for where, made in mapped(noted(), source, folder):
        yield where, latest[0], made


def _tail(source: Source, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the last rows of a .jsonl file that was too long to be read to its end."""
    path = local_path(source, folder)
    if path is None or path.suffix.lower() != ".jsonl" or not path.is_file() or source.max_rows is not None:
        return
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().split(b"\n")[1:]  # the first one has lost its beginning
    filled = [line for line in lines if line.strip()][-LAST:]
    for index, line in enumerate(filled):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a broken row is counted where all rows are
        if isinstance(row, dict):
            yield f"{source.path} (row {len(filled) - index} from the end)", row
