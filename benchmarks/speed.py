"""Speed and memory beside TRL's and a bare PyTorch loop's: one table; each job's columns are of one run.

    python benchmarks/speed.py                                       everything; kept in results/speed.json
    python benchmarks/speed.py --jobs nf4                            a job again, in the place of what was kept of it
    python benchmarks/speed.py --columns best,llmkit                 a part; left in results/speed_part.json
    python benchmarks/speed.py --profile                             and what llmkit's step spends its time on
    python benchmarks/speed.py --tune lora                           TRL's settings that were tried, side by side
    python benchmarks/speed.py --quick                               a tiny model, a few rows: only that it works

Each cell is a process, started as its users start it, one after the other; the order of the columns changes from job to
job. All columns of a job but `default` train the same rows once, in the same rows per optimizer step (those that
llmkit's planner chose), at the same constant learning rate; `default` takes 2 steps of its own, since it is slow, and
its figures rest on the second alone. The figures of the others are medians over all steps but the first, and over the
rounds of the job (see ROUNDS): the machine's own speed changes, so no column may have all the good moments.

    default   `trl sft`, `trl dpo`, `trl grpo` with the model, the rows, the LoRA flags, `--max_steps 2` and
              `--use_cpu`. TRL turns bf16 autocast on, which CPUs without bf16 units emulate, and recomputes
              activations; its launcher (accelerate) sets OMP_NUM_THREADS=1. That is what its users get.
    best      TRL at the settings that were found by hand: see BEST
    bare      `bare_loop.py`; a second seed of it says how far held-out losses differ by chance
    llmkit    `llmkit run` with a recipe that leaves the planner to choose

For the job `evaluate` (greedy answers to prompts), `default` calls `generate` row by row, and `best` in batches of like
length. Held-out losses are computed by one function (`speed_judge.py`), on completions alone.

TRL's settings tried by hand (`--tune lora`, relative to `grouped`): see TRIED.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import mean, median
from typing import Any

from figures import RESULTS, keep
from rich.console import Console
from rich.table import Table
from speed_run import Bench, Cell, recipe_file

COLUMNS = ("default", "best", "bare", "llmkit")
ROWS = {"lora": 64, "full": 32, "nf4": 32, "dpo": 16, "grpo": 12, "evaluate": 16}
"""Rows (pairs, prompts) of each job: what fits into an hour and a half on two cores that train 150 tokens/s."""
QUICK = {"lora": 16, "full": 16, "nf4": 16, "dpo": 16, "grpo": 8, "evaluate": 4}

ROUNDS = {"lora": 3, "nf4": 3, "grpo": 3, "evaluate": 3}
"""How often a job's columns are measured, in turns, where not once; `default` and the second seed always once."""

EAGER = {"model_init_kwargs": {"attn_implementation": "eager"}}
GROUPED = {"train_sampling_strategy": "group_by_length"}
BEST: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("lora", "full", "nf4"), GROUPED | {"per_device_train_batch_size": 4}),
    "dpo": {"per_device_train_batch_size": 4},
    "grpo": {},
    "evaluate": {"at_once": 16},
}
"""TRL's settings beside float32 without autocast, no checkpointing, and 8 rows at once where nothing is said."""

TRIED: dict[str, dict[str, Any]] = {
    "grouped": GROUPED,
    "random": {},
    "padding_free": {"padding_free": True, "max_length": None},
    "packed": {"packing": True, "max_length": 512, "per_device_train_batch_size": 2},
    "grouped, batch 4": GROUPED | {"per_device_train_batch_size": 4},
    "grouped, batch 2": GROUPED | {"per_device_train_batch_size": 2},
    "grouped, eager": GROUPED | EAGER,
    "grouped, batch 4, eager": GROUPED | EAGER | {"per_device_train_batch_size": 4},
    "padding_free, batch 4": {"padding_free": True, "max_length": None, "per_device_train_batch_size": 4},
}
"""What was tried for LoRA (2026-11-22, tokens/s): grouped 100, random 76, padding_free 96, packed 98, grouped with
batches of 4 141 and 78 in two runs and of 2 105, eager 119, eager with batches of 4 138, padding_free with 4 rows 137.

The machine's own speed changed by a factor of up to 1.8 between the runs; so smaller batches without padding are best,
and which of them is not told.
"""

ONCE = ("default", "bare, seed 2")
SEEDED = ("lora", "dpo")
"""Jobs with a second seed; what it shows for `lora` counts for the other two that learn the same way."""

PART = RESULTS / "speed_part.json"
"""What has been measured so far, and what a run of some jobs or columns has shown."""

FASTER = {
    ("lora", "default"): 5.0,
    ("lora", "best"): 1.5,
    ("full", "default"): 3.0,
    ("nf4", "default"): 4.0,
    ("dpo", "default"): 3.0,
    ("grpo", "default"): 3.0,
    ("evaluate", "default"): 3.0,
}
"""llmkit's speed over a column's, at least; GRPO's by completions, the others' by real tokens."""
CEILING = {"lora": 0.55}
"""Share of the measured ceiling, at least."""
SAME_ANSWERS = 0.8
"""Share of greedy answers that are those of row by row, at least: rounding makes other words of near ties."""
CHANCE = 0.01
"""Held-out losses that differ by less are equal, in nats; or by twice what a second seed makes."""


def measure_job(job: str, columns: list[str], index: dict[str, Any], bench: Bench, turn: int) -> dict[str, Any]:
    """Run the cells of a job in an order of its own; return them with ceiling, plan and held-out losses."""
    # Beside the rows and not among them: TRL reads a whole folder as data.
    place, lengths = bench.folder / "out" / job, index["lengths"][job]
    rows = str(rows_of(job, bench.folder))
    plan = bench.ask("plan", str(recipe_file(Cell(job, "llmkit", index["model"], rows, "", 8), bench.folder)))
    per_step = plan["sequences"]
    if plan["tokens_per_step"]:  # packed: as many rows as fill the sequences
        per_step = max(1, round(plan["tokens_per_step"] / mean(tokens for tokens, _ in lengths)))
    # No more than there are: a prompt of GRPO is 8 rows.
    per_step = min(per_step, len(lengths) * (8 if job == "grpo" else 1))
    measured: dict[str, list[dict[str, Any]]] = {}
    saved = {}
    ceilings = [bench.ask("ceiling")["ceiling"]]
    for round_ in range(1 if bench.quick else ROUNDS.get(job, 1)):
        for column in _order(job, columns, turn + round_):
            if round_ and column in ONCE:
                continue
            settings = {"at_once": 1} if job == "evaluate" and column == "default" else BEST[job]
            out = str(place / column.replace(", ", "-").replace(" ", "-"))
            shutil.rmtree(out, ignore_errors=True)
            seed = 2 if column.endswith("seed 2") else 1
            found = bench.run(Cell(job, column, index["model"], rows, out, per_step, seed, settings))
            ceilings.append(bench.ask("ceiling")["ceiling"])
            measured.setdefault(column, []).append({**found, "ceiling_flops": mean(ceilings[-2:])})
            if column != "default":
                saved[column] = f"{out}/model" if column == "llmkit" else out
    held_out = bench.folder / "held_out" / ("dpo.jsonl" if job == "dpo" else "sft.jsonl")
    question = {"job": job, "model": index["model"], "lengths": lengths, "saved": saved, "held_out": str(held_out)}
    asked = bench.folder / "question.json"
    asked.write_text(json.dumps(question), encoding="utf-8")
    judged = bench.ask("loss", str(asked))
    for out in saved.values():
        shutil.rmtree(out, ignore_errors=True)
    return _joined({column: middle(found) for column, found in measured.items()}, plan, judged, per_step)


def rows_of(job: str, folder: Path) -> Path:
    """Return the file of a job's rows."""
    return folder / job / ("test.jsonl" if job == "evaluate" else "train.jsonl")


def _order(job: str, columns: list[str], turn: int) -> list[str]:
    """Return the columns of a job, beginning with another one each time; the second seed comes last."""
    order = columns[turn % len(columns) :] + columns[: turn % len(columns)]
    if job == "evaluate":
        return [column for column in order if column != "bare"]  # `best` is as bare as it gets
    return [*order, "bare, seed 2"] if "bare" in order and job in SEEDED else order


def middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure over a column's rounds, and the speeds of all of them."""
    first = rounds[0]
    found = {
        key: median(one[key] for one in rounds) if isinstance(value, float) else value for key, value in first.items()
    }
    found["peak_bytes"] = max(one["peak_bytes"] for one in rounds)
    return {**found, "tokens_per_second_by_round": [one["tokens_per_second"] for one in rounds]}


def _joined(cells: dict[str, Any], plan: dict[str, Any], judged: dict[str, Any], per_step: int) -> dict[str, Any]:
    ceiling = median(found["ceiling_flops"] for found in cells.values())
    for column, found in cells.items():
        found["share_of_ceiling"] = found["tokens_per_second"] * judged["flops_per_token"] / found["ceiling_flops"]
        found["held_out_loss"] = judged.get("losses", {}).get(column)
    answers = {column: found.pop("answers") for column, found in cells.items()}
    reference = answers.get("default")
    for column, texts in answers.items():
        if texts and reference:
            same = [a.strip() == b.strip() for a, b in zip(texts, reference, strict=True)]
            cells[column]["same_answers"] = sum(same) / len(same)
    return {
        "columns": cells,
        "plan": plan["plan"],
        "rows_per_step": per_step,
        "ceiling_flops": ceiling,
        "ceiling_tokens_per_second": ceiling / judged["flops_per_token"],
        "base_loss": judged.get("losses", {}).get("base"),
    }


# --- What is to be reached -----------------------------------------------------------------------------------------


def bounds(job: str, found: dict[str, Any], chance: float) -> list[dict[str, Any]]:
    """Return each bound of a job that can be told from its columns: what, found, limit, held."""
    cells = found["columns"]
    ours = cells.get("llmkit")
    if ours is None:
        return []
    checked = []

    def check(what: str, value: float, limit: float, *, least: bool = False) -> None:
        held = value >= limit if least else value <= limit
        checked.append({"bound": f"{job}: {what}", "found": value, "limit": limit, "held": held})

    rate = "rows_per_second" if job == "grpo" else "tokens_per_second"
    for column in [name for name in ("default", "best") if name in cells]:
        theirs = cells[column]
        if (job, column) in FASTER:
            check(f"speed, times {column}", ours[rate] / theirs[rate], FASTER[job, column], least=True)
        if job != "evaluate":  # where TRL is not what is compared with
            check(f"peak memory over {column}'s", ours["peak_bytes"] / theirs["peak_bytes"], 1.0)
            seconds = ours["seconds_to_first_step"] / theirs["seconds_to_first_step"]
            check(f"seconds to the first step over {column}'s", seconds, 1.0)
    if job in CEILING:
        check("share of the ceiling", ours["share_of_ceiling"], CEILING[job], least=True)
    if ours.get("same_answers") is not None:
        check("answers equal to row by row", ours["same_answers"], SAME_ANSWERS, least=True)
    for column in [name for name in ("best", "bare") if name in cells and ours["held_out_loss"] is not None]:
        apart = abs(ours["held_out_loss"] - cells[column]["held_out_loss"])
        check(f"held-out loss apart from {column}'s", apart, chance)
    return checked


def chance_of(job: str, found: dict[str, Any]) -> float:
    """Return how far two held-out losses may be apart: twice what a second seed made, and CHANCE at least."""
    cells = found.get(job if job in SEEDED else "lora", {"columns": {}})["columns"]
    if "bare, seed 2" not in cells:
        return CHANCE
    return max(CHANCE, 2 * abs(cells["bare"]["held_out_loss"] - cells["bare, seed 2"]["held_out_loss"]))


DEFAULT = "its bf16 autocast is emulated on CPUs without bf16 units, and its launcher sets one thread"
LINES = (
    ("real tokens/s", "tokens_per_second", "{:.0f}"),
    ("rows/s", "rows_per_second", "{:.2f}"),
    ("ceiling then, GFLOP/s", "ceiling_flops", "{:.0f}"),
    ("share of the ceiling", "share_of_ceiling", "{:.0%}"),
    ("tokens that this rests on", "tokens_timed", "{:,}"),
    ("computed per real token", "padding", "{:.2f}"),
    ("peak memory, GB", "peak_bytes", "{:.2f}"),
    ("s to the first step's begin", "seconds_to_begin", "{:.1f}"),
    ("s to the first step's end", "seconds_to_first_step", "{:.1f}"),
    ("held-out loss", "held_out_loss", "{:.4f}"),
    ("reward", "reward", "{:.2f}"),
    ("same answers", "same_answers", "{:.0%}"),
    ("threads", "threads", "{}"),
)


def print_job(job: str, found: dict[str, Any], console: Console) -> None:
    """Print the table of one job and its bounds."""
    cells = found["columns"]
    ceiling = found["ceiling_tokens_per_second"]
    grid = Table(title=f"{job}: {found['rows_per_step']} rows per step, ceiling {ceiling:.0f} real tokens/s")
    grid.add_column("")
    for column in cells:
        grid.add_column(column, justify="right")
    for heading, key, form in LINES:
        values = [cells[column].get(key) for column in cells]
        scale = 1e9 if key in ("peak_bytes", "ceiling_flops") else 1
        texts = ["–" if v is None else form.format(v / scale if scale > 1 else v) for v in values]
        if any(text != "–" for text in texts):
            grid.add_row(heading, *texts)
    console.print(grid)
    console.print(f"  default: {'generate, row by row' if job == 'evaluate' else DEFAULT}")
    if found["base_loss"] is not None:
        console.print(f"  held-out loss of the base: {found['base_loss']:.4f}")
    for bound in found["bounds"]:
        mark = "held  " if bound["held"] else "MISSED"
        console.print(f"  {mark} {bound['bound']}: {bound['found']:.3g} (bound {bound['limit']:.3g})")
    if found.get("bounded_by"):
        console.print(f"  llmkit's step: {found['bounded_by']}")


def rounded(found: Any) -> Any:
    """Return figures with 6 digits, which is more than is ever the same twice."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return float(f"{found:.6g}") if isinstance(found, float) else found


def profile_job(job: str, index: dict[str, Any], bench: Bench) -> str:
    """Profile llmkit's second step; keep the table beside the figures and return its first line."""
    kept, out = RESULTS / f"speed_profile_{job}.txt", str(bench.folder / "out" / job / "profiled")
    bench.run(Cell(job, "llmkit", index["model"], str(rows_of(job, bench.folder)), out, 8), kept)
    shutil.rmtree(out, ignore_errors=True)
    return f"{kept.read_text(encoding='utf-8').splitlines()[0]} (results/{kept.name})"


def tune(job: str, index: dict[str, Any], bench: Bench) -> None:
    """Print TRL's speed and memory at each of the settings of TRIED."""
    for name, settings in TRIED.items():
        rows, out = str(rows_of(job, bench.folder)), str(bench.folder / "tuned")
        found = bench.run(Cell(job, "best", index["model"], rows, out, 8, 1, settings))
        print(f"{name:20} {found['tokens_per_second']:7.1f} tokens/s {found['peak_bytes'] / 1e9:6.2f} GB")


def main() -> None:
    """Measure the chosen cells, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", default=",".join(ROWS))
    parser.add_argument("--columns", default=",".join(COLUMNS))
    for flag in ("--quick", "--profile"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--tune", metavar="JOB")
    asked = parser.parse_args()
    jobs, columns = asked.jobs.split(","), asked.columns.split(",")
    if set(jobs) - set(ROWS) or set(columns) - set(COLUMNS):
        parser.error(f"jobs are {', '.join(ROWS)}; columns are {', '.join(COLUMNS)}")
    found: dict[str, Any] = {}
    console = Console(width=140)
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="llmkit-speed-") as place:
        bench = Bench(Path(place), quick=asked.quick)
        counts, model = (QUICK, "tiny") if asked.quick else (ROWS, "real")
        index = bench.ask("rows", place, json.dumps(counts), model)
        if asked.tune:
            tune(asked.tune, index, bench)
            return
        for turn, job in enumerate(jobs):
            started, load = time.perf_counter(), os.getloadavg()[1]
            found[job] = measure_job(job, columns, index, bench, turn)
            found[job] |= {"date": str(date.today()), "seconds": round(time.perf_counter() - started), "load": load}
            if asked.profile and "llmkit" in columns:
                found[job]["bounded_by"] = profile_job(job, index, bench)
            found[job]["bounds"] = bounds(job, found[job], chance_of(job, kept_jobs() | found))
            print_job(job, found[job], console)
            PART.write_text(json.dumps(rounded(found), indent=2), encoding="utf-8")
    if set(columns) != set(COLUMNS) or asked.quick:
        return
    PART.unlink()
    kept = kept_jobs() | found
    passed = all(bound["held"] for one in kept.values() for bound in one["bounds"])
    keep("speed", rounded({"jobs": kept, "rows": index["source"]}), passed=passed, shown=True)


def kept_jobs() -> dict[str, Any]:
    """Return what was kept of each job, whose columns are all from one run; none where nothing was kept."""
    file = RESULTS / "speed.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["figures"]["jobs"] if file.is_file() else {}
    return found


if __name__ == "__main__":
    main()
