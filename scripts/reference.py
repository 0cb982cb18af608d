"""Write `docs/reference.md`: every section of a recipe, from the source's own docstrings.

    python scripts/reference.py            writes the page
    python scripts/reference.py --check    exits 1 if the page is not what the source gives

The source is read with `ast` and never imported: a field's line of documentation is the string below it.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "llmkit"
PAGE = ROOT / "docs" / "reference.md"

SECTIONS = {
    "recipe/recipe.py": {
        "Recipe": "The recipe",
        "Model": "model",
        "Data": "data",
        "Source": "data.train, data.eval: a source",
        "Audit": "data.audit",
        "Training": "training",
        "Limits": "limits",
        "Checkpoints": "checkpoints",
        "Keep": "checkpoints.keep",
        "Stability": "stability",
        "HardwareChoice": "hardware",
    }
}
"""Sections without kinds: file, class, heading."""

ROOMS = {
    "methods": ("method", "One of these. Which config class `training` takes is the method's `config`."),
    "model/adapters": ("adapter", "At most one of these; without it, all weights are trained."),
    "model/quantization": ("quantization", "At most one of these; needs an adapter."),
    "rewards": ("rewards", "A list of any number of these; methods that learn from rewards need at least one."),
    "evaluation": ("evaluation", "A list of any number of these."),
    "exports": ("export", "A list of any number of these."),
}
"""Sections with kinds: folder, key and a sentence."""

PLAIN = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "Model": "section `model`"}
NAMED = {
    "Sources": "list of sources",
    "HeldOut": "number, or list of sources",
    "Data": "section `data`",
    "Audit": "section `data.audit`",
    "dict[str, str]": "names and texts",
    "tuple[Source, ...]": "list of sources",
    "Training": "section `training`",
    "Limits": "section `limits`",
    "Checkpoints": "section `checkpoints`",
    "Keep": "section `checkpoints.keep`",
    "Stability": "section `stability`",
    "HardwareChoice": "section `hardware`",
    "AnyMethod": "a method",
    "AnyAdapter": "an adapter",
    "AnyQuantization": "a quantization",
    "tuple[AnyReward, ...]": "list of rewards",
    "tuple[AnyEvaluation, ...]": "list of evaluations",
    "tuple[AnyExport, ...]": "list of exports",
    "tuple[str, ...]": "list of texts",
    "tuple[Gate, ...]": "list of gates",
    "tuple[Count, ...]": "list of integers",
    "Source": "a source",
    "dict[str, Any]": "keys and values",
    "tuple[Tag, ...]": "list of texts",
    "dict[str, Any] | str": "keys and values, or text",
}
LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


@dataclass
class Key:
    """One field of a section."""

    name: str
    kind: str
    default: str
    doc: str


@dataclass
class Section:
    """One Spec as its source has it."""

    name: str
    doc: str
    keys: list[Key] = field(default_factory=list)
    constants: dict[str, ast.expr] = field(default_factory=dict)
    """The class variables, e.g. `table` and `reserved`."""


def read_section(file: Path, name: str) -> Section:
    """Return the class `name` of `file`, with the fields and constants of its bases (in any of llmkit's files)."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    homes = {a.name: _file(n.module) for n in tree.body if isinstance(n, ast.ImportFrom) and n.module for a in n.names}
    node = classes[name]
    section = Section(name, ast.get_docstring(node) or "")
    for base in reversed([b.id for b in node.bases if isinstance(b, ast.Name)]):
        home = file if base in classes else homes.get(base)
        if home is not None and home.is_relative_to(PACKAGE):
            inherited = read_section(home, base)
            section.keys = _over(section.keys, inherited.keys)
            section.constants |= inherited.constants
    keys, constants = _body(node)
    section.keys = _over(section.keys, keys)
    section.constants |= constants
    return section


def _file(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _over(keys: list[Key], newer: list[Key]) -> list[Key]:
    """Return `keys` with `newer` in the place of those of the same name, and after them."""
    by_name = {key.name: key for key in keys} | {key.name: key for key in newer}
    return list(by_name.values())


def _body(node: ast.ClassDef) -> tuple[list[Key], dict[str, ast.expr]]:
    keys, constants = [], {}
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        name, annotation = statement.target.id, ast.unparse(statement.annotation)
        if annotation.startswith("ClassVar"):
            if statement.value is not None:
                constants[name] = statement.value
        elif not name.startswith("_"):
            default, limits = _default(statement.value)
            keys.append(Key(name, _kind(statement.annotation) + limits, default, _doc(after)))
    return keys, constants


def _doc(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return " ".join(str(statement.value.value).split())
    return ""


def _kind(annotation: ast.expr) -> str:
    text = ast.unparse(annotation).removesuffix(" | None")
    if text in NAMED or text in PLAIN:
        return {**NAMED, **PLAIN}[text]
    node = ast.parse(text, mode="eval").body
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        words = [f"`{ast.literal_eval(item)}`" for item in items]
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    raise ValueError(f"no words for the type {text}: add it to NAMED in {Path(__file__).name}")


def _default(value: ast.expr | None) -> tuple[str, str]:
    """Return the default in words, and the limits that `Field` states."""
    if value is None:
        return "required", ""
    if not isinstance(value, ast.Call):
        return _written(value), ""
    if ast.unparse(value.func) != "Field":
        return "its defaults", ""
    words = {k.arg or "": k.value for k in value.keywords}
    limits = [f"{word} {ast.unparse(words[name])}" for name, word in LIMITS.items() if name in words]
    default = _written(words["default"]) if "default" in words else "required"
    return default, f", {' and '.join(limits)}" if limits else ""


def _written(value: ast.expr) -> str:
    if isinstance(value, ast.Tuple) and not value.elts:
        return "none"
    if isinstance(value, ast.Name):
        return f"the text `{value.id}` in its file"
    plain = ast.literal_eval(value)
    if plain is None:
        return "unset"
    return f"`{str(plain).lower() if isinstance(plain, bool) else plain}`"


def page() -> str:
    """Return the reference as Markdown."""
    lines = [
        "# Reference",
        "",
        "This page is made by `scripts/reference.py` from the source. Do not edit it.",
        "",
        "Keys of `training`, `adapter` and `quantization` are those of the libraries' own classes. `llmkit show RECIPE "
        "--all` lists them with their values; `llmkit schema` prints them for an editor.",
    ]
    for file, classes in SECTIONS.items():
        for name, heading in classes.items():
            lines += ["", f"## {heading}", "", *_section(read_section(PACKAGE / file, name))]
    for room, (key, sentence) in ROOMS.items():
        lines += ["", f"## {key}", "", sentence]
        for file in _variants(PACKAGE / room):
            section = _variant(file)
            lines += ["", f"### {key}: `{file.stem}`", "", _opening(file), "", *_section(section)]
    lines += ["", "## Formats", "", "Values of a source's `format`."]
    for file in _variants(PACKAGE / "data" / "formats"):
        lines += ["", f"### format: `{file.stem}`", "", *_format(file)]
    lines += ["", "## Made data sets", "", "Values of a source's `path` that llmkit generates itself."]
    for file in _variants(PACKAGE / "data" / "made"):
        lines += ["", f"### path: `made:{file.stem}`", "", *_blocks(_module_doc(file))]
    return "\n".join(lines) + "\n"


def _variants(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*.py")) if file.stem != "base" and not file.stem.startswith("_")]


def _variant(file: Path) -> Section:
    """Return the Spec of a variant file: the class whose `type` is the file's name."""
    kind = f"Literal['{file.stem}']"
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        own = [s for s in getattr(node, "body", ()) if isinstance(s, ast.AnnAssign)]
        if isinstance(node, ast.ClassDef) and kind in [ast.unparse(s.annotation) for s in own]:
            return read_section(file, node.name)
    raise ValueError(f"{file} holds no Spec with type {file.stem!r}")


def _module_doc(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def _opening(file: Path) -> str:
    return " ".join(_module_doc(file).partition("\n\n")[0].split())


def _section(section: Section) -> list[str]:
    lines = _blocks(section.doc)
    keys = [key for key in section.keys if key.name != "type"]
    if keys:
        lines += ["", "| key | value | default | what it is |", "|---|---|---|---|"]
        lines += [f"| `{k.name}` | {k.kind} | {k.default} | {_cell(k.doc)} |" for k in keys]
    lines += _library(section)
    return lines


def _library(section: Section) -> list[str]:
    """Return what the class variables say: the library's class, and the fields of it that llmkit sets itself."""
    lines: list[str] = []
    for name in ("table", "config"):
        config = ast.literal_eval(section.constants[name]) if name in section.constants else ""
        if config:
            what = "Keys" if name == "table" else "`training` takes the fields"
            lines += ["", f"{what} of `{config}`."]
    reserved = ast.literal_eval(section.constants["reserved"]) if "reserved" in section.constants else {}
    if reserved:
        lines += ["", "Refused, because llmkit sets them:", ""]
        lines += [f"- `{name}`: {instead}" for name, instead in reserved.items()]
    accepts = section.constants.get("accepts")
    if accepts is not None:
        shapes = sorted(node.attr.lower() for node in ast.walk(accepts) if isinstance(node, ast.Attribute))
        lines += ["", f"Learns from rows of the shape {', '.join(f'`{shape}`' for shape in shapes)}."]
    return lines


def _format(file: Path) -> list[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    values = {t.id: node.value for node in tree.body if isinstance(node, ast.Assign)
              for t in node.targets if isinstance(t, ast.Name)}  # fmt: skip
    columns = ", ".join(f"`{column}`" for column in ast.literal_eval(values["COLUMNS"]))
    shape = ast.unparse(values["SHAPE"]).rpartition(".")[2].lower()
    return [*_blocks(_module_doc(file)), "", f"Columns it needs: {columns}. Shape of its rows: `{shape}`."]


def _blocks(doc: str) -> list[str]:
    """Return a docstring as Markdown: paragraphs on one line each, JSON in fences."""
    lines: list[str] = []
    for paragraph in doc.split("\n\n"):
        code = paragraph.lstrip().startswith("{")
        text = [_fence(paragraph), *_moved_left(paragraph), "```"] if code else [" ".join(paragraph.split())]
        lines += ["", *text] if lines else text
    return lines


def _fence(paragraph: str) -> str:
    # A row with `...` in it is there to be read only.
    return "```text" if "..." in paragraph else "```json"


def _moved_left(paragraph: str) -> Iterator[str]:
    """Yield the lines of an indented block, moved to the left together."""
    rows = paragraph.strip("\n").splitlines()
    margin = min(len(row) - len(row.lstrip()) for row in rows if row.strip())
    yield from (row[margin:] for row in rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(argv: list[str] | None = None) -> int:
    """Write or check the page; return the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/reference.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is stale")
    check = parser.parse_args(argv).check
    new = page()
    stale = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != new
    if stale and check:
        print(f"{PAGE} is stale: run `python scripts/reference.py` and commit the result", file=sys.stderr)
        return 1
    if stale:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
