"""Multiple choice: against a loop over lm-evaluation-harness's own steps, and values planted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.data.shapes import RowError
from llmkit.data.splits import Row
from llmkit.errors import DataError, RecipeError
from llmkit.evaluation import choice as module
from llmkit.evaluation.base import Subject
from llmkit.evaluation.choice import Choice, choices_of, pair_ids, right_choice
from llmkit.runs.checks import check

ROWS = [
    {"prompt": "the capital of France is", "choices": ["Paris", "two", "no maybe the system"], "answer": 0},
    {"prompt": "what is two plus two? it is ", "choices": ["four", "yes it is yes", "Paris", "é"], "answer": "A"},
    {"prompt": "yes", "choices": ["no", "maybe yes no maybe"], "answer": "no"},
    {"prompt": "user\n", "choices": ["assistant", "system", "capital of France"], "answer": 1},
    {"prompt": "no maybe", "choices": ["yes", "it is four", "user"], "answer": "C"},
]


def harness(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """Return log p(continuation | context) by the steps of lm-evaluation-harness, one pair at a time."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    before = tokenizer(context)["input_ids"]
    after = tokenizer(context + continuation)["input_ids"][len(before) :]
    with torch.no_grad():
        table = torch.log_softmax(model(input_ids=torch.tensor([before + after])).logits[0].double(), -1)
    return float(sum(table[len(before) - 1 + i, token] for i, token in enumerate(after)))


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_equals_the_harness(model, tokenizer, subject, batch_size):
    score = Choice(type="choice", batch_size=batch_size).score(subject(ROWS))
    raw, normalized = [], []
    for row in ROWS:
        found = [harness(model, tokenizer, row["prompt"], " " + text) for text in row["choices"]]
        right = right_choice(row["answer"], row["choices"])
        lengths = [len(text.encode()) for text in row["choices"]]
        raw.append(float(max(range(len(found)), key=found.__getitem__) == right))
        per_byte = [value / length for value, length in zip(found, lengths, strict=True)]
        normalized.append(float(max(range(len(found)), key=per_byte.__getitem__) == right))
    assert score.per_row == {"choice_accuracy": tuple(raw), "choice_accuracy_normalized": tuple(normalized)}
    assert score.metrics["choice_accuracy"] == pytest.approx(sum(raw) / len(ROWS), abs=1e-12)
    assert score.rows == len(ROWS)


def test_the_likeliest_choice_is_right_and_no_other(model, tokenizer, subject):
    for answer in range(3):
        row = {**ROWS[0], "answer": answer}
        found = [harness(model, tokenizer, row["prompt"], " " + text) for text in row["choices"]]
        score = Choice(type="choice").score(subject([row]))
        assert score.metrics["choice_accuracy"] == (found[answer] == max(found))
        (sample,) = score.samples
        assert (sample.where, sample.prompt, sample.reference) == (
            "eval.jsonl:1",
            row["prompt"],
            row["choices"][answer],
        )
        assert sample.answer == row["choices"][found.index(max(found))]


@pytest.mark.parametrize(
    ("choices", "values", "raw", "normalized"),
    [
        (["ab", "abcdef"], [-4.0, -6.0], 0, 1),  # -2 and -1 a byte
        (["éé", "abc"], [-3.0, -2.7], 1, 0),  # -0.75 and -0.9 a byte; a character, -1.5 and -0.9
        (["ab", "cd"], [-1.0, -1.0], 0, 0),  # the first of equal ones
    ],
)
def test_normalized_by_bytes(subject, monkeypatch, choices, values, raw, normalized):
    monkeypatch.setattr(module, "answer_log_probabilities", lambda *_, **__: values)
    for right in (0, 1):
        score = Choice(type="choice").score(subject([{"prompt": "a", "choices": choices, "answer": right}]))
        assert score.metrics == {
            "choice_accuracy": float(raw == right),
            "choice_accuracy_normalized": float(normalized == right),
        }


def test_white_space_goes_with_the_choice(tokenizer):
    before, after = pair_ids(tokenizer, "the capital  ", "of", special=True)
    assert before == tokenizer("the capital")["input_ids"]
    assert before + after == tokenizer("the capital  of")["input_ids"]
    for empty in ("", " \n"):
        with pytest.raises(RowError, match="the prompt is empty"):
            pair_ids(tokenizer, empty, "of", special=True)
    with pytest.raises(RowError, match="no token of its own"):
        pair_ids(tokenizer, "the capital", "", special=True)


@pytest.mark.parametrize(
    ("settings", "between"), [({}, ""), ({"target_delimiter": " "}, " "), ({"target_delimiter": ""}, "")]
)
def test_a_chat_is_asked_through_its_template(tokenizer, subject, monkeypatch, settings, between):
    asked: list[tuple[list[int], list[int]]] = []
    monkeypatch.setattr(module, "answer_log_probabilities", lambda _, pairs, **__: asked.extend(pairs) or [0.0, -1.0])
    row = {"prompt": [{"role": "user", "content": "yes?"}], "choices": ["yes", "no"], "answer": "no"}
    Choice(type="choice", **settings).score(subject([row]))
    whole = [tokenizer.decode(before + after) for before, after in asked]
    start = "<|im_start|>user\nyes?<|im_end|>\n<|im_start|>assistant\n"
    assert whole == [f"{start}{between}{text}" for text in row["choices"]]


def test_a_text_is_followed_by_a_space_unless_said_otherwise(tokenizer, subject, monkeypatch):
    asked: list[tuple[list[int], list[int]]] = []
    monkeypatch.setattr(module, "answer_log_probabilities", lambda _, pairs, **__: asked.extend(pairs) or [0.0, -1.0])
    row = {"prompt": "yes?", "choices": ["yes", "no"], "answer": 0}
    Choice(type="choice").score(subject([row]))
    Choice(type="choice", target_delimiter=": ").score(subject([row]))
    whole = [tokenizer.decode(before + after) for before, after in asked]
    assert whole == ["yes? yes", "yes? no", "yes?: yes", "yes?: no"]


def test_a_text_gets_the_special_tokens_and_a_chat_has_them(tokenizer, subject, monkeypatch):
    start = tokenizer.convert_tokens_to_ids("<|pad|>")
    monkeypatch.setattr(type(tokenizer), "__call__", _with_start(type(tokenizer).__call__, start))
    asked: list[tuple[list[int], list[int]]] = []
    monkeypatch.setattr(module, "answer_log_probabilities", lambda _, pairs, **__: asked.extend(pairs) or [0.0, -1.0])
    for prompt in ("yes?", [{"role": "user", "content": "yes?"}]):
        Choice(type="choice").score(subject([{"prompt": prompt, "choices": ["yes", "no"], "answer": 0}]))
    assert [before.count(start) for before, _ in asked] == [1, 1, 0, 0]
    assert not any(start in after for _, after in asked)


def _with_start(call: Any, start: int) -> Any:
    """Let a tokenizer begin each text with a special token, as Llama's does."""

    def called(self: Any, text: str, add_special_tokens: bool = True, **settings: Any) -> Any:
        found = call(self, text, add_special_tokens=add_special_tokens, **settings)
        return {"input_ids": [start, *found["input_ids"]] if add_special_tokens else found["input_ids"]}

    return called


@pytest.mark.parametrize(
    ("answer", "choices", "expected"),
    [
        (0, ["a", "b"], 0),
        (1, ["1", "2"], 1),  # a number is an index
        ("B", ["yes", "no"], 1),
        ("no", ["yes", "no"], 1),
        ("1", ["yes", "no"], 1),
        ("3", ["3", "4"], 0),  # there is no fourth
        ("A", ["A", "B"], 0),  # letter and text agree
        ("A", ["B", "A"], None),  # and here they don't
        ("1", ["1", "2"], None),
        ("no", ["no", "no"], None),
        ("maybe", ["yes", "no"], None),
        ("C", ["yes", "no"], None),
        (2, ["yes", "no"], None),
        (-1, ["yes", "no"], None),
        (True, ["yes", "no"], None),
        (1.0, ["yes", "no"], None),
        (None, ["yes", "no"], None),
    ],
)
def test_an_answer_names_one_choice(answer, choices, expected):
    if expected is None:
        with pytest.raises(RowError, match="names (none|more than one) of the 2 choices"):
            right_choice(answer, choices)
    else:
        assert right_choice(answer, choices) == expected


@pytest.mark.parametrize("choices", [["a"], [], "a", "[1, 2]", '["a"]', ["a", 1], ["a", ""], {"text": ["a", "b"]}, 3])
def test_choices_that_are_none(choices):
    with pytest.raises(RowError, match="column 'choices'"):
        choices_of({"choices": choices})


def test_choices_may_be_json():
    assert choices_of({"choices": '["a", "b"]'}) == ["a", "b"]


def test_a_row_that_can_not_be_asked_is_named_before_the_model_runs(subject, monkeypatch):
    monkeypatch.setattr(module, "answer_log_probabilities", lambda *_, **__: pytest.fail("computed"))
    for broken, message in (
        ({"prompt": "a", "answer": 0}, "eval.jsonl:2: no column 'choices'.*format: prompt"),
        ({"prompt": "a", "choices": ["x", "y"]}, "eval.jsonl:2: column 'answer', None, names none"),
        ({"prompt": " ", "choices": ["x", "y"], "answer": 0}, "eval.jsonl:2: the prompt is empty"),
    ):
        with pytest.raises(DataError, match=message):
            Choice(type="choice").score(subject([ROWS[0], broken]))
    with pytest.raises(RecipeError, match="needs prompts"):
        Choice(type="choice").score(subject([{"text": "a", "choices": ["x", "y"], "answer": 0}]))
    with pytest.raises(DataError, match="no held-out rows"):
        Choice(type="choice").score(subject([]))


@pytest.fixture
def hellaswag(tmp_path: Path) -> Path:
    """Rows with HellaSwag's columns."""
    path = tmp_path / "hellaswag.jsonl"
    rows = [
        {"ctx": row["prompt"], "endings": row["choices"], "label": str(right_choice(row["answer"], row["choices"]))}
        for row in ROWS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_of_its_own(subject, hellaswag, tmp_path):
    columns = {"prompt": "ctx", "choices": "endings", "answer": "label"}
    source = {"path": hellaswag.name, "format": "prompt", "columns": columns}
    spec = Choice.model_validate({"type": "choice", "data": source})
    assert not spec.requires_rows()
    assert Choice(type="choice").requires_rows()
    alone: Subject = subject([])
    alone.folder = tmp_path
    score = spec.score(alone)
    assert score.per_row == Choice(type="choice").score(subject(ROWS)).per_row
    assert score.samples[0].where == "hellaswag.jsonl:1"
    limited = Choice.model_validate({"type": "choice", "data": source, "limit": 2}).score(alone)
    assert limited.per_row == {name: values[:2] for name, values in score.per_row.items()}
    assert alone.rows == (), "the subject keeps its rows"


@pytest.mark.parametrize("key", [{"weight": 2.0}, {"repeat": 2}, {"streaming": True}])
def test_rows_of_its_own_are_not_trained_on(hellaswag, tmp_path, key):
    spec = Choice.model_validate({"type": "choice", "data": {"path": hellaswag.name, **key}})
    with pytest.raises(RecipeError, match=f"`{next(iter(key))}`, which is for rows that are trained on"):
        spec.check_setup(tmp_path)


def test_rows_of_its_own_that_can_not_be_read(subject, tmp_path):
    spec = Choice.model_validate({"type": "choice", "data": {"path": "gone.jsonl"}})
    with pytest.raises(DataError, match="no such file"):
        spec.check_setup(tmp_path)
    (tmp_path / "gone.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n', encoding="utf-8")
    asked = subject([])
    asked.folder = tmp_path
    with pytest.raises(DataError, match="gone.jsonl:2: .*'prompt' is empty"):
        spec.score(asked)


def test_a_recipe_needs_no_held_out_rows_for_it(recipe, hellaswag):
    loaded = recipe(
        "data.eval=null", f"evaluation=[{{type: choice, data: {{path: {hellaswag.name}, format: prompt}}}}]"
    )
    check(loaded)
    assert loaded.evaluation[0].data.path == hellaswag.name
    with pytest.raises(RecipeError, match="evaluation choice needs held-out rows"):
        check(recipe("data.eval=null", "evaluation=[{type: choice}]"))


def test_progress_counts_rows(subject):
    told: list[int] = []
    asked = subject(ROWS)
    asked.on_done = told.append
    Choice(type="choice", batch_size=2).score(asked)
    assert told[-1] == len(ROWS)
    assert told == sorted(told)


def test_each_row_is_a_row(model, tokenizer):
    rows = [Row(where=f"x:{i}", example=row) for i, row in enumerate(ROWS)]
    found = Choice(type="choice", limit=1).score(Subject(model, tokenizer, rows, seed=0))
    assert (found.rows, len(found.samples)) == (1, 1)
