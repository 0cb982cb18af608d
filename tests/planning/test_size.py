from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from llmkit.planning.size import ModelSize, model_size


def _safetensors(file: Path, shapes: dict[str, list[int]]) -> None:
    entries = {key: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for key, shape in shapes.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(header).to_bytes(8, "little") + header)


def _gguf(file: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(file, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((32, 8), dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_500_000_000),
        ("Qwen/Qwen2.5-0.5B", 500_000_000),
        ("someone/llama-0.5b_chat", 500_000_000),
        ("HuggingFaceTB/SmolLM2-135M", 135_000_000),
        ("mistralai/Mixtral-8x7B-v0.1", 56_000_000_000),
        ("meta-llama/Llama-3.2-1B", 1_000_000_000),
        ("Qwen/Qwen3-30B-A3B", 30_000_000_000),
        ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", 1_100_000_000),
        ("microsoft/bitnet-b1.58-2B-4T", 2_000_000_000),
        ("EleutherAI/pythia-70m-deduped", 70_000_000),
    ],
)
def test_by_name(name: str, parameters: int, tmp_path: Path) -> None:
    assert model_size(name, tmp_path) == ModelSize(parameters, exact=False, source="by its name")


@pytest.mark.parametrize(
    "name",
    ["gpt2", "microsoft/Phi-3-mini-4k-instruct", "x/llama-4bit", "7b-lab/model", "x/model-A3B", "x/0B", "no/folder"],
)
def test_unknown_names(name: str, tmp_path: Path) -> None:
    assert model_size(name, tmp_path) is None


def test_the_family_is_read_from_the_config_or_known_by_name(tmp_path: Path) -> None:
    _safetensors(tmp_path / "m" / "model.safetensors", {"a": [3, 4]})
    assert model_size("m", tmp_path).family is None  # type: ignore[union-attr]
    (tmp_path / "m" / "config.json").write_text('{"model_type": "gemma2"}', encoding="utf-8")
    assert model_size("m", tmp_path).family == "gemma2"  # type: ignore[union-attr]
    (tmp_path / "tuned").mkdir()
    base = {"base_model_name_or_path": str(tmp_path / "m")}
    (tmp_path / "tuned" / "adapter_config.json").write_text(json.dumps(base), encoding="utf-8")
    assert model_size("tuned", tmp_path).family == "gemma2"  # type: ignore[union-attr]
    assert model_size("google/gemma-2-9b-it", tmp_path).family == "gemma2"  # type: ignore[union-attr]
    assert model_size("someone/llama-7b-like", tmp_path).family is None  # type: ignore[union-attr]


def test_local_folder_is_counted_and_relative_to_the_recipe(tmp_path: Path) -> None:
    _safetensors(tmp_path / "m-7B" / "model.safetensors", {"a": [3, 4], "b": [5], "scalar": []})
    size = ModelSize(18, exact=True, source="1 safetensors file")
    assert model_size("m-7B", tmp_path) == size
    assert model_size(str(tmp_path / "m-7B"), Path("/elsewhere")) == size


def test_shards_of_the_index_count_and_nothing_else(tmp_path: Path) -> None:
    _safetensors(tmp_path / "m" / "model-1.safetensors", {"a": [3, 4]})
    _safetensors(tmp_path / "m" / "model-2.safetensors", {"b": [5]})
    _safetensors(tmp_path / "m" / "consolidated.safetensors", {"a": [3, 4], "b": [5]})
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model_size("m", tmp_path) == ModelSize(17, exact=True, source="2 safetensors files")
    (tmp_path / "m" / "model-2.safetensors").unlink()
    assert model_size("m", tmp_path) is None


def test_quantized_folder_is_not_exact(tmp_path: Path) -> None:
    _safetensors(
        tmp_path / "m" / "model.safetensors",
        {"w.weight": [8, 1], "w.weight.absmax": [4], "w.weight.quant_state.bitsandbytes__nf4": [99]},
    )
    (tmp_path / "m" / "config.json").write_text(json.dumps({"quantization_config": {"load_in_4bit": True}}))
    assert model_size("m", tmp_path) == ModelSize(8, exact=False, source="1 safetensors file, quantized")


def test_other_weights_fall_back_to_the_name(tmp_path: Path) -> None:
    (tmp_path / "old-70m").mkdir()
    (tmp_path / "old-70m" / "pytorch_model.bin").touch()
    assert model_size("old-70m", tmp_path) == ModelSize(70_000_000, exact=False, source="by its name")


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, (5).to_bytes(8, "little") + b"12345" * 2, b"\x02" + b"\0" * 7])
def test_a_broken_file_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011 - JSON's own message, or ours
        model_size(str(tmp_path), tmp_path)


def test_adapter_folder_has_the_size_of_its_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    _safetensors(base / "model.safetensors", {"a": [3, 4]})
    _safetensors(tmp_path / "adapter" / "adapter_model.safetensors", {"lora_A": [2, 2]})
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(base)}))
    assert model_size("adapter", tmp_path) == ModelSize(12, exact=True, source="its base: 1 safetensors file")
    config.write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen2.5-1.5B"}))
    assert model_size("adapter", tmp_path) == ModelSize(1_500_000_000, exact=False, source="its base: by its name")
    for nothing in (None, str(tmp_path / "adapter")):
        config.write_text(json.dumps({"base_model_name_or_path": nothing}))
        assert model_size("adapter", tmp_path) is None


def test_gguf_file_and_folder(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    _gguf(file)
    size = ModelSize(264, exact=True, source="tiny.gguf")
    assert model_size("tiny.gguf", tmp_path) == size
    assert model_size(str(tmp_path), Path()) == size


def test_package_is_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "weights_in_a_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    _gguf(package / "tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    assert model_size("package:weights_in_a_package", tmp_path) == ModelSize(264, exact=True, source="tiny.gguf")
    assert "weights_in_a_package" not in sys.modules


@pytest.mark.parametrize("name", ["package:no_such_package_here", "package:os.path", "package:", "package:sys"])
def test_packages_without_weights(name: str, tmp_path: Path) -> None:
    assert model_size(name, tmp_path) is None
