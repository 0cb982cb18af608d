"""What the logs of a run with rewards give away while it trains: rules on numbers, without a trainer.

Each rule says what is wrong, once, with the numbers and the remedy. The key names are TRL's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

STREAK = 3
"""Optimizer steps in a row that make a finding: one step alone may be chance."""

CLIPPED = 0.5
"""Share of completions cut off at the length limit above which most of the learning is about length."""

COLLAPSED = 0.1
"""Share of the first entropy below which the answers hardly vary any more."""

FAILING = 0.5
"""Share of tool calls that fail above which the model learns from error messages."""


@dataclass
class Signals:
    """Watches the logged steps of one run; `observe` returns the sentences that are due.

    `group` is the number of answers to one prompt, `full` the reward of an answer that earns all of every part (None
    where no such number is known), `max_length` the limit of an answer in tokens.
    """

    group: int
    full: float | None = None
    max_length: int | None = None
    _step: int = 0
    _streaks: dict[str, int] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)
    _first_entropy: float | None = None

    def observe(self, step: int, logs: Mapping[str, float | None]) -> list[str]:
        """Return what there is to say about the log of `step`; each finding once, lost signal again after recovery."""
        steps = max(1, step - self._step)
        if "reward" in logs:
            # Steps that learn again from the same answers log none: they count with the next that does.
            self._step = step
        rules = (self._lost_signal, self._cut_off, self._collapsed, self._tools_fail)
        return [line for rule in rules if (line := rule(steps, logs)) is not None]

    def _due(self, name: str, holds: bool, steps: int, say: Callable[[], str], *, again: bool = False) -> str | None:
        """Count the steps for which a finding holds, and return its sentence when they are `STREAK` and not yet said.

        With `again`, a finding that has ended is said again when it comes back.
        """
        self._streaks[name] = self._streaks.get(name, 0) + steps if holds else 0
        if not holds and again:
            self._said.discard(name)
        if self._streaks[name] < STREAK or name in self._said:
            return None
        self._said.add(name)
        return say()

    def _lost_signal(self, steps: int, logs: Mapping[str, float | None]) -> str | None:
        share, mean = logs.get("frac_reward_zero_std"), logs.get("reward")
        if share is None or mean is None:
            return None

        def say() -> str:
            return (
                f"{self._streaks['signal']} steps in a row without any signal: all {self.group} answers to each prompt "
                f"got the same reward (mean {mean:.4g}). Such steps teach nothing of it. {self._remedy(mean)}"
            )

        return self._due("signal", share >= 1.0, steps, say, again=True)

    def _remedy(self, mean: float) -> str:
        if mean == 0:
            return (
                "No answer earned anything: take easier rows, show the format in the prompt, or add a reward for "
                "part of the way; `llmkit preflight RECIPE` samples answers and says which."
            )
        if self.full is not None and mean >= self.full - 1e-6:
            return (
                "Every answer earned everything: the rows are solved. Stop here or take harder ones; "
                "`llmkit preflight RECIPE` shows how many rows are left to learn from."
            )
        return (
            "The rewards don't tell the answers to a prompt apart: add a part that does, or sample more (higher "
            "`training.temperature` or `training.num_generations`); see `llmkit preflight RECIPE`."
        )

    def _cut_off(self, steps: int, logs: Mapping[str, float | None]) -> str | None:
        share = logs.get("completions/clipped_ratio")
        if share is None:
            return None

        def say() -> str:
            limit = f" ({self.max_length} tokens)" if self.max_length else ""
            return (
                f"{share:.0%} of the answers are cut off at `training.max_completion_length`{limit}, and more than "
                f"{CLIPPED:.0%} were for {self._streaks['clipped']} steps. Their end is never rewarded: raise the "
                "limit, reward shorter answers, or leave them out with `training.mask_truncated_completions: true`."
            )

        return self._due("clipped", share > CLIPPED, steps, say)

    def _collapsed(self, steps: int, logs: Mapping[str, float | None]) -> str | None:
        entropy = logs.get("entropy")
        if entropy is None:
            return None
        if self._first_entropy is None:
            self._first_entropy = entropy
        first = self._first_entropy
        if not (first > 0 and entropy < COLLAPSED * first) or "entropy" in self._said:
            return None
        self._said.add("entropy")
        return (
            f"the entropy fell from {first:.3g} to {entropy:.3g} nats per token, below {COLLAPSED:.0%} of what it was: "
            "the answers to a prompt hardly differ any more, so little is left to learn from. Lower "
            "`training.learning_rate`, or set `training.beta` above 0 or `training.epsilon_high: 0.28` (DAPO)."
        )

    def _tools_fail(self, steps: int, logs: Mapping[str, float | None]) -> str | None:
        share, calls = logs.get("tools/failure_frequency"), logs.get("tools/call_frequency")
        if share is None or not calls:
            return None

        def say() -> str:
            return (
                f"{share:.0%} of the tool calls failed, and more than {FAILING:.0%} did for "
                f"{self._streaks['tools']} steps: unknown names, wrong arguments, or an error in the tool. "
                "samples.jsonl has the messages."
            )

        return self._due("tools", share > FAILING, steps, say)
