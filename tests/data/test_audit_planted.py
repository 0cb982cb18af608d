"""Planted defects: each is found by its own check with its own severity, and its clean twin is not spoken of."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llmkit.data.audit import Finding, audit
from llmkit.data.ledger import Ledger
from llmkit.data.prepare import load_splits
from llmkit.data.splits import Row, Splits
from llmkit.errors import LlmkitError
from llmkit.recipe.recipe import Recipe

Maker = Callable[..., Recipe]
JsonRow = dict[str, Any]

TURN = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
HEAD = "{% for message in messages %}" + TURN
ASK = "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
SYSTEM = "answer in the manner of a patient librarian"


def sentence(seed: object, count: int = 24) -> str:
    """Return a line of made-up words; another seed gives other words."""
    draw = random.Random(str(seed))
    return " ".join("".join(draw.choices("bdfgklmnprst", k=1) + draw.choices("aeiou", k=3)) for _ in range(count))


def chat(question: str, answer: str, system: str = "") -> JsonRow:
    first = [{"role": "system", "content": system}] if system else []
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [*first, *said]}


def chats(count: int = 40, name: str = "row", **kwargs: str) -> list[JsonRow]:
    return [chat(sentence(f"{name}{i}?"), sentence(f"{name}{i}!"), **kwargs) for i in range(count)]


def reworded(row: JsonRow) -> JsonRow:
    """Return a row with one word changed."""
    question, answer = (message["content"] for message in row["messages"][-2:])
    return chat("well " + " ".join(question.split()[1:]), answer)


def plain(count: int = 40, ending: str = "") -> list[JsonRow]:
    return [{"prompt": sentence(f"p{i}"), "completion": sentence(f"c{i}") + ending} for i in range(count)]


def pairs(count: int = 60) -> list[JsonRow]:
    """Return pairs of which every other has the longer answer as the better one."""
    lengths = (8, 12)
    return [
        {
            "prompt": sentence(f"p{i}"),
            "chosen": sentence(f"good{i}", lengths[i % 2]),
            "rejected": sentence(f"bad{i}", lengths[1 - i % 2]),
        }
        for i in range(count)
    ]


def judged(count: int = 40) -> list[JsonRow]:
    return [{"prompt": sentence(f"p{i}"), "completion": sentence(f"c{i}"), "label": bool(i % 2)} for i in range(count)]


@dataclass(frozen=True)
class Setup:
    """A recipe, its rows and its tokenizer."""

    train: list[JsonRow]
    held_out: list[JsonRow] = field(default_factory=list)
    format: str = "messages"
    set: tuple[str, ...] = ()
    change: Callable[[PreTrainedTokenizerFast], object] = lambda tokenizer: None
    files: dict[str, list[JsonRow] | str] = field(default_factory=dict)
    spoil: Callable[[Row], Row] = lambda row: row
    """Does to each training row what a defect of the preparation would."""
    max_length: int = 4096


@dataclass(frozen=True)
class Planted:
    """A defect: what is set up, its clean twin, and what is to be said."""

    bad: Setup
    clean: Setup
    check: str
    severity: str = ""
    """Empty where the rows are refused before the audit, with `check` as the message."""


def template(text: str) -> Callable[[PreTrainedTokenizerFast], None]:
    def change(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.chat_template = text

    return change


def with_start(text: str) -> Callable[[PreTrainedTokenizerFast], None]:
    """Return a change to a tokenizer that puts a start token before each text, with this chat template."""

    def change(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        single = "<s> $A"
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} $B", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
        )
        tokenizer.chat_template = text

    return change


def same_pad(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.pad_token = tokenizer.eos_token


def few_words(tokenizer: PreTrainedTokenizerFast) -> None:
    """Make it a tokenizer of whole words, which knows none of those that `sentence` makes up."""
    vocabulary = {"<|pad|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "[UNK]": 3, "known": 4}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer._tokenizer = backend
    tokenizer.unk_token = "[UNK]"


def tokens(**changes: Callable[[list[int]], list[int]]) -> Callable[[Row], Row]:
    """Return a spoiler of rows that changes columns of their tokens."""
    return lambda row: replace(
        row, tokens={name: changes.get(name, lambda ids: ids)(list(ids)) for name, ids in row.tokens.items()}
    )


def mask_end(labels: list[int]) -> list[int]:
    last = max(i for i, label in enumerate(labels) if label != -100)
    return [*labels[:last], *[-100] * (len(labels) - last)]


def shifted(labels: list[int]) -> list[int]:
    return [*labels[1:], -100]


CHATS, HELD_OUT = chats(), chats(12, "held out")
DEFAULT = (
    "{% if messages[0]['role'] != 'system' or both %}"
    "{{ '<|im_start|>system\nyou are a model of somebody<|im_end|>\n' }}{% endif %}"
)
QUESTIONS = [{"prompt": sentence(f"benchmark{i}", 30)} for i in range(10)]
AROUND = [chat(f"{sentence(-i, 6)} {row['prompt']} {sentence(i, 6)}", sentence(i)) for i, row in enumerate(QUESTIONS)]
ASKED = [row["messages"][0]["content"] for row in HELD_OUT]
PROMPTS = "evaluation=[{type: generate, prompts: p.jsonl}]"
SPLIT = HEAD.replace("<|im_start|>", "<|turn_of|>") + ASK.replace("<|im_start|>", "<|turn_of|>")

PLANTED = {
    "a template that ends turns with another token": Planted(
        Setup(CHATS, change=template((HEAD + ASK).replace("<|im_end|>", "</turn>"))),
        Setup(CHATS),
        "generation stops on",
    ),
    "end token masked": Planted(Setup(CHATS, spoil=tokens(labels=mask_end)), Setup(CHATS), "end_token", "error"),
    "end token cut off": Planted(
        Setup(pairs(), format="preference", set=("method={type: dpo}",), spoil=tokens(chosen_ids=lambda ids: ids[:-1])),
        Setup(pairs(), format="preference", set=("method={type: dpo}",)),
        "end_token",
        "error",
    ),
    "everything masked": Planted(
        Setup(CHATS, spoil=tokens(labels=lambda labels: [-100] * len(labels))), Setup(CHATS), "untrained_row", "error"
    ),
    "no turn marked": Planted(
        Setup(CHATS, set=("data.train_on=marked",)), Setup(CHATS), r"40 of (the )?40 rows"
    ),
    "nothing masked": Planted(
        Setup(CHATS, spoil=lambda row: replace(row, tokens=row.tokens | {"labels": row.tokens["input_ids"]})),
        Setup(CHATS),
        "trained_prompt",
        "error",
    ),
    "labels shifted": Planted(Setup(CHATS, spoil=tokens(labels=shifted)), Setup(CHATS), "labels", "error"),
    "start token twice": Planted(
        Setup([{"text": "<s>" + sentence(i)} for i in range(40)], format="text", change=with_start(HEAD + ASK)),
        Setup([{"text": sentence(i)} for i in range(40)], format="text", change=with_start(HEAD + ASK)),
        "'<s>' twice",
    ),
    "start token before an answer": Planted(
        Setup(
            pairs(),
            format="preference",
            set=("method={type: dpo}",),
            change=with_start(HEAD + ASK),
            spoil=lambda row: tokens(chosen_ids=lambda ids: [row.tokens["prompt_ids"][0], *ids])(row),
        ),
        Setup(pairs(), format="preference", set=("method={type: dpo}",), change=with_start(HEAD + ASK)),
        "start_token",
        "error",
    ),
    "start token missing": Planted(
        Setup(CHATS, change=with_start(HEAD + ASK)),
        Setup(CHATS, change=with_start("{{ bos_token }}" + HEAD + ASK)),
        "no_start",
        "warning",
    ),
    "system prompt beside the template's own": Planted(
        Setup(chats(system=SYSTEM), change=template("{% set both = true %}" + DEFAULT + HEAD + ASK)),
        Setup(chats(system=SYSTEM), change=template("{% set both = false %}" + DEFAULT + HEAD + ASK)),
        "system_twice",
        "warning",
    ),
    "system prompt repeated by the rows": Planted(
        Setup([chat(f"{SYSTEM} {sentence(i)}", sentence(-i), SYSTEM) for i in range(1, 40)]),
        Setup([chat(sentence(i), sentence(-i), SYSTEM) for i in range(1, 40)]),
        "system_twice",
        "warning",
    ),
    "system prompt left out by the template": Planted(
        Setup(
            chats(system=SYSTEM),
            change=template("{% for message in messages %}{% if message['role'] != 'system' %}"
            + TURN + "{% endif %}" + ASK),
        ),
        Setup(chats(system=SYSTEM)),
        "system_lost",
        "warning",
    ),
    "a template that does not ask for the answer": Planted(
        Setup(CHATS, change=template(HEAD + "{% endfor %}")),
        Setup(CHATS, change=template(HEAD.replace("<|im_start|>' + message['role']", "'") + "{% endfor %}")),
        "no_generation_prompt",
        "warning",
    ),
    "template of another model": Planted(
        Setup(CHATS, set=("model.chat_template=other.jinja",), change=template(SPLIT), files={"other.jinja": SPLIT}),
        Setup(CHATS, set=("model.chat_template=own.jinja",), files={"own.jinja": HEAD + ASK}),
        "template_tokens",
        "warning",
    ),
    "padding that hides the end": Planted(
        Setup(pairs(), format="preference", set=("method={type: reward}",), change=same_pad),
        Setup(pairs(), format="preference", set=("method={type: reward}",)),
        "pad_token",
        "warning",
    ),
    "half of the rows repeated": Planted(Setup([*CHATS, *CHATS]), Setup(CHATS), "duplicates", "error"),
    "some rows repeated": Planted(Setup([*CHATS, *CHATS[:4]]), Setup(CHATS), "duplicates", "warning"),
    "rows almost repeated": Planted(
        Setup([*CHATS, *map(reworded, CHATS[:10])]), Setup(CHATS), "near_duplicates", "warning"
    ),
    "too many rows almost repeated": Planted(
        Setup([*CHATS, *map(reworded, CHATS[:10])], set=("data.audit.near_duplicates=0.2",)),
        Setup(CHATS, set=("data.audit.near_duplicates=0.2",)),
        "near_duplicates",
        "error",
    ),
    "held-out rows almost in training": Planted(
        Setup([*CHATS, *map(reworded, HELD_OUT)], HELD_OUT, set=("data.audit.contamination=1.0",)),
        Setup(CHATS, HELD_OUT),
        "overlap",
        "error",
    ),
    "held-out prompts with other answers": Planted(
        Setup([*CHATS, *(chat(asked, sentence(i)) for i, asked in enumerate(ASKED[:5]))], HELD_OUT,
              set=("data.audit.accept=[contamination]",)),
        Setup(CHATS, HELD_OUT),
        "same_prompt",
        "warning",
    ),
    "held-out questions inside training rows": Planted(
        Setup([*CHATS, *(chat("please " + asked, sentence(i, 60)) for i, asked in enumerate(ASKED))],
              HELD_OUT),
        Setup(CHATS, HELD_OUT),
        "contamination",
        "error",
    ),
    "an evaluation's prompts in training": Planted(
        Setup([*CHATS, *AROUND], set=(PROMPTS,), files={"p.jsonl": QUESTIONS}),
        Setup(CHATS, set=(PROMPTS,), files={"p.jsonl": QUESTIONS}),
        "contamination",
        "error",
    ),
    "a benchmark of any columns in training": Planted(
        Setup(
            [*CHATS, AROUND[0]],
            set=("data.audit.benchmarks=[{path: b.jsonl}]", "data.audit.contamination=0.2"),
            files={"b.jsonl": [{"stem": row["prompt"], "options": ["a", "b"]} for row in QUESTIONS]},
        ),
        Setup(
            CHATS,
            set=("data.audit.benchmarks=[{path: b.jsonl}]",),
            files={"b.jsonl": [{"stem": row["prompt"], "options": ["a", "b"]} for row in QUESTIONS]},
        ),
        "contamination",
        "warning",
    ),
    "empty answers": Planted(Setup([*CHATS, *(chat(sentence(i), " ") for i in range(9))]), Setup(CHATS), "is empty"),
    "one answer to everything": Planted(
        Setup([chat(sentence(i), "I can't help with that.") for i in range(40)]), Setup(CHATS), "same_answers", "error"
    ),
    "answers that repeat the question": Planted(
        Setup([chat(sentence(i), sentence(i)) for i in range(40)]), Setup(CHATS), "echo", "error"
    ),
    "damaged characters": Planted(
        Setup([*CHATS, *(chat(sentence(i), f"a cafÃ© and {sentence(-i)}") for i in range(1, 6))]),
        Setup([*CHATS, *(chat(sentence(i), f"SÃO café and {sentence(-i)}") for i in range(1, 6))]),
        "broken_text",
        "warning",
    ),
    "rows that are rendered already": Planted(
        Setup([chat(f"<|im_start|>user\n{sentence(i)}<|im_end|>", sentence(-i)) for i in range(1, 40)]),
        Setup(CHATS),
        "special_tokens",
        "error",
    ),
    "an end token in the text and one more": Planted(
        Setup(plain(ending="<|im_end|>"), format="prompt_completion"),
        Setup(plain(), format="prompt_completion"),
        "doubled_end",
        "error",
    ),
    "all rows cut off": Planted(
        Setup(CHATS, set=("data.overflow=truncate",), max_length=150), Setup(CHATS), "truncated", "error"
    ),
    "pairs both ways round": Planted(
        Setup([*pairs(), *(row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs(5))],
              format="preference", set=("method={type: dpo}",)),
        Setup(pairs(), format="preference", set=("method={type: dpo}",)),
        "contradictions",
        "warning",
    ),
    "answers good and bad": Planted(
        Setup([*judged(), *(row | {"label": not row["label"]} for row in judged(5))],
              format="unpaired", set=("method={type: kto}", "data.audit.accept=[duplicates]")),
        Setup(judged(), format="unpaired", set=("method={type: kto}",)),
        "contradictions",
        "warning",
    ),
    "the longer answer is always better": Planted(
        Setup([row | {"chosen": row["chosen"] + sentence(i, 20)} for i, row in enumerate(pairs())],
              format="preference", set=("method={type: dpo}",)),
        Setup(pairs(), format="preference", set=("method={type: dpo}",)),
        "answer_length",
        "warning",
    ),
    "hardly anything trained": Planted(
        Setup([chat(sentence(i, 400), sentence(-i, 1)) for i in range(1, 30)]),
        Setup(CHATS),
        "trained_tokens",
        "warning",
    ),
    "words that the tokenizer does not know": Planted(
        Setup([{"text": sentence(i)} for i in range(40)], format="text", change=few_words),
        Setup([{"text": sentence(i)} for i in range(40)], format="text"),
        "unknown_tokens",
        "error",
    ),
}  # fmt: skip


@pytest.fixture
def findings(
    recipe: Maker, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> Callable[[Setup], tuple[list[Finding], Ledger]]:
    """Return what loads a setup and audits it."""

    def found(setup: Setup) -> tuple[list[Finding], Ledger]:
        own: dict[str, list[JsonRow] | str] = {"train.jsonl": setup.train, "eval.jsonl": setup.held_out}
        for name, rows in (own | setup.files).items():
            text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / name).write_text(text, encoding="utf-8")
        sources = {name: f"[{{path: {name}.jsonl, format: {setup.format}}}]" for name in ("train", "eval")}
        held_out = sources["eval"] if setup.held_out else "null"
        chosen = recipe(f"data.train={sources['train']}", f"data.eval={held_out}", *setup.set)
        setup.change(tokenizer)
        stops = frozenset({tokenizer.convert_tokens_to_ids("<|im_end|>")})
        splits, ledger = load_splits(chosen, tokenizer, stops, max_length=setup.max_length, seed=1)
        spoilt = Splits(splits.shape, [setup.spoil(row) for row in splits.train], splits.eval)
        return audit(spoilt, ledger, tokenizer, stops, chosen), ledger

    return found


@pytest.mark.parametrize("name", PLANTED)
def test_the_defect_is_found(name: str, findings: Callable[[Setup], tuple[list[Finding], Ledger]]) -> None:
    planted = PLANTED[name]
    if not planted.severity:
        with pytest.raises(LlmkitError, match=planted.check):
            findings(planted.bad)
        return
    found, _ = findings(planted.bad)
    assert (planted.check, planted.severity) in [(one.check, one.severity) for one in found], found
    said = next(one for one in found if one.check == planted.check)
    assert said.what
    assert said.remedy


@pytest.mark.parametrize("name", PLANTED)
def test_nothing_is_said_of_the_clean_twin(
    name: str, findings: Callable[[Setup], tuple[list[Finding], Ledger]]
) -> None:
    found, _ = findings(PLANTED[name].clean)
    assert not found


def test_padding_with_the_end_token_hides_nothing_from_a_language_model(
    findings: Callable[[Setup], tuple[list[Finding], Ledger]],
) -> None:
    found, _ = findings(Setup(CHATS, change=same_pad))
    assert not found


def test_held_out_rows_in_training_are_dropped_and_counted(
    findings: Callable[[Setup], tuple[list[Finding], Ledger]],
) -> None:
    found, ledger = findings(Setup([*CHATS, *HELD_OUT], HELD_OUT))
    assert ledger.to_dict()["train"]["train.jsonl"]["dropped"] == {"also among the held-out rows": 12}
    assert not found


def test_the_end_of_documents_is_no_unknown_word(findings: Callable[[Setup], tuple[list[Finding], Ledger]]) -> None:
    """SmolLM2's unknown token is `<|endoftext|>`, which it never makes of text that it does not know."""

    def document_ends(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.add_special_tokens({"unk_token": "<|endoftext|>"})

    rows = [{"text": f"{sentence(i)}<|endoftext|>{sentence(-i)}"} for i in range(1, 40)]
    found, _ = findings(Setup(rows, format="text", change=document_ends))
    assert "unknown_tokens" not in [one.check for one in found]


def test_a_turn_that_never_ends_is_told_apart_from_another_end(
    findings: Callable[[Setup], tuple[list[Finding], Ledger]],
) -> None:
    def no_end(row: Row) -> Row:
        return replace(row, tokens={name: ids[:-2] for name, ids in row.tokens.items()})  # the end and a line break

    (found,) = findings(Setup(CHATS, spoil=no_end))[0]
    assert (found.check, found.count) == ("end_token", 40)
    assert "writes no end token" in str(found.remedy)

    def other_end(row: Row) -> Row:
        labels = [*row.tokens["labels"][:-2], 0, -100]
        ids = [*row.tokens["input_ids"][:-2], 0, row.tokens["input_ids"][-1]]
        return replace(row, tokens={"input_ids": ids, "labels": labels})

    (found,) = findings(Setup(CHATS, spoil=other_end))[0]
    assert "model: {eos_token: '<|pad|>'}" in str(found.remedy)

    (found,) = findings(PLANTED["end token masked"].bad)[0]
    assert "inside of the {% generation %} marks" in str(found.remedy)
