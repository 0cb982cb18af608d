"""Code that comes with a model is run for the model that the recipe trusts, and for no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.data.sources import read_rows
from llmkit.errors import SetupError
from llmkit.model.loading import load_base, load_tokenizer
from llmkit.model.sources import locate
from llmkit.recipe.recipe import Recipe, Source

Maker = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on the terminal where `trust_remote_code` is not set, and takes `y` for an answer."""

    def ask(*arguments: Any) -> str:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr("builtins.input", ask)


@pytest.fixture
def coded(model_copy: Path, mine: Any, edit: Callable[..., None]) -> Path:
    """A model folder that can't be loaded without the Python code in it."""
    for name in ("modeling_x", "configuration_x", "tokenization_x"):
        (model_copy / f"{name}.py").write_text(mine.code, encoding="utf-8")
    places = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    edit(model_copy / "config.json", model_type="xmodel", architectures=["X"], auto_map=places)
    edit(
        model_copy / "tokenizer_config.json",
        tokenizer_class="XTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_x.X", None]},
    )
    return model_copy


def test_the_code_of_a_model_is_not_run(recipe: Maker, coded: Path, mine: Any) -> None:
    made = recipe(f"model.name={coded}")
    for load in (load_tokenizer, lambda made: load_base(made, dtype="float32")):
        with pytest.raises(SetupError, match="Python code that comes with it, which was not run") as caught:
            load(made)
        assert "trust_remote_code: true" in (caught.value.remedy or "")
    assert not mine.went_off


def test_the_trap_works(recipe: Maker, coded: Path, mine: Any) -> None:
    made = recipe(f"model.name={coded}", "model.trust_remote_code=true")
    with pytest.raises(AttributeError):  # it defines no class X
        load_tokenizer(made)
    assert mine.went_off


def test_code_that_a_known_architecture_brings_is_ignored(
    recipe: Maker, model_copy: Path, mine: Any, edit: Callable[..., None]
) -> None:
    for name in ("modeling_x", "configuration_x"):
        (model_copy / f"{name}.py").write_text(mine.code, encoding="utf-8")
    places = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    edit(model_copy / "config.json", auto_map=places)
    model = load_base(recipe(f"model.name={model_copy}"), dtype="float32")
    assert type(model).__module__ == "transformers.models.llama.modeling_llama"
    assert not mine.went_off


def adapter_on(base: Path | str, folder: Path, kind: str = "LORA", **more: object) -> Path:
    folder.mkdir()
    config = {"base_model_name_or_path": str(base), "peft_type": kind, "task_type": "CAUSAL_LM", **more}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "adapter_model.safetensors").touch()
    return folder


def test_an_adapter_does_not_bring_the_code_of_its_base(recipe: Maker, coded: Path, tmp_path: Path, mine: Any) -> None:
    adapter = adapter_on(coded, tmp_path / "adapter")
    with pytest.raises(SetupError, match=r"the base that the adapter .*adapter names.* which was not run"):
        load_base(recipe(f"model.name={adapter}"), dtype="float32")
    made = recipe(f"model.name={adapter}", "model.trust_remote_code=true")
    with pytest.raises(SetupError, match="is for the model that the recipe names, and .* names another one"):
        locate(made.model, made.folder)
    assert not mine.went_off


@pytest.mark.parametrize("base", [".", "../adapter", "./"])
def test_an_adapter_is_not_its_own_base(recipe: Maker, tmp_path: Path, base: str) -> None:
    made = recipe(f"model.name={adapter_on(base, tmp_path / 'adapter')}")
    with pytest.raises(SetupError, match="is an adapter itself"):
        locate(made.model, made.folder)


def test_an_adapter_of_another_type_has_nothing_loaded(recipe: Maker, tiny_folder: Path, tmp_path: Path) -> None:
    """Prompt tuning would load the tokenizer that its config names, from anywhere."""
    prompts = {"num_virtual_tokens": 2, "prompt_tuning_init": "TEXT", "tokenizer_name_or_path": "some/where"}
    adapter = adapter_on(tiny_folder, tmp_path / "adapter", "PROMPT_TUNING", **prompts)
    made = recipe(f"model.name={adapter}")
    with pytest.raises(SetupError, match="an adapter of type 'PROMPT_TUNING', and llmkit goes on with 'LORA'"):
        locate(made.model, made.folder)


def test_an_adapter_can_not_have_any_module_imported(
    recipe: Maker, tiny_folder: Path, tmp_path: Path, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT imports the module that `megatron_core` names; it takes those of megatron alone."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    (tmp_path / "trap.py").write_text(mine.code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    for names in ({"megatron_core": "trap", "megatron_config": {"a": 1}}, {"auto_mapping": {"parent_library": "trap"}}):
        config = json.loads(file.read_text(encoding="utf-8")) | names
        file.write_text(json.dumps(config), encoding="utf-8")
        try:
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path / "adapter")
        except ValueError as error:
            assert "megatron_core" in str(error)  # noqa: PT017 - it may as well be ignored
        assert not mine.went_off


def test_trust_does_not_spread_to_data_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}

    def load(*arguments: Any, **named: Any) -> list[dict[str, str]]:
        given.update(named)
        return [{"text": "a"}]

    monkeypatch.setattr("datasets.load_dataset", load)
    list(read_rows(Source(path="org/rows", format="text"), tmp_path))
    assert "trust_remote_code" not in given
    assert "trust_remote_code" not in Source.model_fields


def test_trust_is_of_one_model_and_passed_on_to_no_other(calls: list[Any]) -> None:
    """Each door to a model by name, and whose trust it is opened with; a new one belongs into this list."""
    doors = {(call.file, call.name.rpartition(".")[2]) for call in calls if "from_pretrained" in call.name}
    assert {file for file, _ in doors} == {
        "model/loading.py",  # the recipe's model: its own `trust_remote_code`
        "model/footprint.py",  # the same
        "model/shrinking.py",  # the same
        "model/scores.py",  # a reward model: none
        "exports/merged.py",  # what was just saved: as the model that it is of
    }


def test_the_reference_of_full_training_is_trusted_as_the_model_that_it_is(recipe: Maker) -> None:
    from llmkit.methods._policy import _reference_kwargs

    for trusted in (False, True):
        job = SimpleNamespace(recipe=recipe(f"model.trust_remote_code={str(trusted).lower()}"))
        assert _reference_kwargs(job)["trust_remote_code"] is trusted  # type: ignore[arg-type]
