"""What the planner hands on: each value that it chose, with its reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llmkit.planning.hardware import Hardware
from llmkit.planning.size import ModelSize


@dataclass(frozen=True)
class Decision:
    """One value that the planner chose."""

    key: str
    """Dotted key of the recipe, e.g. `training.bf16`."""

    value: Any
    """The value, as JSON has it."""

    reason: str
    """Why, in a sentence for the user."""


@dataclass(frozen=True)
class Plan:
    """What the planner decided for one recipe on one machine."""

    hardware: Hardware
    size: ModelSize | None
    decisions: tuple[Decision, ...]

    def section(self, prefix: str) -> dict[str, Any]:
        """Return the values decided under `prefix.` by their keys without it; none that the recipe set itself."""
        start = f"{prefix}."
        return {d.key.removeprefix(start): d.value for d in self.decisions if d.key.startswith(start)}

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value decided for a dotted key, or `default` where the recipe or the library decides."""
        return next((d.value for d in self.decisions if d.key == key), default)

    def __getitem__(self, key: str) -> Any:
        """Return the value decided for a dotted key; raises KeyError where the recipe or the library decides."""
        for decision in self.decisions:
            if decision.key == key:
                return decision.value
        raise KeyError(key)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as `plan.json` holds it."""
        return {
            "hardware": {**asdict(self.hardware), "attention": list(self.hardware.attention)},
            "size": asdict(self.size) if self.size else None,
            "decisions": [asdict(d) for d in self.decisions],
        }
