"""Layers compiled in place: names, checkpoints and generation as before, few graphs, artefacts that are found again."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.errors import SetupError
from llmkit.model import compiling
from llmkit.model.compiling import compile_layers, repeated_layers, uncompile
from llmkit.planning.compiling import compiler

# Dynamo without inductor: everything but the kernels, in a second instead of twenty.
EAGER = "eager"


@pytest.fixture(autouse=True)
def fresh_dynamo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget all graphs, and what the test sets for inductor."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # noted, so that it is put back as it was
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def step(model: Any, rows: int, length: int, padded: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    ids = torch.arange(rows * length).reshape(rows, length) % 300
    mask = torch.ones_like(ids)
    if padded:
        mask[0, length // 2 :] = 0
    loss = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.square().mean()
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_numbers_names_and_files_are_as_before(model: Any, lora: bool, checkpointed: bool, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    if lora:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    if checkpointed:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    expected = step(model, 3, 7)
    names = list(model.state_dict())
    model.save_pretrained(tmp_path / "before")
    assert compile_layers(model, backend=EAGER) == 2
    found = step(model, 3, 7)
    assert graphs() >= 1
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-5, msg=name)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path / "after")
    files = [{f.name: f.read_bytes() for f in (tmp_path / n).glob("*.safetensors")} for n in ("before", "after")]
    assert files[0] == files[1] != {}
    copied = copy.deepcopy(model)
    assert all(layer._compiled_call_impl is None for layer in repeated_layers(copied))


def test_new_lengths_and_batches_make_no_new_graphs(model: Any) -> None:
    model.train()
    compile_layers(model, backend=EAGER)
    step(model, 3, 11)
    first = graphs()
    for rows, length in ((3, 17), (2, 23), (5, 40), (3, 13)):
        step(model, rows, length)
    assert graphs() == first
    # A mask where there was none, and a batch of one, which torch treats as a case of its own.
    for rows, length, padded in ((3, 11, True), (2, 19, True), (1, 15, False), (1, 29, False)):
        step(model, rows, length, padded)
    assert graphs() <= first + 2


def test_evaluation_and_generation_compile_nothing(model: Any) -> None:
    model.train()
    compile_layers(model, backend=EAGER)
    step(model, 3, 11)
    first = graphs()
    ids = torch.arange(3, 13).reshape(2, 5)
    with torch.no_grad():
        model(input_ids=ids)  # as methods that sample do while they train
    model.eval()
    answers = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    model(input_ids=ids)
    assert graphs() == first
    uncompile(model)
    again = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert answers.tolist() == again.tolist()
    model.train()
    step(model, 3, 60)
    assert graphs() == first


@pytest.mark.parametrize("chosen", ["nothing", "torch's own", "another place"])
def test_what_is_compiled_is_kept_in_llmkits_cache(
    model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: str
) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path))
    if chosen != "nothing":
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir() if chosen == "torch's own" else "/elsewhere")
    compile_layers(model, backend=EAGER)
    kept = "/elsewhere" if chosen == "another place" else str(tmp_path / "compiled")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == kept


def test_without_a_compiler_it_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "compiler", lambda: None)
    with pytest.raises(SetupError, match="needs a C\\+\\+ compiler") as caught:
        compile_layers(model)
    assert "torch_compile" in str(caught.value.remedy)
    assert all(layer._compiled_call_impl is None for layer in repeated_layers(model))


def test_a_model_that_names_no_layers_is_refused() -> None:
    with pytest.raises(SetupError, match="does not say which of its modules are layers"):
        compile_layers(torch.nn.Linear(2, 2))


SCRIPT = """
import torch
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM
from llmkit.model.compiling import compile_layers
config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, bos_token_id=None, eos_token_id=None, pad_token_id=None)
model = LlamaForCausalLM(config).train()
compile_layers(model)
model(input_ids=torch.ones(3, 11, dtype=torch.long), use_cache=False).logits.square().mean().backward()
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_the_next_process_finds_what_was_compiled(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"} | {"LLMKIT_CACHE": str(tmp_path)}
    counts = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
        counts.append([int(one) for one in done.stdout.split()])
    hits, misses = zip(*counts, strict=True)
    assert hits[0] == 0 < misses[0]
    assert (hits[1], misses[1]) == (misses[0], 0)
    assert any((tmp_path / "compiled").iterdir())
