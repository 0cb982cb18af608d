"""A tiny ChatML tokenizer, a tiny Llama saved as a folder, and recipes for them: built in code, nothing is fetched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from llmkit.evaluation.base import Subject
    from llmkit.recipe.recipe import Recipe

# Before any library is imported: no test may wait for a network that is not there.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")

ROOT = Path(__file__).parents[1]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = ["the capital of France is Paris", "user assistant system", "what is two plus two? it is four", "yes no maybe"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow ones: of several processes, one would come to them when the others have nothing left."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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
def tokenizer(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    """ChatML tokenizer; its padding side stays the default, right."""
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|pad|>", padding_side="right"
    )
    made.chat_template = CHATML
    return made


def build_model(vocab_size: int) -> LlamaForCausalLM:
    """Return a random 2-layer Llama in float32, its weights large enough for answers to depend on the whole prompt."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocab_size,
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
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random 2-layer Llama."""
    return build_model(len(tokenizer))


@pytest.fixture(scope="session")
def tiny_folder(bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny Llama with its tokenizer, as `from_pretrained` takes it. Do not write into it."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    build_model(len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """JSONL file of 24 short conversations."""
    path = tmp_path / "rows.jsonl"
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"what is {i} plus {i % 5}?"},
                {"role": "assistant", "content": f"it is {i + i % 5}"},
            ]
        }
        for i in range(24)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_folder: Path, rows_file: Path) -> Path:
    """Recipe file that LoRA-tunes the tiny model for 3 steps; tests change it with overrides."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""# LoRA on a tiny model
model: {{name: {tiny_folder}}}
adapter: {{type: lora, r: 4}}
data:
  train: [{{path: {rows_file.name}, format: messages}}]
  eval: 0.25
method: {{type: sft}}
training:
  max_steps: 3
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 1
  learning_rate: 1.0e-2
  report_to: none
hardware: {{device: cpu}}
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def recipe(recipe_file: Path) -> Callable[..., Recipe]:
    """Return a loader of the tiny recipe with overrides: `recipe("adapter=null", "training.max_steps=2")`."""
    from llmkit.recipe.loading import load_recipe

    return lambda *overrides: load_recipe(recipe_file, overrides)


@pytest.fixture
def subject(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Subject]:
    """Return a maker of Subjects from examples."""
    from llmkit.data.splits import Row
    from llmkit.evaluation.base import Subject

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


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep what tests convert out of the user's cache; the slow tests on real weights share it."""
    if request.node.get_closest_marker("slow") is not None:
        yield
        return
    before = os.environ.get("LLMKIT_CACHE")
    os.environ["LLMKIT_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    yield
    if before is None:
        del os.environ["LLMKIT_CACHE"]
    else:
        os.environ["LLMKIT_CACHE"] = before


@pytest.fixture
def grpo_file(tiny_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return what writes rows and a GRPO recipe on the tiny model for them; its keywords are those of `training`."""

    def write(name: str, rows: Sequence[dict[str, Any]], **training: Any) -> Path:
        (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        settings = {"max_steps": 2, "num_generations": 4, "gradient_accumulation_steps": 1, "report_to": "none"}
        made = {
            "model": {"name": str(tiny_folder)},
            "adapter": {"type": "lora", "r": 4},
            "data": {"train": [{"path": "sums.jsonl", "format": "prompt"}]},
            "method": {"type": "grpo"},
            "rewards": [{"type": "exact_match"}],
            "training": settings | {"per_device_train_batch_size": 8} | training,
            "hardware": {"device": "cpu"},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(made, indent=2), encoding="utf-8")  # JSON is YAML
        return path

    return write
