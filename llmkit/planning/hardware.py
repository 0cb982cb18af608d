"""What a run computes on: the machine itself (`probe`), or one of a catalogue to plan for (`parse_hardware`).

torch is imported only inside `probe`. The CUDA and MPS branches of `probe` are untested on such hardware: the tests
run them against stand-ins for `torch.cuda` and `torch.backends.mps`.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Literal

from llmkit.errors import RecipeError, SetupError, did_you_mean

GIB = 2**30

Kind = Literal["cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Hardware:
    """The devices of one kind that a run uses."""

    kind: Kind
    """Device type, by torch's name."""

    name: str
    """Name of the (first) device as its driver or the kernel spells it."""

    count: int
    """Number of devices; 1 for `cpu` and `mps`."""

    memory_bytes: int
    """Memory per device in bytes; for `cpu` and `mps` the RAM that this process may use."""

    cpu_cores: int
    """CPU cores that this process may use."""

    bf16: bool
    """Whether bfloat16 is computed in hardware; emulated bfloat16 counts as none."""

    attention: tuple[str, ...] = ("sdpa", "eager")
    """Attention kernels that are available, by transformers' names, the preferred one first."""

    @property
    def summary(self) -> str:
        """One line, e.g. `2 x NVIDIA A100-SXM4-80GB (80 GiB, bf16)` or `cpu, 2 cores, 23 GiB, no bf16`."""
        memory = f"{self.memory_bytes / GIB:.0f} GiB"
        bf16 = "bf16" if self.bf16 else "no bf16"
        if self.kind == "cuda":
            return f"{self.count} x {self.name} ({memory}, {bf16})"
        cores = f"{self.cpu_cores} core{'s' if self.cpu_cores != 1 else ''}"
        return f"{self.kind}, {cores}, {memory}, {bf16}"


# flash-attn is not among llmkit's dependencies, so a plan for a machine that can't be looked at does not count on it.
CATALOGUE = MappingProxyType(
    {
        "cpu": Hardware("cpu", "a CPU without bf16", 1, 16 * GIB, 8, bf16=False),
        "rtx4090": Hardware("cuda", "NVIDIA GeForce RTX 4090", 1, 24 * GIB, 16, bf16=True),
        "rtx3060-laptop": Hardware("cuda", "NVIDIA GeForce RTX 3060 Laptop GPU", 1, 6 * GIB, 8, bf16=True),
        "t4": Hardware("cuda", "Tesla T4", 1, 16 * GIB, 4, bf16=False),
        "a100-80gb": Hardware("cuda", "NVIDIA A100-SXM4-80GB", 1, 80 * GIB, 16, bf16=True),
        "h100-80gb": Hardware("cuda", "NVIDIA H100 80GB HBM3", 1, 80 * GIB, 16, bf16=True),
        "m2": Hardware("mps", "Apple M2", 1, 16 * GIB, 8, bf16=True),
    }
)
"""Machines that `llmkit plan --hardware NAME[:COUNT]` knows; their CPU cores are typical, not exact."""


def parse_hardware(text: str) -> Hardware:
    """Return the hardware that `text` names: `this` (this machine), `a100-80gb:8` (devices), `cpu:2` (cores).

    Raises RecipeError for an unknown name and for a count that makes no sense.
    """
    name, colon, number = text.strip().lower().partition(":")
    choices = ("this", *CATALOGUE)
    if name not in choices:
        raise RecipeError(
            f"unknown hardware {name!r}{did_you_mean(name, choices)}",
            remedy=f"Choose one of {', '.join(choices)}; `NAME:COUNT` for several devices, `cpu:COUNT` for cores.",
        )
    if colon and (name == "this" or not number.isdecimal() or len(number) > 6 or int(number) < 1):
        raise RecipeError(f"hardware {text!r}: a count is a number from 1 after the name, and `this` takes none")
    if name == "this":
        return probe()
    hardware = CATALOGUE[name]
    return _counted(hardware, int(number)) if colon else hardware


def _counted(hardware: Hardware, count: int) -> Hardware:
    if hardware.kind == "cpu":
        return replace(hardware, cpu_cores=count)
    if hardware.kind == "mps" and count > 1:
        raise RecipeError(f"an {hardware.name} has one GPU, not {count}")
    # A machine with eight GPUs has about eight times the cores of a machine with one.
    return replace(hardware, count=count, cpu_cores=hardware.cpu_cores * count)


def probe(device: str = "auto") -> Hardware:
    """Look at this machine and return the hardware for `device`: `cuda`, `mps`, `cpu`, or the best one for `auto`.

    Imports torch. Raises SetupError where `device` is asked for and absent, and ValueError for any other name.
    """
    import torch

    if device not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda or mps, not {device!r}")
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return _probe_cuda(torch)
    if device in ("auto", "mps") and torch.backends.mps.is_available():
        return _probe_mps(torch)
    if device in ("cuda", "mps"):
        raise _absent(device, torch)
    return Hardware("cpu", _cpu_name(), 1, ram_bytes(), cpu_cores(), bf16=_cpu_bf16())


def _probe_cuda(torch: ModuleType) -> Hardware:
    count = torch.cuda.device_count()
    devices = [torch.cuda.get_device_properties(i) for i in range(count)]
    # Not `torch.cuda.is_bf16_supported()`: it says yes to a T4, which emulates bf16 several times slower than fp16.
    ampere = all((d.major, d.minor) >= (8, 0) for d in devices)
    flash = ampere and importlib.util.find_spec("flash_attn") is not None
    return Hardware(
        kind="cuda",
        name=devices[0].name,
        count=count,
        # The smallest device decides what fits where every process holds a copy.
        memory_bytes=min(d.total_memory for d in devices),
        cpu_cores=cpu_cores(),
        bf16=ampere,
        attention=("flash_attention_2", "sdpa", "eager") if flash else ("sdpa", "eager"),
    )


def _probe_mps(torch: ModuleType) -> Hardware:
    return Hardware("mps", _cpu_name(), 1, ram_bytes(), cpu_cores(), bf16=_mps_bf16(torch))


def _mps_bf16(torch: ModuleType) -> bool:
    # Only macOS 14 and later have bf16 on MPS; before, creating the tensor is what fails.
    try:
        torch.zeros(1, dtype=torch.bfloat16, device="mps")
    except (TypeError, RuntimeError):
        return False
    return True


def _absent(device: str, torch: ModuleType) -> SetupError:
    if device == "mps":
        return SetupError(
            f"no Apple GPU (mps) here: torch {torch.__version__} on {platform.system()} {platform.machine()}",
            remedy="Write `hardware: {device: auto}` to take the best device there is.",
        )
    driver = "found" if shutil.which("nvidia-smi") else "not found"
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    release = torch.__version__.partition("+")[0]
    return SetupError(
        f"no CUDA device here: torch {torch.__version__} is built with {built}, and nvidia-smi is {driver}",
        remedy="Write `hardware: {device: auto}` to take the best device there is, or install a CUDA build of torch: "
        f"`pip install --force-reinstall torch=={release}`.",
    )


def cpu_cores(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many CPU cores this process may use: its affinity mask, cut by the CPU quota of its cgroups (v2)."""
    # macOS has no affinity masks.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for text in _cgroup_files("cpu.max", cgroups, own):
        quota, period = text.split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def ram_bytes(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many bytes of RAM this process may use: the machine's, cut by the limit of its cgroups (v2)."""
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [int(text) for text in _cgroup_files("memory.max", cgroups, own) if text != "max"]
    return min([ram, *limits])


def _cgroup_files(file: str, cgroups: Path, own: Path) -> Iterator[str]:
    """Yield the contents of `file` in the cgroup of this process and in those around it: each of them limits."""
    if not own.is_file():
        return
    unified = [line.removeprefix("0::") for line in own.read_text().splitlines() if line.startswith("0::")]
    for path in unified:
        folder = cgroups / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(cgroups) and (place / file).is_file():
                yield (place / file).read_text().strip()


def _cpu_info(field: str) -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return ""
    lines = (line.partition(":") for line in info.read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == field), "")


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_bf16() -> bool:
    # There is no /proc/cpuinfo on macOS: torch has no fast bf16 on the CPU side of Apple's chips.
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpu_info("flags").split())
