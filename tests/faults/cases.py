"""Two small recipes, what they give when nothing happens, and what a disturbed run is compared by."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Ended, Zygote

LONG = os.environ.get("LLMKIT_FAULTS") == "long"
"""Whether this is `make test-faults`, which takes its time."""

STEPS, SAVE_STEPS = 12, 2
"""Eighteen rows in batches of four: an epoch has five steps, so the last step is not the end of one."""

SFT: dict[str, Any] = {
    "method": {"type": "sft"},
    "data": {"train": [{"path": "rows.jsonl", "format": "messages"}], "eval": 0.25},
    "adapter": {"type": "lora", "r": 4, "lora_dropout": 0.1},
    "training": {"eval_strategy": "steps", "eval_steps": 4},
    "evaluation": [{"type": "perplexity"}],
    "export": [{"type": "merged"}],
}
PLAIN: dict[str, Any] = {**SFT, "training": {}, "evaluation": [], "export": []}
"""Trains and saves alone, which takes half of the time."""

GRPO: dict[str, Any] = {
    "method": {"type": "grpo"},
    "data": {"train": [{"path": "prompts.jsonl", "format": "prompt"}]},
    "adapter": {"type": "lora", "r": 4},
    # A checkpoint falls into the middle of what is learnt from one generation.
    "training": {
        "num_generations": 4,
        "steps_per_generation": 3,
        "max_completion_length": 6,
        "per_device_train_batch_size": 8,
    },
    "rewards": [{"type": "length", "unit": "characters", "target": 12, "tolerance": 12}],
    "export": [{"type": "adapter"}],
}
COMMON: dict[str, Any] = {
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": SAVE_STEPS,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0.01,
    "report_to": "none",
}


def write_recipe(folder: Path, parts: Mapping[str, Any], model: Path | str, **training: Any) -> Path:
    """Write a recipe into `folder`, with rows beside it."""
    conversations = [
        [
            {"role": "user", "content": f"what is {i} plus {i % 5}?"},
            {"role": "assistant", "content": f"it is {i + i % 5}"},
        ]
        for i in range(24)
    ]
    _write_lines(folder / "rows.jsonl", [{"messages": messages} for messages in conversations])
    _write_lines(folder / "prompts.jsonl", [{"prompt": f"{i} is", "answer": str(i)} for i in range(24)])
    settings = COMMON | parts.get("training", {}) | training
    recipe = {"model": {"name": str(model)}, **parts, "training": settings, "hardware": {"device": "cpu"}}
    path = folder / f"{folder.name}.yaml"
    path.write_text(json.dumps(recipe, indent=2), encoding="utf-8")  # JSON is YAML
    return path


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@dataclass(frozen=True)
class Case:
    """A recipe, and what becomes of it when nothing happens."""

    zygote: Zygote
    recipe: Path
    straight: Path
    """Run folder of the undisturbed run."""

    seconds: float
    """What the undisturbed run took."""

    def run(self, out: Path, *more: object, **how: Any) -> Ended:
        """Start the run in `out`, or go on with it."""
        return self.zygote.llmkit("run", self.recipe, "--out", out, *more, **how)

    def ends_the_same(self, out: Path, **how: Any) -> Ended:
        """Go on with the run in `out`: it comes to its end, and to that of the undisturbed run."""
        ended = self.run(out, "--resume", **how)
        assert ended.code == 0, ended.said
        left = differences(self.zygote.seen(out), self.straight)
        assert not left, f"{left}\n{ended.said}"
        return ended

    def copy(self, place: Path) -> Path:
        """Return a copy of the undisturbed run as it was before the trained model was written."""
        shutil.copytree(self.straight, place)
        for name in ("model", "export"):
            shutil.rmtree(place / name, ignore_errors=True)
        for name in ("evaluation.json", "export.json"):
            (place / name).unlink(missing_ok=True)
        return place


TIMES = re.compile(r"runtime|per_second|time")
"""Metrics that differ between two runs of the same recipe."""


def differences(run: Path, straight: Path) -> list[str]:
    """Return in what a finished run differs from the undisturbed one; times are left out."""
    found = [
        f"{file.relative_to(straight)} differs"
        for part in ("model", "export")
        for file in sorted((straight / part).rglob("*.safetensors"))
        if not _same_bytes(run / file.relative_to(straight), file)
    ]
    if metrics(run) != metrics(straight):
        found.append(f"metrics.jsonl differs: steps {[entry['step'] for entry in metrics(run)]}")
    if _scores(run) != _scores(straight):
        found.append("evaluation.json differs")
    if (straight / "samples.jsonl").is_file() and not _same_bytes(run / "samples.jsonl", straight / "samples.jsonl"):
        found.append("samples.jsonl differs")
    names, expected = _names(run), _names(straight)
    hidden = {name for name in names if re.search(r"(^|/)\.|\.(tmp|writing|removed)\b", name)}
    found += [f"left behind: {name}" for name in sorted((names - expected) | hidden)]
    return found + [f"missing: {name}" for name in sorted(expected - names)]


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that are of a step, without times."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    return [
        {name: value for name, value in entry.items() if not TIMES.search(name)}
        for entry in entries
        if "loss" in entry or "eval_loss" in entry
    ]


def last_step(run: Path) -> int:
    """Return the last step that metrics.jsonl holds, whose last line a kill may have cut off; 0 where there is none."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return max((int(found[1]) for line in lines if (found := re.match(r'\{"step": (\d+),.*\}$', line))), default=0)


def began_at(ended: Ended) -> int | None:
    """Return the step that a resumed run says it goes on from, or None if it came to no such sentence."""
    found = re.search(r"continuing from checkpoint-(\d+)", ended.said)
    if found:
        return int(found[1])
    return 0 if "starting at step 0" in ended.said else None


def _same_bytes(one: Path, other: Path) -> bool:
    return one.is_file() and one.read_bytes() == other.read_bytes()


def _scores(run: Path) -> Any:
    scores = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    return [{name: entry[name]["metrics"] for name in ("base", "tuned")} for entry in scores]


def _names(run: Path) -> set[str]:
    # How fast training was is written only by a session of five steps and more.
    return {str(path.relative_to(run)) for path in run.rglob("*")} - {"speed.json"}
