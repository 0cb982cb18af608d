"""TRL's SFTTrainer on llmkit's tokens: packed, weighted, and with the LM head only where something is learnt.

On CUDA, TRL scores only the trained positions. Elsewhere it scores every position, with the entropy besides: on two CPU
cores a step of SmolLM2-135M with 38 of 72 positions trained took 1.6 times as long that way (median of 6 pairs). The
loss is the same sum. Loss weights are llmkit's own: TRL has none.

The head goes through the trained tokens chunk by chunk (`_chunked_head.py`), unless it is more than a matrix: adapters
on it, quantized weights, scaled or capped logits. Those heads hold the logits of all trained tokens at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch.nn import functional
from trl import SFTTrainer

from llmkit.data.packing import Packed
from llmkit.data.store import WEIGHTS
from llmkit.errors import RecipeError, RunError
from llmkit.methods._by_length import GroupsByLength
from llmkit.methods._chunked_head import ends_with_its_head, linear_head, summed_losses
from llmkit.methods._packed import MASKED, PackedRows, TokenCollator, check_isolation, real_tokens, rows_of
from llmkit.methods._trained_head import kept

FUSED = ("cuda", "xpu")
"""Devices where TRL's fused LM head leaves out the positions that train nothing."""


class Scored(NamedTuple):
    """What the N trained tokens of a batch scored; each tensor has the shape (N,)."""

    nll: torch.Tensor
    """Their losses in nats."""
    weights: torch.Tensor | None
    hits: torch.Tensor
    """Whether the token is the most likely one."""


def weighted_loss(scored: Scored, tokens: torch.Tensor | int | None = None) -> torch.Tensor:
    """Return sum(weight x nll) / tokens; `tokens` are the trained ones of the whole step (those of the batch if None).

    Weights don't count in the divisor: a weight of 2 is twice the gradient of 1.
    """
    return (scored.nll * token_factors(scored.nll, scored.weights, tokens)).sum()


def token_factors(
    like_N: torch.Tensor, weights_N: torch.Tensor | None, tokens: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return what each of N losses counts in the loss of the step, (N,) in float32: weight / tokens."""
    divisor = torch.as_tensor(len(like_N) if tokens is None else tokens, device=like_N.device).clamp(min=1)
    weights_N = torch.ones(len(like_N), device=like_N.device) if weights_N is None else weights_N.float()
    return weights_N / divisor


class TrainedTokensTrainer(GroupsByLength, SFTTrainer):
    """Trains on rows that are tokenized, masked and of the right length: packs them, weighs them; the rest is TRL's.

    `packed` says what packing did, by split. Raises RecipeError for rows that can't be weighed, SetupError where packed
    rows see each other.
    """

    data_collator: Any
    _signature_columns: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.packed: dict[str, Packed] = {}
        super().__init__(*args, **kwargs)
        self._seen_tokens = 0.0
        self._hits: list[float] = []
        given = [rows_of(rows) for rows in (self.train_dataset, self.eval_dataset) if rows is not None]
        if any(WEIGHTS in rows.column_names for rows in given):
            self._require_weighable()
        packs = isinstance(self.train_dataset, PackedRows)
        flat = self.args.padding_free or (packs and self.model.config._attn_implementation not in MASKED)
        multiple = self.args.pad_to_multiple_of
        self.data_collator = TokenCollator(self.data_collator.pad_token_id, flat, False, multiple, packed=packs)
        if packs or flat:
            check_isolation(self, given[0])
        self._chunked = self.args.device.type not in FUSED and ends_with_its_head(self._bare)

    @property
    def _bare(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _prepare_dataset(
        self, dataset: Dataset, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Dataset | PackedRows:
        """Pack the rows where that is asked for, by their lengths; the tokens are neither copied nor cut."""
        rows = dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset
        if not packing:
            return rows
        packed = PackedRows(rows, args.max_length)
        size = args.per_device_train_batch_size if dataset_name == "train" else args.per_device_eval_batch_size
        self.packed[dataset_name] = packed.packing.account(size)
        return packed

    def _set_signature_columns_if_needed(self) -> None:
        # TRL's, and the weights: a column that is not named here never reaches the collator.
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "labels", "seq_lengths", WEIGHTS]

    def _require_weighable(self) -> None:
        smoothing = self.args.label_smoothing_factor
        refused = {f"loss_type: {self.args.loss_type}": self.args.loss_type != "nll"}
        refused[f"label_smoothing_factor: {smoothing}"] = smoothing > 0
        refused["router_aux_loss_coef"] = self.aux_loss_enabled
        for setting in (name for name, wrong in refused.items() if wrong):
            raise RecipeError(
                f"the rows have loss weights, and `training.{setting}` can't weigh tokens",
                remedy="Leave it out (or set `router_aux_loss_coef: 0.0`), or leave out the `weight` of the messages.",
            )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean next-token loss, in nats per trained token of the whole (accumulated, global) batch."""
        fused = self.args.device.type in FUSED
        special = self.args.loss_type != "nll" or self.args.label_smoothing_factor > 0 or self.aux_loss_enabled
        if return_outputs or special or (fused and WEIGHTS not in inputs):
            return self._trls_loss(model, inputs, return_outputs, num_items_in_batch)
        head = linear_head(self._bare) if self._chunked and not fused else None
        if head is not None:
            loss, hits = self._sum_losses(model, head, num_items_in_batch, **inputs)
        else:
            scored = self._score_fused(model, **inputs) if fused else self._score(model, **inputs)
            loss, hits = weighted_loss(scored, num_items_in_batch), scored.hits
        if model.training:
            self._count(hits, inputs)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # DDP averages gradients over processes, and the divisor counts the tokens of all of them.
            loss = loss * self.accelerator.num_processes
        return loss

    def _sum_losses(
        self,
        model: Any,
        head: torch.nn.Linear,
        tokens: torch.Tensor | int | None,
        *,
        labels: torch.Tensor,
        loss_weights: torch.Tensor | None = None,
        **inputs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss as `weighted_loss` has it, and which tokens were the most likely ones; no logits are kept."""
        mask_BT = labels[:, 1:] != -100
        targets_N = labels[:, 1:][mask_BT]
        weights_N = None if loss_weights is None else loss_weights[:, 1:][mask_BT]
        factors_N = token_factors(targets_N, weights_N, tokens)
        with kept(self._bare.base_model, mask_BT), summed_losses(head, targets_N, factors_N) as found:
            total = model(**inputs, use_cache=False).logits
        return total.reshape(()), found[0]

    def _score(
        self, model: Any, *, labels: torch.Tensor, loss_weights: torch.Tensor | None = None, **inputs: Any
    ) -> Scored:
        """Score the trained tokens; the LM head sees the positions before them and no others."""
        mask_BT = labels[:, 1:] != -100
        targets_N = labels[:, 1:][mask_BT]
        with kept(self._bare.base_model, mask_BT):
            logits_NV = model(**inputs, use_cache=False).logits[0]
        nll_N = functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")
        weights_N = None if loss_weights is None else loss_weights[:, 1:][mask_BT]
        return Scored(nll_N, weights_N, logits_NV.detach().argmax(-1) == targets_N)

    def _score_fused(self, model: Any, *, labels: torch.Tensor, loss_weights: torch.Tensor, **inputs: Any) -> Scored:
        """Score a weighted batch with TRL's fused LM head, as TRL does without weights. Not run on a GPU so far."""
        mask_BT = labels[:, 1:] != -100
        found = model(**inputs, labels=labels, fused_lm_head=True, use_cache=False)
        return Scored(-found.log_probs[mask_BT], loss_weights[:, 1:][mask_BT], found.is_top1[mask_BT])

    def _trls_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool, num_items_in_batch: Any) -> Any:
        if WEIGHTS in inputs:
            raise RunError("outputs were asked for beside a weighted loss, and only the loss is computed")
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training:
            # TRL counts one sequence of a packed batch.
            self._seen_tokens += self._sum_over_processes(real_tokens(inputs))
            self._metrics["train"]["num_tokens"] = [self._seen_tokens]
        return loss

    def _count(self, hits_N: torch.Tensor, inputs: dict[str, Any]) -> None:
        hits = hits_N.sum() / max(len(hits_N), 1)
        self._hits.append(float(self.accelerator.gather_for_metrics(hits.unsqueeze(0)).mean()))
        self._seen_tokens += self._sum_over_processes(real_tokens(inputs))

    def _sum_over_processes(self, count: torch.Tensor) -> float:
        return float(self.accelerator.gather_for_metrics(count.float().unsqueeze(0)).sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the accuracy and the real (unpadded) tokens seen, under TRL's names."""
        if self._hits and "loss" in logs:
            logs["mean_token_accuracy"] = sum(self._hits) / len(self._hits)
            logs["num_tokens"] = self._seen_tokens
            self._hits.clear()
        super().log(logs, start_time)
