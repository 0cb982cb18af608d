"""Check recipe keys against the libraries' own config classes, without importing torch.

The table `fields.json` is written by `scripts/field_table.py` from the installed libraries.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmkit.errors import did_you_mean

RENAMED: dict[str, tuple[str, str]] = {
    "adafactor": ("optim", ": adafactor"),
    "alpha": ("lora_alpha", ""),
    "batch_size": ("per_device_train_batch_size", ""),
    "dropout": ("lora_dropout", ""),
    "epochs": ("num_train_epochs", ""),
    "evaluation_strategy": ("eval_strategy", ""),
    "group_by_length": ("train_sampling_strategy", ": group_by_length"),
    "lora_r": ("r", ""),
    "lr": ("learning_rate", ""),
    "max_seq_length": ("max_length", ""),
    "per_gpu_train_batch_size": ("per_device_train_batch_size", ""),
    "rank": ("r", ""),
    "use_liger": ("use_liger_kernel", ""),
    "warmup_ratio": ("warmup_steps", ", which takes a fraction of all steps"),
}
"""Names of older versions or of daily speech: the field that a config class has instead, and what to add to it."""

GONE: dict[str, str] = {
    "attn_implementation": "use `model.attn_implementation`",
    "dtype": "use `model.dtype`",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR instead",
    "max_prompt_length": "TRL no longer shortens prompts; see `data.overflow`",
    "model_name_or_path": "use `model.name`",
    "overwrite_output_dir": "transformers dropped it; leave it out",
    "save_safetensors": "weights are always saved as safetensors; leave it out",
    "tokenizer": "the tokenizer is that of `model.name`",
    "torch_dtype": "use `model.dtype`",
}
"""Training arguments of older versions that no field replaces, each with what to do instead."""

HINTED = 20
"""Unknown fields of a section for which the closest known one is looked for."""

_JSON_SCHEMA = {"bool": "boolean", "int": "integer", "float": "number", "str": "string", "list": "array",
                "dict": "object", "null": "null"}  # fmt: skip
_NOTHING: Mapping[str, str] = MappingProxyType({})


class FieldsError(ValueError):
    """All that is wrong with one section: pairs of path and message."""

    def __init__(self, errors: list[tuple[tuple[str, ...], str]]) -> None:
        super().__init__("\n".join(message for _, message in errors))
        self.errors = errors


@dataclass(frozen=True)
class FieldInfo:
    """One field of a library's config class. `types` holds names of Python types, and `null`."""

    name: str
    types: tuple[str, ...]
    default: Any
    choices: tuple[str, ...]
    help: str


@cache
def _configs() -> dict[str, dict[str, Any]]:
    table = json.loads(Path(__file__).with_name("fields.json").read_text(encoding="utf-8"))
    configs: dict[str, dict[str, Any]] = table["configs"]
    return configs


@cache
def _fields(config: str) -> Mapping[str, FieldInfo]:
    configs = _configs()
    if config not in configs:
        raise ValueError(f"no config class {config!r} in the field table{did_you_mean(config, configs)}")
    own = configs[config]
    rows = {**(configs[own["extends"]]["fields"] if "extends" in own else {}), **own["fields"]}
    return {
        name: FieldInfo(name, tuple(row["types"]), row["default"], tuple(row.get("choices", ())), row["help"])
        for name, row in sorted(rows.items())
    }


def describe(config: str) -> dict[str, FieldInfo]:
    """Return the fields of a config class by name, sorted; ValueError if the table has no such class."""
    return dict(_fields(config))


def one_of(value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`, else raise ValueError."""
    known = tuple(choices)
    if value not in known:
        shown = repr(value) if len(value) <= 60 else f"{value[:57]!r}..."
        raise ValueError(f"must be one of {', '.join(known)}, not {shown}{did_you_mean(value, known)}")
    return value


def check(
    config: str,
    values: Mapping[str, Any],
    *,
    own: Iterable[str] = (),
    reserved: Mapping[str, str] = _NOTHING,
    path: tuple[str, ...] = (),
) -> None:
    """Check the values of a config class's fields; raise FieldsError with all that is wrong.

    `own` are the section's keys beside the fields; `reserved` are the fields that llmkit sets, each with the sentence
    that says what to write instead. ValueError if the table has no such class.
    """
    fields = _fields(config)
    candidates = (set(fields) | set(own)) - set(reserved)
    errors: list[tuple[tuple[str, ...], str]] = []
    for key, value in values.items():
        if key in reserved:
            message = f"{key!r} is set by llmkit: {reserved[key]}"
        elif key not in fields:
            # What is meant by one of thousands of keys is not worth the seconds.
            hint = _hint(config, key, candidates) if len(errors) < HINTED else ""
            message = f"unknown field {key!r} of {config}{hint}"
        else:
            message = _problem(fields[key], value)
        if message:
            errors.append(((*path, str(key)), message))
    if errors:
        raise FieldsError(errors)


def _hint(config: str, key: str, candidates: set[str]) -> str:
    target, note = RENAMED.get(key, ("", ""))
    if target in candidates:
        return f" (use {target!r}{note})"
    # Only the training section has lost fields to other sections: `dtype` means something else to a quantization.
    if key in GONE and "extends" in _configs()[config]:
        return f" ({GONE[key]})"
    return did_you_mean(str(key), sorted(candidates))


def _problem(field: FieldInfo, value: Any) -> str:
    name, types = field.name, field.types
    kind = _type_name(value)
    if kind not in types and not (kind == "int" and "float" in types):
        if set(types) <= {"null"}:
            return f"{name!r} takes a Python object, which a recipe can't hold"
        shown = kind if value is None else f"{kind} {reprlib.repr(value)}"
        return f"{name!r} takes {' or '.join(types)}, not {shown}{_number_hint(value, types)}"
    if isinstance(value, float) and math.isnan(value):
        return f"{name!r} takes a number, not nan"
    if not field.choices:
        return ""
    for word in value if kind == "list" else [value]:
        # A field with choices may take a bool or null beside them; a list's items must all be choices.
        if isinstance(word, str) or kind == "list":
            try:
                one_of(word if isinstance(word, str) else repr(word), field.choices)
            except ValueError as error:
                return f"{name!r} {error}"
    return ""


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    return "list" if isinstance(value, tuple) else type(value).__name__


def _number_hint(value: Any, types: tuple[str, ...]) -> str:
    """Say how to write a number that YAML read as text: `1e-4` has no dot."""
    if isinstance(value, bool) or not isinstance(value, str | float) or not {"int", "float"} & set(types):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    if not math.isfinite(number):
        return ""
    if "float" not in types or "int" in types:
        return f" (write {int(number)})" if number.is_integer() else ""
    text = repr(number)
    return f" (write {text if '.' in text else text.replace('e', '.0e')})"


def json_schema(config: str, *, reserved: Mapping[str, str] = _NOTHING) -> dict[str, Any]:
    """Return the JSON Schema of an object of the config class's fields; ValueError if there is no such class."""
    fields = _fields(config).values()
    properties = {f.name: _property(f) for f in fields if f.name not in reserved and set(f.types) - {"null"}}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _property(field: FieldInfo) -> dict[str, Any]:
    allowed = [_variant(field, kind) for kind in field.types if not (kind == "int" and "float" in field.types)]
    types = allowed[0] if len(allowed) == 1 else {"anyOf": allowed}
    if len(allowed) > 1 and not field.choices:
        types = {"type": [variant["type"] for variant in allowed]}
    return {**types, "default": field.default, "description": field.help}


def _variant(field: FieldInfo, kind: str) -> dict[str, Any]:
    variant: dict[str, Any] = {"type": _JSON_SCHEMA[kind]}
    if field.choices and kind == "str":
        variant["enum"] = list(field.choices)
    if field.choices and kind == "list":
        variant["items"] = {"type": "string", "enum": list(field.choices)}
    return variant
