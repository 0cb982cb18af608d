"""What the benchmarks share: a run of a recipe with its figures, and the file that keeps them."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

import llmkit
from llmkit.planning.hardware import probe
from llmkit.runs.folder import environment
from llmkit.runs.progress import Narrator

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
PAIRS = ROOT.parent / "shared" / "data" / "lf_dpo_kto" / "dpo_en_demo.json"
"""300 pairs in English that LLaMA-Factory ships (Apache-2.0); its place beside the checkout, never a copy in it."""


def run(recipe: str, *overrides: str, name: str) -> dict[str, Any]:
    """Run a shipped recipe with overrides in a temporary folder; return its folder, scores, metrics and seconds."""
    console = Console(file=sys.stderr, soft_wrap=True)
    folder = Path(tempfile.mkdtemp(prefix=f"llmkit-{name}-")) / "run"
    started = time.perf_counter()
    result = llmkit.run(
        llmkit.load_recipe(ROOT / "recipes" / f"{recipe}.yaml", overrides), out=folder, narrator=Narrator(console)
    )
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "folder": folder,
        "seconds": round(time.perf_counter() - started),
        "base": {key: value for score in result.base for key, value in score.metrics.items()},
        "tuned": {key: value for score in result.tuned for key, value in score.metrics.items()},
        "metrics": [json.loads(line) for line in lines],
    }


def ends(metrics: list[dict[str, Any]], key: str, steps: int = 5) -> tuple[float, float]:
    """Return the mean of `key` over the first and over the last `steps` logged steps."""
    values = [entry[key] for entry in metrics if entry.get(key) is not None]
    return mean(values[:steps]), mean(values[-steps:])


def keep(name: str, figures: dict[str, Any], *, passed: bool, shown: bool = False) -> None:
    """Print the figures and keep them in `benchmarks/results/NAME.json`; exits with 1 where the bound was missed.

    `shown` are figures that a table has shown already.
    """
    found = {
        "benchmark": name,
        "passed": passed,
        "figures": figures,
        "date": str(date.today()),
        "machine": f"{probe('cpu').summary}, {platform.machine()}",
        **{key: environment()[key] for key in ("packages", "git")},
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(found, indent=2, default=str) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    if not shown:
        print(json.dumps(figures, indent=2, default=str))
    print("passed" if passed else "MISSED")
    if not passed:
        sys.exit(1)
