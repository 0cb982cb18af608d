from __future__ import annotations

import subprocess
import sys

import pytest

from llmkit.data.shapes import RowError
from llmkit.errors import DataError, RecipeError
from llmkit.evaluation import _generation
from llmkit.evaluation._generation import answers, prompt_ids
from llmkit.evaluation.f1 import F1
from llmkit.recipe.spec import variants

TEXTS = ["the capital", "yes", "what is two plus two? it is", "no maybe the capital of France is Paris", "of", "it is"]


def test_prompt_of_a_conversation(tokenizer):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "2"},
    ]
    ids, text, reference = prompt_ids(tokenizer, {"messages": messages})
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\none?<|im_end|>\n"
        "<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert all(type(i) is int for i in ids)
    assert (text, reference) == ("two?", "2")
    assert prompt_ids(tokenizer, {"messages": messages[:2]})[1:] == ("one?", None)


USER = [{"role": "user", "content": "yes?"}]


@pytest.mark.parametrize(
    ("example", "reference"),
    [
        ({"prompt": "yes?", "completion": " no"}, " no"),
        ({"prompt": "yes?", "answer": 0, "completion": "x"}, "0"),
        ({"prompt": "yes?", "answer": {"size": "é", "n": [1]}}, '{"size": "é", "n": [1]}'),
        ({"prompt": "yes?", "answer": [1, 2]}, "[1, 2]"),
        ({"prompt": "yes?"}, None),
        ({"prompt": "yes?", "completion": ""}, None),
        ({"prompt": "yes?", "completion": "bad", "label": False}, None),
        ({"prompt": "yes?", "completion": "good", "label": True}, "good"),
        ({"prompt": USER, "answer": "no"}, "no"),
        ({"prompt": USER, "chosen": [{"role": "assistant", "content": "no"}], "rejected": []}, "no"),
    ],
)
def test_prompt_of_other_shapes(tokenizer, example, reference):
    ids, text, found = prompt_ids(tokenizer, example)
    plain = (
        "yes?" if isinstance(example["prompt"], str) else "<|im_start|>user\nyes?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(ids) == plain
    assert (text, found) == ("yes?", reference)


def test_rows_without_a_prompt_are_refused(tokenizer):
    with pytest.raises(RecipeError, match="`rouge` needs prompts to answer, and rows with only `text`") as caught:
        prompt_ids(tokenizer, {"text": "once upon"}, evaluation="rouge")
    assert "perplexity" in str(caught.value)
    for example in ({"prompt": ""}, {"prompt": []}, {"messages": []}, {"messages": [{"role": "assistant"}]}):
        with pytest.raises(RowError):
            prompt_ids(tokenizer, example)
    tokenizer.chat_template = None
    with pytest.raises(RecipeError, match="no chat template"):
        prompt_ids(tokenizer, {"prompt": USER})


def test_answers_are_generated_once_for_each_setting(subject, monkeypatch):
    calls = []

    def fake(_model, _tokenizer, prompts, **settings):
        calls.append(len(prompts))
        return [f"answer {len(calls)}.{i}" for i in range(len(prompts))]

    monkeypatch.setattr(_generation, "generate", fake)
    person = subject([{"prompt": f"{i}?", "completion": str(i)} for i in range(3)])
    first = answers(person, max_new_tokens=4, limit=None, batch_size=2)
    assert [(s.where, s.prompt, s.reference, s.answer) for s in first] == [
        ("eval.jsonl:1", "0?", "0", "answer 1.0"),
        ("eval.jsonl:2", "1?", "1", "answer 1.1"),
        ("eval.jsonl:3", "2?", "2", "answer 1.2"),
    ]
    assert answers(person, max_new_tokens=4, limit=9, batch_size=16, seed=5, evaluation="bleu") == first
    assert calls == [3]
    assert len(answers(person, max_new_tokens=4, limit=2, batch_size=2)) == 2
    answers(person, max_new_tokens=5, limit=None, batch_size=2)
    answers(person, max_new_tokens=4, limit=None, batch_size=2, temperature=1.0, seed=1)
    answers(person, max_new_tokens=4, limit=None, batch_size=2, temperature=1.0, seed=2)
    assert calls == [3, 2, 3, 3, 3]


def test_rows_are_named_in_errors_before_anything_is_generated(subject, monkeypatch):
    monkeypatch.setattr(_generation, "generate", lambda *_, **__: pytest.fail("generated"))
    settings = {"max_new_tokens": 4, "limit": None, "batch_size": 2}
    with pytest.raises(DataError, match="eval.jsonl:2: the prompt is empty"):
        answers(subject([{"prompt": "a"}, {"prompt": ""}]), **settings)
    with pytest.raises(DataError, match="eval.jsonl:2: the row has no reference answer, which evaluation `f1`"):
        F1(type="f1").score(subject([{"prompt": "a", "answer": "b"}, {"prompt": "a"}]))
    with pytest.raises(RecipeError, match="`f1` needs prompts to answer"):
        F1(type="f1").score(subject([{"text": "a"}]))
    with pytest.raises(DataError, match="no held-out rows"):
        answers(subject([]), **settings)
    with pytest.raises(DataError, match="`f1` has no held-out rows"):
        F1(type="f1").score(subject([]))


def test_answers_already_given_without_references_are_refused_too(subject):
    person = subject([{"prompt": "a"}])
    assert answers(person, max_new_tokens=2, limit=None, batch_size=2)[0].reference is None
    with pytest.raises(DataError, match="eval.jsonl:1: the row has no reference"):
        F1(type="f1", max_new_tokens=2).score(person)


def test_every_variant_is_found_and_none_needs_torch_to_import():
    names = {"accuracy", "bleu", "exact_match", "f1", "generate", "metric", "perplexity", "rouge"}
    assert names <= set(variants("llmkit.evaluation"))
    code = (
        "import sys; from llmkit.recipe.spec import variants; variants('llmkit.evaluation');"
        "print({'torch', 'transformers', 'evaluate', 'sacrebleu', 'rouge_score'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
