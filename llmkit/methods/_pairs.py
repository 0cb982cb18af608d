"""TRL's DPO and KTO trainers on rows that are already tokenized, with reference log-probabilities kept by content.

TRL's own preparation tokenizes again, whatever the columns are, and its cache of reference log-probabilities lies in a
temporary folder for datasets in memory: nothing of it is found by the next run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from trl import DPOTrainer, KTOTrainer

from llmkit.methods._by_length import GroupsByLength
from llmkit.methods._trained_head import score_trained_positions
from llmkit.methods.base import Job
from llmkit.model.loading import load_base
from llmkit.recipe.places import cache_folder

WRAPPERS = re.compile(r"^base_model\.model\.|\.base_layer(?=\.)|\.original_module(?=\.)")
"""What PEFT puts into the names of base weights; without it they are those of the bare model."""


class _TokenizedRows:
    """Leaves the rows as they are, and keeps the reference's log-probabilities in llmkit's cache."""

    def __init__(self, *args: Any, narrate: Callable[[str], None], **kwargs: Any) -> None:
        self._narrate = narrate
        self._weights_digest: str | None = None
        super().__init__(*args, **kwargs)
        self._score_answers_only()

    def _score_answers_only(self) -> None:
        trainer: Any = self
        for model in (trainer.model, trainer.ref_model):
            score_trained_positions(model)

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Return `dataset` with the reference's log-probabilities (nats per answer), computed only if not yet kept."""
        place = cache_folder() / "reference" / f"{self._content(dataset)}.safetensors"
        if place.is_file():
            self._narrate(f"the reference's log-probabilities of {len(dataset)} {name} rows are in {place.parent}")
            columns = load_file(place)
        else:
            self._score_answers_only()  # within TRL's __init__, which computes them
            self._narrate(f"computing the reference's log-probabilities of {len(dataset)} {name} rows, once")
            with _no_bars():
                computed = super()._precompute_ref_logps(dataset, name, batch_size)  # type: ignore[misc]
            new = [column for column in computed.column_names if column not in dataset.column_names]
            columns = {column: torch.tensor(list(computed[column]), dtype=torch.float32) for column in new}
            _write(columns, place)
        for column, values in sorted(columns.items()):
            dataset = dataset.add_column(column, values.tolist())
        return dataset

    def _content(self, dataset: Dataset) -> str:
        """Return a digest of all that the reference's log-probabilities depend on."""
        trainer: Any = self
        if self._weights_digest is None:
            self._weights_digest = reference_digest(trainer.ref_model or trainer.model)
        config = trainer.model.config
        depends = {
            "rows": _rows_digest(dataset),
            "weights": self._weights_digest,
            "quantization": str(getattr(config, "quantization_config", None)),
            "attention": config._attn_implementation,
            "autocast": trainer.accelerator.mixed_precision,
            "device": trainer.accelerator.device.type,
            "ld_alpha": getattr(trainer.args, "ld_alpha", None),
            "versions": [version(package) for package in ("torch", "transformers", "trl")],
        }
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save what was trained, without the frozen copy of an adapter that training continues from."""
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        trainer: Any = self
        if _has_reference_adapter(trainer.model):
            shutil.rmtree(Path(output_dir or trainer.args.output_dir) / "ref", ignore_errors=True)


class TokenizedDPOTrainer(_TokenizedRows, GroupsByLength, DPOTrainer):
    """DPOTrainer on `prompt_ids`, `chosen_ids`, `rejected_ids`."""


class TokenizedKTOTrainer(_TokenizedRows, KTOTrainer):
    """KTOTrainer on `prompt_ids`, `completion_ids`, `KL_completion_ids`, `label`."""


def reference_copy(job: Job, args: Any) -> Any:
    """Return a second copy of a fully trained model, or None where the reference needs none.

    TRL would load it by name alone: another commit than `model.revision` says, and weights the recipe didn't allow.
    """
    if job.recipe.adapter is not None or args.precompute_ref_log_probs:
        return None
    model = job.recipe.model
    return load_base(
        job.recipe,
        dtype=str(model.dtype or job.plan["model.dtype"]),
        attn_implementation=str(model.attn_implementation or job.plan["model.attn_implementation"]),
    )


def _has_reference_adapter(model: Any) -> bool:
    return isinstance(model, PeftModel) and "ref" in model.peft_config


def reference_digest(model: Any) -> str:
    """Return a digest of the weights that the reference computes with, whatever adapter is trained over them."""
    adapted = isinstance(model, PeftModel)
    trained = {name for name, parameter in model.named_parameters() if adapted and parameter.requires_grad}
    digest = hashlib.sha256()
    state = {WRAPPERS.sub("", name): tensor for name, tensor in model.state_dict().items() if name not in trained}
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _rows_digest(dataset: Dataset) -> str:
    """Return a digest of the token ids of all rows; labels change nothing about log-probabilities."""
    digest = hashlib.sha256()
    for row in dataset.select_columns([column for column in dataset.column_names if column.endswith("_ids")]):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def _write(columns: dict[str, torch.Tensor], place: Path) -> None:
    """Write whole, then move to its place."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".computing-") as scratch:
        save_file(columns, Path(scratch) / place.name)
        os.replace(Path(scratch) / place.name, place)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hold back the progress bars of TRL and datasets, which know only these switches."""
    before, shown = os.environ.get("TQDM_DISABLE"), not datasets.are_progress_bars_disabled()
    os.environ["TQDM_DISABLE"] = "1"
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        del os.environ["TQDM_DISABLE"]
        if before is not None:
            os.environ["TQDM_DISABLE"] = before
        if shown:
            datasets.enable_progress_bars()
