"""How many parameters a model has, without loading it: from its files' headers, or from its name."""

from __future__ import annotations

import importlib.util
import json
import math
import mmap
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmkit.planning.known import known_config

# A number, or `8x7`, before B (10^9) or M (10^6), standing alone between separators: neither `A3B` (the active share
# of a mixture) nor `4bit` nor `8K` is a size.
_SIZE_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", re.IGNORECASE)
_SCALE = {"b": 10**9, "m": 10**6}

# Tensors that bitsandbytes stores beside each packed weight.
_QUANT_STATE = re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$|\.quant_state\.")


@dataclass(frozen=True)
class ModelSize:
    """Number of parameters of a model."""

    parameters: int
    """Elements of all its weights; tied weights count once."""

    exact: bool
    """Whether they were counted in its files; a size by name can be off by a fifth."""

    source: str
    """Where the number is from, e.g. `by its name`."""

    family: str | None = field(default=None, compare=False)
    """Its architecture by transformers' `model_type`, where that is known without loading anything."""


def model_size(name: str, folder: Path) -> ModelSize | None:
    """Return the size of the model that a recipe in `folder` calls `name`, or None if it can't be told.

    `name` is a local folder, an adapter folder (the size is that of its base), a `.gguf` file, `package:NAME`, or a
    hub id, which is never looked up: only its spelling is read. Only headers of weight files are read. Raises
    ValueError for a weight file that is not what its ending says.
    """
    if name.startswith("package:"):
        home = _package_folder(name.removeprefix("package:"))
        return _size_of_path(home, name) if home else None
    path = folder / Path(name).expanduser()
    size = _size_of_path(path, name)
    return size and replace(size, family=size.family or _family(path, name))


def _family(path: Path, name: str) -> str | None:
    config = path / "config.json"
    known = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else known_config(name)
    return known.get("model_type") if known else None


def _size_of_path(path: Path, name: str) -> ModelSize | None:
    if path.suffix == ".gguf" and path.is_file():
        return _size_of_gguf(path)
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            return _size_of_base(path)
        weights = _weight_files(path)
        if weights:
            return _size_of_safetensors(weights, path)
        packed = sorted(path.glob("*.gguf"))
        if packed:
            return _size_of_gguf(packed[0])
    return _size_by_name(name)


def _package_folder(package: str) -> Path | None:
    # A dotted name would import its parents; weights lie in the top folder of a package.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _size_of_base(adapter: Path) -> ModelSize | None:
    base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    # An adapter has a model as its base, never another adapter; one that names itself would go in circles.
    if not base or (Path(base) / "adapter_config.json").is_file():
        return None
    size = model_size(base, Path())
    return size and replace(size, source=f"its base: {size.source}")


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold the model once (some folders hold a second copy in another layout)."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / shard for shard in sorted(shards)]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def _size_of_safetensors(files: Iterable[Path], folder: Path) -> ModelSize | None:
    files = list(files)
    if not all(file.is_file() for file in files):
        return None
    shapes: dict[str, list[int]] = {}
    for file in files:
        shapes |= _safetensors_shapes(file)
    total = sum(math.prod(shape) for key, shape in shapes.items() if not _QUANT_STATE.search(key))
    what = f"{len(files)} safetensors file{'s' if len(files) > 1 else ''}"
    if _is_quantized(folder):
        # Packed weights have fewer elements than the model has parameters; how many fewer depends on the layer.
        return ModelSize(total, exact=False, source=f"{what}, quantized")
    return ModelSize(total, exact=True, source=what)


def _safetensors_shapes(file: Path) -> dict[str, list[int]]:
    """Read the header: 8 bytes of little-endian length, then JSON (https://huggingface.co/docs/safetensors)."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        # The format's own limit; without it a wrong file would be read into memory whole.
        header = json.loads(stream.read(length)) if 2 <= length <= 100_000_000 else None
    if not isinstance(header, dict):
        raise ValueError(f"{file} is not a safetensors file")
    return {key: entry["shape"] for key, entry in header.items() if key != "__metadata__"}


def _is_quantized(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and "quantization_config" in json.loads(config.read_text(encoding="utf-8"))


def _size_of_gguf(file: Path) -> ModelSize:
    return ModelSize(gguf_parameters(file), exact=True, source=file.name)


def _size_by_name(name: str) -> ModelSize | None:
    match = _SIZE_IN_NAME.search(Path(name).name)
    if match is None:
        return None
    experts, number, unit = match.groups()
    # `8x7B` shares its attention between the experts, so 56B is too many by a sixth: the safe side.
    total = round(int(experts or 1) * float(number) * _SCALE[unit.lower()])
    return ModelSize(total, exact=False, source="by its name") if total else None


# Bytes of the GGUF value types of fixed size, by their number (the format's specification, version 3).
_GGUF_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_STRING, _GGUF_ARRAY = 8, 9


def gguf_parameters(file: Path) -> int:
    """Count the parameters of a GGUF file from its header; raises ValueError if it is none.

    The gguf package reads the same header in 4 to 9 s, because it makes an array of each word of the vocabulary.
    """
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ValueError(f"{file} is not a GGUF file")
        tensors, entries = struct.unpack_from("<QQ", data, 8)
        at = 24
        for _ in range(entries):
            at = _after_string(data, at)
            (kind,) = struct.unpack_from("<I", data, at)
            at = _after_value(data, at + 4, kind)
        total = 0
        for _ in range(tensors):
            at = _after_string(data, at)
            (dimensions,) = struct.unpack_from("<I", data, at)
            total += math.prod(struct.unpack_from(f"<{dimensions}Q", data, at + 4))
            at += 4 + 8 * dimensions + 4 + 8
        return total


def _after_string(data: mmap.mmap, at: int) -> int:
    return at + 8 + int(struct.unpack_from("<Q", data, at)[0])


def _after_value(data: mmap.mmap, at: int, kind: int) -> int:
    if kind == _GGUF_STRING:
        return _after_string(data, at)
    if kind != _GGUF_ARRAY:
        return at + _GGUF_BYTES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _GGUF_BYTES:
        return at + int(count) * _GGUF_BYTES[inner]
    for _ in range(count):
        at = _after_value(data, at, inner)
    return at
