"""How `speed.py` and `scaling.py` run what they measure: a cell is a process, started as its users start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from speed_cells import COMPLETION, NEW_TOKENS, RATES, TARGET

HERE, BIN = Path(__file__).parent, Path(sys.executable).parent
LIMIT_SECONDS = 420
"""A cell that takes longer is ended, and counts with the steps that it took."""


@dataclass(frozen=True)
class Cell:
    """One process: a job in a column."""

    job: str
    column: str
    model: str
    rows: str
    out: str
    rows_per_step: int
    seed: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> str:
        """Return the function of `speed_cells.py` that this cell is; empty for a command line."""
        if self.column == "llmkit":
            return ""
        if self.job == "evaluate":
            return "answer"
        return {"default": "", "best": "trl_best"}.get(self.column, "bare")

    def command(self, folder: Path) -> list[str]:
        """Return the command line; its files go to `folder`."""
        if self.runs:
            spec = folder / f"{self.job}-{self.column}.json"
            spec.write_text(json.dumps({**asdict(self), "runs": self.runs}), encoding="utf-8")
            return [sys.executable, str(HERE / "speed_cells.py"), str(spec)]
        if self.column == "llmkit":
            recipe = str(recipe_file(self, folder))
            return [
                str(BIN / "llmkit"),
                *(["eval", recipe] if self.job == "evaluate" else ["run", recipe, "--out", self.out]),
            ]
        return [str(BIN / "trl"), *self._trl_arguments()]

    def _trl_arguments(self) -> list[str]:
        verb = self.job if self.job in ("dpo", "grpo") else "sft"
        said = (
            f"{verb} --model_name_or_path {self.model} --dataset_name {Path(self.rows).parent} --output_dir {self.out}"
        )
        lora = " --use_peft --lora_r 16 --lora_target_modules all-linear" if self.job != "full" else ""
        bits = " --load_in_4bit" if self.job == "nf4" else ""
        grpo = f" --reward_funcs speed_cells.brevity --max_completion_length {COMPLETION}" if verb == "grpo" else ""
        return f"{said} --max_steps 2 --use_cpu{lora}{bits}{grpo}".split()


def recipe_file(cell: Cell, folder: Path) -> Path:
    """Write the recipe of a job, in which nothing is set that the planner chooses."""
    rows = [{"path": cell.rows}]
    recipe: dict[str, Any] = {"model": {"name": cell.model}, "data": {"train": rows}, "method": {"type": "sft"}}
    if cell.job == "evaluate":
        # The rows to answer are not those to learn from, which a recipe has to have.
        recipe["data"] = {"train": [{"path": str(Path(cell.rows).parents[1] / "lora" / "train.jsonl")}], "eval": rows}
        recipe["evaluation"] = [{"type": "generate", "max_new_tokens": NEW_TOKENS}]
    else:
        schedule = {"lr_scheduler_type": "constant", "num_train_epochs": 1, "seed": cell.seed}
        recipe["training"] = {"learning_rate": RATES[cell.job], **schedule}
    if cell.job not in ("full", "evaluate"):
        recipe["adapter"] = {"type": "lora", "r": 16, "lora_alpha": 32}
    if cell.job == "nf4":
        recipe["quantization"] = {"type": "nf4"}
    if cell.job in ("dpo", "grpo"):
        recipe["method"] = {"type": cell.job}
    if cell.job == "grpo":
        recipe["rewards"] = [{"type": "length", "target": TARGET, "tolerance": TARGET}]
        recipe["training"] |= {"num_generations": 8, "max_completion_length": COMPLETION}
    path = folder / f"{cell.job}.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Bench:
    """Where cells are run: a folder for their files, and the environment of their processes."""

    folder: Path
    quick: bool = False
    """On a busy machine threads that spin while they wait make each other many times slower: one, then."""

    def environment(self) -> dict[str, str]:
        """Return what a user's shell has, with caches of its own: nobody's rows are prepared already."""
        mine = {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
        users = {name: value for name, value in os.environ.items() if name not in mine}
        caches = {"LLMKIT_CACHE": str(self.folder / "cache"), "HF_DATASETS_CACHE": str(self.folder / "datasets")}
        waiting = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"} if self.quick else {}
        paths = f"{HERE / 'probe'}{os.pathsep}{HERE}"
        return {**users, **caches, **waiting, "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}

    def watched(self, name: str, command: list[str], profile: Path | None = None) -> dict[str, Any]:
        """Run a command line with the probe; return its figures. Exits with what it said where it failed."""
        record, said = self.folder / f"{name}-record.json", self.folder / f"{name}.log"
        record.unlink(missing_ok=True)
        extra = {"SPEED_PROFILE": str(profile)} if profile else {}
        with said.open("w") as log:
            env = {**self.environment(), **extra, "SPEED_RECORD": str(record), "SPEED_STARTED": repr(time.time())}
            process = subprocess.Popen(command, env=env, cwd=HERE, stdout=log, stderr=log, start_new_session=True)
            try:
                code: int | None = process.wait(LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                code = None
        if code or not record.is_file():
            sys.exit(f"{' '.join(command)}\n{said.read_text()[-4000:]}")
        found = figures_of(json.loads(record.read_text(encoding="utf-8")))
        shown = {key: value for key, value in found.items() if key != "answers"}
        print(f"{name}: {json.dumps(shown)}", file=sys.stderr)
        return {**found, "cut_off": code is None}

    def run(self, cell: Cell, profile: Path | None = None) -> dict[str, Any]:
        """Run a cell; return its figures."""
        name = f"{cell.job}-{cell.column}".replace(", ", "-").replace(" ", "-")
        return self.watched(name, cell.command(self.folder), profile)

    def ask(self, what: str, *rest: str) -> dict[str, Any]:
        """Run `speed_judge.py` with the user's own cache, and return what it prints."""
        env = {**self.environment(), "LLMKIT_CACHE": os.environ.get("LLMKIT_CACHE", "")}
        command = [sys.executable, str(HERE / "speed_judge.py"), what, *rest]
        done = subprocess.run(command, env=env, cwd=HERE, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def figures_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return a cell's figures from what its process recorded."""
    steps = record["steps"]
    # Answers are one step; of a training, the first is left out.
    ends = [record["begins"]] * (len(steps) == 1) + [step["ends"] for step in steps]
    timed = list(zip(steps[-(len(ends) - 1) :], (late - early for early, late in pairwise(ends)), strict=True))
    tokens = sum(step["tokens"] for step in steps)
    if not tokens:
        sys.exit("the probe has counted no tokens: the model is no longer called as a whole")
    return {
        "tokens_per_second": median(step["tokens"] / seconds for step, seconds in timed),
        "rows_per_second": median(step["rows"] / seconds for step, seconds in timed),
        "steps": len(steps),
        "tokens": tokens,
        "tokens_timed": sum(step["tokens"] for step, _ in timed),
        "seconds_timed": sum(seconds for _, seconds in timed),
        "padding": sum(step["computed"] for step in steps) / tokens or None,
        "peak_bytes": record["peak"],
        "peak_bytes_training": record.get("peak_trained", record["peak"]),
        "seconds_to_begin": record["begins"],
        "seconds_to_first_step": steps[0]["ends"],
        "seconds_in_all": record["ends"],
        "threads": record["threads"],
        "reward": mean(record["rewards"]) if record["rewards"] else None,
        "answers": record.get("answers"),
    }
