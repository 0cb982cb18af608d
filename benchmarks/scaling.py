"""Cost as the work grows: tokens/s and bytes of llmkit's training step by length, batch, rank and model size.

    python benchmarks/scaling.py            the table, results/scaling.json and results/scaling.png; under 10 minutes
    python benchmarks/scaling.py --quick    short rows and small steps: that it works

Each point is a `llmkit run` of two or three steps in a process of its own, LoRA on random weights in SmolLM2's shapes
(its width and vocabulary, 6 of its 30 layers where depth is not what grows), on made rows of exactly the length, a
quarter of each trained. What else a step does (batch aside) the planner chooses, and recomputing activations is off.

Bound: memory grows linearly with length. A line through the peaks is off by at most LINEAR of any of them, and its
slope in the upper half of the lengths is at most STEEPER times that in the lower half; what grows with the square of
the length (attention's scores, if they were kept) would double it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from figures import RESULTS, keep
from speed_rows import demo_tokenizer, write_model
from speed_run import BIN, Bench

LINEAR, STEEPER = 0.05, 1.3


@dataclass(frozen=True)
class Point:
    """One training step: what grows, and what else is as it is."""

    length: int = 512
    batch: int = 2
    rank: int = 16
    layers: int = 6
    width: int = 576


LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
START = Point()
SERIES: dict[str, list[Point]] = {
    "length": [Point(length=length, batch=1) for length in LENGTHS],
    "batch": [Point(length=256, batch=batch) for batch in (1, 2, 4, 8, 16)],
    "rank": [Point(rank=rank) for rank in (4, 16, 64, 256)],
    "layers": [Point(layers=layers) for layers in (3, 6, 12, 24)],
    "width": [Point(width=width) for width in (288, 576, 1152)],
}


def build(folder: Path, points: list[Point]) -> None:
    """Write a model of random weights for each shape, with SmolLM2's tokenizer, and the rows for each length."""
    tokenizer = demo_tokenizer()
    for layers, width in {(point.layers, point.width) for point in points}:
        write_model(folder / f"model-{layers}-{width}", tokenizer, layers=layers, width=width)
    words = sorted(word[1:] for word in tokenizer.get_vocab() if word.startswith("Ġ") and word[1:].isalpha())
    words = [word for word in words if len(tokenizer(f" {word}")["input_ids"]) == 1]
    for length in {point.length for point in points}:
        write_rows(folder / f"{length}.jsonl", words, length, 48)


def write_rows(path: Path, words: list[str], length: int, count: int) -> None:
    """Write rows of exactly `length` tokens with their end token: each word is one token."""
    draw, lines = random.Random(length), []
    for _ in range(count):
        row = [f" {word}" for word in draw.choices(words, k=length - 1)]
        asked = length * 3 // 4
        lines.append(json.dumps({"prompt": "".join(row[:asked]), "completion": "".join(row[asked:])}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def measure(point: Point, bench: Bench) -> dict[str, Any]:
    """Train two or three steps at `point`; return its figures."""
    folder = bench.folder
    steps = 2 if point.length * point.batch > 2048 else 3
    recipe = {
        "model": {"name": str(folder / f"model-{point.layers}-{point.width}")},
        "adapter": {"type": "lora", "r": point.rank},
        # Random words trip the checks of texts, and rows of words are not what is measured here.
        "data": {"train": [{"path": str(folder / f"{point.length}.jsonl")}]},
        "method": {"type": "sft"},
        "training": {
            "per_device_train_batch_size": point.batch,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
            "max_length": point.length,
            "max_steps": steps,
            "save_strategy": "no",
        },
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    out = folder / "run"
    found = bench.watched("point", [str(BIN / "llmkit"), "run", str(folder / "recipe.yaml"), "--out", str(out)])
    shutil.rmtree(out)
    if abs(found["tokens"] / (steps * point.batch * point.length) - 1) > 0.02:
        sys.exit(f"{point}: {found['tokens']} tokens in {steps} steps")
    kept = {key: found[key] for key in ("tokens_per_second", "peak_bytes", "peak_bytes_training", "steps")}
    return {**asdict(point), **kept}


def line(lengths: list[int], values: list[int]) -> tuple[float, float]:
    """Return start and slope of the least-squares line through the values."""
    middle, average = sum(lengths) / len(lengths), sum(values) / len(values)
    slope = sum((x - middle) * (y - average) for x, y in zip(lengths, values, strict=True))
    slope /= sum((x - middle) ** 2 for x in lengths)
    return average - slope * middle, slope


def growth(found: list[dict[str, Any]]) -> dict[str, float]:
    """Return how memory grows with length: the line, how far a peak is from it, and how the slope changes."""
    lengths, peaks = [one["length"] for one in found], [one["peak_bytes"] for one in found]
    start, slope = line(lengths, peaks)
    off = max(abs(start + slope * x - y) / y for x, y in zip(lengths, peaks, strict=True))
    half = len(lengths) // 2
    lower, upper = (line(lengths[part], peaks[part])[1] for part in (slice(0, half + 1), slice(half, None)))
    return {"bytes_at_0": start, "bytes_per_token": slope, "off_the_line": off, "upper_over_lower_slope": upper / lower}


def draw(series: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw tokens/s and memory of each series."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, len(series), figsize=(4 * len(series), 7), squeeze=False)
    for column, (name, found) in enumerate(series.items()):
        values = [one[name] for one in found]
        for panel, key, unit, scale in (
            (panels[0][column], "tokens_per_second", "tokens/s", 1.0),
            (panels[1][column], "peak_bytes", "peak memory, GB", 1e9),
        ):
            panel.plot(values, [one[key] / scale for one in found], marker="o")
            panel.set_xlabel(name)
            panel.set_ylabel(unit)
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
            if name in ("batch", "rank", "width"):
                panel.set_xscale("log", base=2)
    figure.suptitle("llmkit, LoRA SFT on random weights in SmolLM2's shapes")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure all points, draw them, check how memory grows, keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    series = SERIES
    if quick:
        small = [replace(START, length=length, batch=1, layers=2) for length in (64, 128, 256, 512)]
        series = {"length": small, "rank": [replace(small[0], rank=rank) for rank in (4, 64)]}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="llmkit-scaling-") as place:
        bench = Bench(Path(place), quick=quick)
        build(bench.folder, [point for points in series.values() for point in points])
        found = {name: [measure(point, bench) for point in points] for name, points in series.items()}
    grown = growth(found["length"])
    passed = grown["off_the_line"] <= LINEAR and grown["upper_over_lower_slope"] <= STEEPER
    name = "scaling_part" if quick else "scaling"
    RESULTS.mkdir(exist_ok=True)
    draw(found, RESULTS / f"{name}.png")
    figures = {"memory_by_length": grown, "series": found, "seconds": round(time.perf_counter() - started)}
    keep(name, figures, passed=passed)


if __name__ == "__main__":
    main()
