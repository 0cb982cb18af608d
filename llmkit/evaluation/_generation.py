"""Answers of a model to rows: prompts and references from rows, and the base of the generated evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from llmkit.data.shapes import RowError
from llmkit.errors import DataError, RecipeError
from llmkit.evaluation.base import Evaluation, Sample, Score, Subject
from llmkit.model.generation import generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.data.splits import Row


class Generated(Evaluation):
    """Base of the evaluations that compare the model's answers with references."""

    type: str
    """Name of the evaluation: its file."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens."""

    limit: int | None = Field(default=None, ge=1)
    """Use only the first held-out rows; all of them if unset."""

    batch_size: int | None = Field(default=None, ge=1)
    """Prompts answered at once; if unset, up to 64 whose keys and values take half as much memory as the weights."""

    def measure(self, predictions: Sequence[str], references: Sequence[str], folder: Path) -> dict[str, float]:
        """Return the metrics of the answers; `references` are in the same order, paths start from `folder`."""
        raise NotImplementedError

    def score(self, subject: Subject) -> Score:
        """Generate greedily and measure; raises DataError for a row without a reference."""
        self.check_setup(subject.folder)
        samples = answers(
            subject,
            max_new_tokens=self.max_new_tokens,
            limit=self.limit,
            batch_size=self.batch_size,
            evaluation=self.type,
            need_references=True,
        )
        references = [sample.reference or "" for sample in samples]
        predictions = [sample.answer for sample in samples]
        return Score(self.measure(predictions, references, subject.folder), len(samples), samples)


def answers(
    subject: Subject,
    *,
    max_new_tokens: int,
    limit: int | None,
    batch_size: int | None,
    evaluation: str = "generate",
    temperature: float = 0.0,
    seed: int = 0,
    need_references: bool = False,
) -> tuple[Sample, ...]:
    """Return the subject's answers to its first `limit` rows, generated once for each setting (`subject.answers`).

    `evaluation` names the asker in errors. Raises DataError where there are no rows, where one has no prompt, or where
    one has no reference although `need_references`; RecipeError where rows of this shape hold no prompt at all.
    """
    rows = subject.rows[:limit]
    # Greedy answers depend on neither seed nor batch size (but for rounding), so evaluations that differ only there
    # share them; sampled answers depend on both.
    key = (max_new_tokens, len(rows), temperature, (seed, batch_size) if temperature > 0 else None)
    samples = subject.answers.get(key)
    if samples is None:
        prompts = row_prompts(subject.tokenizer, rows, evaluation=evaluation)
        if need_references:  # before anything is generated
            _check_references([(where, reference) for where, _, _, reference in prompts], evaluation)
        samples = respond(
            subject,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            temperature=temperature,
            seed=seed,
        )
        subject.answers[key] = samples
    elif need_references:
        _check_references([(sample.where, sample.reference) for sample in samples], evaluation)
    return samples


Prompt = tuple[str, list[int], str, str | None]
"""Where the prompt came from, its token ids, its readable text, and the reference answer (None: there is none)."""


def row_prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, evaluation: str) -> list[Prompt]:
    """Return the prompt of each row; raises as `answers` does."""
    if not rows:
        raise DataError(f"evaluation `{evaluation}` has no held-out rows", remedy="set `data.eval`")
    found: list[Prompt] = []
    for row in rows:
        try:
            ids, text, reference = prompt_ids(tokenizer, row.example, evaluation=evaluation)
        except RowError as error:
            raise DataError(str(error), where=row.where) from error
        found.append((row.where, ids, text, reference))
    return found


def _check_references(references: Sequence[tuple[str, str | None]], evaluation: str) -> None:
    """Raise DataError for the first place whose reference is None."""
    missing = next((where for where, reference in references if reference is None), None)
    if missing is not None:
        raise DataError(
            f"the row has no reference answer, which evaluation `{evaluation}` compares with",
            where=missing,
            remedy="give it one (`answer`, `completion` or a last assistant turn), or use `type: generate`",
        )


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

    A conversation is cut before its last assistant turn, which is the reference. Lists of messages go through the chat
    template with the start of an assistant turn; a string is continued as it stands. The readable prompt is the last
    user message, or the string.

    Raises RowError where this example has no prompt, RecipeError where examples of its shape can't have one.
    """
    reference: str | None = None
    prompt: Any
    if "messages" in example:
        prompt, reference = _before_last_answer(example["messages"])
    elif "prompt" in example:
        prompt, reference = example["prompt"], _reference(example)
    else:
        raise RecipeError(
            f"evaluation `{evaluation}` needs prompts to answer, and rows with only {_columns(example)} have none",
            remedy="use `type: perplexity`, or `type: generate` with `prompts: FILE.jsonl`",
        )
    if isinstance(prompt, str):
        ids, text = list(tokenizer(prompt)["input_ids"]), prompt
    else:
        ids, text = _template_ids(tokenizer, prompt, example.get("tools")), _last_user_text(prompt)
    if not ids:
        raise RowError("the prompt is empty")
    return ids, text, reference


def _before_last_answer(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """Return the messages up to the last assistant turn and that turn's text; all messages where there is none."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    if last == 0:
        raise RowError("nothing stands before the assistant's turn" if messages else "there are no messages")
    return list(messages[:last]), _text(messages[last]) if last < len(messages) else None


def _reference(example: dict[str, Any]) -> str | None:
    """Return the first of `answer`, `completion` and `chosen`; a completion labelled bad is no reference."""
    if example.get("label") is False:
        return None
    values = (example.get(name) for name in ("answer", "completion", "chosen"))
    return next((_text(value) for value in values if value is not None), None)


def _text(value: Any) -> str | None:
    """Return the text of a string, a number, a message, or the last of a list of messages; None where it is empty."""
    if isinstance(value, (list, tuple)):
        value = value[-1] if value else None
    if isinstance(value, dict):
        value = value.get("content")
    return None if value is None or value == "" else str(value)


def _last_user_text(messages: Sequence[dict[str, Any]]) -> str:
    users = [message for message in messages if message["role"] == "user"]
    return _text(users or messages) or ""


def _template_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], tools: Any) -> list[int]:
    """Return the ids of the messages in the tokenizer's chat template, up to the start of an assistant turn."""
    if not messages:
        raise RowError("the prompt has no messages")
    if not tokenizer.chat_template:
        raise RecipeError("the tokenizer has no chat template for messages", remedy="set `model.chat_template`")
    # return_dict is spelt out because its default changed in transformers 5.
    encoded: Any = tokenizer.apply_chat_template(
        list(messages), tools=tools, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(encoded["input_ids"])


def _columns(example: dict[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in example) or "tokens"
