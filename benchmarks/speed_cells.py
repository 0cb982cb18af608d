"""The cells of `speed.py` that are no command line: TRL at its best, the bare loop, answers. Each is a process.

    python benchmarks/speed_cells.py CELL.json      what one cell is (see `speed.Cell`)

What is measured goes through `probe/sitecustomize.py`, for all columns alike.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NEW_TOKENS = 48
"""Longest answer of the evaluation job."""
COMPLETION = 32
"""Longest completion of GRPO."""
TARGET = 20
"""Words of a completion that earn most, of the GRPO job."""
RATES = {"lora": 5e-4, "full": 2e-5, "nf4": 5e-4, "dpo": 5e-5, "grpo": 1e-5}
"""The same for all columns but the CLI's default, and constant: a schedule would depend on the number of steps."""


def brevity(completions: list[str], **columns: Any) -> list[float]:
    """Return a reward for each completion, as llmkit's `length` reward has it; TRL's command line finds it by name."""
    return [max(0.0, 1 - abs(len(text.split()) - TARGET) / TARGET) for text in completions]


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def trl_best(cell: dict[str, Any]) -> None:
    """Train with TRL at the settings of `cell["settings"]`; see `speed.BEST` for how they were found."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    job = cell["job"]
    config, trainer = {"dpo": (DPOConfig, DPOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}.get(
        job, (SFTConfig, SFTTrainer)
    )
    more: dict[str, Any] = {}
    settings = dict(cell["settings"])
    if job == "grpo":
        settings |= {"num_generations": 8, "max_completion_length": COMPLETION}
        more["reward_funcs"] = brevity
    if job == "nf4":
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
    if job != "full":
        more["peft_config"] = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    at_once = settings.pop("per_device_train_batch_size", 8)
    args = config(
        output_dir=cell["out"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        learning_rate=RATES[job],
        lr_scheduler_type="constant",
        num_train_epochs=1,
        seed=cell["seed"],
        save_strategy="no",
        report_to="none",
        per_device_train_batch_size=min(at_once, cell["rows_per_step"]),
        gradient_accumulation_steps=max(1, cell["rows_per_step"] // at_once),
        **settings,
    )
    rows = load_dataset("json", data_files=cell["rows"], split="train")
    made = trainer(model=cell["model"], args=args, train_dataset=rows, **more)
    made.train()
    made.save_model(cell["out"])


def bare(cell: dict[str, Any]) -> None:
    """Train with the bare loop."""
    import bare_loop
    import torch
    from sitecustomize import record
    from transformers import AutoTokenizer

    job, size = cell["job"], cell["rows_per_step"]
    torch.manual_seed(cell["seed"])
    tokenizer = AutoTokenizer.from_pretrained(cell["model"])
    rows, end = read(Path(cell["rows"])), tokenizer.eos_token_id
    model = bare_loop.load(cell["model"], job)
    learn: Any = bare_loop.sft_step
    if job == "grpo":
        prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
        steps = bare_loop.batches(prompts, len, max(1, size // 8), cell["seed"])

        def learn(model: Any, batch: Any, record: Any) -> None:
            def reward(ids: list[int]) -> float:
                return brevity([tokenizer.decode(ids, skip_special_tokens=True)])[0]

            bare_loop.grpo_step(model, batch, record, reward, end, COMPLETION)

    elif job == "dpo":
        learn, pairs = bare_loop.dpo_step, [pair_ids(tokenizer, row) for row in rows]
        steps = bare_loop.batches(pairs, lambda pair: max(len(p) + len(a) for p, a in pair), size, cell["seed"])
    else:
        tokens = [row_ids(tokenizer, row) for row in rows]
        steps = bare_loop.batches(tokens, lambda row: len(row[0]) + len(row[1]), size, cell["seed"])
    bare_loop.train(model, steps, learn, RATES[job], record)
    model.save_pretrained(cell["out"])
    record.write()


def row_ids(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the token ids of a prompt and of its completion with the end token."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    return prompt, tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id]


def pair_ids(tokenizer: Any, row: dict[str, Any]) -> tuple[Any, Any]:
    """Return the chosen and the rejected row of a pair."""
    asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
    said = [tokenizer(row[name][0]["content"])["input_ids"] for name in ("chosen", "rejected")]
    return (asked, said[0] + [tokenizer.eos_token_id]), (asked, said[1] + [tokenizer.eos_token_id])


def answer(cell: dict[str, Any]) -> None:
    """Answer prompts greedily with `generate`: one after the other, or `cell["settings"]["at_once"]` of like length."""
    import torch
    from sitecustomize import record
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cell["model"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(cell["model"], dtype=torch.float32).eval()
    prompts = [row["prompt"] for row in read(Path(cell["rows"]))]
    size = cell["settings"]["at_once"]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i])) if size > 1 else list(range(len(prompts)))
    answers = [""] * len(prompts)
    record.begins()
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True)
        with torch.no_grad():
            out = model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS)
        texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text
    record.found["answers"] = answers
    record.count(len(prompts), sum(len(tokenizer(text)["input_ids"]) for text in answers), 0)
    record.step()


if __name__ == "__main__":
    the_cell = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    {"trl_best": trl_best, "bare": bare, "answer": answer}[the_cell["runs"]](the_cell)
