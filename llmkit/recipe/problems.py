"""pydantic's validation errors -> sentences with the key, the choices and a did-you-mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from llmkit.errors import did_you_mean
from llmkit.recipe.fields import FieldsError
from llmkit.recipe.spec import KeyPath, Room

# Words that people write as a method although they are combinations of sections.
COMBINATIONS = {
    "qlora": ("QLoRA is SFT with a LoRA adapter on a 4-bit base", "adapter: {type: lora}\nquantization: {type: nf4}"),
    "lora": ("LoRA is SFT with an adapter", "adapter: {type: lora}"),
    "dora": ("DoRA is SFT with a LoRA adapter and `use_dora`", "adapter: {type: lora, use_dora: true}"),
    "full": ("full fine-tuning is SFT without an adapter", ""),
}


SHOWN = 10
"""Problems that are said at once."""

LONGEST = 1000
"""Characters of what is said of one."""


def shortened(text: str) -> str:
    """Return `text`, without its middle if it is too long to be read."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the key path it stands at and a sentence."""

    path: KeyPath
    message: str


def problems_of(error: ValidationError, values: Any, root: type[BaseModel]) -> list[Problem]:
    """Turn a ValidationError of the model `root`, raised for `values`, into problems in order of the file."""
    found: list[Problem] = []
    for item in error.errors()[: 10 * SHOWN]:  # looking for what is meant by thousands of keys takes seconds
        cause = item.get("ctx", {}).get("error")
        path = _existing(item["loc"], values, keep_last=item["type"] == "missing")
        if isinstance(cause, FieldsError):
            found += field_problems(cause, path)
        else:
            found.append(_problem(dict(item), path, values, root))
    return [p for p in found if not (_is_echo(p, found))]


def field_problems(error: FieldsError, path: KeyPath = ()) -> list[Problem]:
    """Return what is wrong with the library fields of the section at `path`."""
    return [Problem((*path, *keys), f"`{_dotted((*path, *keys))}`: {text}") for keys, text in error.errors]


def _is_echo(problem: Problem, found: list[Problem]) -> bool:
    """Whether this only counts the items that other problems, further in, have already refused."""
    inner = (p for p in found if len(p.path) > len(problem.path) and p.path[: len(problem.path)] == problem.path)
    return "should have at least" in problem.message and any(inner)


def _existing(loc: tuple[int | str, ...], values: Any, *, keep_last: bool) -> KeyPath:
    """Drop the parts of a pydantic location that name union branches and not keys of the document.

    With `keep_last` the last part is a key that the document lacks.
    """
    path: list[str | int] = []
    node = values
    for depth, part in enumerate(loc):
        if _has(node, part):
            node = node[part]
        elif not (keep_last and depth == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path)


def _has(node: Any, part: int | str) -> bool:
    if isinstance(node, dict):
        return part in node
    return isinstance(node, (list, tuple)) and isinstance(part, int) and part < len(node)


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _value_at(path: KeyPath, values: Any) -> Any:
    for part in path:
        values = values[part] if _has(values, part) else None
    return values


def _problem(item: dict[str, Any], path: KeyPath, values: Any, root: type[BaseModel]) -> Problem:
    kind, name = item["type"], _dotted(path)
    if kind == "extra_forbidden":
        choices = _keys_at(root, path[:-1], values)
        close = did_you_mean(str(path[-1]), choices)
        section = f"`{_dotted(path[:-1])}`" if len(path) > 1 else "a recipe"
        return Problem(path, f"unknown key {path[-1]!r}{close}; {section} takes {', '.join(choices)}")
    if kind == "missing":
        return Problem(path[:-1], f"`{name}` is missing")
    if kind == "union_tag_invalid":
        path = path if path[-1:] == ("type",) else (*path, "type")
        return Problem(path, _unknown_type(_dotted(path[:-1]), str(item["ctx"]["tag"]), item["ctx"]["expected_tags"]))
    if kind == "union_tag_not_found":
        return _no_type(path, item)
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return _no_type(path, item)
    if kind == "tuple_type":
        return Problem(path, f"`{name}` must be a list, not {_short(item['input'])}")
    if kind == "too_short" and isinstance(item["input"], (list, tuple)):
        return Problem(path, f"`{name}` should have at least {item['ctx']['min_length']} item, and is empty")
    if kind == "literal_error":
        choices = [c.strip("'") for c in item["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        close = did_you_mean(str(item["input"]), choices)
        return Problem(path, f"`{name}` must be one of {', '.join(choices)}, not {_short(item['input'])}{close}")
    text = str(item["ctx"]["error"]) if kind == "value_error" else _first_lower(item["msg"])
    given = f" (it is {_short(_value_at(path, values))})" if kind != "value_error" else ""
    return Problem(path, f"`{name}`: {text}{given}")


def _unknown_type(section: str, tag: str, expected: str) -> str:
    choices = [c.strip("' ") for c in expected.replace(" or ", ", ").split(",")]
    if section == "method" and tag.lower() in COMBINATIONS:
        return _combination(tag)
    return f"`{section}.type` must be one of {', '.join(choices)}, not {tag!r}{did_you_mean(tag, choices)}"


def _combination(tag: str) -> str:
    what, lines = COMBINATIONS[tag.lower()]
    block = "\n".join(f"    {line}" for line in ("method: {type: sft}", *lines.splitlines()))
    return f"{tag!r} is not a method: {what}. Write\n{block}"


def _no_type(path: KeyPath, item: dict[str, Any]) -> Problem:
    name, value = _dotted(path), item["input"]
    if isinstance(value, str) and path == ("method",) and value.lower() in COMBINATIONS:
        return Problem(path, _combination(value))
    if item["type"] == "union_tag_not_found" and isinstance(value, dict):
        return Problem(path, f"`{name}` needs a `type`")
    if isinstance(value, str) and path and path[0] in ("method", "adapter", "quantization", "evaluation", "export"):
        return Problem(path, f"`{name}` is a section: write `{{type: {value}}}`")
    return Problem(path, f"`{name}` must be a mapping of keys to values, not {_short(value)}")


def _keys_at(root: type[BaseModel], path: KeyPath, values: Any) -> list[str]:
    """Return the keys that the section at `path` of `values` takes; `root` is the model of the whole."""
    section: Any = root
    kinds: list[Any] = []
    for part in path:
        values = values[part]
        if isinstance(part, str):  # a number is the place in a list, whose field says what the items are
            field = section.model_fields[part]
            kinds = [*_flatten(field.annotation), *field.metadata]
        section = _section_of(kinds, values)
    return sorted(section.model_fields)


def _section_of(kinds: list[Any], value: Any) -> type[BaseModel] | None:
    """Return the model, among the types that a field names, that `value` is checked by."""
    for kind in kinds:
        if isinstance(kind, Room):
            return kind.named_in(value)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _flatten(annotation: Any) -> list[Any]:
    inner = (*getattr(annotation, "__args__", ()), *getattr(annotation, "__metadata__", ()))
    return [annotation] if not inner else [leaf for arg in inner for leaf in _flatten(arg)]


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
