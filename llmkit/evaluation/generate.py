"""Answers without a score, to be read: from a file of prompts or from the held-out rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from llmkit.data.shapes import RowError
from llmkit.errors import DataError
from llmkit.evaluation._generation import Prompt, answers, prompt_ids, respond
from llmkit.evaluation.base import Evaluation, Sample, Score, Subject
from llmkit.recipe.places import named_path, read_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Generate(Evaluation):
    """Generate answers and keep them as samples."""

    type: Literal["generate"]
    """Answers to read, without a score."""

    prompts: str | None = None
    """JSONL file, one `prompt` (a string, continued as it stands) or `messages` (a chat) a line; else held-out rows."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens."""

    limit: int | None = Field(default=None, ge=1)
    """Use only the first prompts; all of them if unset."""

    batch_size: int | None = Field(default=None, ge=1)
    """Prompts answered at once; if unset, up to 64 whose keys and values take half as much memory as the weights."""

    temperature: float = Field(default=0.0, ge=0)
    """0 always takes the likeliest token; above 0, tokens are sampled at this temperature."""

    seed: int | None = None
    """Seed of the sampling; the run's seed if unset."""

    def requires_rows(self) -> bool:
        """Whether held-out rows are required: not with a file of prompts."""
        return self.prompts is None

    def check_setup(self, folder: Path) -> None:
        """Raise DataError where the file of prompts is missing or holds a line that is no prompt."""
        if self.prompts is not None:
            list(_lines(named_path(self.prompts, folder)))

    def score(self, subject: Subject) -> Score:
        """Return no metrics, only samples; raises DataError for a missing or unusable file of prompts."""
        seed = subject.seed if self.seed is None else self.seed
        if self.prompts is None:
            samples = answers(
                subject,
                max_new_tokens=self.max_new_tokens,
                limit=self.limit,
                batch_size=self.batch_size,
                temperature=self.temperature,
                seed=seed,
                evaluation="generate",
            )
        else:
            samples = self._answer_file(subject, named_path(self.prompts, subject.folder), seed)
        return Score({}, len(samples), samples)

    def _answer_file(self, subject: Subject, path: Path, seed: int) -> tuple[Sample, ...]:
        prompts = read_prompts(path, subject.tokenizer, self.limit)
        return respond(
            subject,
            prompts,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            temperature=self.temperature,
            seed=seed,
        )


def read_prompts(path: Path, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> list[Prompt]:
    """Return the first `limit` prompts of a JSONL file; blank lines are passed over.

    Raises DataError, with file and line, where the file is missing or empty or where a
    line holds no prompt.
    """
    found: list[Prompt] = []
    for where, example in _lines(path):
        try:
            ids, text, reference = prompt_ids(tokenizer, example)
        except RowError as error:
            raise DataError(str(error), where=where) from error
        found.append((where, ids, text, reference))
        if len(found) == limit:
            break
    if not found:
        raise DataError("the file of prompts is empty", where=str(path))
    return found


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        text = read_file(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the file of prompts can't be read: {error}",
            where=str(path),
            remedy="A relative `prompts` is taken from the recipe's folder.",
        ) from error
    # Split at line feeds only: str.splitlines() would also split inside JSON strings at U+2028 and the like.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, _example(line, where)


def _example(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # also for numbers and nesting beyond Python's limits
        raise DataError(f"not a JSON object: {error}", where=where) from error
    if not isinstance(value, dict) or not _has_prompt(value):
        raise DataError(
            "the line holds no prompt",
            where=where,
            remedy='write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}',
        )
    return _whole_chat(value)


def _whole_chat(value: dict[str, Any]) -> dict[str, Any]:
    """Return a chat that ends in another turn than the assistant's as the prompt it is, earlier answers included."""
    messages = value.get("messages")
    if not messages or messages[-1]["role"] == "assistant":
        return value
    return {"prompt": messages, **{k: v for k, v in value.items() if k not in ("messages", "prompt")}}


def _has_prompt(value: dict[str, Any]) -> bool:
    """Whether `messages` or else `prompt` is there, and is a string (`prompt` only) or a list of messages."""
    prompt = value.get("messages", value.get("prompt"))
    if isinstance(prompt, str):
        return "messages" not in value
    return isinstance(prompt, list) and all(isinstance(m, dict) and "role" in m and "content" in m for m in prompt)
