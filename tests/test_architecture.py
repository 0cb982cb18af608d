"""The house: what may import what, where each variant lives, and what it must come with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmkit
from llmkit.recipe.spec import variant_names, variants

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llmkit"
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "evaluate"}

# Rooms in the order of a run: a module imports only from its own room and from those before it.
ROOMS = ["errors", "recipe", "planning", "data", "model", "rewards", "methods", "evaluation", "exports", "runs", "cli"]
VARIANTS = {
    "llmkit.methods": "methods",
    "llmkit.model.adapters": "model/adapters",
    "llmkit.model.quantization": "model/quantization",
    "llmkit.evaluation": "evaluation",
    "llmkit.exports": "exports",
    "llmkit.rewards": "rewards",
    "llmkit.data.formats": "data/formats",
    "llmkit.data.made": "data/made",
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Yield the modules that a file imports at run time; what stands under TYPE_CHECKING is left out."""

    def walk(nodes: list[ast.stmt]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from walk(node.orelse)
            elif top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            else:
                inner = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
                yield from walk(inner)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")).body)


def room_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else "llmkit"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_to_earlier_rooms(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room not in ROOMS:
        assert room in ("__init__", "__main__"), f"{room} is not a room of the house"
        return
    for module in imports(path):
        if module.startswith("llmkit."):
            other = room_of(module)
            assert ROOMS.index(other) <= ROOMS.index(room), f"{path.name} imports {module}, a later room"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_inside_functions(path: Path) -> None:
    if path.parent.name == "methods" and path.name.startswith("_") and path.name != "__init__.py":
        return  # trainer classes; the modules themselves are imported inside functions
    found = {m.split(".")[0] for m in imports(path, top_level_only=True)} & HEAVY
    assert not found


@pytest.mark.parametrize("package", VARIANTS)
def test_every_variant_has_a_test(package: str) -> None:
    for name in variant_names(package):
        assert (ROOT / "tests" / VARIANTS[package] / f"test_{name}.py").is_file(), f"no test for {package}.{name}"


@pytest.mark.parametrize("package", [p for p in VARIANTS if "data" not in p])
def test_a_file_is_named_like_its_type(package: str) -> None:
    assert set(variants(package)) == set(variant_names(package))


def test_every_method_has_a_recipe() -> None:
    recipes = [p.name for p in (ROOT / "recipes").glob("*.yaml")]
    for name in variant_names("llmkit.methods"):
        assert any(recipe.startswith(f"{name}_") for recipe in recipes), f"no recipe for {name}"


def test_every_field_has_a_line_of_documentation() -> None:
    bare = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef) or not _is_spec(node):
                continue
            for item, following in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
                if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation):
                    name = ast.unparse(item.target)
                    documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                    section = node.name == "Recipe"  # its fields are sections, documented by their classes
                    if not (documented or section or name.startswith("_") or name == "type"):
                        bare.append(f"{path.name}:{item.lineno} {node.name}.{name}")
    assert not bare


def _is_spec(node: ast.ClassDef) -> bool:
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    return bool(
        bases
        & {"Spec", "Variant", "LibrarySpec", "Method", "Adapter", "Quantization", "Evaluation", "Export", "Reward"}
    )


def test_no_room_is_overfull() -> None:
    crowded = {
        str(path.relative_to(ROOT)): lines
        for path in MODULES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 470
    }
    assert not crowded


def test_functions_are_short() -> None:
    long = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 60:
                    long.append(f"{path.name}:{node.name} has {length} lines")
    assert not long


def test_the_public_names_are_what_the_package_says() -> None:
    assert llmkit.__all__ == sorted(llmkit.__all__)
    for name in llmkit.__all__:
        assert getattr(llmkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = llmkit.nonsense


def test_no_machine_is_named_in_the_project() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:work|farm|root)/")
    checked = [*MODULES, *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").glob("*.yaml"), ROOT / "README.md"]
    assert not [p for p in checked if p.is_file() and pattern.search(p.read_text(encoding="utf-8"))]
