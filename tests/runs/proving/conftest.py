"""One finished run and one that was cut off, made once; tests damage copies of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmkit.recipe.recipe import Recipe

ROWS = "def plain(row):\n    return row\n"


@dataclass(frozen=True)
class Made:
    """Runs of one recipe, in the folder of its files: `rows.jsonl`, `rows.py`, the model in `tiny`."""

    home: Path
    finished: Path
    cut: Path
    """Ended by an error in step 3 of 4; its checkpoint is that of step 2."""

    def recipe(self, *overrides: str) -> Recipe:
        """Return the recipe with overrides."""
        from llmkit.recipe.loading import load_recipe

        return load_recipe(self.home / "tiny.yaml", overrides)

    def change_row(self, number: int, answer: str) -> str:
        """Write the rows with another answer in one of them; returns the name of the file."""
        lines = (self.home / "rows.jsonl").read_text(encoding="utf-8").splitlines()
        lines[number] = json.dumps(_conversation(number, answer))
        (self.home / "others.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return "others.jsonl"


def _conversation(number: int, answer: str | None = None) -> dict[str, Any]:
    """Return a row of one question and its answer."""
    said = answer or f"it is {number + number % 5}"
    question = {"role": "user", "content": f"what is {number} plus {number % 5}?"}
    return {"messages": [question, {"role": "assistant", "content": said}]}


@pytest.fixture(scope="package")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Train the tiny model once to its end and once until an error."""
    from llmkit.runs.runner import run

    home = tmp_path_factory.mktemp("proving")
    shutil.copytree(tiny_folder, home / "tiny")
    (home / "rows.jsonl").write_text("".join(json.dumps(_conversation(i)) + "\n" for i in range(24)), encoding="utf-8")
    (home / "rows.py").write_text(ROWS, encoding="utf-8")
    (home / "tiny.yaml").write_text(
        """# LoRA on a tiny model
model: {name: tiny}
adapter: {type: lora, r: 4, lora_dropout: 0.1}
data:
  train: [{path: rows.jsonl, format: messages, python: "rows.py:plain"}]
  eval: 0.25
method: {type: sft}
training:
  max_steps: 4
  save_steps: 2
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 1
  learning_rate: 1.0e-2
  report_to: none
evaluation: [{type: perplexity}]
gates: [loss <= 1e9]
export: [{type: merged}]
hardware: {device: cpu}
""",
        encoding="utf-8",
    )
    runs = Made(home, home / "run", home / "cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        run(runs.recipe(), out=runs.finished)
        patch.setattr("transformers.Trainer.training_step", _failing(2))
        with pytest.raises(RuntimeError, match="cut off here"):
            run(runs.recipe(), out=runs.cut)
    return runs


def _failing(after: int) -> Callable[..., Any]:
    from transformers import Trainer

    step = Trainer.training_step

    def training_step(self: Trainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == after:
            raise RuntimeError("cut off here")
        return step(self, *arguments, **options)

    return training_step


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged; the files that it was made from stay where they are."""
    return Path(shutil.copytree(made.finished, tmp_path / "run"))


@pytest.fixture
def by_hand(tmp_path: Path) -> Callable[..., Path]:
    """Return what writes the files of a run by hand: its name, its metrics, and other files by their stem."""

    def write(name: str, *metrics: dict[str, Any], resolved: str = "", **files: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text("", encoding="utf-8")
        (folder / "resolved.yaml").write_text(resolved, encoding="utf-8")
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics), encoding="utf-8")
        for stem, value in {"lock": {}, **files}.items():
            (folder / f"{stem}.json").write_text(json.dumps(value), encoding="utf-8")
        return folder

    return write
