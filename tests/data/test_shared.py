"""Every folder of the shared data loads, by itself or by a mapping of at most two lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.data import sources
from llmkit.data.shapes import RowError
from llmkit.recipe.recipe import Source

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"

CHOICES = "{{ question }}{% for o in [A, B, C, D] %}\n{{ 'ABCD'[loop.index0] }}. {{ o }}{% endfor %}"
STEM = "{{ question.stem }}{% for c in question.choices %}\n{{ c.label }}. {{ c.text }}{% endfor %}"
MMLU = ["question", "A", "B", "C", "D", "answer"]

CASES: list[tuple[str, dict[str, Any], str, int]] = [
    ("arc_challenge_test", {"columns": {"question": STEM, "answer": "answerKey"}}, "question", 1172),
    ("banking77/train.csv", {}, "text", 10003),
    ("banking77/train.csv", {"columns": {"prompt": "text", "completion": "category"}}, "prompt_completion", 10003),
    ("banking77/test.csv", {"columns": {"prompt": "text", "completion": "category"}}, "prompt_completion", 3080),
    ("dolly_hhrlhf_small", {"columns": {"completion": "response"}}, "prompt_completion", 1000),
    ("game24", {"columns": {"prompt": "Puzzles"}}, "prompt", 1362),
    ("gsm8k/train.jsonl", {}, "question", 7473),
    ("gsm8k/test.jsonl", {}, "question", 1319),
    ("gsm8k/train.jsonl", {"columns": {"prompt": "question", "completion": "answer"}}, "prompt_completion", 7473),
    (
        "hellaswag_val_1k",
        {"columns": {"prompt": "ctx", "completion": "{{ endings[label] }}"}},
        "prompt_completion",
        1000,
    ),
    ("humaneval", {}, "prompt", 164),
    ("humaneval", {"columns": {"completion": "canonical_solution"}}, "prompt_completion", 164),
    ("ifeval", {}, "prompt", 541),
    ("lf_dpo_kto/dpo_en_demo.json", {}, "preference", 300),
    ("lf_dpo_kto/dpo_zh_demo.json", {}, "preference", 300),
    ("lf_dpo_kto/kto_en_demo.json", {}, "unpaired", 300),
    ("lf_glaive_toolcall", {}, "sharegpt", 600),
    ("lf_identity", {}, "alpaca", 91),
    ("mmlu/dev", {"header": MMLU}, "question", 285),
    ("mmlu/test", {"header": MMLU, "columns": {"question": CHOICES}}, "question", 6376),
    ("tatoeba_en_zh/cmn.txt", {"header": ["prompt", "completion", "by"]}, "prompt_completion", 28447),
    ("tinyshakespeare", {}, "text", 7222),
    ("tinyshakespeare", {"header": ["text"]}, "text", 32777),
]

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the repository")


@pytest.mark.parametrize(("path", "keys", "row_format", "count"), CASES)
def test_it_loads(path: str, keys: dict[str, Any], row_format: str, count: int) -> None:
    source = Source(path=path, **keys)
    assert len(keys) <= 2
    assert sources.format_of(source, SHARED).format.name == row_format
    rows = [row for _, row in sources.read_examples(source, SHARED)]
    assert [str(row) for row in rows if isinstance(row, RowError)] == []
    assert len(rows) == count


def test_no_folder_is_forgotten() -> None:
    assert {path.partition("/")[0] for path, *_ in CASES} == {p.name for p in SHARED.iterdir() if p.is_dir()}


def test_what_a_mapping_makes_is_what_one_would_write() -> None:
    def first(path: str, **keys: Any) -> Any:
        return next(row for _, row in sources.read_examples(Source(path=path, max_rows=1, **keys), SHARED))

    arc = first("arc_challenge_test", columns={"question": STEM, "answer": "answerKey"})
    assert arc["question"].startswith("An astronomer observes that a planet rotates faster")
    assert arc["question"].endswith("\nD. Planetary gravity will become stronger.")
    assert arc["answer"] == "C"
    mmlu = first("mmlu/dev/abstract_algebra_dev.csv", header=MMLU, columns={"question": CHOICES})
    asked = "Find all c in Z_3 such that Z_3[x]/(x^2 + c) is a field.\nA. 0\nB. 1\nC. 2\nD. 3"
    assert mmlu["prompt"] == [{"role": "user", "content": asked}]
    assert mmlu["answer"] == "B"
    assert first("tatoeba_en_zh/cmn.txt", header=["prompt", "completion", "by"]) == {
        "prompt": "Hi.",
        "completion": "嗨。",
    }
    swag = first("hellaswag_val_1k", columns={"prompt": "ctx", "completion": "{{ endings[label] }}"})
    assert swag["completion"].startswith("are in the gym practicing to do this pole vault")
