"""What became of every row: kept, truncated, or dropped with a reason; the counts sum to the rows read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from llmkit.data.splits import Row


@dataclass
class Account:
    """The rows of one source."""

    read: int = 0
    kept: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    trained_tokens: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    """How many of the kept rows unpaired feedback calls `good` and `bad`."""

    def keep(self, row: Row) -> None:
        """Count a row that was read and is kept."""
        self.read += 1
        self._count(row, 1)

    def drop(self, reason: str) -> None:
        """Count a row that was read and is dropped."""
        self.read += 1
        self.dropped[reason] += 1

    def give_up(self, row: Row, reason: str) -> None:
        """Count as dropped a row that was kept at first."""
        self._count(row, -1)
        self.dropped[reason] += 1

    def _count(self, row: Row, by: int) -> None:
        self.kept += by
        self.truncated += by * row.truncated
        self.tokens += by * row.total_tokens
        self.trained_tokens += by * row.trained_tokens
        if row.verdict is not None:
            self.verdicts[row.verdict] += by

    def check(self) -> None:
        """Raise AssertionError if a row is unaccounted for (truncated rows are among the kept)."""
        assert self.read == self.kept + sum(self.dropped.values()), self
        assert not self.verdicts or self.kept == sum(self.verdicts.values()), self

    def to_dict(self) -> dict[str, Any]:
        """Return the account as JSON-able values; `verdicts` for unpaired feedback only."""
        return {
            "read": self.read,
            "kept": self.kept,
            "truncated": self.truncated,
            "dropped": dict(sorted(self.dropped.items())),
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            **({"verdicts": {name: self.verdicts[name] for name in ("good", "bad")}} if self.verdicts else {}),
        }

    def sentence(self) -> str:
        """Say what became of the rows."""
        dropped = "".join(f", {n} dropped ({reason})" for reason, n in sorted(self.dropped.items()))
        verdicts = f", {self.verdicts['good']:,} good and {self.verdicts['bad']:,} bad" if self.verdicts else ""
        cut = f", {self.truncated} truncated" if self.truncated else ""
        tokens = f", {self.tokens:,} tokens" if self.tokens else ""
        trained = f", {self.trained_tokens:,} trained" if self.trained_tokens else ""
        return f"{self.kept:,} of {self.read:,} rows kept{dropped}{verdicts}{cut}{tokens}{trained}"


@dataclass
class Ledger:
    """The accounts of all sources, by split and path."""

    train: dict[str, Account] = field(default_factory=dict)
    eval: dict[str, Account] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the ledger as JSON-able values, after checking that every row is accounted for."""
        for account in (*self.train.values(), *self.eval.values()):
            account.check()
        return {
            "train": {path: account.to_dict() for path, account in self.train.items()},
            "eval": {path: account.to_dict() for path, account in self.eval.items()},
        }

    def sentences(self) -> list[str]:
        """Say in one line per source what became of its rows."""
        accounts = (("train", self.train), ("eval", self.eval))
        return [
            f"{split}: {path}: {account.sentence()}" for split, by_path in accounts for path, account in by_path.items()
        ]
