"""Splits of pairs, unpaired feedback and prompts: what teaches nothing is counted and not trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llmkit.data.ledger import Ledger
from llmkit.data.prepare import load_splits
from llmkit.data.shapes import Shape
from llmkit.data.splits import Splits
from llmkit.errors import DataError
from llmkit.recipe.recipe import Recipe

Maker = Callable[..., Recipe]
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _any_shape(recipe: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tiny recipe's method take every shape: only the rows matter here."""
    monkeypatch.setattr(type(recipe().method), "accepts", frozenset(Shape))


def load(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, max_length: int | None = 1024
) -> tuple[Splits, dict[str, Any], Ledger]:
    """Return the splits, the account of the first training source as it is written, and the ledger."""
    assert tokenizer.eos_token_id is not None
    stops = frozenset({tokenizer.eos_token_id})
    splits, ledger = load_splits(recipe, tokenizer, stops, max_length=max_length, seed=42)
    return splits, next(iter(ledger.to_dict()["train"].values())), ledger


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pairs(recipe: Maker, *overrides: str) -> Recipe:
    return recipe("data.eval=null", "data.train.0.format=preference", *overrides)


def pair(chosen: str, rejected: str, prompt: str = "q") -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": prompt}], "chosen": chosen, "rejected": rejected}


def feedback(good: bool, text: str = "a") -> dict[str, Any]:
    return {"prompt": "q", "completion": text, "label": good}


# A kind of row, and what becomes of it at 60 tokens under `drop` and `truncate`. The prompt of "q" takes 14 or so.
KINDS: dict[str, tuple[Callable[[int], dict[str, Any]], str | None, str | None]] = {
    "good": (lambda i: pair(f"yes {i}", f"no {i}"), None, None),
    "equal": (lambda i: pair(f"yes {i}", f"yes {i}"), "the answers are equal", "the answers are equal"),
    "empty": (lambda i: pair(f"yes {i}", " "), "an answer is empty", "an answer is empty"),
    "long": (lambda i: pair(f"yes {i}" + "x" * 200, f"no {i}"), "longer than 60 tokens", None),
    "alike": (
        lambda i: pair("x" * 200 + f"a{i}", "x" * 200 + f"b{i}"),
        "longer than 60 tokens",
        "the answers are equal once cut",
    ),
    "asked": (
        lambda i: pair(f"yes {i}", f"no {i}", "x" * 200),
        "longer than 60 tokens",
        "the prompt alone fills 60 tokens",
    ),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    planted=st.lists(st.sampled_from([*KINDS, "good", "good", "good"]), min_size=2, max_size=14),
    overflow=st.sampled_from(["drop", "truncate"]),
    share=st.sampled_from(["null", "0.3"]),
)
def test_every_planted_row_is_in_the_ledger(
    recipe: Maker,
    rows_file: Path,
    tokenizer: PreTrainedTokenizerFast,
    planted: list[str],
    overflow: str,
    share: str,
) -> None:
    write(rows_file, [KINDS[kind][0](i) for i, kind in enumerate(planted)])
    fates = [KINDS[kind][1 if overflow == "drop" else 2] for kind in planted]
    reasons = Counter(fate for fate in fates if fate is not None)
    changed = pairs(recipe, f"data.overflow={overflow}", f"data.eval={share}")
    if sum(reasons.values()) > len(planted) / 2 or (share != "null" and fates.count(None) < 2):
        with pytest.raises(DataError, match="can't be used|leaves nothing to train on"):
            load(changed, tokenizer, max_length=60)
        return
    splits, account, ledger = load(changed, tokenizer, max_length=60)
    held_out = account["dropped"].pop("held out for evaluation", 0)
    assert Counter(account["dropped"]) == reasons
    assert held_out == len(splits.eval)
    assert account["read"] == len(planted) == account["kept"] + held_out + sum(reasons.values())
    assert account["kept"] == len(splits.train)
    assert account["tokens"] == sum(len(ids) for r in splits.train for ids in r.sequences)
    assert account["trained_tokens"] == sum(r.trained_tokens for r in splits.train)
    assert account["truncated"] == sum(r.truncated for r in splits.train)
    assert (planted.count("long") if overflow == "truncate" else 0) == sum(
        r.truncated for r in (*splits.train, *splits.eval)
    )
    for row in (*splits.train, *splits.eval):
        assert row.longest <= 60
        assert row.tokens["chosen_ids"] != row.tokens["rejected_ids"]
        assert all(row.answers)
    ledger.to_dict()  # checks the held-out account as well


def test_a_pair_counts_its_prompt_twice(recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write(rows_file, [{"prompt": "yes", "chosen": "no", "rejected": "yes no"}])
    splits, account, _ = load(pairs(recipe), tokenizer)
    prompt, chosen, rejected = (len(splits.train[0].tokens[f"{n}_ids"]) for n in ("prompt", "chosen", "rejected"))
    assert (prompt, chosen, rejected) == (1, 2, 3)  # each word is one token, answers end with the end token
    assert (account["tokens"], account["trained_tokens"]) == (7, 5)


def test_overflow_error_names_the_pair(recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write(rows_file, [pair("yes", "no"), pair("yes", "x" * 200)])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the row has \d+ tokens, more than `training.max_length` 60"):
        load(pairs(recipe, "data.overflow=error"), tokenizer, max_length=60)


def test_mostly_equal_pairs_stop_the_run(recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write(rows_file, [pair("a", "b"), pair("c", "c"), pair("d", "d")])
    with pytest.raises(DataError, match="2 of 3 rows can't be used: 2 the answers are equal"):
        load(pairs(recipe), tokenizer)


def test_texts_that_differ_may_have_the_same_tokens(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = str(tokenizer.chat_template).replace("message['content']", "message['content'] | trim")
    write(rows_file, [pair("a", "b"), pair("c", "d"), pair("a", "a ")])
    _, account, _ = load(pairs(recipe), tokenizer)
    assert account["dropped"] == {"the answers have the same tokens": 1}


def test_a_broken_pair_still_stops_the_run(recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write(rows_file, [pair("a", "b"), {"prompt": "q", "chosen": "a"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: no column 'rejected'"):
        load(pairs(recipe), tokenizer)


def test_unpaired_feedback_is_counted_by_label(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write(rows_file, [feedback(True, "a"), feedback(True, "b"), feedback(False, "c"), feedback(False, "")])
    splits, account, ledger = load(recipe("data.eval=null", "data.train.0.format=unpaired"), tokenizer)
    assert account["verdicts"] == {"good": 2, "bad": 1}
    assert "3 of 4 rows kept, 1 dropped (an answer is empty), 2 good and 1 bad" in ledger.sentences()[0]
    assert [row.example["label"] for row in splits.train] == [True, True, False]
    assert set(splits.train[0].tokens) == {"prompt_ids", "completion_ids"}


@pytest.mark.parametrize(("good", "word"), [(True, "good"), (False, "bad")])
def test_feedback_of_one_kind_is_refused(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast, good: bool, word: str
) -> None:
    # The only row of the other kind teaches nothing, so it does not help.
    write(rows_file, [feedback(good, "a"), feedback(good, "b"), feedback(not good, "")])
    with pytest.raises(DataError, match=rf"rows\.jsonl: all 2 training rows are {word}, and .* needs both"):
        load(recipe("data.eval=null", "data.train.0.format=unpaired"), tokenizer)


def test_prompts_are_counted_and_none_is_too_long(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"question": "x" * 400, "answer": "5"}, {"question": "y", "answer": "6"}]
    write(rows_file, rows)
    splits, account, ledger = load(recipe("data.eval=null", "data.train.0.format=question"), tokenizer, max_length=None)
    assert [row.example["answer"] for row in splits.train] == ["5", "6"]
    assert account["tokens"] == sum(len(row.tokens["prompt_ids"]) for row in splits.train) > 0
    assert account["trained_tokens"] == 0
    assert ledger.sentences()[0].endswith(" tokens")


def test_a_held_out_question_is_not_trained_on_whatever_its_other_columns(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write(rows_file, [{"question": f"{i}?", "answer": str(i), "id": i} for i in range(4)])
    write(rows_file.parent / "eval.jsonl", [{"question": "2?", "answer": "two", "id": 99}])
    changed = recipe("data.train.0.format=question", "data.eval=[{path: eval.jsonl, format: question}]")
    splits, account, _ = load(changed, tokenizer)
    assert [row.example["id"] for row in splits.train] == [0, 1, 3]
    assert account["dropped"] == {"also among the held-out rows": 1}


@pytest.mark.parametrize("place", ["data.train.0.options", "data.train.0.options.max_terms"])
def test_options_of_a_task_come_from_the_recipe(recipe: Maker, tokenizer: PreTrainedTokenizerFast, place: str) -> None:
    pytest.importorskip("reasoning_gym")
    value = "{max_terms: 2}" if place.endswith("options") else "2"
    sources = [f"data.{split}=[{{path: 'reasoning_gym:chain_sum', format: prompt, max_rows: 8, split: {name}}}]"
               for split, name in (("train", "train"), ("eval", "test"))]  # fmt: skip
    splits, account, _ = load(recipe(*sources, f"{place}={value}"), tokenizer)
    assert (account["read"], len(splits.train), len(splits.eval)) == (8, 8, 8)
    assert {row.example["entry"]["metadata"]["num_terms"] for row in splits.train} == {2}
    assert splits.train[0].source == "reasoning_gym:chain_sum:train"


PROMPT_FILLS = "the prompt alone fills 4096 tokens"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "row_format", "overflow", "counts"),
    [
        ("dpo_en_demo.json", "preference", "truncate", {"kept": 265, "truncated": 60, "dropped": {PROMPT_FILLS: 35}}),
        ("dpo_zh_demo.json", "preference", "drop", {"kept": 289, "dropped": {"longer than 4096 tokens": 11}}),
        ("kto_en_demo.json", "unpaired", "truncate", {"kept": 278, "verdicts": {"good": 138, "bad": 140}}),
    ],
)
def test_real_feedback(
    recipe: Maker,
    tokenizer: PreTrainedTokenizerFast,
    file: str,
    row_format: str,
    overflow: str,
    counts: dict[str, Any],
) -> None:
    """The tiny tokenizer has about a token a byte: at 4096 of them, some prompts and many answers are too long."""
    folder = SHARED / "lf_dpo_kto"
    if not folder.is_dir():
        pytest.skip("no shared data beside the repository")
    source = f"data.train=[{{path: {folder / file}, format: {row_format}}}]"
    splits, account, ledger = load(recipe("data.eval=null", f"data.overflow={overflow}", source), tokenizer, 4096)
    print(ledger.sentences()[0])
    assert account["read"] == 300
    assert {name: account[name] for name in counts} == counts
    assert max(row.longest for row in splits.train) <= 4096
