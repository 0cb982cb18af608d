"""A tiny ChatML tokenizer and a tiny Llama, built in code: nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmkit.data.splits import Row
from llmkit.evaluation.base import Subject

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = ["the capital of France is Paris", "user assistant system", "what is two plus two? it is four", "yes no maybe"]


@pytest.fixture(scope="session")
def _bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


@pytest.fixture
def tokenizer(_bpe: Tokenizer) -> PreTrainedTokenizerFast:
    """ChatML tokenizer; its padding side stays the default, right."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=_bpe, eos_token="<|im_end|>", pad_token="<|pad|>", padding_side="right"
    )
    made.chat_template = CHATML
    return made


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random 2-layer Llama in float32, with weights large enough for its answers to depend on the whole prompt."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def subject(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Subject]:
    """Return a maker of Subjects from examples."""

    def make(examples: Sequence[dict[str, Any]]) -> Subject:
        rows = tuple(Row(where=f"eval.jsonl:{i}", example=e) for i, e in enumerate(examples, start=1))
        return Subject(model=model, tokenizer=tokenizer, rows=rows, seed=7)

    return make


@pytest.fixture
def told(
    subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Sequence[str], Sequence[str]], Subject]:
    """Return a maker of Subjects whose answers are given, so that scores can be worked out by hand."""

    def make(given: Sequence[str], references: Sequence[str]) -> Subject:
        monkeypatch.setattr("llmkit.evaluation._generation.generate", lambda *_, **__: list(given))
        return subject([{"prompt": "what is it?", "completion": reference} for reference in references])

    return make
