"""Answers from a run's model: a file of prompts at once, or a conversation."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmkit.errors import DataError, RecipeError, SetupError
from llmkit.model.generation import generate
from llmkit.model.heads import CLASSIFIER
from llmkit.runs.folder import captured_logs, quiet_handler
from llmkit.runs.progress import Narrator
from llmkit.runs.reopen import Reopened, open_model, read_prompts, recipe_of


def answer_file(
    target: Path,
    prompts: Path,
    answers: Path,
    overrides: Iterable[str],
    *,
    temperature: float,
    max_new_tokens: int,
    batch_size: int | None,
    seed: int,
    narrator: Narrator,
) -> int:
    """Answer each prompt of a JSONL file and write the rows with an `answer` added; returns their number.

    The output is written whole or not at all, and never over an existing file. Raises DataError or SetupError.
    """
    from llmkit.evaluation._generation import prompt_ids

    rows = read_prompts(prompts)
    if answers.exists():
        raise DataError(f"{answers} exists already, and is not overwritten")
    with captured_logs(quiet_handler()):
        opened = _open_to_answer(target, overrides)
        ids = [prompt_ids(opened.tokenizer, row)[0] for row in rows]
        with narrator.bar("answering", len(ids)) as bar:
            texts = generate(
                opened.model,
                opened.tokenizer,
                ids,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                temperature=temperature,
                seed=seed,
                on_done=bar.update,
            )
    scratch = answers.with_name(f".{answers.name}.tmp")
    lines = (json.dumps({**row, "answer": text}, ensure_ascii=False) for row, text in zip(rows, texts, strict=True))
    scratch.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(scratch, answers)
    return len(rows)


def chat(
    target: Path, overrides: Iterable[str], *, system: str | None, temperature: float, max_new_tokens: int
) -> None:
    """Talk to the model of `target` on the terminal until /quit or end of input."""
    with captured_logs(quiet_handler()):
        opened = _open_to_answer(target, overrides)
        if not opened.tokenizer.chat_template:
            raise SetupError(
                "the tokenizer has no chat template", remedy="Give one: --set model.chat_template=FILE.jinja"
            )
        start = _opening(opened, system)
        messages = list(start)
        for line in _lines():
            if line == "/clear":
                messages = list(start)
                continue
            messages.append({"role": "user", "content": line})
            answer = _answer(opened, messages, temperature, max_new_tokens)
            messages.append({"role": "assistant", "content": answer})


def _open_to_answer(target: Path, overrides: Iterable[str]) -> Reopened:
    """Open the model of `target`; raises RecipeError for a reward model, before anything is loaded."""
    recipe, folder = recipe_of(target, overrides)
    if recipe.method.model_class == CLASSIFIER:
        raise RecipeError(
            f"{target} is a reward model: it scores answers and writes none",
            remedy=f"Measure it with `llmkit eval {target}`, or use it in `rewards: [{{type: reward_model, path: "
            f"{target}}}]`.",
        )
    return open_model(recipe, folder)


def _opening(opened: Reopened, system: str | None) -> list[dict[str, str]]:
    """Return the first messages: the system prompt given, or the one that the training rows begin with.

    A model tuned under one system prompt answers differently under another.
    """
    if system is None:
        from llmkit.data.shapes import RowError
        from llmkit.data.sources import read_examples

        source = opened.recipe.data.train[0]
        rows = (row for _, row in read_examples(source, opened.recipe.folder) if not isinstance(row, RowError))
        example = next(rows, {})
        turns = example.get("messages", example.get("prompt"))
        first: dict[str, Any] = turns[0] if isinstance(turns, list) and turns else {}
        system = first.get("content") if first.get("role") == "system" else None
    return [{"role": "system", "content": system}] if system else []


def _lines() -> Iterable[str]:
    interactive = sys.stdin.isatty()
    while True:
        try:
            line = input("\nyou> " if interactive else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line:
            yield line


def _answer(opened: Reopened, messages: list[dict[str, str]], temperature: float, max_new_tokens: int) -> str:
    """Stream the answer to standard output and return it."""
    from transformers import TextStreamer

    tokenizer = opened.tokenizer
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    (answer,) = generate(
        opened.model,
        tokenizer,
        [list(encoded["input_ids"])],
        max_new_tokens=max_new_tokens,
        batch_size=1,
        temperature=temperature,
        # Each turn its own: the same question asked twice may be answered differently when sampling.
        seed=len(messages),
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    return answer
