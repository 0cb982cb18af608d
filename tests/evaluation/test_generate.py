from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.errors import DataError
from llmkit.evaluation.generate import Generate


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a writer of `p.jsonl` into the current directory."""
    monkeypatch.chdir(tmp_path)

    def put(*lines):
        text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
        (tmp_path / "p.jsonl").write_text(text, encoding="utf-8")
        return "p.jsonl"

    return put


def test_rows_give_samples_and_no_metrics(subject):
    score = Generate(type="generate", max_new_tokens=4, limit=2).score(
        subject([{"prompt": t} for t in ("a", "b", "c")])
    )
    assert (score.metrics, score.rows) == ({}, 2)
    assert [(s.where, s.prompt, s.reference) for s in score.samples] == [
        ("eval.jsonl:1", "a", None),
        ("eval.jsonl:2", "b", None),
    ]
    assert all(sample.answer for sample in score.samples)


def test_prompts_of_a_file_need_no_rows(subject, write):
    path = write(
        {"prompt": "the capital\u2028of"},
        "",
        {"messages": [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "2"}]},
        {"prompt": "yes"},
    )
    spec = Generate(type="generate", prompts=path, max_new_tokens=4)
    assert not spec.requires_rows()
    assert Generate(type="generate").requires_rows()
    score = spec.score(subject([]))
    assert [(s.where, s.prompt, s.reference) for s in score.samples] == [
        ("p.jsonl:1", "the capital\u2028of", None),
        ("p.jsonl:3", "two?", "2"),
        ("p.jsonl:4", "yes", None),
    ]
    limited = Generate(type="generate", prompts=path, max_new_tokens=4, limit=1).score(subject([]))
    assert limited.samples == score.samples[:1]


def test_a_chat_that_ends_with_the_user_is_answered_there(subject, write):
    turns = [("user", "one?"), ("assistant", "1"), ("user", "two?")]
    path = write({"messages": [{"role": role, "content": text} for role, text in turns], "answer": "2"})
    (sample,) = Generate(type="generate", prompts=path, max_new_tokens=4).score(subject([])).samples
    assert (sample.prompt, sample.reference) == ("two?", "2")


def test_seed_is_the_runs_unless_set(subject, write):
    path = write({"prompt": "the capital"}, {"prompt": "yes"})

    def sample(**settings):
        spec = Generate(type="generate", prompts=path, max_new_tokens=8, temperature=1.0, **settings)
        return spec.score(subject([])).samples

    assert sample() == sample(seed=7)
    assert sample(seed=8) != sample(seed=7)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"prompt": "a"}', '{"prompt": '], "p.jsonl:2: not a JSON object"),
        (['"a"'], "p.jsonl:1: the line holds no prompt"),
        (['{"text": "a"}'], "p.jsonl:1: the line holds no prompt"),
        (['{"messages": "a"}'], "p.jsonl:1: the line holds no prompt"),
        (['{"messages": [{"role": "user"}]}'], "p.jsonl:1: the line holds no prompt"),
        (['{"prompt": ""}'], "p.jsonl:1: the prompt is empty"),
        ([""], "p.jsonl: the file of prompts is empty"),
    ],
)
def test_unusable_files(subject, write, lines, message):
    spec = Generate(type="generate", prompts=write(*lines))
    with pytest.raises(DataError, match=message):
        spec.score(subject([]))


def test_missing_file(subject, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = Generate(type="generate", prompts="gone.jsonl")
    for use in (lambda: spec.check_setup(Path()), lambda: spec.score(subject([]))):
        with pytest.raises(DataError, match=r"gone.jsonl: the file of prompts can't be read(.|\n)*recipe's folder"):
            use()
