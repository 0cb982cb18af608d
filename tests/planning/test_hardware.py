from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmkit.errors import RecipeError, SetupError
from llmkit.planning import hardware as module
from llmkit.planning.hardware import CATALOGUE, GIB, Hardware, cpu_cores, parse_hardware, probe, ram_bytes


@pytest.mark.parametrize(
    ("hardware", "line"),
    [
        (
            Hardware("cuda", "NVIDIA A100-SXM4-80GB", 2, 80 * GIB, 32, bf16=True),
            "2 x NVIDIA A100-SXM4-80GB (80 GiB, bf16)",
        ),
        (CATALOGUE["t4"], "1 x Tesla T4 (16 GiB, no bf16)"),
        (Hardware("cpu", "Xeon", 1, 25_000_000_000, 2, bf16=False), "cpu, 2 cores, 23 GiB, no bf16"),
        (Hardware("cpu", "Xeon", 1, 8 * GIB, 1, bf16=True), "cpu, 1 core, 8 GiB, bf16"),
        (CATALOGUE["m2"], "mps, 8 cores, 16 GiB, bf16"),
    ],
)
def test_summary(hardware: Hardware, line: str) -> None:
    assert hardware.summary == line


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_catalogue_name_parses(name: str) -> None:
    assert parse_hardware(name) == CATALOGUE[name]


def test_counts_are_devices_or_cores() -> None:
    eight = parse_hardware("a100-80gb:8")
    assert (eight.count, eight.memory_bytes, eight.cpu_cores) == (8, 80 * GIB, 128)
    two = parse_hardware(" CPU:2 ")
    assert (two.count, two.cpu_cores) == (1, 2)
    assert parse_hardware("m2:1").count == 1


@pytest.mark.parametrize("text", ["a100-80gb:", "a100-80gb:0", "t4:x", "t4:-1", "t4:1:2", "this:2", "m2:2", ""])
def test_bad_counts_are_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_hardware(text)


def test_unknown_name_gets_a_suggestion_and_the_choices() -> None:
    with pytest.raises(RecipeError, match="did you mean 'a100-80gb'") as caught:
        parse_hardware("a100-80g")
    assert "rtx3060-laptop" in str(caught.value)
    assert "this" in str(caught.value)


def test_probe_of_this_machine() -> None:
    found = probe("cpu")
    assert found.kind == "cpu"
    assert found.count == 1
    assert found.cpu_cores >= 1
    assert found.memory_bytes > GIB // 4
    assert found.attention == ("sdpa", "eager")
    assert parse_hardware("this") == probe()


def test_probe_refuses_other_names() -> None:
    with pytest.raises(ValueError, match="xpu"):
        probe("xpu")


def test_no_torch_until_probe() -> None:
    rooms = "llmkit.planning.hardware, llmkit.planning.size, llmkit.planning.planner"
    code = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- stand-ins for the devices that this machine lacks ---------------------------------------------------------------


def _gpu(name: str, gib: int, capability: tuple[int, int]) -> SimpleNamespace:
    return SimpleNamespace(name=name, total_memory=gib * GIB, major=capability[0], minor=capability[1])


def _no_zeros(*_: object, **__: object) -> None:
    raise TypeError("BFloat16 is not supported on MPS")


def _torch(monkeypatch: pytest.MonkeyPatch, *, gpus: tuple[SimpleNamespace, ...] = (), mps: bool = False) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpus[i])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def _flash_attn(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    spec = importlib.machinery.ModuleSpec("flash_attn", None) if installed else None
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: spec if name == "flash_attn" else real(name, *a))


def test_cuda_with_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    _torch(monkeypatch, gpus=(_gpu("A100", 80, (8, 0)), _gpu("A100", 40, (8, 0))))
    _flash_attn(monkeypatch, True)
    found = probe()
    assert (found.kind, found.name, found.count, found.bf16) == ("cuda", "A100", 2, True)
    assert found.memory_bytes == 40 * GIB, "the smallest device counts"
    assert found.attention == ("flash_attention_2", "sdpa", "eager")


def test_turing_has_neither_bf16_nor_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    _torch(monkeypatch, gpus=(_gpu("Tesla T4", 15, (7, 5)),))
    _flash_attn(monkeypatch, True)
    found = probe("cuda")
    assert not found.bf16
    assert found.attention == ("sdpa", "eager")


def test_ampere_without_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    _torch(monkeypatch, gpus=(_gpu("RTX 4090", 24, (8, 9)),))
    _flash_attn(monkeypatch, False)
    assert probe().attention == ("sdpa", "eager")


@pytest.mark.parametrize("macos_14", [True, False])
def test_mps(monkeypatch: pytest.MonkeyPatch, macos_14: bool) -> None:
    import torch

    _torch(monkeypatch, mps=True)
    monkeypatch.setattr(torch, "zeros", (lambda *_, **__: None) if macos_14 else _no_zeros)
    found = probe()
    assert (found.kind, found.count, found.bf16) == ("mps", 1, macos_14)


def test_auto_prefers_cuda_and_cpu_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    _torch(monkeypatch, gpus=(_gpu("RTX 4090", 24, (8, 9)),), mps=True)
    assert probe().kind == "cuda"
    assert probe("cpu").kind == "cpu"


def test_missing_cuda_says_what_was_found_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    _torch(monkeypatch)
    monkeypatch.setattr(module.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SetupError) as caught:
        probe("cuda")
    text = str(caught.value)
    assert torch.__version__ in text
    assert "built with no CUDA, and nvidia-smi is found" in text
    assert "hardware: {device: auto}" in text
    assert f"pip install --force-reinstall torch=={torch.__version__.split('+')[0]}`" in text


def test_missing_mps_says_where_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    _torch(monkeypatch)
    with pytest.raises(SetupError, match="no Apple GPU") as caught:
        probe("mps")
    assert "hardware: {device: auto}" in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "bf16"),
    [("fpu avx512_bf16", True), ("fpu amx_bf16 amx_tile", True), ("fpu avx512f avx512_vnni", False), ("", False)],
)
def test_cpu_bf16_flags(monkeypatch: pytest.MonkeyPatch, flags: str, bf16: bool) -> None:
    monkeypatch.setattr(module, "_cpu_info", lambda field: flags if field == "flags" else "")
    assert probe("cpu").bf16 is bf16


# --- limits of containers --------------------------------------------------------------------------------------------


def _cgroup(tmp_path: Path, files: dict[str, str], own: str = "0::/job/step\n") -> tuple[Path, Path]:
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    proc = tmp_path / "self"
    proc.write_text(own)
    return root, proc


def test_cpu_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert cpu_cores(*_cgroup(tmp_path, {"cpu.max": "max 100000\n"})) == 16
    assert cpu_cores(*_cgroup(tmp_path, {"job/cpu.max": "400000 100000\n"})) == 4, "a cgroup around ours limits too"
    assert cpu_cores(*_cgroup(tmp_path, {"job/step/cpu.max": "50000 100000\n"})) == 1, "half a core is one thread"
    assert cpu_cores(tmp_path, tmp_path / "absent") == 16


def test_cpu_cores_without_affinity_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 10)
    assert cpu_cores(tmp_path, tmp_path / "absent") == 10


def test_memory_limit(tmp_path: Path) -> None:
    machine = ram_bytes(tmp_path, tmp_path / "absent")
    assert ram_bytes(*_cgroup(tmp_path, {"memory.max": "max\n"})) == machine
    assert ram_bytes(*_cgroup(tmp_path, {"memory.max": f"{64 * 2**20}\n"})) == 64 * 2**20


def test_old_cgroups_are_no_limit(tmp_path: Path) -> None:
    root, own = _cgroup(tmp_path, {"memory.max": "1\n"}, own="4:memory:/job\n")
    assert ram_bytes(root, own) > 1
