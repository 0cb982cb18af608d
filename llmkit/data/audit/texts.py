"""Checks of what the rows say, on a sample of them: answers, damaged characters, control tokens in the text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmkit.data.audit.findings import ENOUGH, NOTEWORTHY, PLACES, Finding, counted, from_share, noteworthy
from llmkit.data.audit.words import Sample, question_and_answer, turns
from llmkit.data.shapes import Shape
from llmkit.data.templates import control_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.recipe.recipe import Audit

ONE_ANSWER = 0.8
"""Share of rows with the same answer from which on it is worth a sentence."""

PARROTED = 0.05
"""Share of answers that repeat the question from which on it is worth a sentence."""

DAMAGED = re.compile("\ufffd|Ã[\u0080-\u00bf]|Â[\u00a0-\u00bf]|â€|ðŸ")
"""The replacement character, and UTF-8 that was read as Latin-1 or Windows-1252."""


SAID = {
    "special_tokens": (
        "{rows} have control tokens of the tokenizer in their text (such as the start or end of a turn), and the model "
        "reads them as such",
        "Give the messages without the marks of a chat template: the tokenizer's own template writes them.",
    ),
    "broken_text": (
        "{rows} hold damaged characters, e.g. '\ufffd' or 'Ã©' for 'é'",
        "Make the file again from its source, read and written as UTF-8.",
    ),
    "echo": ("the answer repeats the question in {rows}", "Look at how the columns were mapped."),
}


def text_findings(sample: Sample, tokenizer: PreTrainedTokenizerBase, shape: Shape, limits: Audit) -> Iterator[Finding]:
    """Check the texts of some training rows."""
    special = _control_tokens(tokenizer)
    answers: Counter[str] = Counter()
    found: dict[str, list[int]] = {"special_tokens": [], "broken_text": [], "echo": []}
    for index, example in enumerate(sample.examples):
        texts = [text for _, text in turns(example)]
        if any(DAMAGED.search(text) for text in texts):
            found["broken_text"].append(index)
        if special is not None and _is_chat(example) and any(special.search(text) for text in texts):
            found["special_tokens"].append(index)
        if shape is not Shape.PROMPT and (pair := question_and_answer(example)) is not None:
            question, answer = (text.strip() for text in pair)
            answers[answer] += 1
            if answer == question:
                found["echo"].append(index)
    for check, (say, remedy) in SAID.items():
        rows = found[check]
        if noteworthy(len(rows), len(sample), PARROTED if check == "echo" else NOTEWORTHY):
            what = say.format(rows=counted(len(rows), len(sample), "different training rows") + sample.note)
            where = tuple(map(sample.where, rows[:PLACES]))
            severity = from_share(limits, check, len(rows), len(sample))
            yield Finding(check, severity, what, len(rows), len(sample), where, remedy)
    yield from _one_answer(answers, limits)


def _one_answer(answers: Counter[str], limits: Audit) -> Iterator[Finding]:
    of = answers.total()
    answer, count = answers.most_common(1)[0] if answers else ("", 0)
    if of >= ENOUGH and count >= ONE_ANSWER * of:
        short = answer if len(answer) <= 40 else answer[:40] + "..."
        yield Finding(
            "same_answers",
            from_share(limits, "same_answers", count, of),
            f"{counted(count, of, 'training rows')} have the same answer, {short!r}: the model learns to say it "
            "whatever it is asked",
            count,
            of,
            remedy="Look at how the columns were mapped, or balance the answers.",
        )


def _is_chat(example: dict[str, Any]) -> bool:
    """Whether a chat template writes the marks of this row; plain strings may well bring their own."""
    return isinstance(example.get("messages", example.get("prompt")), list)


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Return what finds the tokenizer's control tokens in a text."""
    longest_first = sorted(control_tokens(tokenizer), key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
