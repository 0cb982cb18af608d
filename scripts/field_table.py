"""Write `llmkit/recipe/fields.json`: the fields of the library config classes that a recipe may set.

    python scripts/field_table.py            writes the file
    python scripts/field_table.py --check    exits 1 if the file is not what the installed libraries give

The table lets llmkit check a recipe in milliseconds, without importing torch. Run this after an upgrade of trl,
transformers or peft, and read the diff: it is the list of what the upgrade changed for users.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import importlib
import inspect
import json
import os
import re
import sys
import types
import typing
from importlib.metadata import version
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parents[1] / "llmkit" / "recipe" / "fields.json"
COMMON = "TRLConfig"
TRAINERS = {
    **dict.fromkeys(("SFTConfig", "DPOConfig", "KTOConfig", "RewardConfig", "GRPOConfig", "RLOOConfig"), "trl"),
    # No promise of stability: any release may change or remove them.
    "ORPOConfig": "trl.experimental.orpo",
    "CPOConfig": "trl.experimental.cpo",
}
"""The TRL config classes of the methods, and the module that each comes from."""

ORDER = ("bool", "int", "float", "str", "list", "dict", "null")

# Accepted by the class's __post_init__ although its annotation does not say so.
ALSO: dict[str, str] = {"DPOConfig.loss_type": "str", "GRPOConfig.scale_rewards": "bool", "*.fsdp": "bool"}

# Objects that the class does not build from a dict: a recipe can't hold them.
OBJECTS = frozenset({"parallelism_config", "runtime_config"})

# Choices that the library states in prose only; `_documented` refuses one that the prose no longer names.
DOCUMENTED: dict[str, tuple[str, ...]] = {
    "*.include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "*.vllm_mode": ("server", "colocate"),
    "*.vllm_model_impl": ("transformers", "vllm"),
    "DPOConfig.f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    "DPOConfig.loss_type": (
        *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
        *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
    ),
    "GRPOConfig.importance_sampling_level": ("token", "sequence"),
    "GRPOConfig.loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "GRPOConfig.multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "GRPOConfig.scale_rewards": ("group", "batch", "none"),
    "GRPOConfig.vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "BitsAndBytesConfig.bnb_4bit_quant_type": ("fp4", "nf4"),
}

# For storage, what BitsAndBytesConfig.__init__ accepts; for compute it accepts any torch dtype, and these make sense.
DTYPES: dict[str, tuple[str, ...]] = {
    "bnb_4bit_compute_dtype": ("float32", "bfloat16", "float16"),
    "bnb_4bit_quant_storage": ("float16", "float32", "int8", "uint8", "float64", "bfloat16"),
}

Entry = dict[str, Any]


def first_sentence(text: str) -> str:
    """Return the first sentence of a help text in one line of at most 200 characters."""
    line = " ".join(re.sub(r"</?a\b[^>]*>", "", text).replace("%%", "%").split())
    line = re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)\s+(?=[A-Z`'\"(])", line, maxsplit=1)[0]
    return line if len(line) <= 200 else line[:199].rsplit(" ", 1)[0] + "…"


def json_types(annotation: Any) -> set[str]:
    """Return the names of the JSON types that a field of this annotation can be given."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(json_types(a) for a in args))
    if origin is typing.Literal:
        return set().union(*(json_types(type(a)) for a in args))
    kind = origin or annotation
    if kind is type(None):
        return {"null"}
    if not isinstance(kind, type):
        raise TypeError(f"no JSON type for {annotation!r}")
    if issubclass(kind, enum.Enum):
        return {"str"}
    if kind in (bool, int, float, str):
        return {kind.__name__}
    if issubclass(kind, list | tuple | set):
        return {"list"}
    if issubclass(kind, dict) or dataclasses.is_dataclass(kind):
        return {"dict"}
    raise TypeError(f"no JSON type for {annotation!r}")


def annotated_choices(annotation: Any) -> list[str]:
    """Return the strings that an enum or Literal in the annotation allows; none if one of them is a pattern."""
    if typing.get_origin(annotation) is typing.Literal:
        return [a for a in typing.get_args(annotation) if isinstance(a, str)]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [str(member.value) for member in annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        found = [c for a in typing.get_args(annotation) for c in annotated_choices(a)]
        # LoraConfig.init_lora_weights: "pissa_niter_[number of iters]"
        return [] if any("[" in c for c in found) else found
    return []


def entry(config: str, name: str, kinds: set[str], default: Any, text: str, choices: list[str]) -> Entry:
    """Return one row of the table, with what the annotation leaves out."""
    if default is None:
        kinds = kinds | {"null"}
    if name in OBJECTS:
        kinds = kinds - {"dict"}
    kinds = kinds | {ALSO[key] for key in (f"{config}.{name}", f"*.{name}") if key in ALSO}
    row: Entry = {"default": default, "help": first_sentence(text), "types": [k for k in ORDER if k in kinds]}
    choices = choices or _documented(config, name, text)
    return {**row, "choices": choices} if choices else row


def _documented(config: str, name: str, text: str) -> list[str]:
    known = DOCUMENTED.get(f"{config}.{name}", DOCUMENTED.get(f"*.{name}", ()))
    lost = [c for c in known if not re.search(rf"\b{c}\b", text)]
    if lost:
        raise ValueError(f"the help of {config}.{name} no longer names {lost}: {text}")
    return list(known)


def _default(field: dataclasses.Field[Any]) -> Any:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value.value if isinstance(value, enum.Enum) else value


def dataclass_fields(cls: type) -> dict[str, Entry]:
    """Return the rows of a dataclass."""
    hints = typing.get_type_hints(cls)
    rows = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        choices = [str(c) for c in field.metadata.get("choices", ())] or annotated_choices(hint)
        text = field.metadata.get("help", "")
        rows[field.name] = entry(cls.__name__, field.name, json_types(hint), _default(field), text, choices)
    return rows


def quantization_fields(cls: type) -> dict[str, Entry]:
    """Return the rows of BitsAndBytesConfig, from its signature and its docstring: it is no dataclass."""
    documented = {
        m["name"]: (m["kinds"], m["text"])
        for m in re.finditer(
            r"(?m)^    (?P<name>\w+) \((?P<kinds>.*?)\):\n(?P<text>(?:        .*\n?)+)", inspect.getdoc(cls) or ""
        )
    }
    rows = {}
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        kinds, text = documented[parameter.name]
        found = set(re.findall(r"\b(bool|int|float|str|list)\b", re.sub(r"\[.*?\]", "", kinds.split("*optional*")[0])))
        choices = list(DTYPES.get(parameter.name, ()))
        rows[parameter.name] = entry(cls.__name__, parameter.name, found, parameter.default, text, choices)
    return rows


def table() -> dict[str, Any]:
    """Return the whole table of the installed libraries."""
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # the table says it instead of a warning
    modules = {name: importlib.import_module(module) for name, module in TRAINERS.items()}
    trainers = {name: dataclass_fields(getattr(module, name)) for name, module in modules.items()}
    first, *others = trainers.values()
    common = {name: row for name, row in first.items() if all(rows.get(name) == row for rows in others)}
    configs: dict[str, Any] = {COMMON: {"fields": common}}
    for config, rows in trainers.items():
        own = {name: row for name, row in rows.items() if name not in common}
        configs[config] = {"extends": COMMON, "fields": own, "module": TRAINERS[config]}
    configs["LoraConfig"] = {"fields": dataclass_fields(LoraConfig)}
    configs["BitsAndBytesConfig"] = {"fields": quantization_fields(BitsAndBytesConfig)}
    return {"configs": configs, "versions": {name: version(name) for name in ("peft", "transformers", "trl")}}


def text() -> str:
    """Return the table as it is stored."""
    return json.dumps(table(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Write or check the table; return the exit code."""
    parser = argparse.ArgumentParser(description="Write llmkit/recipe/fields.json.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is stale")
    check = parser.parse_args(argv).check
    new = text()
    stale = not TABLE.exists() or TABLE.read_text(encoding="utf-8") != new
    if stale and check:
        print(f"{TABLE} is stale: run `python scripts/field_table.py` and commit the result", file=sys.stderr)
        return 1
    if stale:
        TABLE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
