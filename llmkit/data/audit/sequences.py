"""Checks of the tokens and labels of all rows: what is trained, where it ends, how a row begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.audit.columns import Array, Chunk, Column, chunks
from llmkit.data.audit.findings import ENOUGH, Finding, counted, from_share, noteworthy, places
from llmkit.data.audit.words import fingerprints
from llmkit.data.shapes import Shape
from llmkit.data.spans import end_remedy
from llmkit.data.splits import ANSWERS, Row
from llmkit.data.store import Rows
from llmkit.data.templates import control_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.recipe.recipe import Audit, Recipe

LITTLE_TRAINED = 0.01
"""Share of trained tokens below which most of each step's work teaches nothing."""

MUCH_CUT = 0.1
"""Share of truncated rows from which on it is worth a sentence; their number is in the ledger anyway."""

ONE_SIDED = 0.95
"""Share of pairs with the longer answer on the same side, from which on length alone tells the answers apart."""

Flags = dict[str, Array]
"""Positions of the rows that a check flags, by check."""


@dataclass
class Seen:
    """What a pass over all rows of a split found."""

    stops: Array
    """Ids that generation stops on."""
    flags: dict[str, list[Array]] = field(default_factory=dict)
    tokens: int = 0
    unknown: int = 0
    trained: int = 0
    longer: int = 0
    """Pairs whose better answer is the longer one."""
    shorter: int = 0
    prompts: list[Array] = field(default_factory=list)
    """Pairs of position and fingerprint of what stands before the last answer: (int64[rows], uint64[rows])."""
    pairs: list[Array] = field(default_factory=list)
    """For preferences: position, fingerprint of prompt, better and worse answer: uint64[rows, 4]."""

    def flag(self, check: str, positions: Array) -> None:
        """Note the rows at `positions`."""
        if len(positions):
            self.flags.setdefault(check, []).append(positions)

    def flagged(self, check: str) -> Array:
        """Return the rows that `check` found, in order: int64[rows]."""
        return np.sort(np.concatenate(self.flags.get(check, [np.array([], np.int64)])))


@dataclass(frozen=True)
class Ids:
    """The tokens that have a meaning here; None for those that the tokenizer lacks."""

    stops: Array
    start: int | None
    unknown: int | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, stops: frozenset[int]) -> Ids:
        """Return those of `tokenizer`; an unknown token that it never makes of text is not looked for.

        SmolLM2 names `<|endoftext|>`, which stands between documents, and reads any text by its bytes.
        """
        unknown, start = tokenizer.unk_token_id, tokenizer.bos_token_id
        if unknown in {tokenizer.pad_token_id, start, *stops} or unknown not in _strange(tokenizer):
            unknown = None
        return cls(np.array(sorted(stops), np.int64), start, unknown)


def _strange(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what a tokenizer makes of characters that no vocabulary has: a private one and an unassigned one."""
    return list(tokenizer("\U0010fffd\u0378", add_special_tokens=False)["input_ids"])


def look(rows: Rows, shape: Shape, ids: Ids, *, longest: int | None) -> Seen:
    """Go through all rows once; rows of `longest` tokens were split (None: none was) and end where they were cut."""
    seen = Seen(ids.stops)
    truncated = rows.fact("truncated")
    if longest is not None:
        truncated = truncated | (rows.lengths >= longest)
    for chunk in chunks(rows):
        cut = truncated[chunk.positions]
        for name, column in chunk.columns.items():
            if name != "labels":
                seen.tokens += len(column.values)
                seen.unknown += 0 if ids.unknown is None else int((column.values == ids.unknown).sum())
        begin = chunk["prompt_ids"] if "prompt_ids" in chunk else chunk["input_ids"]
        if ids.start is not None:
            doubled = (begin.first() == ids.start) & (begin.first(1) == ids.start)
            # A row that was split goes on with its text, where a start token may stand.
            seen.flag("start_token", chunk.positions[doubled])
            seen.flag("no_start", chunk.positions[begin.first() != ids.start])
        if "labels" in chunk:
            _labels(seen, chunk, shape, ids, cut)
        else:
            _answers(seen, chunk, ids, cut)
    return seen


def _labels(seen: Seen, chunk: Chunk, shape: Shape, ids: Ids, cut: Array) -> None:
    """Check rows of a single sequence: each maximal run of trained tokens is an answer and ends with a stop token."""
    tokens, labels = chunk["input_ids"], chunk["labels"].values
    trained = labels != -100
    owners = tokens.owners
    rows = len(chunk.positions)
    amount = np.bincount(owners[trained], minlength=rows)
    seen.trained += int(trained.sum())
    seen.flag("untrained_row", chunk.positions[amount == 0])
    seen.flag("labels", chunk.positions[np.unique(owners[trained & (labels != tokens.values)])])
    follows = np.zeros(len(trained), bool)
    follows[:-1] = trained[1:] & (owners[1:] == owners[:-1])
    ends = np.flatnonzero(trained & ~follows)
    open_ended = ends[~np.isin(tokens.values[ends], ids.stops)]
    wrong = np.unique(owners[open_ended])
    seen.flag("end_token", chunk.positions[wrong[~cut[wrong]]])
    behind = np.minimum(open_ended + 1, len(trained) - 1)
    masked = (owners[behind] == owners[open_ended]) & np.isin(tokens.values[behind], ids.stops)
    seen.flag("end_masked", chunk.positions[np.unique(owners[open_ended[masked]])])
    if shape is Shape.CONVERSATION:
        begins = labels[tokens.offsets[:-1][tokens.lengths > 0]] != -100
        seen.flag("trained_prompt", chunk.positions[tokens.lengths > 0][begins])
    else:
        seen.flag("doubled_end", chunk.positions[_two_ends(tokens, ids)])
    if shape is not Shape.TEXT:
        seen.prompts.append(_before_last_answer(chunk, trained, owners))


def _two_ends(column: Column, ids: Ids) -> Array:
    return np.isin(column.last(), ids.stops) & np.isin(column.last(1), ids.stops)


def _before_last_answer(chunk: Chunk, trained: Array, owners: Array) -> Array:
    """Return position and fingerprint of each row's tokens before its last run of trained ones: uint64[rows, 2]."""
    tokens = chunk["input_ids"]
    goes_on = np.zeros(len(trained), bool)
    goes_on[1:] = trained[:-1] & (owners[1:] == owners[:-1])
    starts = np.flatnonzero(trained & ~goes_on)
    last = tokens.offsets[:-1].copy()
    last[owners[starts]] = starts  # of several, the last one is kept
    before = np.arange(len(trained)) < last[owners]
    offsets = np.cumsum(np.concatenate([[0], last - tokens.offsets[:-1]]))
    return np.stack([chunk.positions.astype(np.uint64), fingerprints(tokens.values[before], offsets)], axis=1)


def _answers(seen: Seen, chunk: Chunk, ids: Ids, cut: Array) -> None:
    """Check rows of a prompt and its answers; a prompt alone has nothing that is trained."""
    prompts = fingerprints(chunk["prompt_ids"].values, chunk["prompt_ids"].offsets)
    positions = chunk.positions.astype(np.uint64)
    for name in (name for name in ANSWERS if name in chunk):
        answer = chunk[name]
        seen.trained += len(answer.values)
        seen.flag("untrained_row", chunk.positions[answer.lengths == 0])
        seen.flag("end_token", chunk.positions[~np.isin(answer.last(), ids.stops) & ~cut & (answer.lengths > 0)])
        seen.flag("doubled_end", chunk.positions[_two_ends(answer, ids)])
        if ids.start is not None:
            seen.flag("start_token", chunk.positions[answer.first() == ids.start])
    if "chosen_ids" in chunk:
        better, worse = chunk["chosen_ids"], chunk["rejected_ids"]
        whole = ~cut
        seen.longer += int((better.lengths > worse.lengths)[whole].sum())
        seen.shorter += int((better.lengths < worse.lengths)[whole].sum())
        prints = [fingerprints(column.values, column.offsets) for column in (better, worse)]
        seen.pairs.append(np.stack([positions, prompts, *prints], axis=1))
    seen.prompts.append(np.stack([positions, prompts], axis=1))


def sequence_findings(
    rows: Rows, seen: Seen, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, shape: Shape, split: str
) -> Iterator[Finding]:
    """Say what a pass over the rows of a split found."""
    limits = recipe.data.audit
    yield from _certain(rows, seen, tokenizer, split)
    doubled = seen.flagged("doubled_end")
    if len(doubled):
        yield Finding(
            "doubled_end",
            from_share(limits, "doubled_end", len(doubled), len(rows)),
            f"{counted(len(doubled), len(rows), f'{split} rows')} end with two end tokens: their text holds "
            f"one already, and {tokenizer.eos_token!r} is added",
            len(doubled),
            len(rows),
            places(rows, doubled),
            "Take the end token out of the rows' text.",
        )
    cut = np.flatnonzero(rows.fact("truncated"))
    if noteworthy(len(cut), len(rows), MUCH_CUT) and shape is not Shape.TEXT:
        yield Finding(
            "truncated",
            from_share(limits, "truncated", len(cut), len(rows)),
            f"{counted(len(cut), len(rows), f'{split} rows')} are cut off at `training.max_length`, so that the model "
            "does not see how they end",
            len(cut),
            len(rows),
            places(rows, cut),
            "Raise training.max_length, or choose data.overflow: drop.",
        )
    yield from _rates(rows, seen, limits, tokenizer, shape, split)


def _certain(rows: Rows, seen: Seen, tokenizer: PreTrainedTokenizerBase, split: str) -> Iterator[Finding]:
    """Say what no row may have."""
    open_ended = seen.flagged("end_token")
    way_out = (
        end_remedy(_end_of(rows[int(open_ended[0])], seen, tokenizer), control_tokens(tokenizer))
        if len(open_ended)
        else ""
    )
    ends = "end what is trained with a token that generation does not stop on, so the model would learn never to stop"
    if masked := len(seen.flagged("end_masked")):
        ends = f"don't train the end token behind what is trained ({masked:,} have one, masked), so it is never learnt"
        way_out = "Put the end token inside of the {% generation %} marks of the chat template."
    said = {
        "untrained_row": ("have no trained token", "Look at the masks: `llmkit data RECIPE` colours what is trained."),
        "labels": ("have labels that are other tokens than their own", "This is a defect of llmkit: report it."),
        "end_token": (ends, way_out),
        "start_token": (
            f"have the start token {tokenizer.bos_token!r} twice, or once more before an answer",
            "The text or the chat template adds a start token that the tokenizer adds as well.",
        ),
        "trained_prompt": (
            "train their first token, which the assistant did not write",
            "The chat template's {% generation %} marks enclose more than what the assistant says.",
        ),
    }
    for check, (what, remedy) in said.items():
        found = seen.flagged(check)
        if len(found):
            number = counted(len(found), len(rows), f"{split} rows")
            yield Finding(check, "error", f"{number} {what}", len(found), len(rows), places(rows, found), remedy)


def _end_of(row: Row, seen: Seen, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return how the first answer of `row` ends that does not end with a stop token."""
    if "labels" in row.tokens:
        trained = [label != -100 for label in row.labels]
        ends = (i for i, (on, after) in enumerate(zip(trained, [*trained[1:], False], strict=True)) if on and not after)
        answers = [row.input_ids[: end + 1] for end in ends]
    else:
        answers = [row.tokens[name] for name in ANSWERS if row.tokens.get(name)]
    wrong = next(ids for ids in answers if ids[-1] not in seen.stops)
    return str(tokenizer.decode(wrong[-8:]))


def _rates(
    rows: Rows, seen: Seen, limits: Audit, tokenizer: PreTrainedTokenizerBase, shape: Shape, split: str
) -> Iterator[Finding]:
    """Say what is wrong with the whole, where no single row is."""
    if seen.unknown >= 0.001 * seen.tokens and seen.unknown:
        yield Finding(
            "unknown_tokens",
            "error" if seen.unknown >= limits.unknown_tokens * seen.tokens else "warning",
            f"{counted(seen.unknown, seen.tokens, f'tokens of the {split} rows')} are {tokenizer.unk_token!r}: the "
            "tokenizer has no token for this text, and the model can neither read nor learn it",
            seen.unknown,
            seen.tokens,
            remedy="Choose a model whose tokenizer covers the language and characters of the rows.",
        )
    masked = shape in (Shape.CONVERSATION, Shape.PROMPT_COMPLETION) and len(rows) >= ENOUGH
    if masked and seen.trained < LITTLE_TRAINED * seen.tokens:
        yield Finding(
            "trained_tokens",
            "warning",
            f"only {counted(seen.trained, seen.tokens, f'tokens of the {split} rows')} are trained",
            seen.trained,
            seen.tokens,
            remedy="Look at what is trained with `llmkit data RECIPE`; `data.train_on` and message weights choose it.",
        )
    most = max(seen.longer, seen.shorter)
    if len(rows) >= 2 * ENOUGH and most >= ONE_SIDED * len(rows):
        side = "longer" if seen.longer == most else "shorter"
        yield Finding(
            "answer_length",
            "warning",
            f"the better answer is the {side} one in {counted(most, len(rows), f'{split} pairs')}: length alone tells "
            "them apart, and that is what the model will learn first",
            most,
            len(rows),
            remedy="Balance the lengths, or watch the length of the tuned model's answers.",
        )


def prompts_of(seen: Seen) -> tuple[Array, Array]:
    """Return position and fingerprint of each prompt: (int64[rows], uint64[rows])."""
    table = np.concatenate([np.zeros((0, 2), np.uint64), *seen.prompts])
    return table[:, 0].astype(np.int64), table[:, 1]


def pairs_of(seen: Seen) -> Any:
    """Return position and fingerprints of prompt, better and worse answer of each pair: uint64[pairs, 4]."""
    return np.concatenate([np.zeros((0, 4), np.uint64), *seen.pairs])
