"""Gates as a recipe writes them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmkit.recipe.gates import Gate, parse_gate


@pytest.mark.parametrize(
    ("text", "metric", "op", "bound", "relative"),
    [
        ("exact_match >= 0.9", "exact_match", ">=", 0.9, False),
        ("exact_match>=.9", "exact_match", ">=", 0.9, False),
        ("  perplexity < 12  ", "perplexity", "<", 12.0, False),
        ("preference_margin > -1.5e-1", "preference_margin", ">", -0.15, False),
        ("loss <= +2.", "loss", "<=", 2.0, False),
        ("mmlu >= base", "mmlu", ">=", 0.0, True),
        ("mmlu >= base - 0.01", "mmlu", ">=", -0.01, True),
        ("mmlu>=base-0.01", "mmlu", ">=", -0.01, True),
        ("bleu >= base + 2", "bleu", ">=", 2.0, True),
        ("loss <= base+1e-3", "loss", "<=", 0.001, True),
        ("reward/exact_match >= 0.5", "reward/exact_match", ">=", 0.5, False),
        ("pass@1 >= 0.5", "pass@1", ">=", 0.5, False),
        ("exact_match,strict-match >= 0.5", "exact_match,strict-match", ">=", 0.5, False),
        ("base_accuracy >= base", "base_accuracy", ">=", 0.0, True),
    ],
)
def test_is_read(text: str, metric: str, op: str, bound: float, relative: bool) -> None:
    assert parse_gate(text) == Gate(metric, op, bound, relative, text.strip())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("exact_match >= 90%", r"percent sign.*0\.9 for 90%"),
        ("mmlu >= base - 1%", "percent sign"),
        ("mmlu > base", "write >= there"),
        ("loss < base + 1", "write <= there"),
        ("exact_match", "can't be read: write `METRIC >= NUMBER`"),
        ("", "can't be read"),
        (">= 0.9", "can't be read"),
        ("exact_match == 1", "can't be read"),
        ("exact_match => 0.9", "can't be read"),
        ("exact match >= 0.9", "can't be read"),
        ("exact_match >= 0.9 0.8", "can't be read"),
        ("exact_match >= 0,9", "can't be read"),
        ("exact_match >= nan", "can't be read"),
        ("exact_match >= base *0.9", "can't be read"),
        ("exact_match >= base - base", "can't be read"),
        ("exact_match >= baseline", "can't be read"),
        ("0.9 <= exact_match", "can't be read"),
        ("exact_match >= 1e999", "too large"),
        ("a >= 0.1\nb >= 0.2", "can't be read"),
    ],
)
def test_is_refused_with_what_to_write(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_gate(text)


def test_reading_a_gate_imports_no_arrays() -> None:
    code = "import sys, llmkit.recipe.gates; assert not {'numpy', 'scipy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
