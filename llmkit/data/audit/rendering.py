"""Checks of the tokenizer and its chat template, by what they made of a few rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmkit.data.audit.columns import spread
from llmkit.data.audit.findings import Finding, counted, places
from llmkit.data.audit.sequences import Seen
from llmkit.data.audit.words import turns
from llmkit.data.splits import Row
from llmkit.data.store import Rows
from llmkit.data.templates import chat_of, control_tokens, unasked_header

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.recipe.recipe import Recipe

LOOKED_AT = 32
"""Rows that are read back: what a template does, it does to all of them."""

MARK = re.compile(r"<\|[^<>|\s]{1,40}\|>|<｜[^<>｜\s]{1,40}｜>|<(?:start|end)_of_[a-z]+>|<\|?/?(?:im|turn)[a-z_]*\|?>")
"""What looks like a control token of a chat template."""


def rendering_findings(
    rows: Rows, seen: Seen, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, stops: frozenset[int]
) -> Iterator[Finding]:
    """Compare what the messages say with what the model reads."""
    few = [rows[int(position)] for position in spread(len(rows), LOOKED_AT)]
    chats = [row for row in few if isinstance(row.example.get("messages", row.example.get("prompt")), list)]
    yield from _start(rows, seen, tokenizer)
    yield from _asking(chats, tokenizer)
    yield from _systems(chats, tokenizer)
    yield from _marks(chats, recipe, tokenizer)
    yield from _padding(recipe, tokenizer, stops)


def _start(rows: Rows, seen: Seen, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """Find rows without the start token that the tokenizer puts before a text: it has learnt to read with it."""
    start = tokenizer.bos_token_id
    missing = seen.flagged("no_start")
    if start is None or list(tokenizer("a")["input_ids"])[:1] != [start] or not len(missing):
        return
    whole = missing[rows.fact("part")[missing] == 0]
    if len(whole):
        yield Finding(
            "no_start",
            "warning",
            f"{counted(len(whole), len(rows), 'training rows')} begin without {tokenizer.bos_token!r}, which the "
            "tokenizer puts before every text: the chat template does not write it",
            len(whole),
            len(rows),
            places(rows, whole),
            "Write {{ bos_token }} at the beginning of the template, if the model was trained with it.",
        )


def _asking(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """Find a template that asks for an answer without what it writes before each."""
    header = unasked_header(chat_of(tokenizer)) if rows else ""
    if header:
        yield Finding(
            "no_generation_prompt",
            "warning",
            f"the chat template has no generation prompt: it writes {header!r} before each answer, but the model is "
            "asked without it, and has to write that as well",
            remedy=f"End the template with {{% if add_generation_prompt %}}{{{{ {header!r} }}}}{{% endif %}}.",
        )


def _systems(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """Find system prompts that stand twice in what the model reads, or not at all."""
    twice, lost, with_system = [], [], 0
    for row in rows:
        told = list(turns(row.example))
        system = _squeezed(told[0][1]) if told and told[0][0] == "system" else ""
        if not system or row.truncated or row.part:
            continue
        with_system += 1
        text = str(tokenizer.decode(row.sequences[0]))
        times = _squeezed(text).count(system)
        # A longer text may hold it as well: what the other turns say doesn't count.
        elsewhere = sum(_squeezed(said).count(system) for _, said in told[1:])
        if times == 0 and _squeezed(str(tokenizer.decode(_plain(tokenizer, told[0][1])))) == system:
            lost.append(row.where)
        elif times > 1 + elsewhere or _repeated(told, system) or _two_blocks(text, told[0][1], tokenizer):
            twice.append(row.where)
    if twice:
        yield Finding(
            "system_twice",
            "warning",
            f"a system prompt stands twice in {len(twice)} of {with_system} rows that were read back: the chat "
            "template writes one beside the row's own, or the row repeats it",
            len(twice),
            with_system,
            tuple(twice[:3]),
            "Take it out of the messages, or out of the template.",
        )
    if lost:
        yield Finding(
            "system_lost",
            "warning",
            f"the chat template leaves out the system prompt of {len(lost)} of {with_system} rows that were read back",
            len(lost),
            with_system,
            tuple(lost[:3]),
            "Use a template that writes it (`model.chat_template`), or move it into the first question.",
        )


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _squeezed(text: str) -> str:
    """Return a text without white space, which tokenizers may change."""
    return "".join(text.split())


def _repeated(told: list[tuple[str, str]], system: str) -> bool:
    """Whether the first question begins with the system prompt."""
    return len(told) > 1 and told[1][0] == "user" and len(system) >= 8 and _squeezed(told[1][1]).startswith(system)


def _two_blocks(text: str, system: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether what announces the row's system prompt announces another one before it."""
    before, found, _ = text.partition(system)
    specials = "|".join(re.escape(token) for token in sorted(control_tokens(tokenizer), key=len, reverse=True))
    if not found or not specials:
        return False
    header = re.search(rf"(?:(?:{specials})\s*\w+\s*(?:(?:{specials})\s*)?|(?:{specials})\s*)$", before)
    return header is not None and before.count(header[0].strip()) > 1


def _marks(rows: list[Row], recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """Find marks of the recipe's own chat template that the tokenizer splits into pieces.

    A tokenizer's own template is as its makers trained with it: some (Zephyr's) split their marks on purpose.
    """
    if recipe.model.chat_template is None or not rows:
        return
    row = rows[0]
    said = "\n".join(text for _, text in turns(row.example))
    marks = dict.fromkeys(MARK.findall(str(tokenizer.decode(row.sequences[0]))))
    split = [mark for mark in marks if mark not in said and len(_plain(tokenizer, mark)) > 1]
    if split:
        listed = ", ".join(map(repr, split))
        pieces = len(_plain(tokenizer, split[0]))
        yield Finding(
            "template_tokens",
            "warning",
            f"`model.chat_template` writes {listed}, which this tokenizer does not know as tokens: it splits "
            f"{split[0]!r} into {pieces} pieces",
            len(split),
            len(marks),
            (row.where,),
            "Use a template that is made for this model.",
        )


def _padding(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, stops: frozenset[int]) -> Iterator[Finding]:
    """Find padding that hides the end token.

    Labels and attention are masked by position, never by id, so for a language model it costs nothing. A reward model
    reads its score at the last token that is not padding (transformers, `GenericForSequenceClassification`).
    """
    if recipe.method.model_class == "AutoModelForSequenceClassification" and tokenizer.pad_token_id in stops:
        yield Finding(
            "pad_token",
            "warning",
            f"the padding token is the end token {tokenizer.pad_token!r}, and a reward model reads its score at the "
            "last token that is not padding: it never sees whether an answer has ended",
            remedy="Give the tokenizer a padding token of its own (`pad_token` in its tokenizer_config.json).",
        )
