"""What became of every row: kept, truncated, split, or dropped with a reason; the counts sum to the rows read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from llmkit.data.store import VERDICTS, Rows

HELD_OUT = "held out for evaluation"
OVERLAP = "also among the held-out rows"
NOT_DRAWN = "not drawn by the mix"

EXAMPLES = 5
"""Places that an account keeps for each reason."""


@dataclass(frozen=True)
class Broken:
    """A row that can't be read, with its place and the reason."""

    where: str
    reason: str


@dataclass
class Account:
    """The rows of one source."""

    read: int = 0
    kept: int = 0
    truncated: int = 0
    split: int = 0
    pieces: int = 0
    """What training sees of the kept rows: more than `kept` where long rows were split."""
    dropped: Counter[str] = field(default_factory=Counter)
    broken: list[Broken] = field(default_factory=list)
    tokens: int = 0
    trained_tokens: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    """How many of the kept rows unpaired feedback calls `good` and `bad`."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """The first places of dropped rows, by reason."""
    chosen: set[str] = field(default_factory=lambda: {HELD_OUT, OVERLAP, NOT_DRAWN})
    """Reasons that are no fault of a row: it was left out on purpose."""

    def keep(self, rows: Rows) -> None:
        """Count rows that were read and are kept; the pieces of a split row are one."""
        self.read += int((rows.fact("part") == 0).sum())
        self._count(rows, 1)

    def drop(self, reason: str, where: str, *, chosen: bool = False) -> None:
        """Count a row that was read and is dropped; `chosen` if that was on purpose."""
        self.read += 1
        if chosen:
            self.chosen.add(reason)
        self.dropped[reason] += 1
        if len(places := self.places.setdefault(reason, [])) < EXAMPLES:
            places.append(where)

    def quarantine(self, where: str, reason: str) -> None:
        """Count a row that is broken."""
        self.read += 1
        self.broken.append(Broken(where, reason))

    def give_up(self, rows: Rows, reason: str) -> None:
        """Count as dropped rows that were kept at first; of a split row, all pieces."""
        if not len(rows):
            return
        self._count(rows, -1)
        heads = rows.take(rows.fact("part") == 0)
        self.dropped[reason] += len(heads)
        places = self.places.setdefault(reason, [])
        places += [row.where for row in heads[: EXAMPLES - len(places)]]

    def _count(self, rows: Rows, by: int) -> None:
        parts = rows.fact("part")
        heads = parts == 0
        self.kept += by * int(heads.sum())
        self.split += by * int((parts == 1).sum())
        self.pieces += by * len(rows)
        self.truncated += by * int(rows.fact("truncated").sum())
        self.tokens += by * int(rows.totals.sum())
        self.trained_tokens += by * int(rows.trained.sum())
        verdicts = rows.fact("verdict")
        for index, name in enumerate(VERDICTS):
            if name is not None and (count := int((verdicts[heads] == index).sum())):
                self.verdicts[name] += by * count

    def check(self) -> None:
        """Raise AssertionError if a row is unaccounted for (truncated and split rows are among the kept)."""
        assert self.read == self.kept + sum(self.dropped.values()) + len(self.broken), self
        assert self.truncated + self.split <= self.kept <= self.pieces, self
        assert self.split or self.kept == self.pieces, self
        assert not self.verdicts or self.kept == sum(self.verdicts.values()), self

    def to_dict(self) -> dict[str, Any]:
        """Return the account as JSON-able values; `verdicts` for unpaired feedback only."""
        return {
            "read": self.read,
            "kept": self.kept,
            "truncated": self.truncated,
            "split": self.split,
            "pieces": self.pieces,
            "dropped": dict(sorted(self.dropped.items())),
            "broken": len(self.broken),
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            **({"verdicts": {name: self.verdicts[name] for name in ("good", "bad")}} if self.verdicts else {}),
        }

    def to_cache(self) -> dict[str, Any]:
        """Return what rows in a store don't tell: how many were read, and what became of those not in it."""
        kept = {"read": self.read, "dropped": self.dropped, "places": self.places, "chosen": sorted(self.chosen)}
        return {**kept, "broken": [asdict(broken) for broken in self.broken]}

    @classmethod
    def from_cache(cls, values: Mapping[str, Any]) -> Account:
        """Return the account that `to_cache` was called on, without its kept rows."""
        broken = [Broken(**one) for one in values["broken"]]
        dropped, places = Counter(values["dropped"]), dict(values["places"])
        chosen = set(values["chosen"])
        return cls(read=values["read"], dropped=dropped, places=places, broken=broken, chosen=chosen)

    def add(self, other: Account) -> None:
        """Count the rows of another source under the same name."""
        for name in ("read", "kept", "truncated", "split", "pieces", "tokens", "trained_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped += other.dropped
        self.verdicts += other.verdicts
        self.broken += other.broken
        self.chosen |= other.chosen
        for reason, places in other.places.items():
            self.places[reason] = [*self.places.get(reason, ()), *places][:EXAMPLES]

    def sentence(self) -> str:
        """Say what became of the rows."""
        dropped = "".join(f", {n:,} dropped ({reason})" for reason, n in sorted(self.dropped.items()))
        broken = f", {len(self.broken):,} broken" if self.broken else ""
        verdicts = f", {self.verdicts['good']:,} good and {self.verdicts['bad']:,} bad" if self.verdicts else ""
        cut = f", {self.truncated:,} truncated" if self.truncated else ""
        pieces = self.pieces - (self.kept - self.split)
        split = f", {self.split:,} split into {pieces:,} pieces" if self.split else ""
        tokens = f", {self.tokens:,} tokens" if self.tokens else ""
        trained = f", {self.trained_tokens:,} trained" if self.trained_tokens else ""
        return f"{self.kept:,} of {self.read:,} rows kept{dropped}{broken}{verdicts}{cut}{split}{tokens}{trained}"


@dataclass(frozen=True)
class Share:
    """What one source is of the mix that an epoch goes through; a row that is repeated counts each time."""

    rows: int
    tokens: int
    trained_tokens: int
    row_share: float
    token_share: float

    def sentence(self) -> str:
        """Say the shares."""
        return f"{self.rows:,} rows ({self.row_share:.1%}), {self.tokens:,} tokens ({self.token_share:.1%})"


@dataclass
class Ledger:
    """The accounts of all sources, by split and path, and the mix of the training rows."""

    train: dict[str, Account] = field(default_factory=dict)
    eval: dict[str, Account] = field(default_factory=dict)
    mix: dict[str, Share] = field(default_factory=dict)
    """The share of each source in the training rows; empty for a single source whose rows are used once."""
    streamed: bool = False
    """Whether training rows are counted while training reads them; nothing is said of them before."""
    packed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By split, into how many sequences its rows were packed; empty where each row is a sequence."""

    def to_dict(self) -> dict[str, Any]:
        """Return the ledger as JSON-able values, after checking that every row is accounted for."""
        for account in (*self.train.values(), *self.eval.values()):
            account.check()
        return {
            "train": {path: account.to_dict() for path, account in self.train.items()},
            "eval": {path: account.to_dict() for path, account in self.eval.items()},
            **({"mix": {path: asdict(share) for path, share in self.mix.items()}} if self.mix else {}),
            **({"packed": self.packed} if self.packed else {}),
        }

    def broken(self) -> list[Broken]:
        """Return the broken rows of all sources."""
        return [broken for account in (*self.train.values(), *self.eval.values()) for broken in account.broken]

    def sentences(self) -> list[str]:
        """Say in one line per source what became of its rows, and what is mixed."""
        accounts = (("train", self.train), ("eval", self.eval))
        said = [
            f"{split}: {path}: {account.sentence()}"
            for split, by_path in accounts
            for path, account in by_path.items()
            if account.read or not self.streamed
        ]
        return said + [f"mix: {path}: {share.sentence()}" for path, share in self.mix.items()]
