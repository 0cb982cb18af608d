"""What `speed.py` says of a job's cells that is not their own word: the ceiling, what is needed, held-out losses.

    python benchmarks/speed_judge.py rows FOLDER COUNTS tiny|real    writes the rows
    python benchmarks/speed_judge.py plan RECIPE                    what llmkit's planner chooses
    python benchmarks/speed_judge.py ceiling                        the fastest matrix products just now
    python benchmarks/speed_judge.py loss QUESTION                  FLOPs per token, held-out losses

Each prints one line of JSON, and is a process of its own: nothing of it counts to a cell's time or memory.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from speed_cells import COMPLETION, NEW_TOKENS, pair_ids, read, row_ids
from speed_rows import write_rows

CHOSEN = (
    "hardware.threads",
    "model.dtype",
    "model.attn_implementation",
    "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps",
    "training.gradient_checkpointing",
    "training.packing",
    "training.padding_free",
    "training.train_sampling_strategy",
    "training.bf16",
    "training.optim",
    "model.compile",
)
"""What is kept of the plan."""


def ceiling() -> float:
    """Return the FLOP/s of float32 matrix products; the median of three measurements."""
    import torch

    from llmkit.model.ceiling import gemm_ceiling

    return sorted(gemm_ceiling("cpu", torch.float32) for _ in range(3))[1]


def chosen(recipe: str) -> dict[str, Any]:
    """Return what the planner chooses for the recipe, and the rows of a step that follow from it."""
    import llmkit

    the_recipe = llmkit.load_recipe(recipe)
    plan = llmkit.plan(the_recipe)
    values = {key: plan.get(key) for key in CHOSEN if plan.get(key) is not None}
    sequences = plan["training.per_device_train_batch_size"] * plan["training.gradient_accumulation_steps"]
    length = the_recipe.training.kwargs().get("max_length") or plan.get("training.max_length") or 1024
    tokens = sequences * length if plan.get("training.packing") else None
    return {"plan": values, "sequences": sequences, "tokens_per_step": tokens}


def judged(question: dict[str, Any]) -> dict[str, Any]:
    """Return the FLOPs of a real token, and the held-out loss of the base and of each saved model."""
    import torch
    from bare_loop import answer_sums, load, log_probs
    from transformers import AutoTokenizer

    from llmkit.model.matrices import matrices_of

    job = question["job"]
    found: dict[str, Any] = {}
    model = load(question["model"], "full" if job == "evaluate" else job)
    found["flops_per_token"] = _flops_per_token(matrices_of(model), job, question["lengths"])
    if job in ("grpo", "evaluate"):
        return found
    tokenizer = AutoTokenizer.from_pretrained(question["model"])
    rows = read(Path(question["held_out"]))
    model.eval()

    def sft(model: Any, tokens: list[Any]) -> float:
        scores = [log_probs(model, tokens[start : start + 8])[0] for start in range(0, len(tokens), 8)]
        return -float(torch.cat(scores).mean())

    def dpo(model: Any, tokens: list[Any]) -> float:
        flat = [row for pair in tokens for row in pair]
        with model.disable_adapter():
            before = answer_sums(model, flat)
        gain = (answer_sums(model, flat) - before).view(-1, 2)
        return float(-torch.nn.functional.logsigmoid(0.1 * (gain[:, 0] - gain[:, 1])).mean())

    measure, ids = (dpo, pair_ids) if job == "dpo" else (sft, row_ids)
    tokens = sorted((ids(tokenizer, row) for row in rows), key=lambda row: len(str(row)))
    losses = {}
    with torch.no_grad():
        losses["base"] = math.log(2) if job == "dpo" else measure(model, tokens)
        for name, place in question["saved"].items():
            losses[name] = measure(_with_saved(model, place, job), tokens)
    return {**found, "losses": losses}


def _with_saved(model: Any, place: str, job: str) -> Any:
    """Return the model with the saved adapter in place of its own, or with the saved weights."""
    from peft import load_peft_weights, set_peft_model_state_dict
    from safetensors.torch import load_file

    if job == "full":
        weights: dict[str, Any] = {}
        for file in sorted(Path(place).glob("model*.safetensors")):
            weights |= load_file(file)
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected, unexpected
        assert set(missing) <= {"lm_head.weight"}, missing
        return model
    report = set_peft_model_state_dict(model, load_peft_weights(place))
    assert not report.unexpected_keys, report.unexpected_keys
    return model


def _flops_per_token(matrices: Any, job: str, lengths: list[tuple[int, int]]) -> float:
    """Return what a job needs per real token (of answers: per token answered), over rows of (tokens, scored tokens).

    Sampled answers count as long as they may be; those of the base seldom end before.
    """
    from llmkit.planning.speed import causal_pairs, needed_flops

    new = {"grpo": COMPLETION, "evaluate": NEW_TOKENS}.get(job)
    if new is not None:
        lengths = [(prompt + new, new) for prompt, _ in lengths]
    totals, scored = [tokens for tokens, _ in lengths], sum(scored for _, scored in lengths)
    size = {"tokens": sum(totals), "scored": scored, "pairs": causal_pairs(totals)}
    flops = 0.0 if job == "evaluate" else needed_flops(matrices, **size)
    if job == "dpo":
        flops += needed_flops(matrices.reference, learn=False, **size)
    if new is not None:
        flops += needed_flops(matrices, learn=False, **size)
    return flops / (scored if job == "evaluate" else sum(totals))


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "rows":
        said: Any = write_rows(Path(rest[0]), json.loads(rest[1]), tiny=rest[2] == "tiny")
    elif what == "ceiling":
        said = {"ceiling": ceiling()}
    elif what == "plan":
        said = chosen(rest[0])
    else:
        said = judged(json.loads(Path(rest[0]).read_text(encoding="utf-8")))
    print(json.dumps(said))
