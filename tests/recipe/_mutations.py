"""Bad recipes: the shipped ones damaged in every way that we could think of, the same ones for the same seed.

`nursery` makes the folder that they live in, with files that no one should open (a pipe, a circle of links, /dev/zero).
"""

from __future__ import annotations

import copy
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from llmkit.recipe.shipped import recipes_folder
from tests.recipe._nasty import (
    BASE,
    BYTES,
    FILE_NAMES,
    FILES,
    FUNCTIONS,
    GROUPS,
    INSERTED,
    JINJA,
    ODD_KEYS,
    PATHS,
    PATTERNS,
    SCHEMAS,
    SETS,
    SFT,
    TEXTS,
    URLS,
    VALUES,
    Raw,
)

RECIPES = sorted(recipes_folder().glob("*.yaml"))

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Mutant:
    """One bad recipe: the text of `mutant.yaml`, or another file to load, with overrides and files beside it."""

    name: str
    text: bytes | str = b""
    overrides: tuple[str, ...] = ()
    path: str = "mutant.yaml"
    beside: Mapping[str, str] = field(default_factory=dict)


# --- the folder ------------------------------------------------------------------------------------------------------

HOOKS = """def score(completion, row):
    return 1.0


def row(row):
    return row


class World:
    def reset(self, **row):
        return None
"""


def nursery(folder: Path) -> Path:
    """Fill `folder` with the shipped recipes and with what a bad recipe may name, and return it."""
    for path in (*RECIPES, *recipes_folder().glob("*.py")):
        shutil.copy(path, folder)
    texts = {
        "rows.jsonl": '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
        "hooks.py": HOOKS,
        "broken.py": "def score(:\n",
        "deep.py": "x = " + "-" * 20_000 + "1\n",
        "brackets.py": "x = " + "(" * 5_000 + "\n",
        "prompts.jsonl": '{"prompt": "a"}\n',
        "deep.jsonl": "[" * 20_000 + "\n",
        "number.jsonl": '{"prompt": ' + "9" * 5_000 + "}\n",
        "deep.json": "[" * 20_000,
        "number.json": '{"maximum": ' + "9" * 5_000 + "}",
        "broken.json": "{",
        "schema.json": '{"type": "object"}',
        "empty.jsonl": "",
        "circle/adapter_config.json": '{"base_model_name_or_path": "../circle"}',
        "list/adapter_config.json": "[]",
        "number/adapter_config.json": '{"base_model_name_or_path": 5}',
        "broken/adapter_config.json": "{",
        "halfway/config.json": "{",
        "classes/config.json": '{"architectures": [1], "num_labels": "x", "id2label": 3}',
        "metric/metric.py": "",
        "deeper/a/b/c/base.yaml": "model: {name: a/b}\n",
    }
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "latin.py").write_bytes(b"def score(completion, row):\n    return 'caf\xe9'\n")
    (folder / "nul.py").write_bytes(b"def score(completion, row):\n    return '\0'\n")
    (folder / "latin.json").write_bytes(b'{"a": "caf\xe9"}')
    _special(folder)
    return folder


def _special(folder: Path) -> None:
    for suffix in ("", ".jsonl", ".json", ".yaml", ".py", ".jinja", ".gguf"):
        os.mkfifo(folder / f"pipe{suffix}")
        (folder / f"circular{suffix}").symlink_to(f"circular{suffix}")
        (folder / f"zero{suffix}").symlink_to("/dev/zero")
        (folder / f"folder{suffix}").mkdir()
        (folder / f"denied{suffix}").write_text("", encoding="utf-8")
        (folder / f"denied{suffix}").chmod(0)
    (folder / "closed").mkdir(mode=0)


# --- writing ---------------------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """Return a string as YAML, whatever is in it."""
    plain = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return '"' + "".join(plain) + '"'


def written(value: Any, indent: str = "") -> str:
    """Return plain values as YAML, each key and item on a line of its own."""
    if isinstance(value, dict):
        inner = [
            f"{indent} {k if isinstance(k, Raw) else quoted(k)}: {written(v, indent + ' ')}" for k, v in value.items()
        ]
        return "{\n" + ",\n".join(inner) + "}" if inner else "{}"
    if isinstance(value, list):
        inner = [f"{indent} {written(item, indent + ' ')}" for item in value]
        return "[\n" + ",\n".join(inner) + "]" if inner else "[]"
    if isinstance(value, Raw):
        return value
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    return json.dumps(value)


@cache
def _values(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    return found


def values_of(path: Path) -> dict[str, Any]:
    """Return what a shipped recipe holds, to be changed."""
    return copy.deepcopy(_values(path))


def places(tree: Any, here: Keys = ()) -> Iterator[Keys]:
    """Yield the path of every value in `tree`, but its own."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*here, key)
        yield from places(value, (*here, key))


def at(tree: Any, path: Keys) -> Any:
    """Return the value at `path`."""
    for key in path:
        tree = tree[key]
    return tree


def with_value(tree: Any, path: Keys, value: Any) -> Any:
    """Put `value` at `path` of `tree`, making the mappings on the way, and return `tree`."""
    node = tree
    for key, following in zip(path, path[1:], strict=False):
        if isinstance(node, list):
            node.extend({} for _ in range(key + 1 - len(node)))  # type: ignore[operator]
        elif not isinstance(node.get(key), dict | list):
            node[key] = [] if isinstance(following, int) else {}
        node = node[key]
    if isinstance(node, list) and path[-1] == len(node):
        node.append(value)
    else:
        node[path[-1]] = value
    return tree


# --- values ----------------------------------------------------------------------------------------------------------


DPO, GRPO = recipes_folder() / "dpo_qwen.yaml", recipes_folder() / "grpo_qwen.yaml"

AT: tuple[tuple[Path, Keys, Sequence[Any]], ...] = (
    (
        SFT,
        ("model", "name"),
        (*PATHS, "pipe.gguf", "circular.gguf", "zero.gguf", "folder.gguf", "circle", "list", "number", "broken"),
    ),
    (SFT, ("model", "chat_template"), tuple(f"{stem}.jinja" for stem in FILES)),
    (SFT, ("model", "allow_pickle"), ([""], [1], "x", ["../x"])),
    (SFT, ("data", "train", 0, "path"), PATHS),
    (SFT, ("data", "eval"), tuple([{"path": path, "format": "messages"}] for path in PATHS[::3])),
    (SFT, ("data", "audit", "benchmarks"), tuple([{"path": path}] for path in PATHS[::3])),
    (SFT, ("data", "train", 0, "columns"), tuple({"messages": line} for line in JINJA)),
    (SFT, ("data", "train", 0, "python"), FUNCTIONS),
    (SFT, ("data", "train", 0, "header"), ([""], ["a", "a"], [" "], [1], "a", ["a"])),
    (
        SFT,
        ("extends",),
        (*PATHS[:40], *(f"{stem}.yaml" for stem in FILES), "mutant.yaml", "deeper/a/b/c/base.yaml", 5, [], {}),
    ),
    (
        SFT,
        ("evaluation",),
        tuple([{"type": "generate", "prompts": f"{stem}.jsonl"}] for stem in (*FILES, "deep", "number", "prompts")),
    ),
    (
        SFT,
        ("evaluation",),
        tuple([{"type": "metric", "path": path}] for path in (*FILES, *PATHS[:12], "metric", "pipe.py", "zero.py")),
    ),
    (GRPO, ("rewards",), tuple([{"type": "python", "function": name}] for name in FUNCTIONS)),
    (GRPO, ("rewards",), tuple([{"type": "regex", "pattern": pattern}] for pattern in PATTERNS)),
    (GRPO, ("rewards",), tuple([{"type": "json_schema", "json_schema": schema}] for schema in SCHEMAS)),
    (GRPO, ("rewards",), tuple([{"type": "judge", "model": "m", "url": url}] for url in URLS)),
    (
        GRPO,
        ("rewards",),
        tuple([{"type": "reward_model", "path": path}] for path in (*FILES, "halfway", "classes", "list", "broken")),
    ),
    (
        GRPO,
        ("rewards",),
        ([{"type": "language", "language": "xx"}], [{"type": "numeric"}] * 2, [{"type": "format", "tags": ["("]}]),
    ),
    (GRPO, ("method", "tools"), tuple([name] for name in FUNCTIONS)),
    (GRPO, ("method", "environment"), FUNCTIONS),
    (GRPO, ("training",), GROUPS),
    (DPO, ("training", "loss_type"), ([], ["sigmoid"] * 2, [1], [None], "x", ["sigmoid", "ipo"], "robust", "exo_pair")),
    (DPO, ("training", "loss_weights"), ([], ["x"], [None], [1.0, 2.0], [[1]])),
    (DPO, ("training", "report_to"), ([1], [None], ["x"], [[]], "", "wandb", "tensorbord", ["none", 5], [{}])),
)
"""Places that are looked into, each with what may stand there: a recipe, the place, the values."""


def _fixed_values() -> Iterator[Mutant]:
    for number, (path, place, values) in enumerate(AT):
        for index, value in enumerate(values):
            tree = with_value(values_of(path), place, value)
            yield Mutant(
                f"{path.stem} {'.'.join(map(str, place))} #{number}.{index} {str(value)[:60]!r}", written(tree)
            )
    for index, value in enumerate(VALUES):
        tree = with_value(values_of(SFT), ("training", "seed"), value)
        yield Mutant(f"training.seed #{index} {str(value)[:60]!r}", written(tree))
        yield Mutant(f"as a whole #{index} {str(value)[:60]!r}", written(value))


# --- YAML ------------------------------------------------------------------------------------------------------------


def _texts() -> Iterator[Mutant]:
    for name, text in {**TEXTS, **BYTES}.items():
        yield Mutant(name, text)


# --- files and chains ------------------------------------------------------------------------------------------------


def _chain(length: int, end: str) -> dict[str, str]:
    steps = {f"chain{i}.yaml": f"extends: chain{i + 1}.yaml\n" for i in range(length)}
    return {**steps, f"chain{length}.yaml": end}


def _files() -> Iterator[Mutant]:
    for name in FILE_NAMES:
        yield Mutant(f"the file {name[:40]!r}", path=name)
    for length in (1, 3, 10, 100, 1200):
        yield Mutant(
            f"a chain of {length}", "extends: chain0.yaml\nmodle: 1\n", beside=_chain(length, "model: {name: a/b}\n")
        )
        yield Mutant(
            f"a chain of {length} to nowhere", "extends: chain0.yaml\n", beside=_chain(length, "extends: gone.yaml\n")
        )
        yield Mutant(
            f"a chain of {length} in a circle",
            "extends: chain0.yaml\n",
            beside=_chain(length, "extends: mutant.yaml\n"),
        )
        yield Mutant(f"a chain of {length} to an error", "extends: chain0.yaml\n", beside=_chain(length, "a: [\n"))
    for name, text in {
        "a list": "[1]",
        "nothing": "",
        "a BOM": "\ufeff",
        "an alias": "a: &a [*a]",
        "an override": "model: 5\n",
    }.items():
        yield Mutant(f"a parent that is {name}", "extends: parent.yaml\n" + BASE, beside={"parent.yaml": text})
    yield Mutant("a parent in another's place", "extends: parent.yaml\nmodel: {nme: x}\n", beside={"parent.yaml": BASE})
    yield Mutant(
        "an error in a parent", "extends: parent.yaml\n", beside={"parent.yaml": BASE.replace("lora,", "lroa,")}
    )


# --- overrides -------------------------------------------------------------------------------------------------------


def _sets() -> Iterator[Mutant]:
    for index, override in enumerate(SETS):
        yield Mutant(f"--set #{index} {override[:60]!r}", BASE, (override,))
    yield Mutant("many overrides", BASE, tuple(f"training.f{i}=1" for i in range(300)))
    yield Mutant("an override of an override", BASE, ("method=5", "method.type=sft"))


# --- at random -------------------------------------------------------------------------------------------------------


def _one_line(lines: list[bytes], chance: random.Random) -> int:
    return chance.randrange(len(lines))


def _flip(data: bytes, chance: random.Random) -> bytes:
    index = chance.randrange(len(data))
    return data[:index] + bytes([data[index] ^ 1 << chance.randrange(8)]) + data[index + 1 :]


def _set_byte(data: bytes, chance: random.Random) -> bytes:
    index = chance.randrange(len(data))
    return data[:index] + bytes([chance.randrange(256)]) + data[index + 1 :]


def _delete(data: bytes, chance: random.Random) -> bytes:
    index = chance.randrange(len(data))
    return data[:index] + data[index + chance.choice((1, 1, 2, 5, 50)) :]


def _insert(data: bytes, chance: random.Random) -> bytes:
    index = chance.randrange(len(data))
    return data[:index] + chance.choice(INSERTED) + data[index:]


def _truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def _repeat_line(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    index = _one_line(lines, chance)
    return b"".join([*lines[: index + 1], *[lines[index]] * chance.choice((1, 1, 2, 100)), *lines[index + 1 :]])


def _drop_line(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[_one_line(lines, chance)]
    return b"".join(lines)


def _swap_lines(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    i, j = _one_line(lines, chance), _one_line(lines, chance)
    lines[i], lines[j] = lines[j], lines[i]
    return b"".join(lines)


def _indent(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    index = _one_line(lines, chance)
    lines[index] = chance.choice((b" ", b"   ", b"\t", b" \t ", b" " * 500)) + lines[index].lstrip(
        b" " * chance.randrange(2)
    )
    return b"".join(lines)


def _splice(data: bytes, chance: random.Random) -> bytes:
    other = chance.choice(RECIPES).read_bytes()
    return data[: chance.randrange(len(data))] + other[chance.randrange(len(other)) :]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _set_byte, _delete, _insert, _insert, _truncate, _repeat_line, _drop_line, _swap_lines, _indent, _splice),
)


def _bytes_mutant(chance: random.Random) -> Mutant:
    path = chance.choice(RECIPES)
    data, done = path.read_bytes(), []
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        damage = chance.choice(DAMAGES)
        data, done = damage(data, chance) or b"\n", [*done, damage.__name__]
    return Mutant(f"{path.stem}: {', '.join(done)}", data)


def _value_mutant(chance: random.Random) -> Mutant:
    path = chance.choice(RECIPES)
    tree = values_of(path)
    place = chance.choice(list(places(tree)))
    old = at(tree, place)
    value = chance.choice((*VALUES, *PATHS, [old], {"x": old}, [old, old], str(old), f"{old} "))
    return Mutant(
        f"{path.stem}: {'.'.join(map(str, place))} = {str(value)[:60]!r}", written(with_value(tree, place, value))
    )


def _misspelt(key: str, chance: random.Random) -> str:
    index = chance.randrange(len(key))
    kinds = (
        key[:index] + key[index + 1 :],
        key[:index] + key[index] + key[index:],
        key[:index] + "x" + key[index + 1 :],
        key.upper(),
        key + "s",
    )
    return chance.choice(kinds)


def _key_mutant(chance: random.Random) -> Mutant:
    path = chance.choice(RECIPES)
    tree = values_of(path)
    place = chance.choice([p for p in places(tree) if isinstance(p[-1], str)])
    section, key = at(tree, place[:-1]), str(place[-1])
    value = section[key]
    how = chance.choice(("misspelt", "removed", "moved", "odd", "added", "type"))
    if how in ("misspelt", "removed", "moved", "odd"):
        del section[key]
    if how == "moved":
        sections = [tree, *(at(tree, p) for p in places(tree) if isinstance(at(tree, p), dict))]
        chance.choice(sections)[key] = value
    elif how == "type":
        typed = [at(tree, p) for p in places(tree) if isinstance(at(tree, p), dict) and "type" in at(tree, p)]
        (chance.choice(typed) if typed else section)["type"] = chance.choice(
            ("x", "Lora", "dpo", "grpo", "lora", "kto", "", "base", "_policy", None, "../sft")
        )
    elif how != "removed":
        section[_misspelt(key, chance) if how == "misspelt" else chance.choice(ODD_KEYS)] = value
    return Mutant(f"{path.stem}: {'.'.join(map(str, place))} {how}", written(tree))


def _set_mutant(chance: random.Random) -> Mutant:
    path = chance.choice(RECIPES)
    place = ".".join(map(str, chance.choice(list(places(_values(path))))))
    value = chance.choice((*VALUES, *PATHS))
    text = written(value).replace("\n", " ")
    override = f"{place}{chance.choice(('', '', '', '.x', '.0', '.', 's'))}={text[:90_000]}"
    return Mutant(f"{path.stem} --set {override[:60]!r}", path.read_bytes(), (override,))


KINDS = (_bytes_mutant, _bytes_mutant, _value_mutant, _value_mutant, _key_mutant, _set_mutant)


def fixed_mutants() -> list[Mutant]:
    """Return the bad recipes that someone thought of."""
    return [*_texts(), *_files(), *_sets(), *_fixed_values()]


def random_mutants(seed: int, count: int) -> list[Mutant]:
    """Return `count` bad recipes that chance made: bytes, values, keys and overrides; always the same for a seed."""
    chance = random.Random(seed)
    return [chance.choice(KINDS)(chance) for _ in range(count)]
