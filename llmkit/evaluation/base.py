"""What every evaluation is: a Spec that scores one model on the held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from llmkit.data.splits import Row
from llmkit.recipe.spec import Variant

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmkit.rewards.base import Reward


@dataclass(frozen=True)
class Sample:
    """One generated answer: the rendered or plain prompt, the reference (None where there is none), the answer."""

    where: str
    prompt: str
    reference: str | None
    answer: str


Part = float | tuple[float, ...]
"""What one row adds to a metric: a value, or the sums that the metric is computed from."""


@dataclass(frozen=True)
class Score:
    """What one evaluation found: its metrics by name, the rows it used, and answers where it generated any."""

    metrics: dict[str, float]
    rows: int
    samples: tuple[Sample, ...] = ()
    per_row: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    """Parts of each row by metric, in the order of the rows; a metric without them has no interval."""
    aggregate: dict[str, str] = field(default_factory=dict)
    """How a metric comes from the sums of its parts: a name of `statistics/aggregates.py`; their mean where unset."""
    lower_is_better: tuple[str, ...] = ()
    """Metrics of which less is better."""


@dataclass
class Subject:
    """One model under evaluation, with the answers it has already given (evaluations share them)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[Row]
    seed: int
    on_done: Callable[[int], None] | None = None
    """Called with the number of rows done so far, for progress."""
    rewards: tuple[Reward, ...] = ()
    """The recipe's rewards, set up."""
    base: Score | None = None
    """What the same evaluation found for the base model; None while the base itself is scored."""
    folder: Path = field(default_factory=Path)
    """Folder that relative paths of evaluations start from: the recipe's."""
    answers: dict[tuple[object, ...], tuple[Sample, ...]] = field(default_factory=dict)


class Evaluation(Variant):
    """Base of the evaluations; the file name is the `type`."""

    model_classes: ClassVar[frozenset[str]] = frozenset({"AutoModelForCausalLM"})
    """The transformers classes of the models that can be scored so (`Method.model_class`)."""

    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    """Metrics of which less is better."""

    tuned_alone: ClassVar[frozenset[str]] = frozenset()
    """Metrics that only a tuned model has, beside its base's scores."""

    needs_rewards: ClassVar[bool] = False
    """Whether it scores with the recipe's rewards."""

    def requires_rows(self) -> bool:
        """Whether held-out rows (`data.eval`) are required."""
        return True

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError or DataError where a package or a file (relative to `folder`) is missing; reads no rows."""

    def score(self, subject: Subject) -> Score:
        """Score `subject`; base and tuned model are scored by the same call on the same rows."""
        raise NotImplementedError
