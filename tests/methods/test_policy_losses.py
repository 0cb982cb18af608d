"""Golden values of the policy losses: advantages, clipping and KL of TRL's trainers against the papers' formulas.

The formulas are written here with loops over sequences and tokens, and share no code with TRL. The log-probabilities
come from a plain forward pass of the same tiny model. Both the loss and its gradient must agree.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.recipe.loading import load_recipe
from llmkit.runs.prepare import prepare

BETA, LOW, HIGH, MAX_LENGTH = 0.04, 0.2, 0.3, 8
PROMPTS = [[5, 9, 14], [0, 7, 21], [33, 4, 8], [0, 0, 60]]
PROMPT_MASK = [[1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]]
COMPLETIONS = [[11, 12, 13, 14, 2], [40, 41, 2, 0, 0], [50, 51, 52, 2, 0], [70, 2, 0, 0, 0]]
LENGTHS = [5, 3, 4, 2]
ADVANTAGES = [1.3, -0.7, -1.1, 0.5]
# log(pi / pi_old) per token: beyond both clip bounds, with advantages of both signs.
SHIFTS = [
    [0.5, -0.6, 0.05, 0.3, -0.1],
    [-0.5, 0.4, 0.1, 9.0, 9.0],
    [0.02, -0.3, 0.6, -0.05, 9.0],
    [-0.4, 0.35, 9.0, 9.0, 9.0],
]
# Added for ratios of whole sequences: the means of the rows above lie within the bounds.
DRIFT = [0.4, -0.4, 0.0, 0.0]
# log(pi_ref / pi) per token.
REFERENCE = [
    [0.2, -0.1, 0.0, 0.4, -0.3],
    [0.1, 0.1, -0.5, 9.0, 9.0],
    [-0.2, 0.3, 0.0, 0.1, 9.0],
    [0.6, -0.4, 9.0, 9.0, 9.0],
]

Loss = Callable[[int, list[torch.Tensor], list[torch.Tensor]], torch.Tensor]


# --- The formulas ----------------------------------------------------------------------------------------------------
# Each returns the objective of one sequence per token, given log pi (with gradient) and log pi - log pi_old.


def clipped(ratio: torch.Tensor, advantage: float) -> torch.Tensor:
    """PPO's clipped objective (arXiv:1707.06347, eq. 7), to be minimised."""
    inside = min(max(ratio.item(), 1 - LOW), 1 + HIGH)
    bounded = ratio if inside == ratio.item() else torch.tensor(inside)
    return -torch.minimum(ratio * advantage, bounded * advantage)


def token_clipped(i: int, logps: list[torch.Tensor], log_ratios: list[torch.Tensor]) -> torch.Tensor:
    """GRPO (arXiv:2402.03300, eq. 3) without its mean."""
    return torch.stack([clipped(r.exp(), ADVANTAGES[i]) for r in log_ratios])


def sequence_clipped(i: int, logps: list[torch.Tensor], log_ratios: list[torch.Tensor]) -> torch.Tensor:
    """GSPO (arXiv:2507.18071, eq. 5 and 7): one ratio per sequence, the geometric mean of the tokens'."""
    ratio = (torch.stack(log_ratios).sum() / len(log_ratios)).exp()
    return clipped(ratio, ADVANTAGES[i]).repeat(len(log_ratios))


def cispo(i: int, logps: list[torch.Tensor], log_ratios: list[torch.Tensor]) -> torch.Tensor:
    """CISPO (arXiv:2506.13585, eq. 4): the weight is clipped above and has no gradient."""
    weights = [min(math.exp(r.item()), HIGH) for r in log_ratios]
    return torch.stack([-w * ADVANTAGES[i] * logp for w, logp in zip(weights, logps, strict=True)])


def sapo(i: int, logps: list[torch.Tensor], log_ratios: list[torch.Tensor]) -> torch.Tensor:
    """SAPO (arXiv:2511.20347): a sigmoid gate in place of the clip, steeper for negative advantages."""
    tau = 1.0 if ADVANTAGES[i] > 0 else 1.05
    gates = [4 / tau / (1 + (-tau * (r.exp() - 1)).exp()) for r in log_ratios]
    return torch.stack([-gate * ADVANTAGES[i] for gate in gates])


def vespo(i: int, logps: list[torch.Tensor], log_ratios: list[torch.Tensor]) -> torch.Tensor:
    """VESPO (arXiv:2602.10693): a sequence of ratio w weighs w^k e^(lambda (1 - w)), without gradient."""
    k, scale = (2.0, 3.0) if ADVANTAGES[i] >= 0 else (3.0, 2.0)
    w = math.exp(sum(r.item() for r in log_ratios))
    weight = w**k * math.exp(scale * (1 - w))
    return torch.stack([-weight * ADVANTAGES[i] * logp for logp in logps])


def divergence(logps: list[torch.Tensor], i: int, ratios: list[torch.Tensor]) -> torch.Tensor:
    """Schulman's k3 estimate of the KL per token, weighted by the ratio (DeepSeek-V3.2, arXiv:2512.02556, eq. 7)."""
    values = []
    for t, (logp, ratio) in enumerate(zip(logps, ratios, strict=True)):
        gap = logp.detach() + REFERENCE[i][t] - logp
        values.append((gap.exp() - gap - 1) * ratio)
    return torch.stack(values)


def token_ratios(log_ratios: list[torch.Tensor]) -> list[torch.Tensor]:
    return [r.exp() for r in log_ratios]


def sequence_ratios(log_ratios: list[torch.Tensor]) -> list[torch.Tensor]:
    return [(torch.stack(log_ratios).sum() / len(log_ratios)).exp()] * len(log_ratios)


# The means: over the tokens of each sequence and then the sequences, over all tokens, or by a constant.


def mean_of_means(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([v.sum() / len(v) for v in values]).sum() / len(values)


def mean_of_tokens(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(values).sum() / sum(LENGTHS)


def mean_of_room(values: list[torch.Tensor]) -> torch.Tensor:
    """Dr. GRPO (arXiv:2503.20783): the divisor is the longest completion allowed."""
    return torch.cat(values).sum() / (len(values) * MAX_LENGTH)


def mean_of_sums(values: list[torch.Tensor]) -> torch.Tensor:
    """LUSPO (arXiv:2602.05261): a sequence counts by its length."""
    return torch.stack([v.sum() for v in values]).sum() / len(values)


# name: loss_type, importance_sampling_level, objective, mean
LOSSES: dict[str, tuple[str, str, Loss, Callable[[list[torch.Tensor]], torch.Tensor]]] = {
    "grpo": ("grpo", "token", token_clipped, mean_of_means),
    "dr_grpo": ("dr_grpo", "token", token_clipped, mean_of_room),
    "dapo": ("dapo", "token", token_clipped, mean_of_tokens),
    "bnpo": ("bnpo", "token", token_clipped, mean_of_tokens),
    "cispo": ("cispo", "token", cispo, mean_of_tokens),
    "sapo": ("sapo", "token", sapo, mean_of_means),
    "luspo": ("luspo", "sequence", sequence_clipped, mean_of_sums),
    "vespo": ("vespo", "token", vespo, mean_of_tokens),
    "gspo": ("grpo", "sequence", sequence_clipped, mean_of_means),
}


# --- The trainers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    folder = tmp_path_factory.mktemp("policy")
    rows = [{"prompt": [{"role": "user", "content": f"what is {i}?"}], "answer": str(i)} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (folder / "policy.yaml").write_text(
        f"""
model: {{name: {tiny_folder}, dtype: float32}}
data: {{train: [{{path: rows.jsonl, format: prompt}}]}}
method: {{type: grpo}}
rewards: [{{type: exact_match}}, {{type: exact_match, label: twice, weight: 2.0}}]
training:
  beta: {BETA}
  epsilon: {LOW}
  epsilon_high: {HIGH}
  num_generations: 4
  max_completion_length: {MAX_LENGTH}
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 1
  bf16: false
  gradient_checkpointing: false
  report_to: none
hardware: {{device: cpu}}
""",
        encoding="utf-8",
    )

    def build(*overrides: str) -> Any:
        trainer = prepare(load_recipe(folder / "policy.yaml", overrides), output_dir=folder / "out").trainer
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    return build


@pytest.fixture(scope="module")
def grpo(make: Callable[..., Any]) -> Any:
    return make()


@pytest.fixture(scope="module")
def rloo(make: Callable[..., Any]) -> Any:
    return make("method.type=rloo", "training.epsilon_high=0.3")


def log_probabilities(trainer: Any) -> list[list[torch.Tensor]]:
    """Return log pi of every completion token, by a plain forward pass of each sequence without its padding."""
    found = []
    for prompt, mask, completion, length in zip(PROMPTS, PROMPT_MASK, COMPLETIONS, LENGTHS, strict=True):
        real = [token for token, keep in zip(prompt, mask, strict=True) if keep]
        ids = torch.tensor([real + completion[:length]])
        logits_TV = trainer.model(input_ids=ids).logits[0] / trainer.temperature
        logps_TV = torch.log_softmax(logits_TV, dim=-1)
        found.append([logps_TV[len(real) - 1 + t, completion[t]] for t in range(length)])
    return found


def padded(values: list[list[float]]) -> torch.Tensor:
    return torch.tensor([row + [0.0] * (5 - len(row)) for row in values])


def shift(level: str, i: int, t: int) -> float:
    return SHIFTS[i][t] + (DRIFT[i] if level == "sequence" else 0.0)


def batch(logps: list[list[torch.Tensor]], level: str = "token") -> dict[str, torch.Tensor]:
    """Return the batch that TRL's `_compute_loss` takes; what stands at padded places must not matter."""
    now = padded([[logp.item() for logp in row] for row in logps])
    mask = torch.tensor([[int(t < length) for t in range(5)] for length in LENGTHS])
    return {
        "prompt_ids": torch.tensor(PROMPTS),
        "prompt_mask": torch.tensor(PROMPT_MASK),
        "completion_ids": torch.tensor(COMPLETIONS),
        "completion_mask": mask,
        "advantages": torch.tensor(ADVANTAGES),
        "num_items_in_batch": torch.tensor(float(sum(LENGTHS))),
        "old_per_token_logps": now - torch.tensor([[shift(level, i, t) for t in range(5)] for i in range(4)]),
        "ref_per_token_logps": now + torch.tensor(REFERENCE),
    }


def gradient(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    trainer.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten().clone() for p in trainer.model.parameters() if p.grad is not None])


def expected_loss(trainer: Any, name: str) -> torch.Tensor:
    _, level, objective, mean = LOSSES[name]
    weights = sequence_ratios if level == "sequence" else token_ratios
    values = []
    for i, logps in enumerate(log_probabilities(trainer)):
        log_ratios = [logp - (logp.item() - shift(level, i, t)) for t, logp in enumerate(logps)]
        values.append(objective(i, logps, log_ratios) + BETA * divergence(logps, i, weights(log_ratios)))
    return mean(values)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_those_of_the_paper(grpo: Any, name: str) -> None:
    grpo.loss_type, grpo.importance_sampling_level = LOSSES[name][:2]
    loss = grpo._compute_loss(grpo.model, batch(log_probabilities(grpo), LOSSES[name][1]))
    expected = expected_loss(grpo, name)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(gradient(grpo, loss), gradient(grpo, expected), atol=1e-5, rtol=1e-4)


def test_every_loss_type_that_a_recipe_can_name_is_pinned() -> None:
    from llmkit.recipe.fields import describe

    assert {loss for loss, *_ in LOSSES.values()} == set(describe("GRPOConfig")["loss_type"].choices)


def test_the_losses_differ_on_this_batch(grpo: Any) -> None:
    found = [expected_loss(grpo, name).item() for name in LOSSES if name != "bnpo"]
    assert len({round(value, 4) for value in found}) == len(found)


def test_tokens_beyond_the_clip_bounds_have_no_gradient(grpo: Any) -> None:
    """Worked out by hand: ratios e^0.5, e^0.3 above 1.3 with A > 0, e^-0.5, e^-0.3 below 0.8 with A < 0, e^0.35."""
    grpo.loss_type, grpo.importance_sampling_level = "grpo", "token"
    grpo._metrics["train"].clear()
    grpo._compute_loss(grpo.model, batch(log_probabilities(grpo)))
    found = grpo._metrics["train"]
    assert found["clip_ratio/high_mean"] == [pytest.approx(3 / 14)]
    assert found["clip_ratio/low_mean"] == [pytest.approx(2 / 14)]
    kl = [math.exp(gap) - gap - 1 for i, row in enumerate(REFERENCE) for gap in row[: LENGTHS[i]]]
    weights = [math.exp(shift) for i, row in enumerate(SHIFTS) for shift in row[: LENGTHS[i]]]
    assert found["kl"] == [pytest.approx(sum(k * w for k, w in zip(kl, weights, strict=True)) / 14, abs=1e-5)]


def test_without_beta_there_is_no_divergence(grpo: Any) -> None:
    grpo.loss_type, grpo.importance_sampling_level = "grpo", "token"
    inputs = batch(log_probabilities(grpo))
    with_kl = grpo._compute_loss(grpo.model, dict(inputs)).item()
    grpo.beta = 0.0
    try:
        without = grpo._compute_loss(grpo.model, dict(inputs)).item()
    finally:
        grpo.beta = BETA
    logps = log_probabilities(grpo)
    parts = []
    for i, row in enumerate(logps):
        ratios = [torch.tensor(SHIFTS[i][t]).exp() for t in range(len(row))]
        parts.append(divergence([logp.detach() for logp in row], i, ratios))
    assert with_kl - without == pytest.approx(BETA * mean_of_means(parts).item(), abs=1e-5)


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("name", ["grpo", "bnpo", "dr_grpo", "luspo"])
def test_accumulated_batches_are_averaged(grpo: Any, name: str, steps: int) -> None:
    grpo.loss_type, grpo.importance_sampling_level = LOSSES[name][:2]
    grpo.current_gradient_accumulation_steps = steps
    try:
        loss = grpo._compute_loss(grpo.model, batch(log_probabilities(grpo), LOSSES[name][1]))
    finally:
        grpo.current_gradient_accumulation_steps = 1
    assert loss.item() == pytest.approx(expected_loss(grpo, name).item() / steps, abs=1e-5)


# --- RLOO ------------------------------------------------------------------------------------------------------------


def test_rloo_clips_the_ratio_of_whole_sequences(rloo: Any) -> None:
    """REINFORCE leave-one-out (arXiv:2402.14740) with PPO's clip on the ratio of the whole completion."""
    logps = log_probabilities(rloo)
    shifts = [0.4, -0.5, 0.1, -0.05]  # log(pi / pi_old) of each sequence: clipped above (A > 0) and below (A < 0)
    inputs = batch(logps)
    inputs["old_logps"] = torch.tensor([sum(logp.item() for logp in row) for row in logps]) - torch.tensor(shifts)
    loss = rloo._compute_loss(rloo.model, inputs)
    terms = []
    for i, row in enumerate(logps):
        total = torch.stack(row).sum()
        terms.append(clipped((total - (total.item() - shifts[i])).exp(), ADVANTAGES[i]))
    expected = torch.stack(terms).sum() / 4
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(gradient(rloo, loss), gradient(rloo, expected), atol=1e-5, rtol=1e-4)


# --- Advantages ------------------------------------------------------------------------------------------------------

FIRST = [0.0, 1.0, 1.0, 0.0, 0.5, 0.5, 0.5, 0.5]
SECOND = [0.0, 0.0, 0.5, 0.0, 1.0, 0.0, 0.25, 0.0]
TOTALS = [a + 2 * b for a, b in zip(FIRST, SECOND, strict=True)]  # two groups of four; `twice` weighs 2


def advantages(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return what the trainer makes of FIRST and SECOND as the rewards of eight given completions."""
    monkeypatch.setattr(trainer, "_generate_single_turn", lambda ids, *_: tokens(ids, trainer))
    parts = iter((FIRST, SECOND))
    monkeypatch.setattr("llmkit.rewards.exact_match.ExactMatch.scores", lambda *_: next(parts))
    inputs = [{"row": index // 4} for index in range(8)]
    return trainer._generate_and_score_completions(inputs)["advantages"].tolist()


def tokens(prompt_ids: list[list[int]], trainer: Any) -> Any:
    completions = [[50 + i, 2] for i in range(len(prompt_ids))]
    return (completions, None) if "GRPO" in type(trainer).__name__ else completions


def test_advantages_within_a_group(grpo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = []
    for group in (TOTALS[:4], TOTALS[4:]):
        mean, deviation = statistics.mean(group), statistics.stdev(group)
        expected += [(value - mean) / (deviation + 1e-4) for value in group]
    monkeypatch.setattr(grpo, "scale_rewards", "group")
    assert advantages(grpo, monkeypatch) == pytest.approx(expected, abs=1e-5)


def test_advantages_scaled_by_the_batch(grpo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    deviation = statistics.stdev(TOTALS)
    means = [statistics.mean(TOTALS[:4])] * 4 + [statistics.mean(TOTALS[4:])] * 4
    expected = [(value - mean) / (deviation + 1e-4) for value, mean in zip(TOTALS, means, strict=True)]
    monkeypatch.setattr(grpo, "scale_rewards", "batch")
    assert advantages(grpo, monkeypatch) == pytest.approx(expected, abs=1e-5)


def test_advantages_that_are_not_scaled(grpo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo, "scale_rewards", "none")
    # Totals 0 1 2 0 | 2.5 0.5 1 0.5 with means 0.75 and 1.125.
    expected = [-0.75, 0.25, 1.25, -0.75, 1.375, -0.625, -0.125, -0.625]
    assert advantages(grpo, monkeypatch) == pytest.approx(expected, abs=1e-5)


def test_advantages_of_parts_normalised_apart(grpo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """GDPO (arXiv:2601.05242): each part by its group, then the weighted sum by the batch."""
    summed = [0.0] * 8
    for weight, part in ((1.0, FIRST), (2.0, SECOND)):
        for start in (0, 4):
            group = part[start : start + 4]
            mean, deviation = statistics.mean(group), statistics.stdev(group)
            for t, value in enumerate(group):
                summed[start + t] += weight * (value - mean) / (deviation + 1e-4)
    mean, deviation = statistics.mean(summed), statistics.stdev(summed)
    monkeypatch.setattr(grpo, "multi_objective_aggregation", "normalize_then_sum")
    expected = [(value - mean) / (deviation + 1e-4) for value in summed]
    assert advantages(grpo, monkeypatch) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
def test_the_share_of_silent_groups_is_that_of_groups(grpo: Any, monkeypatch: pytest.MonkeyPatch, scaling: str) -> None:
    """The first group is all 1, the second all 0: TRL's own figure with `batch` would be 0."""
    monkeypatch.setattr(grpo, "scale_rewards", scaling)
    monkeypatch.setattr(grpo, "_generate_single_turn", lambda ids, *_: tokens(ids, grpo))
    monkeypatch.setattr("llmkit.rewards.exact_match.ExactMatch.scores", lambda *_: [1.0] * 4 + [0.0] * 4)
    grpo._metrics["train"].clear()
    output = grpo._generate_and_score_completions([{"row": index // 4} for index in range(8)])
    assert output["advantages"].abs().max().item() == 0
    assert grpo._metrics["train"]["frac_reward_zero_std"] == [1.0]


def test_rloo_compares_with_the_mean_of_the_others(rloo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With beta 0.05 in the reward; the reference is the model itself here, so its KL is 0."""
    expected = []
    for start in (0, 4):
        group = TOTALS[start : start + 4]
        expected += [value - (sum(group) - value) / 3 for value in group]
    assert advantages(rloo, monkeypatch) == pytest.approx(expected, abs=1e-4)


def test_rloo_takes_the_divergence_off_the_reward(rloo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = rloo._get_per_token_logps_and_entropies
    gaps = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 4.0])

    def shifted(model: Any, *args: Any, **kwargs: Any) -> Any:
        logps, *rest = compute(model, *args, **kwargs)
        # The reference finds each of the two tokens less likely: log pi - log pi_ref is the gap per token.
        return (logps - gaps[:, None] if model is rloo.ref_model else logps), *rest

    monkeypatch.setattr(rloo, "_get_per_token_logps_and_entropies", shifted)
    rewards = [total - BETA * 2 * gap for total, gap in zip(TOTALS, gaps.tolist(), strict=True)]
    expected = []
    for start in (0, 4):
        group = rewards[start : start + 4]
        expected += [value - (sum(group) - value) / 3 for value in group]
    assert advantages(rloo, monkeypatch) == pytest.approx(expected, abs=1e-4)
