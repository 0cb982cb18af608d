"""What became of every row: kept, truncated, or dropped with a reason; the counts sum to the rows read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Account:
    """The rows of one source."""

    read: int = 0
    kept: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    trained_tokens: int = 0

    def check(self) -> None:
        """Raise AssertionError if a row is unaccounted for (truncated rows are among the kept)."""
        assert self.read == self.kept + sum(self.dropped.values()), self

    def to_dict(self) -> dict[str, Any]:
        """Return the account as JSON-able values."""
        return {
            "read": self.read,
            "kept": self.kept,
            "truncated": self.truncated,
            "dropped": dict(sorted(self.dropped.items())),
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
        }


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
        lines = []
        for split, accounts in (("train", self.train), ("eval", self.eval)):
            for path, account in accounts.items():
                dropped = "".join(f", {n} dropped ({reason})" for reason, n in sorted(account.dropped.items()))
                cut = f", {account.truncated} truncated" if account.truncated else ""
                tokens = f", {account.tokens:,} tokens, {account.trained_tokens:,} trained" if account.tokens else ""
                lines.append(f"{split}: {path}: {account.kept:,} of {account.read:,} rows kept{dropped}{cut}{tokens}")
        return lines
