"""What there is to see of a recipe's rows before anything is trained: what `llmkit data` prints and writes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmkit.data import lengths as counting
from llmkit.data.audit import Finding
from llmkit.data.ledger import EXAMPLES, Account, Broken
from llmkit.data.lengths import Bin
from llmkit.data.packing import pack
from llmkit.data.reading import account_name
from llmkit.data.shapes import Shape
from llmkit.data.sources import format_of
from llmkit.data.splits import Row
from llmkit.data.store import Listed, Rows
from llmkit.errors import DataError, RecipeError, did_you_mean
from llmkit.planning.filling import GROUPED as CAN_GROUP
from llmkit.planning.plan import Plan
from llmkit.recipe.secrets import redact
from llmkit.runs.checks import planned, setting
from llmkit.runs.prepare import PreparedData, plan
from llmkit.runs.spelling import Passage, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.recipe.recipe import Recipe, Source

PAGE, FIGURES = "<!doctype html><!-- llmkit data -->", '{\n  "recipe": '
"""How the files begin that this command writes."""

_NUMBERED = re.compile(r"\bmessage \d+")

SPLITS: tuple[Literal["train", "eval"], ...] = ("train", "eval")
SHUFFLED, GROUPED, PACKED, FLAT = "shuffled", "grouped by length", "packed", "without padding"
SINGLE = (Shape.CONVERSATION, Shape.PROMPT_COMPLETION, Shape.TEXT)
"""Shapes of one sequence: TRL packs nothing else."""

STRATEGY = "train_sampling_strategy"


@dataclass(frozen=True)
class Origin:
    """One source: how its rows were read, and what became of them."""

    split: Literal["train", "eval"]
    name: str
    account: Account
    format: str | None
    """None for rows that are held out of the training sources."""
    reason: str
    """Why that format."""
    row_share: float
    token_share: float
    """Shares of what an epoch goes through, 0 to 1; of held-out rows, of all held-out rows."""


@dataclass(frozen=True)
class Lost:
    """Rows of one source that are dropped for one reason, with the first places."""

    source: str
    reason: str
    count: int
    places: tuple[str, ...]


@dataclass(frozen=True)
class Batching:
    """A way to put rows into batches."""

    name: str
    padding: float
    """Share of padding among all tokens computed, 0 to 1."""
    setting: str
    """What to write under `training` for it."""
    here: bool
    """Whether it is what the recipe does."""


@dataclass(frozen=True)
class Shown:
    """A row that is shown whole, why it was chosen, and what the model reads of it."""

    why: str
    split: Literal["train", "eval"]
    row: Row
    passages: tuple[Passage, ...]
    columns: dict[str, str]
    """What else the row has for the rewards, as JSON with every character visible."""


@dataclass(frozen=True)
class Seen:
    """All that is shown of the rows."""

    title: str
    model: str
    shape: Shape
    tokenizer: PreTrainedTokenizerBase
    rows: int
    streamed: bool
    """Whether `rows` are only the first of a stream."""
    held_out: int
    sources: tuple[Origin, ...]
    lost: tuple[Lost, ...]
    broken: tuple[Broken, ...]
    max_length: int | None
    histogram: tuple[Bin, ...]
    lengths: dict[str, int]
    trained: dict[str, int]
    """Quantiles of tokens and of trained tokens per row."""
    batch_size: int | None
    """None where batches depend on what the model samples."""
    batchings: tuple[Batching, ...]
    shown: tuple[Shown, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found that stops a run."""
        return not any(found.severity == "error" for found in self.findings)

    @property
    def broken_by_reason(self) -> list[Lost]:
        """Broken rows, grouped by why; the number of a message in it is each row's own."""
        found: dict[str, list[str]] = {}
        for broken in self.broken:
            found.setdefault(_NUMBERED.sub("message N", broken.reason), []).append(broken.where)
        return [Lost("", reason, len(where), tuple(where[:EXAMPLES])) for reason, where in found.items()]

    def to_json(self) -> str:
        """Return everything as JSON; rows with their token ids."""
        values = {
            "recipe": self.title,
            "model": self.model,
            "shape": str(self.shape),
            "rows": self.rows,
            "streamed": self.streamed,
            "held_out": self.held_out,
            "sources": [{**_values(origin, "account"), **origin.account.to_dict()} for origin in self.sources],
            "lost": [asdict(lost) for lost in self.lost],
            "broken": [asdict(broken) for broken in self.broken],
            "max_length": self.max_length,
            "histogram": [asdict(bin_) for bin_ in self.histogram],
            "tokens_per_row": self.lengths,
            "trained_per_row": self.trained,
            "batch_size": self.batch_size,
            "batchings": [asdict(batching) for batching in self.batchings],
            "shown": [_shown_dict(shown) for shown in self.shown],
            "findings": [asdict(finding) for finding in self.findings],
        }
        return json.dumps(values, ensure_ascii=False, indent=2) + "\n"


def _values(origin: Origin, *without: str) -> dict[str, Any]:
    return {name: value for name, value in vars(origin).items() if name not in without}


def _shown_dict(shown: Shown) -> dict[str, Any]:
    passages = [{"title": p.title, "ids": list(p.ids), "weights": list(p.weights)} for p in shown.passages]
    return {"why": shown.why, "split": shown.split, "where": shown.row.where, "passages": passages}


def see(data: PreparedData, *, title: str, count: int = 6, source: str | None = None) -> Seen:
    """Return what there is to see of `data`, with `count` rows to look at, of `source` (path or name) if one is given.

    Raises RecipeError for a source that the recipe does not have.
    """
    recipe, splits = data.recipe, data.splits
    train, held_out = as_rows(splits.train), as_rows(splits.eval)
    the_plan = plan(recipe) if splits.shape != Shape.PROMPT else None
    return Seen(
        title=title,
        model=recipe.model.name,
        shape=splits.shape,
        tokenizer=data.tokenizer,
        rows=len(train),
        streamed=splits.stream is not None,
        held_out=len(held_out),
        sources=tuple(_origins(data)),
        lost=tuple(_lost(data)),
        broken=tuple(data.ledger.broken()),
        max_length=setting(recipe, "max_length"),
        histogram=tuple(counting.histogram(train.lengths)),
        lengths=counting.quantiles(train.lengths),
        trained=counting.quantiles(train.trained),
        batch_size=_batch_size(recipe, the_plan) if the_plan else None,
        batchings=tuple(_batchings(data, train, the_plan)) if the_plan else (),
        shown=tuple(_chosen(data, train, held_out, count, source)),
        findings=tuple(sorted(data.findings, key=lambda found: found.severity != "error")),
    )


def as_rows(rows: Sequence[Row]) -> Rows:
    """Return `rows` with what is counted of them as arrays; each source's are a shard of their own."""
    if isinstance(rows, Rows):
        return rows
    by_source: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_source.setdefault(row.source, []).append(index)
    places = [index for indices in by_source.values() for index in indices]
    return Rows([Listed(rows[i] for i in indices) for indices in by_source.values()], np.argsort(places))


def check_targets(page: Path | None, figures: Path | None) -> None:
    """Check that the files can be written, before the work whose result they hold; raises RecipeError or DataError."""
    if page is not None and figures is not None and page.resolve() == figures.resolve():
        raise RecipeError(f"`--html` and `--json` both name {page}", remedy="Give each a file of its own.")
    for path, begins in ((page, PAGE), (figures, FIGURES)):
        if path is not None:
            check_target(path, begins)


def check_target(path: Path, begins: str) -> None:
    """Raise DataError for a file that can't be written, or that is there and is none of this command's own."""
    with _writing(path):
        # Of another file, only the first bytes are read: it may be large, or a pipe.
        if path.exists() and not (path.is_file() and _first(path, len(begins)) == begins.encode()):
            raise DataError(f"{path} exists already, and is not overwritten")
        if not path.parent.is_dir():
            raise DataError(f"there is no folder {path.parent} to write {path.name} into")
        scratch = _scratch(path)
        scratch.write_bytes(b"")
        scratch.unlink()


def _first(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def save(text: str, path: Path) -> None:
    """Write a file without secrets, as a whole or not at all; raises DataError."""
    scratch = _scratch(path)
    with _writing(path):
        try:
            scratch.write_text(redact(text), encoding="utf-8")
            os.replace(scratch, path)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} can't be written: {error.strerror}", remedy="Name another file.") from error


# --- sources ---------------------------------------------------------------------------------------------------------


def _origins(data: PreparedData) -> Iterable[Origin]:
    ledger, recipe = data.ledger, data.recipe
    sources = {"train": recipe.data.train, "eval": recipe.data.eval if isinstance(recipe.data.eval, tuple) else ()}
    for split, accounts in zip(SPLITS, (ledger.train, ledger.eval), strict=True):
        kept = sum(account.pieces for account in accounts.values())
        tokens = sum(account.tokens for account in accounts.values())
        for name, account in accounts.items():
            mixed = ledger.mix.get(name) if split == "train" else None
            named = [source for source in sources[split] if account_name(source) == name]
            formats = [format_of(source, recipe.folder) for source in named]
            yield Origin(
                split,
                name,
                account,
                format=_listed(chosen.format.name for chosen in formats) or None,
                reason=_listed(chosen.reason for chosen in formats),
                row_share=mixed.row_share if mixed else account.pieces / max(kept, 1),
                token_share=mixed.token_share if mixed else account.tokens / max(tokens, 1),
            )


def _listed(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(words))


def _lost(data: PreparedData) -> Iterable[Lost]:
    for accounts in (data.ledger.train, data.ledger.eval):
        for name, account in accounts.items():
            for reason, count in account.dropped.most_common():
                yield Lost(name, reason, count, tuple(account.places.get(reason, ())))


# --- batches ---------------------------------------------------------------------------------------------------------


def _batchings(data: PreparedData, rows: Rows, the_plan: Plan) -> Iterable[Batching]:
    """Yield the padding of batches as the run will have them, and of those that it could have."""
    recipe, shape, streamed = data.recipe, data.splits.shape, data.splits.stream is not None
    batch_size = _batch_size(recipe, the_plan)
    shuffle = np.random.default_rng(int(setting(recipe, "seed"))).permutation(len(rows))
    in_order = streamed or planned(recipe, the_plan, STRATEGY) == "sequential"
    order = np.arange(len(rows)) if in_order else shuffle
    lengths, totals = rows.lengths, rows.totals
    sequences = 2 if shape == Shape.PREFERENCE else 1
    here = SHUFFLED if streamed else _way(recipe, shape, the_plan)
    share = counting.padding(lengths[order], totals[order], batch_size, sequences)
    yield Batching("in their order" if in_order else SHUFFLED, share, f"{STRATEGY}: random", here == SHUFFLED)
    if streamed or recipe.method.config not in CAN_GROUP:
        return
    by_length = shuffle[counting.grouped(lengths[shuffle], batch_size)]
    share = counting.padding(lengths[by_length], totals[by_length], batch_size, sequences)
    yield Batching(GROUPED, share, f"{STRATEGY}: group_by_length", here == GROUPED)
    if shape not in SINGLE:
        return
    max_length = setting(recipe, "max_length")
    if max_length:
        full = pack(lengths, max_length).lengths
        share = counting.padding(full, full, batch_size)
        yield Batching(PACKED, share, "packing: true", here == PACKED)
    if here == FLAT:
        yield Batching(FLAT, 0.0, "padding_free: true", here=True)


def _batch_size(recipe: Recipe, the_plan: Plan) -> int:
    return int(planned(recipe, the_plan, "per_device_train_batch_size"))


def _way(recipe: Recipe, shape: Shape, the_plan: Plan) -> str:
    """Return the name of the run's own way to make batches."""
    if shape in SINGLE and setting(recipe, "packing"):
        return PACKED
    if shape in SINGLE and setting(recipe, "padding_free"):
        return FLAT
    return GROUPED if planned(recipe, the_plan, STRATEGY) == "group_by_length" else SHUFFLED


# --- rows ------------------------------------------------------------------------------------------------------------


def _chosen(data: PreparedData, train: Rows, held_out: Rows, count: int, source: str | None) -> Iterable[Shown]:
    split, rows = SPLITS[0], train
    if source is not None:
        names = _names(data.recipe, source)
        found = {split: _of(rows, names) for split, rows in zip(SPLITS, (train, held_out), strict=True)}
        split, rows = next((item for item in found.items() if len(item[1])), (SPLITS[0], found["train"]))
    for why, index in pick(rows, count, int(setting(data.recipe, "seed"))):
        row = rows[index]
        others = row.example.items() if data.splits.shape == Shape.PROMPT else ()
        columns = {visible(name): visible(_json(value)) for name, value in others if name != "prompt"}
        yield Shown(why, split, row, tuple(passages(row)), columns)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _names(recipe: Recipe, source: str) -> set[str]:
    """Return the accounts of a source that is given by its name in the ledger or by its path."""
    held_out: tuple[Source, ...] = recipe.data.eval if isinstance(recipe.data.eval, tuple) else ()
    known = [(account_name(one), one.path) for one in (*recipe.data.train, *held_out)]
    names = {name for name, path in known if source in (name, path)}
    if not names:
        choices = sorted({name for name, _ in known})
        hint = did_you_mean(source, choices)
        raise RecipeError(f"the recipe has no source {source!r}{hint}", remedy=f"Sources: {', '.join(choices)}.")
    return names


def _of(rows: Rows, names: set[str]) -> Rows:
    """Return the rows of some sources; one row of each shard tells whose they are."""
    shards = [i for i, shard in enumerate(rows.shards) if len(shard.facts["digest"]) and shard.row(0).source in names]
    return rows.take(np.isin(rows.sources, shards))


def pick(rows: Rows, count: int, seed: int) -> list[tuple[str, int]]:
    """Return `count` rows worth a look, as reason and index: ends and extremes first, the rest at random.

    The first row comes first, then the longest, the one with the fewest trained tokens, and the first of each further
    source. A row that is chosen for several reasons is one.
    """
    if not len(rows):
        return []
    _, firsts = np.unique(rows.sources, return_index=True)
    wanted = [("first", 0), ("longest", int(rows.lengths.argmax()))]
    if rows.trained.any():
        wanted.append(("fewest trained tokens", int(rows.trained.argmin())))
    wanted += [("first of its source", int(index)) for index in sorted(firsts) if index]
    wanted += [("random", int(i)) for i in np.random.default_rng(seed).permutation(len(rows))[: count + len(wanted)]]
    reasons: dict[int, list[str]] = {}
    for why, index in wanted:
        if index in reasons:
            reasons[index] += [why] if why != "random" else []
        elif len(reasons) < count:
            reasons[index] = [why]
    return [(", ".join(why), index) for index, why in reasons.items()]


def passages(row: Row) -> Iterable[Passage]:
    """Yield what the model reads of `row`; of pairs and judged answers, the prompt and each answer apart."""
    tokens = row.tokens
    if "input_ids" in tokens:
        given: Sequence[float] = tokens.get("loss_weights") or [1.0] * len(row.labels)
        weights = [0.0 if label == -100 else float(w) for label, w in zip(row.labels, given, strict=True)]
        yield Passage("", row.input_ids, weights)
        return
    for name, ids in tokens.items():
        title = name.removesuffix("_ids")
        if title == "completion":
            title = f"completion ({row.verdict})"
        yield Passage(title, ids, [float(name != "prompt_ids")] * len(ids))
