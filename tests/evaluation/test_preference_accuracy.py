"""Preference accuracy: log-probabilities worked out token by token, scores at the last token, whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from llmkit.data.splits import Row
from llmkit.errors import DataError, RecipeError
from llmkit.evaluation.base import Score, Subject
from llmkit.evaluation.preference_accuracy import PreferenceAccuracy


def pair(where: str, prompt: list[int], chosen: list[int], rejected: list[int]) -> Row:
    return Row(where, {}, {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})


@pytest.fixture
def rows() -> tuple[Row, ...]:
    """Pairs with prompts of 1 to 30 tokens and answers of 1 to 12."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 300, (length,), generator=generator).tolist()

    lengths = [(5, 3, 9), (30, 12, 1), (1, 1, 2), (8, 4, 4), (17, 2, 11)]
    return tuple(pair(f"e:{i}", ids(p), ids(c), ids(r)) for i, (p, c, r) in enumerate(lengths))


def log_probability(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Sum log p of one token after the other, each from a pass of its own."""
    total = 0.0
    for i, token in enumerate(answer):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer[:i]]])).logits[0, -1]
        total += float(torch.log_softmax(logits.double(), -1)[token])
    return total


def score(subject: Subject, **fields: Any) -> Score:
    return PreferenceAccuracy(type="preference_accuracy", **fields).score(subject)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_equals_a_loop_over_tokens_whatever_the_batch(model, tokenizer, rows, batch_size) -> None:
    margins, normalized = [], []
    for row in rows:
        prompt, chosen, rejected = (row.tokens[f"{n}_ids"] for n in ("prompt", "chosen", "rejected"))
        better, worse = (log_probability(model, prompt, answer) for answer in (chosen, rejected))
        margins.append(better - worse)
        normalized.append(better / len(chosen) - worse / len(rejected))
    model.train()
    found = score(Subject(model, tokenizer, rows, seed=0), batch_size=batch_size)
    assert found.per_row["preference_margin"] == pytest.approx(margins, abs=1e-4)
    assert found.per_row["preference_margin_normalized"] == pytest.approx(normalized, abs=1e-4)
    assert found.metrics == pytest.approx(
        {
            "preference_accuracy": sum(m > 0 for m in margins) / 5,
            "preference_accuracy_normalized": sum(m > 0 for m in normalized) / 5,
            "preference_margin": sum(margins) / 5,
            "preference_margin_normalized": sum(normalized) / 5,
        },
        abs=1e-4,
    )
    assert 0 < sum(m > 0 for m in margins) < 5, "both outcomes occur"
    assert (found.rows, found.samples) == (5, ())
    assert model.training


def test_a_uniform_model_prefers_the_shorter_answer_and_per_token_none(model, tokenizer, rows) -> None:
    torch.nn.init.zeros_(model.lm_head.weight)
    found = score(Subject(model, tokenizer, rows, 0), limit=4)
    nats = float(torch.log(torch.tensor(float(len(tokenizer)))))
    # Lengths of chosen and rejected: 3, 9; 12, 1; 1, 2; 4, 4 (a tie, which counts half).
    assert found.per_row["preference_margin"] == pytest.approx([6 * nats, -11 * nats, nats, 0.0], rel=1e-5)
    assert found.metrics["preference_accuracy"] == 2.5 / 4
    assert found.metrics["preference_margin_normalized"] == pytest.approx(0, abs=1e-5)
    assert found.rows == 4


def test_rewards_are_differences_to_the_base(model, tokenizer, rows) -> None:
    base = Score({}, 3, per_row={"preference_margin": (0.0, 0.0, 0.0)})
    subject = Subject(model, tokenizer, rows[:3], 0)
    margins = score(subject).per_row["preference_margin"]
    subject.base = base
    found = score(subject)
    assert found.per_row["reward_margin"] == margins
    subject.base = Score({}, 3, per_row={"preference_margin": (margins[0] - 1, margins[1] + 2, margins[2])})
    found = score(subject)
    assert found.per_row["reward_margin"] == pytest.approx((1.0, -2.0, 0.0))
    assert found.metrics["reward_margin"] == pytest.approx(-1 / 3)
    assert found.per_row["reward_accuracy"] == (1.0, 0.0, 0.5)
    assert found.metrics["reward_accuracy"] == 0.5


def test_an_adapter_that_changes_nothing_has_no_reward(model, tokenizer, rows) -> None:
    base = score(Subject(model, tokenizer, rows, 0))
    assert "reward_margin" not in base.metrics
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    found = score(Subject(tuned, tokenizer, rows, 0, base=base))
    assert found.metrics["reward_margin"] == 0.0
    assert found.metrics["reward_accuracy"] == 0.5
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.05)
    assert abs(score(Subject(tuned, tokenizer, rows, 0, base=base)).metrics["reward_margin"]) > 1e-3


def test_virtual_tokens_are_not_counted(model, tokenizer, rows) -> None:
    torch.manual_seed(1)
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    row = rows[0].tokens
    expected = [log_probability(tuned, row["prompt_ids"], row[name]) for name in ("chosen_ids", "rejected_ids")]
    found = score(Subject(tuned, tokenizer, rows[:1], 0))
    assert found.metrics["preference_margin"] == pytest.approx(expected[0] - expected[1], abs=1e-4)


def test_the_first_token_after_nothing_is_not_counted(model, tokenizer) -> None:
    row = pair("e:1", [], [5, 6, 7], [8, 9])
    found = score(Subject(model, tokenizer, (row,), 0))
    expected = log_probability(model, [5], [6, 7]) - log_probability(model, [8], [9])
    assert found.metrics["preference_margin"] == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def reward_model(tiny_folder: Path, tokenizer) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_a_reward_model_is_judged_by_its_scores(reward_model, tokenizer, rows, batch_size) -> None:
    def by_hand(ids: list[int]) -> float:
        with torch.no_grad():
            hidden = reward_model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        return float(reward_model.score.weight.detach()[0] @ hidden)

    margins = [by_hand(chosen) - by_hand(rejected) for chosen, rejected in (row.sequences for row in rows)]
    found = score(Subject(reward_model, tokenizer, rows, 0), batch_size=batch_size)
    assert found.per_row["reward_margin"] == pytest.approx(margins, abs=1e-4)
    assert found.metrics == pytest.approx(
        {"preference_accuracy": sum(m > 0 for m in margins) / 5, "reward_margin": sum(margins) / 5}, abs=1e-4
    )
    assert 0 < found.metrics["preference_accuracy"] < 1, "both outcomes occur"
    torch.nn.init.zeros_(reward_model.score.weight)
    assert score(Subject(reward_model, tokenizer, rows, 0)).metrics["preference_accuracy"] == 0.5


def test_progress_counts_pairs(model, tokenizer, rows) -> None:
    seen: list[int] = []
    score(Subject(model, tokenizer, rows, 0, on_done=seen.append), batch_size=4)
    assert seen == [2, 4, 5]


def test_rows_that_can_not_be_measured(model, tokenizer) -> None:
    with pytest.raises(DataError, match="no held-out rows"):
        score(Subject(model, tokenizer, (), 0))
    row = Row(where="e:7", example={"prompt": "a"}, tokens={"prompt_ids": [5]})
    with pytest.raises(RecipeError, match="e:7: .* needs pairs of a chosen and a rejected answer"):
        score(Subject(model, tokenizer, (row,), 0))
