"""The audit: its passes over rows, its thresholds, and what it leaves alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

import llmkit.data.audit as room
from llmkit.data.audit import Finding, audit, refuse
from llmkit.data.audit.columns import as_rows, chunks, examples, once, spread
from llmkit.data.audit.findings import counted, from_share, noteworthy, settled
from llmkit.data.audit.sequences import Ids, look, prompts_of
from llmkit.data.audit.words import Sample, distinct, fingerprints, question_and_answer, runs, turns, words
from llmkit.data.prepare import load_splits
from llmkit.data.shapes import Shape
from llmkit.data.splits import Row
from llmkit.data.store import Rows, Stored, Writer, packed_batch
from llmkit.errors import DataError, RecipeError
from llmkit.recipe.recipe import CHECKS, Audit, Recipe

Maker = Callable[..., Recipe]
STOP = 2
IDS = Ids(np.array([STOP]), start=1, unknown=None)


def row(ids: list[int], trained: list[int], place: int = 0, **kwargs: Any) -> Row:
    """Return a row of one sequence whose tokens at `trained` carry loss."""
    labels = [token if i in trained else -100 for i, token in enumerate(ids)]
    return Row(f"r{place}", {"n": place}, {"input_ids": ids, "labels": labels}, **kwargs)


def flags(rows: list[Row], shape: Shape = Shape.CONVERSATION, **kwargs: Any) -> dict[str, list[int]]:
    seen = look(as_rows(rows), shape, IDS, longest=kwargs.get("longest"))
    return {check: seen.flagged(check).tolist() for check in seen.flags if check != "no_start"}


# --- tokens and labels -----------------------------------------------------------------------------------------------


def test_each_run_of_trained_tokens_must_end_with_a_stop() -> None:
    good = row([5, 6, STOP, 5, 7, STOP, 8], [1, 2, 4, 5])
    first_open = row([5, 6, 9, 5, 7, STOP], [1, 2, 4, 5])
    masked = row([5, 6, 7, STOP, 8], [1, 2])
    at_the_end_of_the_row = row([5, 6, 7], [1, 2])
    next_row_begins_with_a_stop = row([STOP, 6, STOP], [1, 2])
    found = flags([good, first_open, masked, at_the_end_of_the_row, next_row_begins_with_a_stop])
    assert found == {"end_token": [1, 2, 3], "end_masked": [2]}


def test_rows_that_were_cut_need_not_end() -> None:
    cut = row([5, 6, 7], [1, 2], truncated=True)
    assert flags([cut]) == {}
    pieces = [row([5, 6, 7, 8], [1, 2, 3]), row([6, STOP], [0, 1], part=1)]
    assert flags(pieces, Shape.TEXT, longest=4) == {}
    assert flags(pieces, Shape.TEXT) == {"end_token": [0]}


def test_untrained_rows_wrong_labels_and_trained_prompts() -> None:
    other = Row("x", {}, {"input_ids": [5, 6, STOP], "labels": [-100, 7, STOP]})
    assert flags([row([5, 6, STOP], [])]) == {"untrained_row": [0]}
    assert flags([row([5, STOP], [1]), other]) == {"labels": [1]}
    assert flags([row([5, 6, STOP], [0, 1, 2])]) == {"trained_prompt": [0]}
    assert flags([row([5, 6, STOP], [0, 1, 2])], Shape.TEXT) == {}


def test_two_start_tokens_and_two_end_tokens() -> None:
    assert flags([row([1, 1, 6, STOP], [2, 3]), row([1, 6, 1, STOP], [2, 3])]) == {"start_token": [0]}
    assert flags([row([5, 6, STOP, STOP], [1, 2, 3])], Shape.PROMPT_COMPLETION) == {"doubled_end": [0]}
    pair = Row("p", {}, {"prompt_ids": [1, 5], "chosen_ids": [1, STOP], "rejected_ids": [6, STOP, STOP]})
    assert flags([pair], Shape.PREFERENCE) == {"start_token": [0], "doubled_end": [0]}


def test_a_prompt_is_what_stands_before_the_last_answer() -> None:
    rows = [row([5, 6, STOP, 5, 7, STOP], [1, 2, 4, 5]), row([5, 6, STOP, 5, 8, 9, STOP], [4, 5, 6])]
    rows += [row([5, 6, STOP, 4, 7, STOP], [4, 5]), row([5, 6, STOP, 5, 8, 9, STOP], [1, 2, 4, 5, 6])]
    positions, prints = prompts_of(look(as_rows(rows), Shape.CONVERSATION, IDS, longest=None))
    assert positions.tolist() == [0, 1, 2, 3]
    assert prints[0] == prints[1] == prints[3] != prints[2]


IDS_OF = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(IDS_OF, st.sets(st.integers(0, 7))), min_size=1, max_size=9))
def test_the_arrays_say_what_a_loop_over_the_rows_says(made: list[tuple[list[int], set[int]]]) -> None:
    rows = [row(ids, [i for i in trained if i < len(ids)], n) for n, (ids, trained) in enumerate(made)]

    def open_ended(one: Row) -> bool:
        followed = zip(one.input_ids, one.labels, [*one.labels[1:], -100], strict=True)
        return any(label != -100 and after == -100 and token != STOP for token, label, after in followed)

    found = flags(rows)
    assert found.get("end_token", []) == [i for i, one in enumerate(rows) if open_ended(one)]
    assert found.get("untrained_row", []) == [i for i, one in enumerate(rows) if not one.trained_tokens]
    assert found.get("trained_prompt", []) == [i for i, one in enumerate(rows) if one.labels[0] != -100]


# --- rows from files -------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[list[Row]], Rows]:
    """Return what writes rows to an Arrow file, in two batches."""

    def write(rows: list[Row]) -> Rows:
        writer = Writer(tmp_path / "rows.arrow")
        writer.write(packed_batch(rows[: len(rows) // 2]))
        writer.write(packed_batch(rows[len(rows) // 2 :]))
        writer.close()
        return Rows([Stored(tmp_path / "rows.arrow", "source")])

    return write


def test_stored_rows_in_any_order_read_as_those_in_memory(stored: Callable[[list[Row]], Rows]) -> None:
    rows = [row([5, 6, i % 7, STOP], [2, 3], i) for i in range(50)]
    order = np.random.default_rng(0).permutation(50)[:30]
    kept = stored(rows).take(order)
    for chunk in chunks(kept):
        column = chunk["input_ids"]
        for n, position in enumerate(chunk.positions):
            ids = column.values[column.offsets[n] : column.offsets[n + 1]].tolist()
            assert ids == rows[order[position]].input_ids
    read = dict(examples(kept, np.array([3, 11, 29])))
    assert read == {place: rows[order[place]].example for place in (3, 11, 29)}


def test_the_tokens_of_stored_rows_are_read_without_making_rows(
    stored: Callable[[list[Row]], Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = stored([row([5, 6, STOP], [1, 2], i) for i in range(40)])
    monkeypatch.setattr(Stored, "row", lambda *_: pytest.fail("a row was made"))
    assert not look(kept, Shape.CONVERSATION, IDS, longest=None).flagged("end_token").size


def test_rows_that_the_mix_repeats_are_looked_at_once(stored: Callable[[list[Row]], Rows]) -> None:
    kept = stored([row([5, 6, i, STOP], [2, 3], i) for i in range(10)])
    assert [one.where for one in once(kept.take(np.array([4, 2, 4, 2, 2])))] == ["r2", "r4"]


# --- through the whole preparation -----------------------------------------------------------------------------------


def load(chosen: Recipe, tokenizer: PreTrainedTokenizerFast, max_length: int = 1024) -> list[Finding]:
    stops = frozenset({int(tokenizer.eos_token_id or 0)})
    splits, ledger = load_splits(chosen, tokenizer, stops, max_length=max_length, seed=1)
    return audit(splits, ledger, tokenizer, stops, chosen)


def test_nothing_is_said_of_the_tiny_rows(recipe: Maker, tokenizer: PreTrainedTokenizerFast) -> None:
    assert load(recipe(), tokenizer) == []


def test_pieces_of_long_rows_and_repeated_sources_are_no_defects(
    recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    lines = [{"text": " ".join(str(n * n + i) for n in range(i, i + 60))} for i in range(30)]
    rows_file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = f"data.train=[{{path: {rows_file.name}, format: text, repeat: 3}}]"
    assert load(recipe(source, "data.eval=null", "data.overflow=split"), tokenizer, 64) == []


@pytest.mark.parametrize("name", ["orders", "units"])
def test_nothing_is_said_of_the_made_rows(name: str, recipe: Maker, tokenizer: PreTrainedTokenizerFast) -> None:
    sizes = {"train": 192, "test": 48}
    train, held_out = (f"[{{path: made:{name}, split: {part}, max_rows: {n}}}]" for part, n in sizes.items())
    method = "method={type: dpo}" if name == "units" else "method={type: sft}"
    found = load(recipe(f"data.train={train}", f"data.eval={held_out}", method), tokenizer)
    assert found == []


def test_a_sample_says_that_it_is_one(recipe: Maker, rows_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    line = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen number {}"
    rows_file.write_text("".join(json.dumps({"text": line.format(i)}) + "\n" for i in range(18)), encoding="utf-8")
    source = f"data.train=[{{path: {rows_file.name}, format: text}}]"
    limits = ("data.eval=null", "data.audit.near_duplicates=0.1")
    (whole,) = load(recipe(source, *limits), tokenizer)
    assert (whole.check, whole.count, whole.of) == ("near_duplicates", 17, 18)
    assert "looked at" not in whole.what
    (part,) = load(recipe(source, *limits, "data.audit.rows=6"), tokenizer)
    assert (part.count, part.of) == (5, 6)
    assert "(looked at: 6 of 18)" in part.what


# --- what stops ------------------------------------------------------------------------------------------------------


def test_errors_are_refused_together_with_how_to_accept_them() -> None:
    found = [
        Finding("duplicates", "error", "half the rows repeat", 5, 10, ("a:1", "a:2"), "Leave them out."),
        Finding("no_start", "warning", "no start token", 5, 10),
        Finding("echo", "error", "answers repeat", 5, 10, ("a:7",)),
    ]
    with pytest.raises(DataError) as caught:
        refuse(found)
    assert caught.value.where == "a:1, a:2"
    assert caught.value.what == "half the rows repeat\nanswers repeat (a:7)"
    assert caught.value.remedy == (
        "Leave them out.\nWhat is meant to be so: data: {audit: {accept: [duplicates, echo]}}."
    )
    refuse(found[1:2])
    refuse([])


def test_an_accepted_finding_is_said_and_stops_nothing() -> None:
    found = [Finding("no_start", "warning", "w"), Finding("echo", "error", "e"), Finding("duplicates", "error", "d")]
    kept = settled(found, Audit(accept=("echo",)))
    assert [(one.check, one.severity) for one in kept] == [
        ("duplicates", "error"), ("no_start", "warning"), ("echo", "warning"),
    ]  # fmt: skip
    assert [one.sentence() for one in kept] == ["error (duplicates): d", "warning (no_start): w", "accepted (echo): e"]


@pytest.mark.parametrize(
    ("count", "of", "severity"),
    [
        (49, 100, "warning"),
        (50, 100, "error"),
        (10, 19, "warning"),
        (19, 19, "error"),
        (10, 20, "error"),
        (0, 0, "warning"),
    ],
)
def test_a_share_is_an_error_from_the_recipe_s_threshold_on(count: int, of: int, severity: str) -> None:
    assert from_share(Audit(), "duplicates", count, of) == severity


def test_single_rows_are_not_worth_a_sentence() -> None:
    assert noteworthy(3, 300)
    assert noteworthy(2, 2)
    assert not any(noteworthy(*case) for case in ((2, 50), (3, 301), (0, 0)))
    assert counted(3, 1200, "rows") == "3 of 1,200 rows (0.2%)"
    assert counted(1, 1319, "rows") == "1 of 1,319 rows"


def test_every_check_can_be_accepted_and_every_share_belongs_to_a_check() -> None:
    folder = Path(room.__file__).parent
    named = re.findall(r'Finding\(\s*"([a-z_]+)"', "".join(p.read_text(encoding="utf-8") for p in folder.glob("*.py")))
    looped = {
        "untrained_row",
        "labels",
        "end_token",
        "start_token",
        "trained_prompt",
        "special_tokens",
        "broken_text",
        "echo",
    }
    assert set(CHECKS) == {*named, *looped}
    shares = {name for name, spec in Audit.model_fields.items() if spec.annotation is float}
    assert shares - {"similarity"} <= set(CHECKS)


def test_an_unknown_name_of_a_check_is_refused(recipe: Maker) -> None:
    with pytest.raises(RecipeError, match="did you mean 'near_duplicates'"):
        recipe("data.audit.accept=[near_duplicate]")


# --- texts -----------------------------------------------------------------------------------------------------------


def test_words_are_lower_case_without_punctuation_and_signs_count() -> None:
    assert words("Well, 2 + 3.5 isn't 4-1!") == ["well", "2", "+", "3", "5", "isn", "t", "4", "-", "1"]
    assert words("学习AI，好。") == ["学", "习", "ai", "好"]


def test_turns_questions_and_answers_of_each_shape() -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert list(turns({"messages": talk})) == [("user", "q"), ("assistant", "a")]
    assert question_and_answer(
        {"messages": [*talk, {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]}
    ) == ("r", "b")
    assert question_and_answer({"prompt": "p", "completion": "c"}) == ("p", "c")
    assert question_and_answer(
        {"prompt": talk[:1], "chosen": talk[1:], "rejected": [{"role": "assistant", "content": "z"}]}
    ) == ("q", "a")
    assert question_and_answer({"text": "t"}) is None
    assert list(turns({"prompt": "p", "answer": "read by rewards only"})) == [("user", "p")]
    called = {"role": "assistant", "content": "", "tool_calls": [{}]}
    assert question_and_answer({"messages": [*talk, called]}) == ("q", "a")


def test_runs_stay_within_their_row() -> None:
    values, offsets = np.array([1, 2, 3, 1, 2, 3, 4]), np.array([0, 3, 3, 7])
    hashes, starts = runs(values, offsets, 3)
    assert starts.tolist() == [0, 3, 4]
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(runs(values, offsets, 9)[0]) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=12))
def test_fingerprints_tell_rows_apart_and_count_as_numpy_does(rows: list[list[int]]) -> None:
    offsets = np.cumsum([0, *map(len, rows)])
    prints = fingerprints(np.array(sum(rows, []), np.int64), offsets)
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            assert (prints[i] == prints[j]) == (one == other)
    values, counts = distinct(prints)
    expected = np.unique(prints, return_counts=True)
    assert (values.tolist(), counts.tolist()) == (expected[0].tolist(), expected[1].tolist())


def test_a_sample_is_spread_over_rows_that_differ() -> None:
    rows = as_rows([row([5, i // 2, STOP], [1, 2], i) for i in range(20)])
    sample = Sample.of(rows, 4)
    assert (len(sample), sample.distinct, sample.note) == (4, 10, " (looked at: 4 of 10)")
    assert [sample.where(i) for i in range(4)] == ["r0", "r6", "r12", "r18"]
    assert spread(3, 9).tolist() == [0, 1, 2]
