"""Packed rows as batches, and the proof that rows in one sequence don't see each other.

transformers tells rows apart by their positions, which begin at 0 with each row, if no attention mask is given. Kernels
that take row boundaries instead (flash attention) want one flat sequence; the others compute a block per sequence, and
one flat sequence would cost them the square of its length. So there are two layouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from datasets import Dataset
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import pad

from llmkit.data.packing import Packing, pack
from llmkit.data.store import TOKENS, WEIGHTS
from llmkit.errors import SetupError
from llmkit.methods._by_length import column_lengths

MASKED = ("sdpa", "eager")
"""Attention kernels that take a mask, and not the boundaries of the rows."""

SEEN = MappingProxyType({torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2})
"""How far the logits of a row may move, relative to their size, when another row of its sequence changes."""

APART = MappingProxyType({torch.float32: 1e-3, torch.float16: 1e-1, torch.bfloat16: 1e-1})
"""How far they may be from those of the row by itself: other shapes are rounded otherwise."""


class PackedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Sequences of whole rows, put together when they are asked for; the rows' tokens stay where they are."""

    def __init__(self, rows: Dataset, capacity: int) -> None:
        self.dataset = rows
        self.packing: Packing = pack(column_lengths(rows, "input_ids"), capacity)

    def __len__(self) -> int:
        return len(self.packing)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = self.dataset[self.packing.rows(index)]
        if WEIGHTS in rows:
            rows[WEIGHTS] = list(map(_weights, rows[WEIGHTS], rows["labels"]))
        joined: dict[str, Any] = {
            name: list(chain.from_iterable(rows[name])) for name in (*TOKENS, WEIGHTS) if name in rows
        }
        return {**joined, "seq_lengths": [len(ids) for ids in rows["input_ids"]]}


def _weights(given: list[float] | None, labels: Sequence[int]) -> list[float]:
    """Return the loss weights of a row; one that has none counts as usual."""
    return [1.0] * len(labels) if given is None else given


@dataclass
class TokenCollator(DataCollatorForLanguageModeling):
    """TRL's collator, with loss weights, and with packed sequences side by side where attention takes a mask.

    Batches have `input_ids`, `labels`, `loss_weights` if the data set has that column (0 for padding, 1 for rows that
    have none), and one of `attention_mask` (padded rows), `position_ids` (packed: padding is at position 0) or TRL's
    boundaries (`padding_free`). The first label of a packed row is -100: nothing stands before it.
    """

    packed: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch of `examples`."""
        side_by_side = self.packed and not self.padding_free
        self.return_position_ids = side_by_side
        batch: dict[str, Any] = super().torch_call(examples)
        if side_by_side:
            # With a mask, even one of ones, transformers no longer looks at the positions.
            del batch["attention_mask"]
            batch["labels"][batch["position_ids"] == 0] = -100
        if WEIGHTS in examples[0]:
            given = [_weights(example[WEIGHTS], example["labels"]) for example in examples]
            weights = [torch.tensor(one, dtype=torch.float32) for one in given]
            weights = [torch.cat(weights)] if self.padding_free else weights
            batch[WEIGHTS] = pad(weights, padding_value=0.0, pad_to_multiple_of=self.pad_to_multiple_of)
        return batch


def real_tokens(batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the number of tokens of `batch` that are no padding."""
    if "attention_mask" in batch:
        mask: torch.Tensor = batch["attention_mask"]
        return mask.sum()
    # A row of two or more tokens has one position 1, and padding has only positions 0. (A single token trains nothing.)
    positions: torch.Tensor = batch["position_ids"]
    return (positions > 0).sum() + (positions == 1).sum()


def check_isolation(trainer: SFTTrainer, rows: Dataset) -> None:
    """Prove on the very model, kernel and device that a row's logits don't depend on the row packed before it.

    Three forward passes of at most 48 tokens. Raises SetupError with the figures where they do.
    """
    second = _head(rows[0], 24)
    first = _head(rows[len(rows) - 1], 24)
    vocabulary = trainer.model.get_input_embeddings().weight.shape[0]
    other = {**first, "input_ids": [(token + 1) % vocabulary for token in first["input_ids"]]}
    try:
        together, disturbed, alone = (_last_logits(trainer, before, second) for before in (first, other, None))
    except (ValueError, NotImplementedError) as error:  # transformers refuses some models by itself
        raise _mixes_rows(trainer, str(error)) from error
    seen, apart = _distance(disturbed, together), _distance(together, alone)
    dtype = _computed_in(trainer)
    # NaN is no proof.
    if not (seen <= SEEN[dtype] and apart <= APART[dtype]):
        raise _mixes_rows(
            trainer,
            f"the logits of a row move by {seen:.2g} of their size when the row before it changes, and differ by "
            f"{apart:.2g} from those of the row by itself",
        )


def _mixes_rows(trainer: SFTTrainer, why: str) -> SetupError:
    config = trainer.model.config
    return SetupError(
        f"{config.model_type} with {config._attn_implementation} attention does not keep rows of one sequence apart: "
        f"{why}",
        remedy="Leave out `training.packing` and `training.padding_free`. Models that read a sequence step by step "
        "(Mamba, linear attention, convolutions) can't be packed; others can with `model.attn_implementation: sdpa`.",
    )


def _head(row: Mapping[str, Any], length: int) -> dict[str, list[Any]]:
    return {name: list(row[name][:length]) for name in ("input_ids", "labels")}


def _last_logits(trainer: SFTTrainer, before: dict[str, Any] | None, row: dict[str, Any]) -> torch.Tensor:
    """Return the logits (tokens, vocabulary) of `row`, collated as for training with `before` in its sequence."""
    rows = [row] if before is None else [before, row]
    if trainer.data_collator.packed:
        lengths = [len(one["input_ids"]) for one in rows]
        joined = {name: list(chain.from_iterable(one[name] for one in rows)) for name in row}
        rows = [{**joined, "seq_lengths": lengths}]
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    width = batch["input_ids"].shape[1]
    begin = 0 if before is None else len(before["input_ids"])
    del batch["labels"]
    model = trainer.model
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), trainer.accelerator.autocast():
            logits: torch.Tensor = model(**batch, use_cache=False).logits[0, -width:]
    finally:
        model.train(training)
    return logits[begin : begin + len(row["input_ids"])].float()


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return ||one - other|| / ||other||, after centring: softmax doesn't see what all logits of a token share."""
    one, other = (logits - logits.mean(-1, keepdim=True) for logits in (one, other))
    return float((one - other).norm() / other.norm())


def _computed_in(trainer: SFTTrainer) -> torch.dtype:
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trainer.accelerator.mixed_precision)
    if mixed is not None:
        return mixed
    # 8-bit layers round their inputs by what is largest in them: as coarse as 16 bits.
    if getattr(trainer.model, "is_loaded_in_8bit", False):
        return torch.float16
    dtype: torch.dtype = trainer.model.dtype
    return dtype if dtype in SEEN else torch.float16


def rows_of(dataset: PackedRows | Dataset) -> Dataset:
    """Return the rows that a data set, packed or not, is made of."""
    return dataset.dataset if isinstance(dataset, PackedRows) else dataset
