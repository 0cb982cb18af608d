"""Answers of a model to rows: prompts and references from rows, and the base of the generated evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from llmkit.data.shapes import RowError
from llmkit.data.splits import Row
from llmkit.errors import DataError, RecipeError
from llmkit.evaluation._rows import OnRows, placed, scored
from llmkit.evaluation.base import Part, Sample, Score, Subject
from llmkit.model.generation import generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Generated(OnRows):
    """Base of the evaluations that look at the model's greedy answers."""

    type: str
    """Name of the evaluation: its file."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens."""

    batch_size: int | None = Field(default=None, ge=1)
    """Prompts answered at once; if unset, up to 64 whose keys and values take half as much memory as the weights."""

    aggregate: ClassVar[Mapping[str, str]] = {}
    """How metrics that are no means come of the sums of the rows' parts: names of `AGGREGATES`."""

    def check_row(self, row: Row) -> None:
        """Raise RowError where the row has no reference answer, RecipeError where rows of its shape hold no prompt."""
        if prompt_and_reference(row.example, evaluation=self.type)[1] is None:
            raise RowError(
                f"the row has no reference answer, which evaluation `{self.type}` compares with; give it one "
                "(`answer`, `completion` or a last assistant turn), or use `type: generate`"
            )

    def measure(self, answer: str, reference: str, row: Row) -> dict[str, Part]:
        """Return what one answer adds to each metric."""
        raise NotImplementedError

    def answers(self, subject: Subject) -> tuple[Sample, ...]:
        """Return the greedy answers to all rows of the subject."""
        return answers(
            subject,
            max_new_tokens=self.max_new_tokens,
            limit=None,
            batch_size=self.batch_size,
            evaluation=self.type,
        )

    def score(self, subject: Subject) -> Score:
        """Generate greedily and measure; raises what `prepared` raises."""
        subject = self.prepared(subject)
        samples = self.answers(subject)
        parts = [
            self.measure(sample.answer, sample.reference or "", row)
            for sample, row in zip(samples, subject.rows, strict=True)
        ]
        return scored(parts, samples, self.aggregate)


def answers(
    subject: Subject,
    *,
    max_new_tokens: int,
    limit: int | None,
    batch_size: int | None,
    evaluation: str = "generate",
    temperature: float = 0.0,
    seed: int = 0,
) -> tuple[Sample, ...]:
    """Return the subject's answers to its first `limit` rows, generated once for each setting (`subject.answers`).

    `evaluation` names the asker in errors. Raises DataError where there are no rows, or where one has no prompt;
    RecipeError where rows of this shape hold no prompt at all.
    """
    prompts = row_prompts(subject.tokenizer, subject.rows[:limit], evaluation=evaluation)
    # Greedy answers depend on neither seed nor batch size (but for rounding), so evaluations that differ only there
    # share them; sampled answers depend on both.
    asked = tuple(tuple(ids) for _, ids, _, _ in prompts)
    key = (max_new_tokens, asked, temperature, (seed, batch_size) if temperature > 0 else None)
    if key not in subject.answers:
        subject.answers[key] = respond(
            subject,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            temperature=temperature,
            seed=seed,
        )
    # The same prompts may have other references: rows of one file, read by other columns.
    return tuple(
        Sample(where, text, reference, found.answer)
        for (where, _, text, reference), found in zip(prompts, subject.answers[key], strict=True)
    )


Prompt = tuple[str, list[int], str, str | None]
"""Where the prompt came from, its token ids, its readable text, and the reference answer (None: there is none)."""


def row_prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, evaluation: str) -> list[Prompt]:
    """Return the prompt of each row; raises as `answers` does."""
    if not rows:
        raise DataError(f"evaluation `{evaluation}` has no held-out rows", remedy="set `data.eval`")
    found: list[Prompt] = []
    for row in rows:
        with placed(row):
            ids, text, reference = prompt_ids(tokenizer, row.example, evaluation=evaluation)
        found.append((row.where, ids, text, reference))
    return found


def respond(
    subject: Subject,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int | None,
    temperature: float,
    seed: int,
) -> tuple[Sample, ...]:
    """Return the model's answer to each prompt, in their order."""
    texts = generate(
        subject.model,
        subject.tokenizer,
        [ids for _, ids, _, _ in prompts],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
        on_done=subject.on_done,
    )
    return tuple(
        Sample(where, prompt, reference, answer)
        for (where, _, prompt, reference), answer in zip(prompts, texts, strict=True)
    )


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, example: dict[str, Any], *, evaluation: str = "generate"
) -> tuple[list[int], str, str | None]:
    """Return the token ids to continue, the readable prompt, and the reference answer (None: there is none).

    Lists of messages go through the chat template with the start of an assistant turn; a string is continued as it
    stands. The readable prompt is the last user message, or the string. Raises what `prompt_and_reference` raises.
    """
    prompt, reference = prompt_and_reference(example, evaluation=evaluation)
    if isinstance(prompt, str):
        ids, text = list(tokenizer(prompt)["input_ids"]), prompt
    else:
        ids, text = _template_ids(tokenizer, prompt, example.get("tools")), _last_user_text(prompt)
    if not ids:
        raise RowError("the prompt is empty")
    return ids, text, reference


def prompt_and_reference(
    example: Mapping[str, Any], *, evaluation: str = "generate"
) -> tuple[str | list[dict[str, Any]], str | None]:
    """Return the prompt, a string or messages, and the reference answer (None: there is none).

    A conversation is cut before its last assistant turn, which is the reference. Raises RowError where this example has
    no prompt, RecipeError where examples of its shape can't have one.
    """
    if "messages" in example:
        return _before_last_answer(example["messages"])
    if "prompt" in example:
        return example["prompt"], _reference(example)
    raise RecipeError(
        f"evaluation `{evaluation}` needs prompts to answer, and rows with only {_columns(example)} have none",
        remedy="use `type: perplexity`, or `type: generate` with `prompts: FILE.jsonl`",
    )


def _before_last_answer(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """Return the messages up to the last assistant turn and that turn's text; all messages where there is none."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    if last == 0:
        raise RowError("nothing stands before the assistant's turn" if messages else "there are no messages")
    return list(messages[:last]), _text(messages[last]) if last < len(messages) else None


def _reference(example: Mapping[str, Any]) -> str | None:
    """Return the first of `answer`, `completion` and `chosen`; a completion labelled bad is no reference."""
    if example.get("label") is False:
        return None
    values = (example.get(name) for name in ("answer", "completion", "chosen"))
    return next((_text(value) for value in values if value is not None), None)


def _text(value: Any) -> str | None:
    """Return a string, a number, the text of a message or of the last of several, or other values as JSON.

    None where it is empty.
    """
    if isinstance(value, (list, tuple)) and (not value or _is_message(value[-1])):
        value = value[-1] if value else None
    if _is_message(value):
        value = value.get("content")
    elif isinstance(value, (dict, list, tuple)):
        value = json.dumps(value, ensure_ascii=False)
    return None if value is None or value == "" else str(value)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value


def _last_user_text(messages: Sequence[dict[str, Any]]) -> str:
    users = [message for message in messages if message["role"] == "user"]
    return _text(users or messages) or ""


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], tools: Any) -> str:
    """Return the messages in the tokenizer's chat template, up to the start of an assistant turn.

    Raises RowError where there are none, RecipeError where there is no template.
    """
    return str(_templated(tokenizer, messages, tools, tokenize=False))


def _template_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], tools: Any) -> list[int]:
    """Return the token ids of what `rendered` returns."""
    return list(_templated(tokenizer, messages, tools, tokenize=True)["input_ids"])


def _templated(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], tools: Any, *, tokenize: bool
) -> Any:
    if not messages:
        raise RowError("the prompt has no messages")
    if not tokenizer.chat_template:
        raise RecipeError("the tokenizer has no chat template for messages", remedy="set `model.chat_template`")
    # return_dict is spelt out because its default changed in transformers 5.
    return tokenizer.apply_chat_template(
        list(messages), tools=tools, add_generation_prompt=True, tokenize=tokenize, return_dict=True
    )


def _columns(example: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in example) or "tokens"
