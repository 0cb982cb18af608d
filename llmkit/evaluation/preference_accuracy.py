"""Preference accuracy: how often the model prefers the better of two answers, and by how much.

A language model prefers the answer that it finds more likely, a reward model the one that it scores higher. How much
more a tuned language model favours the better answer than its base does is DPO's implicit reward at beta 1
(arXiv:2305.18290, section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field

from llmkit.errors import DataError, RecipeError
from llmkit.evaluation._preference import answer_log_probabilities
from llmkit.evaluation.base import Evaluation, Score, Subject
from llmkit.model.heads import CLASSIFIER, gives_scores
from llmkit.model.scores import score_sequences

if TYPE_CHECKING:
    from llmkit.data.splits import Row

Values = dict[str, list[float]]
"""Values of each row by metric."""


class PreferenceAccuracy(Evaluation):
    """Compare the chosen and the rejected answer of each held-out pair; metrics are means over the pairs."""

    type: Literal["preference_accuracy"]
    """Share of pairs whose better answer the model prefers."""

    limit: int | None = Field(default=None, ge=1)
    """Use only the first held-out rows; all of them if unset."""

    batch_size: int | None = Field(default=None, ge=1)
    """Answers run through the model at once (a pair has two), if unset as many as have 2048 tokens with their prompts.

    The result does not depend on it."""

    model_classes: ClassVar[frozenset[str]] = frozenset({"AutoModelForCausalLM", CLASSIFIER})

    tuned_alone: ClassVar[frozenset[str]] = frozenset({"reward_accuracy", "reward_margin"})

    def score(self, subject: Subject) -> Score:
        """Return the metrics of the pairs, and each pair's part in them in `per_row`.

        Of a language model, from log p(answer | prompt) in nats: `preference_accuracy` (1 if the chosen answer is the
        likelier one, 0.5 for a tie) and `preference_margin` (the difference), both also `_normalized`, i.e. of the
        mean per token. Of a tuned one besides, from the difference less the base's: `reward_accuracy`,
        `reward_margin`. Of a reward model, from its scores: `preference_accuracy`, `reward_margin`.

        Raises DataError where there are no rows, RecipeError where they are no pairs.
        """
        rows = subject.rows[: self.limit]
        _check(rows)
        values = (self._of_scores if gives_scores(subject.model) else self._of_likelihoods)(subject, rows)
        return Score(
            {name: sum(column) / len(rows) for name, column in values.items()},
            len(rows),
            per_row={name: tuple(column) for name, column in values.items()},
        )

    def _of_scores(self, subject: Subject, rows: Sequence[Row]) -> Values:
        sequences = [prompt + answer for prompt, answer in _answered(rows)]
        scores = score_sequences(subject.model, sequences, batch_size=self.batch_size, on_done=_counting_pairs(subject))
        margins = _differences(scores)
        return {"preference_accuracy": _wins(margins), "reward_margin": margins}

    def _of_likelihoods(self, subject: Subject, rows: Sequence[Row]) -> Values:
        answered = _answered(rows)
        likelihoods = answer_log_probabilities(
            subject.model, answered, batch_size=self.batch_size, on_done=_counting_pairs(subject)
        )
        per_token = [value / len(answer) for value, (_, answer) in zip(likelihoods, answered, strict=True)]
        margins, normalized = _differences(likelihoods), _differences(per_token)
        values = {
            "preference_accuracy": _wins(margins),
            "preference_accuracy_normalized": _wins(normalized),
            "preference_margin": margins,
            "preference_margin_normalized": normalized,
        }
        if subject.base is not None:
            before = cast(tuple[float, ...], subject.base.per_row["preference_margin"])
            rewards = [tuned - base for tuned, base in zip(margins, before, strict=True)]
            values |= {"reward_accuracy": _wins(rewards), "reward_margin": rewards}
        return values


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise DataError("evaluation `preference_accuracy` has no held-out rows", remedy="set `data.eval`")
    other = next((row for row in rows if not {"prompt_ids", "chosen_ids", "rejected_ids"} <= set(row.tokens)), None)
    if other is not None:
        raise RecipeError(
            "evaluation `preference_accuracy` needs pairs of a chosen and a rejected answer, and this row is none",
            where=other.where,
            remedy="use data in format `preference` with a method that learns from it, or another evaluation",
        )


def _answered(rows: Sequence[Row]) -> list[tuple[list[int], list[int]]]:
    """Return prompt and answer of each chosen and each rejected answer, in turn."""
    names = ("chosen_ids", "rejected_ids")
    return [(row.tokens["prompt_ids"], row.tokens[name]) for row in rows for name in names]


def _differences(values: Sequence[float]) -> list[float]:
    """Return chosen less rejected for each pair."""
    return [chosen - rejected for chosen, rejected in zip(values[::2], values[1::2], strict=True)]


def _wins(margins: Sequence[float]) -> list[float]:
    """Return 1 for a positive margin, 0 for a negative one, 0.5 for a tie."""
    return [0.5 if margin == 0 else float(margin > 0) for margin in margins]


def _counting_pairs(subject: Subject) -> Callable[[int], None] | None:
    done = subject.on_done
    return None if done is None else lambda answers: done(answers // 2)
