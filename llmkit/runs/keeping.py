"""Which of the sampled answers to a prompt are kept, the rows they become, and the account of all prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llmkit.errors import RecipeError, did_you_mean
from llmkit.runs.drawing import ENOUGH, Sampled

EMPTY = "no answer has any text"
BROKEN = "no answer is whole text"
ALIKE = "all answers are the same"
EQUAL = "all answers earn the same"


@dataclass(frozen=True)
class Rules:
    """What an answer must be like to be kept."""

    limit: int
    """Tokens at which an answer is cut off."""

    threshold: float | None = None
    """Lowest reward of an answer that is learnt from; None asks for nothing."""

    margin: float = 0.0
    """Lowest difference between the rewards of a pair; 0 asks that they differ."""

    truncated: bool = False
    """Whether answers that were cut off may be kept as well."""

    @property
    def cut(self) -> str:
        """The reason in the ledger where only answers that were cut off would do."""
        return f"cut off at {self.limit} tokens"

    def good(self, answer: Sampled) -> bool:
        """Whether the answer earns enough to be learnt from."""
        return self.threshold is None or answer.total >= self.threshold - ENOUGH


Choice = list[Sampled] | str
"""The answers that are kept of one prompt, or the reason why none is."""


@dataclass(frozen=True)
class Keeping:
    """One way of keeping answers, with the method and the formats that read what it writes."""

    choose: Callable[[Sequence[Sampled], Sequence[Sampled], Rules], Choice]
    """Gets the answers that may be kept (at least one, none twice), then all of them."""

    row: Callable[[Mapping[str, Any], Sequence[Sampled]], dict[str, Any]]
    """Makes the row from the prompt's own row and what was chosen."""

    method: str
    """Method that learns from the rows."""

    messages: str
    """Format of rows whose prompt is a list of messages."""

    text: str
    """Format of rows whose prompt is a string."""

    learnt: int | None = None
    """How many of what was chosen, from the first on, are learnt to be said; None for all."""


def way(name: str) -> Keeping:
    """Return the way of keeping called `name`; raises RecipeError if there is none."""
    if name not in KEEPINGS:
        raise RecipeError(f"--keep must be one of {', '.join(KEEPINGS)}, not {name!r}{did_you_mean(name, KEEPINGS)}")
    return KEEPINGS[name]


def choose(keeping: Keeping, answers: Sequence[Sampled], rules: Rules) -> Choice:
    """Return which of the answers to one prompt are kept, or the reason why none is.

    An answer that was cut off is not kept unless the rules allow it: learning from it would teach to stop there. One
    with half a character in it is never kept, since its text is not what was sampled, and one that was given several
    times counts once.
    """
    distinct: dict[str, Sampled] = {}
    for answer in answers:
        if _loss(answer, rules) is None:
            distinct.setdefault(answer.completion, answer)
    return keeping.choose(list(distinct.values()), answers, rules) if distinct else _lost(answers, rules)


def _loss(answer: Sampled, rules: Rules) -> str | None:
    """Return why the answer may not be kept, whatever it earns."""
    if answer.clipped and not rules.truncated:
        return rules.cut
    if not answer.completion.strip():
        return EMPTY
    # What a tokenizer writes for bytes that are no character.
    return BROKEN if "\ufffd" in answer.completion else None


def _lost(answers: Sequence[Sampled], rules: Rules) -> str:
    """Return the commonest reason for which some of the answers may not be kept."""
    return Counter(reason for answer in answers if (reason := _loss(answer, rules))).most_common(1)[0][0]


def _best(distinct: Sequence[Sampled], every: Sequence[Sampled], rules: Rules) -> Choice:
    best = max(distinct, key=lambda answer: answer.total)
    if rules.good(best):
        return [best]
    lost = any(answer.clipped and rules.good(answer) for answer in every)
    return rules.cut if lost else f"no answer reached {rules.threshold:g}"


def _pair(distinct: Sequence[Sampled], every: Sequence[Sampled], rules: Rules) -> Choice:
    best = _best(distinct, every, rules)
    if isinstance(best, str):
        return best
    worst = min(distinct, key=lambda answer: answer.total)
    difference = best[0].total - worst.total
    if len(distinct) == 1:
        return ALIKE if all(answer.completion == worst.completion for answer in every) else _lost(every, rules)
    if difference <= ENOUGH:
        return EQUAL
    if difference < rules.margin - ENOUGH:
        return f"the rewards differ by less than {rules.margin:g}"
    return [*best, worst]


def _every(distinct: Sequence[Sampled], every: Sequence[Sampled], rules: Rules) -> Choice:
    return list(distinct)


# --- rows ------------------------------------------------------------------------------------------------------------


def _best_row(example: Mapping[str, Any], chosen: Sequence[Sampled]) -> dict[str, Any]:
    (best,) = chosen
    kept = {"reward": best.total, "where": best.where}
    if isinstance(example["prompt"], str):
        return {"prompt": example["prompt"], "completion": best.completion, **kept}
    # What the assistant says in the prompt was not sampled, and is not to be learnt.
    before = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in example["prompt"]]
    return {"messages": [*before, *_said(best)], **_tools(example), **kept}


def _pair_row(example: Mapping[str, Any], chosen: Sequence[Sampled]) -> dict[str, Any]:
    best, worst = chosen
    plain = isinstance(example["prompt"], str)
    return {
        "prompt": example["prompt"],
        "chosen": best.completion if plain else _said(best),
        "rejected": worst.completion if plain else _said(worst),
        **_tools(example),
        "margin": best.total - worst.total,
        "reward": best.total,
        "where": best.where,
    }


def _scored_row(example: Mapping[str, Any], chosen: Sequence[Sampled]) -> dict[str, Any]:
    return {
        "prompt": example["prompt"],
        "completions": [answer.completion for answer in chosen],
        "scores": [answer.total for answer in chosen],
        **_tools(example),
        "where": chosen[0].where,
    }


def _said(answer: Sampled) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer.completion}]


def _tools(example: Mapping[str, Any]) -> dict[str, Any]:
    return {"tools": example["tools"]} if example.get("tools") else {}


KEEPINGS = {
    "best": Keeping(_best, _best_row, "sft", messages="messages", text="prompt_completion"),
    "pairs": Keeping(_pair, _pair_row, "dpo", messages="preference", text="preference", learnt=1),
    "all": Keeping(_every, _scored_row, "dpo", messages="scored", text="scored"),
}


# --- the account -----------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of every prompt and every answer so far."""

    prompts: int = 0
    """Prompts to answer."""

    answered: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Prompts of which nothing was kept, by reason."""

    answers: int = 0
    passed: int = 0
    """Answers that earn the level from which one passes."""

    clipped: int = 0
    """Answers that were cut off."""

    repeated: int = 0
    """Answers that say what another one to the same prompt says."""

    tokens: int = 0
    seconds: float = 0.0
    """Time that the sampling took."""

    reward: float = 0.0
    """Sum over all answers."""

    kept_answers: int = 0
    """Answers that are learnt from: of a pair the better one."""

    kept_reward: float = 0.0
    """Sum over `kept_answers`."""

    altered: int = 0
    """Kept prompts whose (best) answer the chat template renders differently from how it was sampled."""

    @property
    def done(self) -> int:
        """Prompts that are through."""
        return self.kept + sum(self.dropped.values())

    @property
    def mean_reward(self) -> float:
        """Mean over all answers."""
        return self.reward / max(self.answers, 1)

    @property
    def mean_kept_reward(self) -> float:
        """Mean over the answers that are learnt from."""
        return self.kept_reward / max(self.kept_answers, 1)

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens per second of sampling."""
        return self.tokens / max(self.seconds, 1e-9)

    def drop(self, reason: str) -> None:
        """Count a prompt of which nothing is kept."""
        self.dropped[reason] += 1

    def sampled(self, answers: Sequence[Sampled], level: float | None) -> None:
        """Count the answers to one prompt; with `level` they pass."""
        self.answered += 1
        self.answers += len(answers)
        self.passed += sum(level is not None and answer.total >= level - ENOUGH for answer in answers)
        self.clipped += sum(answer.clipped for answer in answers)
        self.repeated += len(answers) - len({answer.completion for answer in answers})
        self.tokens += sum(answer.tokens for answer in answers)
        self.reward += sum(answer.total for answer in answers)

    def keep(self, learnt: Sequence[Sampled]) -> None:
        """Count a prompt of which the answers `learnt` are learnt from."""
        self.kept += 1
        self.kept_answers += len(learnt)
        self.kept_reward += sum(answer.total for answer in learnt)

    def check(self) -> None:
        """Raise AssertionError if a prompt or an answer is unaccounted for."""
        assert self.done <= self.prompts, self
        assert self.kept <= self.answered <= self.done, self
        assert max(self.passed, self.clipped, self.repeated, self.kept_answers) <= self.answers, self

    def to_dict(self) -> dict[str, Any]:
        """Return the account as JSON-able values, after checking it."""
        self.check()
        return {**asdict(self), "dropped": dict(sorted(self.dropped.items()))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tally:
        """Return the account that `to_dict` was called on."""
        return cls(**{**values, "dropped": Counter(values["dropped"])})
