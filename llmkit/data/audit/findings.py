"""What a check says, and when it stops a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from llmkit.errors import DataError

if TYPE_CHECKING:
    from llmkit.data.store import Rows
    from llmkit.recipe.recipe import Audit

Severity = Literal["error", "warning"]

NOTEWORTHY = 0.01
"""Share of the rows below which what is common in real data is not worth a sentence."""

SEVERAL = 3
"""Rows from which on such a thing is more than a chance."""

ENOUGH = 20
"""Rows from which on a share says something."""

PLACES = 3
"""Places that a finding names."""


@dataclass(frozen=True)
class Finding:
    """One defect: how many rows have it, and the first places of those."""

    check: str
    """Name of the check, e.g. `near_duplicates`."""
    severity: Severity
    what: str
    """The sentence, with its counts."""
    count: int = 0
    of: int = 0
    where: tuple[str, ...] = ()
    """The first few places."""
    remedy: str | None = None
    accepted: bool = False
    """Whether it is a warning because the recipe accepts it."""

    @property
    def label(self) -> str:
        """`error`, `warning` or `accepted`."""
        return "accepted" if self.accepted else self.severity

    def sentence(self) -> str:
        """Return what is wrong, with the name by which the recipe accepts it."""
        return f"{self.label} ({self.check}): {self.what}"

    @property
    def share(self) -> float:
        """`count` of `of`, 0 where nothing was looked at."""
        return self.count / self.of if self.of else 0.0


def refuse(findings: Iterable[Finding]) -> None:
    """Raise DataError for the errors among `findings`."""
    errors = [found for found in findings if found.severity == "error"]
    if not errors:
        return
    first, *others = errors
    said = [first.what, *(f"{f.what} ({', '.join(f.where)})" if f.where else f.what for f in others)]
    remedies = [found.remedy for found in errors if found.remedy]
    names = ", ".join(dict.fromkeys(found.check for found in errors))
    remedies.append(f"What is meant to be so: data: {{audit: {{accept: [{names}]}}}}.")
    raise DataError("\n".join(said), where=", ".join(first.where) or None, remedy="\n".join(remedies))


def settled(findings: Iterable[Finding], limits: Audit) -> list[Finding]:
    """Return `findings`, errors first; one that the recipe accepts is a warning."""
    judged = [replace(f, severity="warning", accepted=True) if f.check in limits.accept else f for f in findings]
    return sorted(judged, key=lambda found: found.severity != "error")


def from_share(limits: Audit, check: str, count: int, of: int, *, few: int = ENOUGH) -> Severity:
    """Return `error` if `count` of `of` reaches the share that `data.audit` names for this check.

    Of fewer than `few` rows a share says little: then only all of them are an error.
    """
    limit: float = getattr(limits, check) if of >= few else 1.0
    return "error" if of and count >= limit * of else "warning"


def noteworthy(count: int, of: int, least: float = NOTEWORTHY) -> bool:
    """Whether `count` of `of` is worth a sentence: several rows and a share of at least `least`, or all of them."""
    return count > 0 and (count == of or (count >= SEVERAL and count >= least * of))


def places(rows: Rows, positions: Sequence[int] | Any) -> tuple[str, ...]:
    """Return where the first few rows at `positions` come from."""
    return tuple(rows[int(position)].where for position in positions[:PLACES])


def counted(count: int, of: int, rows: str = "rows") -> str:
    """Return e.g. `3 of 1,200 training rows (0.2%)`."""
    share = count / of if of else 0.0
    return f"{count:,} of {of:,} {rows} ({share:.1%})" if share >= 0.001 else f"{count:,} of {of:,} {rows}"
