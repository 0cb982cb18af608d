"""Multiple choice by likelihood: which of the row's choices the model finds likeliest as the answer."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from llmkit.data.shapes import RowError
from llmkit.data.splits import Row
from llmkit.evaluation._generation import prompt_and_reference, rendered
from llmkit.evaluation._json import read_json
from llmkit.evaluation._preference import Answered, answer_log_probabilities
from llmkit.evaluation._rows import OnRows, Parts, placed, scored
from llmkit.evaluation.base import Sample, Score, Subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Question:
    """A row's prompt as text, its choices, the index of the right one, and the token ids of each behind the prompt."""

    prompt: str
    choices: list[str]
    right: int
    answered: list[Answered]


class Choice(OnRows):
    """Compare log p(choice | prompt) of the choices in column `choices`; column `answer` names the right one.

    As lm-evaluation-harness does it: prompt and choice are tokenized together and split where the prompt's own tokens
    end, white space at the prompt's end goes with the choice, and the first of equally likely choices is taken.
    """

    type: Literal["choice"]
    """Share of rows whose right choice is the likeliest."""

    target_delimiter: str | None = None
    """What stands between prompt and choice; if unset, a space after a plain text and nothing in a chat."""

    batch_size: int | None = Field(default=None, ge=1)
    """Choices run through the model at once, if unset as many as have 2048 tokens with their prompts.

    The result does not depend on it."""

    def check_row(self, row: Row) -> None:
        """Raise RowError where the row has no choices, or an answer that names none of them."""
        right_choice(row.example.get("answer"), choices_of(row.example))

    def score(self, subject: Subject) -> Score:
        """Return `choice_accuracy` and `choice_accuracy_normalized`, 0..1; the samples are the likeliest choices.

        The first is of summed log-probabilities (the harness's `acc`), the second of these divided by the bytes of
        the choice in UTF-8 (`acc_bytes`; also `acc_norm` where texts are ASCII). Raises what `prepared` raises,
        RecipeError where rows of this shape hold no prompt.
        """
        subject = self.prepared(subject)
        questions = [self._question(subject.tokenizer, row) for row in subject.rows]
        values = iter(self._log_probabilities(subject, questions))
        parts: list[Parts] = []
        samples = []
        for row, question in zip(subject.rows, questions, strict=True):
            summed = [next(values) for _ in question.choices]
            per_byte = [value / len(text.encode()) for value, text in zip(summed, question.choices, strict=True)]
            parts.append(
                {
                    "choice_accuracy": float(_highest(summed) == question.right),
                    "choice_accuracy_normalized": float(_highest(per_byte) == question.right),
                }
            )
            right, likeliest = question.choices[question.right], question.choices[_highest(summed)]
            samples.append(Sample(row.where, question.prompt, right, likeliest))
        return scored(parts, tuple(samples))

    def _question(self, tokenizer: PreTrainedTokenizerBase, row: Row) -> Question:
        with placed(row):
            prompt, _ = prompt_and_reference(row.example, evaluation=self.type)
            plain = isinstance(prompt, str)
            text = prompt if isinstance(prompt, str) else rendered(tokenizer, prompt, row.example.get("tools"))
            between = self.target_delimiter if self.target_delimiter is not None else " " if plain else ""
            choices = choices_of(row.example)
            # A rendered chat has its special tokens in its text.
            answered = [pair_ids(tokenizer, text, between + choice, special=plain) for choice in choices]
            return Question(text, choices, right_choice(row.example.get("answer"), choices), answered)

    def _log_probabilities(self, subject: Subject, questions: Sequence[Question]) -> list[float]:
        """Return log p of each choice of each question, in nats."""
        pairs = [pair for question in questions for pair in question.answered]
        done = subject.on_done
        return answer_log_probabilities(
            subject.model,
            pairs,
            batch_size=self.batch_size,
            on_done=None if done is None else lambda read: done(read * len(questions) // len(pairs)),
        )


def choices_of(example: Mapping[str, Any]) -> list[str]:
    """Return the choices of a row, a list of texts or a JSON string of one; raises RowError."""
    found = example.get("choices")
    if found is None:
        raise RowError("no column 'choices'; only rows of `format: prompt` or `question` keep such columns")
    if isinstance(found, str):
        try:
            found = read_json(found)
        except ValueError as error:
            raise RowError(f"column 'choices' is text, and no JSON: {error}") from error
    if not isinstance(found, list | tuple) or len(found) < 2 or not all(isinstance(c, str) and c for c in found):
        raise RowError("column 'choices' must be a list of at least two texts")
    return list(found)


def right_choice(answer: Any, choices: Sequence[str]) -> int:
    """Return the index of the right choice, which `answer` names by its index (from 0), its letter or its text.

    Raises RowError where it names none, or more than one, be it in different ways.
    """
    named = {index for index, choice in enumerate(choices) if choice == answer}
    if isinstance(answer, int) and not isinstance(answer, bool):
        named.add(answer)
    elif isinstance(answer, str) and len(answer) == 1 and answer in string.ascii_uppercase:
        named.add(string.ascii_uppercase.index(answer))
    elif isinstance(answer, str) and answer.isdecimal():
        named.add(int(answer))
    named &= set(range(len(choices)))
    if len(named) != 1:
        many = "more than one" if named else "none"
        raise RowError(f"column 'answer', {answer!r:.80}, names {many} of the {len(choices)} choices; write an index")
    return named.pop()


def pair_ids(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str, *, special: bool) -> Answered:
    """Return the token ids of a context and of its continuation, which are tokenized together.

    `special`: the tokenizer adds its special tokens. Raises RowError where either has no token of its own.
    """
    stripped = context.rstrip()
    continuation, context = context[len(stripped) :] + continuation, stripped
    before = list(tokenizer(context, add_special_tokens=special)["input_ids"]) if context else []
    if not before:
        raise RowError("the prompt is empty")
    behind = list(tokenizer(context + continuation, add_special_tokens=special)["input_ids"])[len(before) :]
    if not behind:
        raise RowError(f"the choice {continuation!r:.80} has no token of its own behind the prompt")
    return before, behind


def _highest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
