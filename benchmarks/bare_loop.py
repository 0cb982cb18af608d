"""What is left of training when nothing is general: a PyTorch loop over rows of like length, written by hand.

float32, fused AdamW, the LM head at trained positions only, no checkpointing; transformers gives the model, PEFT the
adapter, bitsandbytes the 4-bit weights. It logs nothing, checks nothing, can't be resumed, and is the yardstick for
what llmkit costs beyond the arithmetic.
"""

# ruff: noqa: TID253
from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy, logsigmoid

Row = tuple[list[int], list[int]]
"""Token ids of a prompt and of what follows it; the latter are trained."""


def load(path: str, kind: str) -> Any:
    """Load the model for full training, with a LoRA adapter, or with one on 4-bit weights (`kind` is the job)."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {}
    if kind == "nf4":
        quantized = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        options = {"quantization_config": quantized, "device_map": {"": "cpu"}}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    if kind != "full":
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    return model.train()


def batches(rows: list[Any], length: Callable[[Any], int], size: int, seed: int) -> Iterator[list[Any]]:
    """Yield rows of like length, `size` at a time, the batches in random order."""
    ordered = sorted(rows, key=length)
    found = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    random.Random(seed).shuffle(found)
    yield from found


def log_probs(model: Any, rows: list[Row], record: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of each trained token, and the row that it belongs to; both of shape (N,)."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids_BT, mask_BT, trained_BT = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids_BT[i, :end] = torch.tensor(prompt + answer)
        mask_BT[i, :end] = 1
        trained_BT[i, len(prompt) : end] = 1
    if record is not None:
        record.count(len(rows), int(mask_BT.sum()), mask_BT.numel())
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden_BTD = bare.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
    scored_BT = trained_BT[:, 1:].bool()
    logits_NV = bare.lm_head(hidden_BTD[:, :-1][scored_BT])
    return -cross_entropy(logits_NV, ids_BT[:, 1:][scored_BT], reduction="none"), scored_BT.nonzero()[:, 0]


def answer_sums(model: Any, rows: list[Row], record: Any = None) -> torch.Tensor:
    """Return the log-probability of each row's answer, shape (B,)."""
    found_N, row_N = log_probs(model, rows, record)
    return torch.zeros(len(rows)).index_add(0, row_N, found_N)


def sft_step(model: Any, rows: list[Row], record: Any) -> None:
    """Add up the gradients of the mean loss of the trained tokens."""
    total = sum(len(answer) for _, answer in rows)
    for part in chunks(rows):
        (-log_probs(model, part, record)[0].sum() / total).backward()


def dpo_step(model: Any, pairs: list[tuple[Row, Row]], record: Any, beta: float = 0.1) -> None:
    """Add up the gradients of DPO's loss of (chosen, rejected) rows; the reference is the base below the adapter."""
    for part in chunks(pairs):
        rows = [chosen for chosen, _ in part] + [rejected for _, rejected in part]
        with torch.no_grad(), model.disable_adapter():
            before_B = answer_sums(model, rows)
        better, worse = (answer_sums(model, rows, record) - before_B).chunk(2)
        (-logsigmoid(beta * (better - worse)).sum() / len(pairs)).backward()


def grpo_step(
    model: Any, prompts: list[list[int]], record: Any, reward: Callable[[list[int]], float], end: int, longest: int
) -> None:
    """Sample 8 answers to each prompt; add up the gradients of GRPO's loss, on policy and without a KL term."""
    asked = [prompt for prompt in prompts for _ in range(8)]
    width = max(map(len, asked))
    ids_BT = torch.tensor([[end] * (width - len(p)) + p for p in asked])
    mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in asked])
    with torch.no_grad():
        drawn_BT = model.eval().generate(
            input_ids=ids_BT, attention_mask=mask_BT, do_sample=True, top_k=0, max_new_tokens=longest, pad_token_id=end
        )
    model.train()
    answers = [ids[: ids.index(end) + 1] if end in ids else ids for ids in drawn_BT[:, width:].tolist()]
    rewards_G8 = torch.tensor([reward(ids) for ids in answers]).view(-1, 8)
    record.found["rewards"].append(float(rewards_G8.mean()))
    gain_B = ((rewards_G8 - rewards_G8.mean(1, True)) / (rewards_G8.std(1, keepdim=True) + 1e-4)).flatten()
    total = sum(map(len, answers))
    for part in chunks(list(zip(asked, answers, gain_B, strict=True))):
        found_N, row_N = log_probs(model, [(prompt, answer) for prompt, answer, _ in part], record)
        gain_N = torch.stack([gain for *_, gain in part])[row_N]
        (-(gain_N * (found_N - found_N.detach()).exp()).sum() / total).backward()


def chunks(rows: list[Any], size: int = 8) -> Iterator[list[Any]]:
    """Yield as many rows as go through the model at once."""
    yield from (rows[start : start + size] for start in range(0, len(rows), size))


def train(model: Any, steps: Iterator[list[Any]], learn: Callable[..., None], rate: float, record: Any) -> None:
    """Take one optimizer step per batch, with TRL's defaults: gradients clipped at 1, no weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
    for batch in steps:
        record.begins()
        learn(model, batch, record)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        record.step()
