from __future__ import annotations

import math

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

from llmkit.data.splits import Row
from llmkit.errors import DataError, RecipeError
from llmkit.evaluation.base import Subject
from llmkit.evaluation.perplexity import Perplexity


@pytest.fixture
def rows():
    """Rows of 3 to 40 tokens; some tokens, and one whole row, are not trained on."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i, length in enumerate([5, 40, 3, 17, 17, 28, 9]):
        ids = torch.randint(3, 300, (length,), generator=generator).tolist()
        labels = [-100 if (i + j) % 3 == 0 or i == 4 else token for j, token in enumerate(ids)]
        made.append(Row(where=f"e:{i}", example={}, tokens={"input_ids": ids, "labels": labels}))
    return tuple(made)


def by_hand(model, rows):
    total, tokens = 0.0, 0
    for row in rows:
        for i in range(1, len(row.input_ids)):
            if row.labels[i] != -100:
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([row.input_ids[:i]])).logits[0, -1]
                total -= float(torch.log_softmax(logits.double(), -1)[row.labels[i]])
                tokens += 1
    return total / tokens


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_equals_a_loop_over_tokens_whatever_the_batch(model, tokenizer, rows, batch_size):
    expected = by_hand(model, rows)
    model.train()
    score = Perplexity(type="perplexity", batch_size=batch_size).score(Subject(model, tokenizer, rows, seed=0))
    assert score.metrics["loss"] == pytest.approx(expected, abs=1e-5)
    assert score.metrics["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert (score.rows, score.samples) == (7, ())
    assert model.training


def test_limit_and_a_uniform_model(model, tokenizer, rows):
    spec = Perplexity(type="perplexity", limit=2)
    assert spec.score(Subject(model, tokenizer, rows, 0)).metrics["loss"] == pytest.approx(
        by_hand(model, rows[:2]), abs=1e-5
    )
    torch.nn.init.zeros_(model.lm_head.weight)
    score = spec.score(Subject(model, tokenizer, rows, 0))
    assert score.rows == 2
    assert score.metrics["perplexity"] == pytest.approx(len(tokenizer), rel=1e-5)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_are_not_counted(model, tokenizer, rows, kind):
    torch.manual_seed(1)
    tuned = get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    row = rows[0]  # its first label is -100; PEFT would count a first token, as the virtual ones foretell it
    with torch.no_grad():
        expected = tuned(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
    assert Perplexity(type="perplexity").score(Subject(tuned, tokenizer, (row,), 0)).metrics["loss"] == pytest.approx(
        float(expected), abs=1e-5
    )
    one, many = (
        Perplexity(type="perplexity", batch_size=n).score(Subject(tuned, tokenizer, rows, 0)).metrics["loss"]
        for n in (1, 4)
    )
    assert many == pytest.approx(one, abs=1e-5)


def test_half_precision_logits_are_summed_in_float32(model, tokenizer, rows):
    half = Perplexity(type="perplexity").score(Subject(model.bfloat16(), tokenizer, rows, 0)).metrics["loss"]
    total, tokens = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
        table = torch.log_softmax(logits.double(), -1)
        picked = [(i, label) for i, label in enumerate(row.labels) if label != -100 and i > 0]
        total -= float(sum(table[i - 1, label] for i, label in picked))
        tokens += len(picked)
    assert half == pytest.approx(total / tokens, rel=5e-3)


def test_rows_that_can_not_be_measured(model, tokenizer, rows):
    spec = Perplexity(type="perplexity")
    with pytest.raises(DataError, match="no held-out rows"):
        spec.score(Subject(model, tokenizer, (), 0))
    with pytest.raises(RecipeError, match="needs tokenized rows"):
        spec.score(Subject(model, tokenizer, (Row(where="e:1", example={"prompt": "a"}),), 0))
    with pytest.raises(DataError, match="no trained token"):
        spec.score(Subject(model, tokenizer, (rows[4],), 0))
