"""The LM head in chunks: hand-computed losses and gradients, those of plain autograd, and no logits that are kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode

from llmkit.methods import _chunked_head
from llmkit.methods._chunked_head import (
    EXTRAS,
    ends_with_its_head,
    linear_head,
    log_probs,
    sum_of_losses,
    summed_losses,
)


def inputs(
    tokens: int = 7, hidden: int = 5, words: int = 11, dtype: torch.dtype = torch.float64, bias: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Return random hidden states, weight, bias, targets and factors, all of which want a gradient if they can."""
    source = torch.Generator().manual_seed(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(0, words, (tokens,), generator=source)
    factors = torch.rand(tokens, generator=source)
    return made(tokens, hidden), made(words, hidden), made(words) if bias else None, targets, factors


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens a chunk, and one in the last: what is lost between chunks shows."""
    monkeypatch.setattr(_chunked_head, "FEWEST", 2)
    monkeypatch.setattr(_chunked_head, "CHUNK_BYTES", 1)


def test_the_sum_by_hand() -> None:
    """Two words with logits 0 and log 3: probabilities 1/4 and 3/4."""
    hidden = torch.tensor([[1.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]], requires_grad=True)
    total, is_top1 = sum_of_losses(hidden, weight, None, torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    assert total.item() == pytest.approx(math.log(4) + 2 * math.log(4 / 3))
    assert is_top1.tolist() == [False, True]
    total.backward()
    # d nll / d logits is p - 1[target]: (-3/4, 3/4) for the first token, 2 x (1/4, -1/4) for the second.
    assert hidden.grad is not None
    assert hidden.grad.flatten().tolist() == pytest.approx([0.75 * math.log(3), -0.5 * math.log(3)])
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == pytest.approx([-0.25, 0.25])


@pytest.mark.parametrize("frozen", [False, True], ids=["trained head", "frozen head"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_the_sum_and_its_gradients_are_those_of_autograd(bias: bool, frozen: bool) -> None:
    hidden, weight, offset, targets, factors = inputs(bias=bias)
    leaves = [hidden] if frozen else [one for one in (hidden, weight, offset) if one is not None]
    if frozen:
        weight, offset = weight.detach(), None if offset is None else offset.detach()
    logits = linear(hidden, weight, offset)
    expected = (cross_entropy(logits, targets, reduction="none") * factors).sum()
    gradients = torch.autograd.grad(expected * 3, leaves)
    total, is_top1 = sum_of_losses(hidden, weight, offset, targets, factors)
    found = torch.autograd.grad(total * 3, leaves)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert is_top1.tolist() == (logits.argmax(-1) == targets).tolist()
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_in_float32_it_is_exact_to_rounding() -> None:
    hidden, weight, _, targets, factors = inputs(60, 16, 300, torch.float32)
    total, _ = sum_of_losses(hidden, weight, None, targets, factors)
    total.backward()
    expected = (cross_entropy(linear(hidden.double(), weight.double()), targets, reduction="none") * factors).sum()
    of_hidden, of_weight = torch.autograd.grad(expected, [hidden, weight])
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in ((hidden.grad, of_hidden), (weight.grad, of_weight)):
        assert ours is not None
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_16_bits_it_is_as_good_as_logits_in_16_bits(dtype: torch.dtype) -> None:
    hidden, weight, _, targets, factors = inputs(60, 16, 300, dtype)
    exact = (cross_entropy(linear(hidden.double(), weight.double()), targets, reduction="none") * factors).sum()
    expected = torch.autograd.grad(exact, [hidden, weight])
    plain = (cross_entropy(linear(hidden, weight).float(), targets, reduction="none") * factors).sum()
    usual = torch.autograd.grad(plain, [hidden, weight])
    total, _ = sum_of_losses(hidden, weight, None, targets, factors)
    found = torch.autograd.grad(total, [hidden, weight])
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(plain.item(), rel=1e-3)
    for ours, theirs, best in zip(found, usual, expected, strict=True):
        assert ours.dtype == dtype
        assert float((ours - best).norm()) <= 1.3 * float((theirs - best).norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nearly_certain_tokens_have_the_gradients_of_16_bit_logits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(400, 64, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(400, (40,), generator=generator)
    toward = weight.detach()[targets].float()
    hidden = (13 * toward / (toward * toward).sum(-1, keepdim=True)).to(dtype).requires_grad_()
    exact = cross_entropy(linear(hidden.double(), weight.double()), targets, reduction="sum")
    assert 0.9 < (-exact / 40).exp() < 0.9999, "or nothing would cancel"
    usual = torch.autograd.grad(
        cross_entropy(linear(hidden, weight).float(), targets, reduction="sum"), [hidden, weight]
    )
    total, _ = sum_of_losses(hidden, weight, None, targets, torch.ones(40))
    by_token = log_probs(hidden, weight.detach(), None, targets).log_probs
    found = (*torch.autograd.grad(total, [hidden, weight]), *torch.autograd.grad(-by_token.sum(), [hidden]))
    expected = torch.autograd.grad(exact, [hidden, weight])
    for ours, theirs, best in zip(found, (*usual, usual[0]), (*expected, expected[0]), strict=True):
        assert float((ours - best).norm()) <= 1.5 * float((theirs - best).norm())


def test_autocast_decides_on_the_products_and_not_on_the_sums() -> None:
    hidden, weight, _, targets, factors = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = sum_of_losses(hidden, weight, None, targets, factors)
        logits = linear(hidden, weight).float()
    assert logits.tolist() != linear(hidden, weight).tolist()
    assert total.item() == pytest.approx(
        (cross_entropy(logits, targets, reduction="none") * factors).sum().item(), rel=1e-6
    )
    total.backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


def test_huge_logits_and_no_tokens_are_no_trouble() -> None:
    hidden, weight, _, targets, factors = inputs(dtype=torch.float32)
    total, _ = sum_of_losses(hidden * 1e4, weight, None, targets, factors)
    assert math.isfinite(total.item())
    nothing, is_top1 = sum_of_losses(hidden[:0], weight, None, targets[:0], factors[:0])
    nothing.backward()
    assert nothing.item() == 0.0
    assert len(is_top1) == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_the_gradients_can_be_used_once() -> None:
    hidden, weight, _, targets, factors = inputs()
    total, _ = sum_of_losses(hidden, weight, None, targets, factors)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used already"):
        total.backward()


# --- Log-probabilities, as TRL's fused head has them -----------------------------------------------------------------


def reference(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, temperature: float
) -> dict[str, torch.Tensor]:
    logits = linear(hidden, weight, bias) / temperature
    every = logits.log_softmax(-1)
    p = every.exp()
    return {
        "log_probs": every.gather(-1, targets[:, None])[:, 0],
        "entropy": -(p * every).sum(-1),
        "log_sum_sq_probs": p.square().sum(-1).log(),
        "mean_logits": logits.mean(-1),
        "is_top1": logits.argmax(-1) == targets,
    }


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("of_entropy", [0.0, 0.3], ids=["log-probabilities", "entropy too"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained head", "frozen head"])
def test_what_is_found_and_its_gradients_are_those_of_autograd(
    frozen: bool, of_entropy: float, temperature: float
) -> None:
    hidden, weight, bias, targets, factors = inputs()
    assert bias is not None
    leaves = [hidden] if frozen else [hidden, weight, bias]
    if frozen:
        weight, bias = weight.detach(), bias.detach()
    expected = reference(hidden, weight, bias, targets, temperature)
    found = log_probs(hidden, weight, bias, targets, temperature=temperature, extras=EXTRAS)._asdict()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=1e-12, rtol=1e-12, msg=name)
    gradients = []
    for scores in (expected, found):
        loss = (scores["log_probs"].sin() * factors).sum()
        if of_entropy:
            loss = loss + of_entropy * (scores["entropy"] * factors).sum()
        gradients.append(torch.autograd.grad(loss, leaves))
    for theirs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained head", "frozen head"])
def test_the_gradients_are_the_slopes(frozen: bool) -> None:
    hidden, weight, bias, targets, _ = inputs(tokens=3)
    assert bias is not None
    if frozen:
        weight, bias = weight.detach(), bias.detach()
    assert torch.autograd.gradcheck(
        lambda *leaves: log_probs(*leaves, targets, temperature=0.7, extras=("entropy",))[:2], (hidden, weight, bias)
    )


def test_only_what_is_asked_for_is_found() -> None:
    hidden, weight, bias, targets, _ = inputs()
    found = log_probs(hidden, weight, bias, targets, extras=("is_top1",))
    assert found.entropy is found.log_sum_sq_probs is found.mean_logits is None
    assert found.is_top1 is not None


# --- Memory and work -------------------------------------------------------------------------------------------------


class Seen(TorchDispatchMode):
    """The largest tensor that any operation makes, in elements, and the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.numel())
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return found


@pytest.mark.parametrize("tokens", [40, 400])
def test_no_more_logits_at_once_with_more_tokens(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr(_chunked_head, "CHUNK_BYTES", 4 * 1000 * 8)
    hidden, weight, _, targets, factors = inputs(tokens, 4, 1000, torch.float32)
    with Seen() as seen:
        sum_of_losses(hidden, weight, None, targets, factors)[0].backward()
    assert seen.largest == 8 * 1000
    with Seen() as plain:
        cross_entropy(linear(hidden, weight), targets).backward()
    assert plain.largest == tokens * 1000


@pytest.mark.parametrize(("frozen", "products"), [(True, 2), (False, 3)])
def test_nothing_is_computed_twice(frozen: bool, products: int) -> None:
    hidden, weight, _, targets, factors = inputs(tokens=2, dtype=torch.float32)
    weight = weight.detach() if frozen else weight
    with Seen() as seen:
        sum_of_losses(hidden, weight, None, targets, factors)[0].backward()
    assert seen.products == products


def test_a_frozen_heads_log_probabilities_are_not_computed_twice() -> None:
    hidden, weight, _, targets, _ = inputs(tokens=2, dtype=torch.float32)
    with Seen() as seen:
        log_probs(hidden, weight.detach(), None, targets).log_probs.sum().backward()
    assert seen.products == 2
    with torch.no_grad(), Seen() as scoring:
        log_probs(hidden.detach(), weight.detach(), None, targets)
    assert scoring.products == 1


# --- Which heads -----------------------------------------------------------------------------------------------------


def test_a_plain_head_is_found_and_left_as_it_was(model: Any) -> None:
    model.train()
    model.model.layers[0].eval()
    state = torch.get_rng_state()
    assert ends_with_its_head(model)
    assert linear_head(model) is model.lm_head
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.model.layers[0].training
    assert not model.model._forward_hooks


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Granite", {"logits_scaling": 2.0}),
        ("Cohere", {"logit_scale": 0.5}),
        ("Gemma2", {"final_logit_softcapping": 30.0, "head_dim": 8}),
    ],
)
def test_logits_that_are_scaled_or_capped_are_noticed(kind: str, options: dict[str, Any]) -> None:
    import transformers

    common = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    common |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": None}
    config = getattr(transformers, f"{kind}Config")(**common, **options)
    made = transformers.AutoModelForCausalLM.from_config(config)
    assert linear_head(made) is not None
    assert not ends_with_its_head(made)


def test_adapters_hooks_and_other_forwards_are_more_than_a_matrix(model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    handle = model.lm_head.register_forward_hook(lambda *_: None)
    assert linear_head(model) is None
    handle.remove()
    model.lm_head.forward = lambda hidden: hidden
    assert linear_head(model) is None
    del model.lm_head.forward
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    head = linear_head(adapted.get_base_model())
    assert head is not None
    assert head.weight.requires_grad
    with adapted.disable_adapter():
        assert linear_head(adapted.get_base_model()) is model.lm_head.original_module
    adapted = get_peft_model(adapted.unload(), LoraConfig(target_modules=["lm_head"]))
    assert linear_head(adapted.get_base_model()) is None


def test_the_head_is_a_head_again_afterwards(model: Any) -> None:
    hidden = torch.randn(1, 2, model.config.hidden_size)
    expected = model.lm_head(hidden)
    with pytest.raises(ZeroDivisionError), summed_losses(model.lm_head, torch.tensor([3, 4]), torch.ones(2)):
        assert model.lm_head(hidden).shape == (1, 1, 1)
        _ = 1 / 0
    assert torch.equal(model.lm_head(hidden), expected)
