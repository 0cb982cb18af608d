"""Which model a method compares the trained one with: none, the base with its adapter off, or a second copy."""

from __future__ import annotations

from enum import Enum

from llmkit.planning.case import Case

# beta of the TRL config where the recipe sets none; at 0 there is no KL term, and so no reference.
_DEFAULT_BETA = {"GRPOConfig": 0.0, "RLOOConfig": 0.05}
_ALWAYS = frozenset({"DPOConfig", "KTOConfig"})


class Reference(Enum):
    """Where the reference log-probabilities come from."""

    NONE = "none"
    ADAPTER_OFF = "the model with its adapter off"
    COMPUTED_ONCE = "computed once, before training"
    COPY = "a second copy of the model"


def beta(case: Case) -> float | None:
    """Return the weight of the KL term, or None for a method whose loss has none in that sense."""
    if case.config not in _DEFAULT_BETA:
        return None
    given = case.given.get("training.beta")
    return _DEFAULT_BETA[case.config] if given is None else float(given)


def reference(case: Case) -> Reference:
    """Return what the method of `case` compares with (TRL 1.16)."""
    weight = beta(case)
    if case.config not in _ALWAYS and not weight:
        return Reference.NONE
    if weight is None and case.given.get("training.precompute_ref_log_probs"):
        return Reference.COMPUTED_ONCE
    return Reference.COPY if case.full else Reference.ADAPTER_OFF
