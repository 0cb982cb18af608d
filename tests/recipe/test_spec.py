"""Variants are found by their files, and sections of library keys keep only what is set."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError, create_model

from llmkit.model.adapters.lora import Lora
from llmkit.recipe.recipe import HardwareChoice
from llmkit.recipe.spec import Room, union_of, variant, variant_names, variants

SPEC = """
from typing import Literal
from llmkit.recipe.spec import Spec
class {cls}(Spec):
    type: Literal[{type!r}]
    size: int = 1
"""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Return a maker of packages of variant files; each test's package has its own name."""

    def make(**files: str) -> str:
        name = f"room_{abs(hash(request.node.nodeid))}"
        (tmp_path / name).mkdir()
        for file, text in {"__init__": "", **files}.items():
            (tmp_path / name / f"{file}.py").write_text(textwrap.dedent(text), encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        return name

    return make


def _validated(union: Any, value: Any) -> Any:
    model: type[BaseModel] = create_model("Holder", section=(union, ...))
    return model.model_validate({"section": value}).section  # type: ignore[attr-defined]


def test_a_variant_is_one_file(room: Callable[..., str]) -> None:
    name = room(small=SPEC.format(cls="Small", type="small"), big=SPEC.format(cls="Big", type="big"), base="", _own="")
    assert variant_names(name) == ("big", "small")
    assert {key: spec.__name__ for key, spec in variants(name).items()} == {"big": "Big", "small": "Small"}
    assert _validated(union_of(name), {"type": "big", "size": 3}).size == 3
    with pytest.raises(ValidationError, match="'big', 'small'"):
        _validated(union_of(name), {"type": "bgi"})


def test_a_single_variant_needs_its_type_as_well(room: Callable[..., str]) -> None:
    name = room(only=SPEC.format(cls="Only", type="only"))
    assert _validated(union_of(name), {"type": "only"}).type == "only"
    for value in ({}, {"type": "other"}):
        with pytest.raises(ValidationError):
            _validated(union_of(name), value)


@pytest.mark.parametrize(
    "text",
    ["", SPEC.format(cls="Other", type="other"), SPEC.format(cls="A", type="x") + SPEC.format(cls="B", type="x")],
    ids=["none", "another name", "two"],
)
def test_a_file_without_exactly_its_own_spec_is_a_mistake_of_ours(room: Callable[..., str], text: str) -> None:
    name = room(x=text)
    with pytest.raises(TypeError, match=r"\.x must hold exactly one Spec with type: Literal\['x'\]"):
        variants(name)


def test_the_rooms_of_llmkit_import_no_torch() -> None:
    rooms = ("methods", "model.adapters", "model.quantization", "evaluation", "exports", "data.formats", "data.made")
    found = {room: variant_names(f"llmkit.{room}") for room in rooms}
    assert all(found.values())
    assert "sft" in found["methods"]
    assert not any(name.startswith("_") or name == "base" for names in found.values() for name in names)


def test_specs_are_frozen_strict_and_closed() -> None:
    choice = HardwareChoice(device="cpu")
    with pytest.raises(ValidationError, match="frozen"):
        choice.device = "cuda"
    with pytest.raises(ValidationError, match="devise"):
        HardwareChoice.model_validate({"devise": "cpu"})


def test_a_library_section_holds_only_what_is_set() -> None:
    lora = Lora.model_validate({"type": "lora", "r": 4, "lora_dropout": 0.1})
    assert lora.kwargs() == {"r": 4, "lora_dropout": 0.1}
    lora.kwargs()["r"] = 8
    assert lora.kwargs()["r"] == 4
    assert Lora.model_validate({"type": "lora"}).kwargs() == {}
    assert Lora.model_validate({"type": "lora", "r": 4}) != Lora.model_validate({"type": "lora"})
    with pytest.raises(ValidationError, match="did you mean 'lora_alpha'"):
        Lora.model_validate({"type": "lora", "lora_alpa": 4})
    with pytest.raises(ValidationError, match="set by llmkit"):
        Lora.model_validate({"type": "lora", "peft_type": "LORA"})


def test_a_variant_is_imported_once() -> None:
    assert variant("llmkit.methods", "sft") is variants("llmkit.methods")["sft"]
    assert variant("llmkit.methods", "sft") is sys.modules["llmkit.methods.sft"].Sft


def test_only_the_variant_that_is_named_is_imported(room: Callable[..., str]) -> None:
    # What isn't named may even be broken: a recipe that does not use it is none the worse.
    name = room(small=SPEC.format(cls="Small", type="small"), broken="1 / 0")
    union = union_of(name)
    small = _validated(union, {"type": "small"})
    assert _validated(union, small) is small
    with pytest.raises(ValidationError, match="'broken', 'small'"):
        _validated(union, {"type": "smal"})
    assert f"{name}.broken" not in sys.modules
    with pytest.raises(ZeroDivisionError):
        _validated(union, {"type": "broken"})


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ({"type": "bgi"}, "union_tag_invalid"),
        ({"type": None}, "union_tag_invalid"),
        ({"type": ["big"]}, "union_tag_invalid"),
        ({"size": 1}, "union_tag_not_found"),
        ("big", "model_attributes_type"),
        (["big"], "model_attributes_type"),
        (None, "model_attributes_type"),
    ],
)
def test_a_section_that_names_no_variant_is_refused(room: Callable[..., str], section: Any, kind: str) -> None:
    name = room(small=SPEC.format(cls="Small", type="small"), big=SPEC.format(cls="Big", type="big"))
    assert Room(name).named_in(section) is None
    with pytest.raises(ValidationError) as caught:
        _validated(union_of(name), section)
    assert [(error["type"], error["loc"]) for error in caught.value.errors()] == [(kind, ("section",))]


def test_what_is_wrong_in_a_section_stands_below_it(room: Callable[..., str]) -> None:
    name = room(small=SPEC.format(cls="Small", type="small"), big=SPEC.format(cls="Big", type="big"))
    model: type[BaseModel] = create_model("Holder", sections=(tuple[union_of(name), ...], ...))  # type: ignore[misc]
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"sections": ({"type": "small"}, {"type": "big", "size": "x", "other": 1})})
    assert [error["loc"] for error in caught.value.errors()] == [("sections", 1, "size"), ("sections", 1, "other")]


def test_a_section_of_variants_is_written_as_it_was_set(room: Callable[..., str]) -> None:
    model: type[BaseModel] = create_model(
        "Holder", section=(union_of(room(big=SPEC.format(cls="Big", type="big"))) | None, None)
    )
    assert model.model_validate({"section": {"type": "big"}}).model_dump(exclude_unset=True) == {
        "section": {"type": "big"}
    }
    assert model.model_validate({"section": {"type": "big"}}).model_dump()["section"] == {"type": "big", "size": 1}
    assert model.model_validate({"section": None}).model_dump() == {"section": None}


def test_the_json_schema_of_a_room_has_a_definition_of_each_variant(room: Callable[..., str]) -> None:
    name = room(small=SPEC.format(cls="Small", type="small"), big=SPEC.format(cls="Big", type="big"))
    schema = TypeAdapter(union_of(name)).json_schema()
    assert set(schema["$defs"]) == {"Big", "Small"}
    assert schema["discriminator"] == {
        "mapping": {"big": "#/$defs/Big", "small": "#/$defs/Small"},
        "propertyName": "type",
    }
    assert schema["$defs"]["Big"]["properties"]["type"]["const"] == "big"
