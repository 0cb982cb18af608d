"""The LM head chunk by chunk: losses and their gradients without the logits of a batch.

N trained tokens have N x vocabulary logits, and autograd keeps them with their log-softmax and a gradient of the same
size: 4.5 GiB for 8,192 tokens of SmolLM2. Here a chunk of tokens is projected, scored and turned into gradients at
once. No logits outlive their chunk, so the head takes `CHUNK_BYTES` (times two or three) however many tokens there are.
With a frozen head, and for a plain sum with any head, nothing is computed twice.

CPU time, one thread, 576 x 49,152 in float32, before / after, medians of 5 alternating pairs with 512 (128) tokens:
1.2 (1.3) for the sum with a frozen head, 1.1 (1.1) with a trained one, both against logits at once; against TRL 1.16's
chunked head 2.7 (2.2) for DPO with a frozen head, 1.3 (1.0) with a trained one, 1.6 (1.1) for its reference.
`torch.nn.functional.linear_cross_entropy` (torch 2.13) does the sum as well, without factors by token (with them it
computes twice) and without the accuracy: about 1.0 with chunks of 128, 0.15 with the chunks that it chooses itself.

Shapes: N tokens, n tokens of a chunk, H hidden units, V words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

CHUNK_BYTES = 2**25
"""Bytes of the logits of a chunk, in float32: chunks of 128 and of 256 tokens are equally fast (49,152 words)."""

FEWEST = 32
"""Tokens of a chunk at least: fewer rows leave a matrix unit idle."""


class _Chunk(NamedTuple):
    """The next-token distributions of n tokens, as numerators and denominators in float32."""

    rows: slice
    """Which of the N tokens they are."""
    targets_n: torch.Tensor
    exps: torch.Tensor
    """exp(logit - max), (n, V): the logits are gone by now, their memory holds this."""
    sum_n: torch.Tensor
    nll_n: torch.Tensor
    """-log p(target), in nats."""
    is_top1_n: torch.Tensor
    """Whether the target is the most likely word."""
    moments: dict[str, torch.Tensor]
    """What else is asked for, by TRL's names (`EXTRAS`); each of shape (n,)."""


EXTRAS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""What TRL asks for beside the log-probabilities."""


class _Head:
    """The head's weight and bias in the data type that products are computed in."""

    def __init__(
        self, dtype: torch.dtype, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, temperature: float = 1.0
    ) -> None:
        self.dtype = dtype
        self.weight_VH = weight_VH.to(dtype)
        self.bias_V = None if bias_V is None else bias_V.to(dtype)
        self.temperature = temperature
        # Numerators and probabilities below 6e-8 vanish in float16, where losses are scaled only afterwards.
        self.back = torch.float32 if self.dtype == torch.float16 else self.dtype

    @property
    def size(self) -> int:
        """Tokens of a chunk."""
        return max(FEWEST, CHUNK_BYTES // (4 * self.weight_VH.shape[0]))

    def chunks(self, hidden_NH: torch.Tensor, targets_N: torch.Tensor, extras: Iterable[str] = ()) -> Iterator[_Chunk]:
        """Yield the distributions of all tokens, chunk by chunk; each is overwritten by the next."""
        for start in range(0, len(targets_N), self.size):
            rows = slice(start, min(start + self.size, len(targets_N)))
            logits_nV = hidden_NH[rows].to(self.dtype) @ self.weight_VH.t()
            if self.bias_V is not None:
                logits_nV += self.bias_V
            if self.temperature != 1.0:
                logits_nV /= self.temperature
            yield _distribution(rows, logits_nV, targets_N[rows], extras)

    @staticmethod
    def toward_targets(chunk: _Chunk) -> _Chunk:
        """Make of the numerators, in place, those of p - 1[target]: what the gradients by the logits are.

        Before they are rounded to 16 bits: after a product, the two would cancel where a token is nearly certain.
        """
        chunk.exps.scatter_add_(-1, chunk.targets_n[:, None], -chunk.sum_n[:, None])
        return chunk

    def gradient_of_hidden(self, chunk: _Chunk) -> torch.Tensor:
        """Return d nll / d hidden, (n, H), in float32 (or float64), of a chunk `toward_targets`."""
        # (p - 1[target]) @ W, with the division taken out of the large product.
        found_nH = (chunk.exps.to(self.back) @ self.weight_VH.to(self.back)).to(chunk.exps.dtype)
        return found_nH / chunk.sum_n[:, None] / self.temperature

    def add_gradient_of_weight(
        self, gradient_VH: torch.Tensor, chunk: _Chunk, hidden_nH: torch.Tensor, factors_n: torch.Tensor
    ) -> None:
        """Add sum(factor x d nll / d weight), of a chunk `toward_targets`, to `gradient_VH`: float32 (or float64)."""
        hidden_nH = hidden_nH.to(gradient_VH.dtype) * (factors_n / self.temperature)[:, None]
        scaled_nH = (hidden_nH / chunk.sum_n[:, None]).to(self.back)
        if self.back == gradient_VH.dtype:
            gradient_VH.addmm_(chunk.exps.t(), scaled_nH)
        else:
            gradient_VH += chunk.exps.to(self.back).t() @ scaled_nH


def _distribution(rows: slice, logits_nV: torch.Tensor, targets_n: torch.Tensor, extras: Iterable[str]) -> _Chunk:
    """Turn logits into a distribution, in place where they are float32."""
    rounded = logits_nV.dtype in (torch.float16, torch.bfloat16)
    # Words tie in 16 bits, and the first of them counts. In float32 they don't, and the maximum is at hand.
    is_top1_n = logits_nV.argmax(-1) == targets_n if rounded else None
    logits_nV = logits_nV.float() if rounded else logits_nV
    moments = {"mean_logits": logits_nV.mean(-1)} if "mean_logits" in extras else {}
    target_n = logits_nV.gather(-1, targets_n[:, None])[:, 0]
    max_n = logits_nV.amax(-1)
    if is_top1_n is None:
        is_top1_n = target_n == max_n
    shifted_nV = logits_nV.sub_(max_n[:, None])
    exp_nV = shifted_nV.exp() if "entropy" in extras else shifted_nV.exp_()
    sum_n = exp_nV.sum(-1)
    if "entropy" in extras:
        moments["entropy"] = sum_n.log() - (exp_nV[:, None] @ shifted_nV[:, :, None])[:, 0, 0] / sum_n
    if "log_sum_sq_probs" in extras:
        squares_n = (exp_nV[:, None] @ exp_nV[:, :, None])[:, 0, 0]
        moments["log_sum_sq_probs"] = squares_n.log() - 2 * sum_n.log()
    nll_n = max_n + sum_n.log() - target_n
    return _Chunk(rows, targets_n, exp_nV, sum_n, nll_n, is_top1_n, moments)


def _computed_in(hidden_NH: torch.Tensor) -> torch.dtype:
    """Return the data type of the head's products: autocast's, or that of the hidden states."""
    device = hidden_NH.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return what sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _SumOfLosses(torch.autograd.Function):
    """sum(factor x nll), with all its gradients computed on the way there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        factors_N: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = _Head(_computed_in(hidden_NH), weight_VH, bias_V)
        wide = _wide(hidden_NH.dtype)
        factors_N = factors_N.to(wide)
        total = torch.zeros((), dtype=wide, device=hidden_NH.device)
        is_top1_N = torch.empty(len(targets_N), dtype=torch.bool, device=hidden_NH.device)
        hidden_needs, weight_needs, bias_needs = ctx.needs_input_grad[:3]
        # Wide: what is divided by the tokens of a step is too small for float16 until the loss is scaled.
        ctx.of_hidden = torch.empty_like(hidden_NH, dtype=wide) if hidden_needs else None
        ctx.of_weight = torch.zeros_like(weight_VH, dtype=wide) if weight_needs else None
        ctx.of_bias = torch.zeros_like(bias_V, dtype=wide) if bias_needs else None  # type: ignore[arg-type]
        ctx.dtypes = hidden_NH.dtype, weight_VH.dtype, None if bias_V is None else bias_V.dtype
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for chunk in map(head.toward_targets, head.chunks(hidden_NH, targets_N)):
                factors_n = factors_N[chunk.rows]
                total += chunk.nll_n @ factors_n
                is_top1_N[chunk.rows] = chunk.is_top1_n
                if ctx.of_hidden is not None:
                    ctx.of_hidden[chunk.rows] = head.gradient_of_hidden(chunk) * factors_n[:, None]
                if ctx.of_weight is not None:
                    head.add_gradient_of_weight(ctx.of_weight, chunk, hidden_NH[chunk.rows], factors_n)
                if ctx.of_bias is not None:
                    ctx.of_bias += (factors_n / chunk.sum_n) @ chunk.exps
        ctx.mark_non_differentiable(is_top1_N)
        return total, is_top1_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.dtypes is None:
            raise RuntimeError("the gradients of the LM head were used already: one backward pass per forward pass")
        kept = (ctx.of_hidden, ctx.of_weight, ctx.of_bias)
        # The weight's gradient is as large as the weight: the optimizer's gets this very tensor, not a copy.
        found = tuple(
            None if one is None else one.mul_(gradient).to(dtype) for one, dtype in zip(kept, ctx.dtypes, strict=True)
        )
        ctx.of_hidden = ctx.of_weight = ctx.of_bias = ctx.dtypes = None
        return (*found, None, None)


def sum_of_losses(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    factors_N: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sum(factor x -log p(target)) as a scalar, and which targets are the most likely words, (N,).

    Its gradients by `hidden_NH`, `weight_VH` and `bias_V` are computed with it, and can be used once. Sums are float32
    whatever the data types (float64 for float64).
    """
    apply: Any = _SumOfLosses.apply
    found: tuple[torch.Tensor, torch.Tensor] = apply(hidden_NH, weight_VH, bias_V, targets_N, factors_N)
    return found


class _LogProbs(torch.autograd.Function):
    """log p(target) of each token, and what else is asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        temperature: float,
        extras: tuple[str, ...],
    ) -> tuple[torch.Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype, ctx.temperature = _computed_in(hidden_NH), temperature
        head = _Head(ctx.dtype, weight_VH, bias_V, temperature)
        log_probs_N = hidden_NH.new_empty(len(targets_N), dtype=_wide(hidden_NH.dtype))
        moments = {name: torch.empty_like(log_probs_N) for name in EXTRAS if name in extras}
        if "is_top1" in moments:
            moments["is_top1"] = torch.empty_like(log_probs_N, dtype=torch.bool)
        # A token's hidden state has to do with its own log-probability alone: with a frozen head, what its gradient
        # will be multiplied by doesn't matter yet.
        at_once = ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[1:3])
        of_hidden_NH = torch.empty_like(hidden_NH) if at_once else None
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for chunk in head.chunks(hidden_NH, targets_N, extras):
                log_probs_N[chunk.rows] = -chunk.nll_n
                for name, values_N in moments.items():
                    values_N[chunk.rows] = chunk.is_top1_n if name == "is_top1" else chunk.moments[name]
                if of_hidden_NH is not None:
                    of_hidden_NH[chunk.rows] = -head.gradient_of_hidden(head.toward_targets(chunk))
        found = tuple(moments.get(name) for name in EXTRAS)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, of_hidden_NH)
        ctx.mark_non_differentiable(*(values for values in found[1:] if values is not None))
        return log_probs_N, *found

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_log_probs: torch.Tensor | None, of_entropy: torch.Tensor | None, *_: None
    ) -> tuple[torch.Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, targets_N, of_hidden_NH = ctx.saved_tensors
        if of_hidden_NH is not None and of_entropy is None and of_log_probs is not None:
            return (of_hidden_NH * of_log_probs[:, None]).to(hidden_NH.dtype), *(None,) * 5
        wide = _wide(hidden_NH.dtype)
        inputs = (hidden_NH, weight_VH, bias_V)
        sums = [
            torch.zeros_like(one, dtype=wide) if needed else None
            for one, needed in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        head = _Head(ctx.dtype, weight_VH, bias_V, ctx.temperature)
        nothing_N = hidden_NH.new_zeros(len(targets_N), dtype=wide)
        of_log_probs, of_entropy = (nothing_N if one is None else one.to(wide) for one in (of_log_probs, of_entropy))
        for chunk in head.chunks(hidden_NH, targets_N):
            of_logits_nV = _of_logits(chunk, of_log_probs[chunk.rows], of_entropy[chunk.rows]) / ctx.temperature
            rounded_nV = of_logits_nV.to(head.back)
            if sums[0] is not None:
                sums[0][chunk.rows] = (rounded_nV @ head.weight_VH.to(head.back)).to(wide)
            if sums[1] is not None:
                sums[1] += (rounded_nV.t() @ hidden_NH[chunk.rows].to(head.back)).to(wide)
            if sums[2] is not None:
                sums[2] += of_logits_nV.sum(0)
        found = (None if one is None else one.to(like.dtype) for one, like in zip(sums, inputs, strict=True))
        return *found, None, None, None


def _of_logits(chunk: _Chunk, of_log_probs_n: torch.Tensor, of_entropy_n: torch.Tensor) -> torch.Tensor:
    """Return the gradient by the logits, (n, V): of the entropy it is -p x (log p + entropy)."""
    p_nV = chunk.exps.div_(chunk.sum_n[:, None])
    of_logits_nV = p_nV * -of_log_probs_n[:, None]
    if of_entropy_n.any():
        p_log_p_nV = torch.xlogy(p_nV, p_nV)
        entropy_n1 = -p_log_p_nV.sum(-1, keepdim=True)
        of_logits_nV -= of_entropy_n[:, None] * (p_log_p_nV + p_nV * entropy_n1)
    return of_logits_nV.scatter_add_(-1, chunk.targets_n[:, None], of_log_probs_n[:, None])


class Scores(NamedTuple):
    """What TRL's fused head finds, by its names; each of shape (N,), and None where it isn't asked for."""

    log_probs: torch.Tensor
    entropy: torch.Tensor | None
    log_sum_sq_probs: torch.Tensor | None
    mean_logits: torch.Tensor | None
    is_top1: torch.Tensor | None


def log_probs(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    *,
    temperature: float = 1.0,
    extras: tuple[str, ...] = (),
) -> Scores:
    """Return the log-probabilities of the targets at `temperature`, and the `EXTRAS` that are asked for.

    Log-probabilities and entropy have gradients. With a frozen head those of the log-probabilities are computed at
    once; otherwise, and for the entropy, the backward pass computes the logits again.
    """
    apply: Any = _LogProbs.apply
    return Scores(*apply(hidden_NH, weight_VH, bias_V, targets_N, temperature, extras))


# --- Which heads -----------------------------------------------------------------------------------------------------


def linear_head(model: Any) -> torch.nn.Linear | None:
    """Return the module whose product with the hidden states is all that the head computes; None where it does more.

    `model` is the bare language model. Adapters, quantized and sharded weights, hooks and replaced forwards are more.
    """
    head = model.get_output_embeddings()
    if isinstance(head, ModulesToSaveWrapper):
        head = head.original_module if head.disable_adapters else head.modules_to_save[head.active_adapters[0]]
    if not isinstance(head, torch.nn.Linear) or type(head).forward is not torch.nn.Linear.forward:
        return None
    hooked = "forward" in vars(head) or head._forward_hooks or head._forward_pre_hooks
    # DeepSpeed's sharded parameters (ZeRO-3) have an id, and are empty.
    sharded = isinstance(head.weight, DTensor) or hasattr(head.weight, "ds_id")
    return None if hooked or sharded or not head.weight.is_floating_point() else head


@torch.no_grad()
def ends_with_its_head(model: Any) -> bool:
    """Say whether the logits of the bare model are its head's product as it is: not scaled, capped or cut.

    One token goes through the model, and large random numbers through its head: what bends or scales logits shows.
    """
    head = linear_head(model)
    if head is None:
        return False
    made = torch.randn(1, 1, head.in_features, generator=torch.Generator().manual_seed(0))
    weight = head.weight
    probe = made.to(weight.device, weight.dtype)
    probe *= 100 / torch.nn.functional.linear(probe, weight).float().std().clamp(min=1e-3)
    expected = torch.nn.functional.linear(probe, weight, head.bias).float()

    def put(module: torch.nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = probe
        return output

    modes = [(module, module.training) for module in model.modules()]
    hook = model.base_model.register_forward_hook(put)
    try:
        model.eval()
        token = torch.zeros(1, 1, dtype=torch.long, device=weight.device)
        logits = model(input_ids=token, use_cache=False).logits.float()
    finally:
        hook.remove()
        for module, training in modes:
            module.training = training
    return logits.shape == expected.shape and torch.allclose(logits, expected, rtol=1e-2, atol=1e-2)


@contextmanager
def summed_losses(
    head: torch.nn.Linear, targets_N: torch.Tensor, factors_N: torch.Tensor
) -> Iterator[list[torch.Tensor]]:
    """Let `head` return sum(factor x nll), shape (1, 1, 1), in place of the logits of a row of N hidden states.

    What wraps the model (DDP, autocast) sees a forward pass as usual. Which targets were the most likely words is added
    to the list.
    """
    found: list[torch.Tensor] = []

    def forward(hidden_1NH: torch.Tensor) -> torch.Tensor:
        total, is_top1_N = sum_of_losses(hidden_1NH[0], head.weight, head.bias, targets_N, factors_N)
        found.append(is_top1_N)
        return total.reshape(1, 1, 1)

    head.forward = forward  # type: ignore[assignment,method-assign]
    try:
        yield found
    finally:
        del head.forward
