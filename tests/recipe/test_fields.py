"""The field table and its reader."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmkit.recipe import fields
from llmkit.recipe.fields import FieldsError, check, describe, json_schema, one_of

ROOT = Path(__file__).resolve().parents[2]
STABLE = ("SFTConfig", "DPOConfig", "KTOConfig", "RewardConfig", "GRPOConfig", "RLOOConfig")
EXPERIMENTAL = ("ORPOConfig", "CPOConfig")
TRAINERS = (*STABLE, *EXPERIMENTAL)


def message(config: str, values: dict[str, Any], **options: Any) -> str:
    with pytest.raises(FieldsError) as caught:
        check(config, values, **options)
    assert len(caught.value.errors) == 1
    return caught.value.errors[0][1]


@pytest.mark.parametrize(
    ("config", "values"),
    [
        ("SFTConfig", {}),
        ("SFTConfig", {"learning_rate": 1, "warmup_steps": 0.1, "packing": True, "max_length": None}),
        ("SFTConfig", {"include_num_input_tokens_seen": True, "lr_scheduler_kwargs": {"num_cycles": 1}}),
        ("DPOConfig", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1]}),
        ("DPOConfig", {"loss_type": "ipo"}),
        ("GRPOConfig", {"scale_rewards": False, "optim": "paged_adamw_8bit"}),
        ("LoraConfig", {"target_modules": "all-linear", "init_lora_weights": "pissa_niter_16", "eva_config": {}}),
        ("BitsAndBytesConfig", {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}),
    ],
)
def test_valid_values_pass(config: str, values: dict[str, Any]) -> None:
    check(config, values)


@pytest.mark.parametrize(
    ("config", "key", "value", "expected"),
    [
        ("SFTConfig", "learning_rate", "abc", "'learning_rate' takes float, not str 'abc'"),
        ("SFTConfig", "learning_rate", "1e-5", "'learning_rate' takes float, not str '1e-5' (write 1.0e-05)"),
        ("SFTConfig", "learning_rate", "2e-4", "'learning_rate' takes float, not str '2e-4' (write 0.0002)"),
        ("SFTConfig", "learning_rate", "inf", "'learning_rate' takes float, not str 'inf'"),
        ("SFTConfig", "learning_rate", True, "'learning_rate' takes float, not bool True"),
        ("SFTConfig", "learning_rate", None, "'learning_rate' takes float, not null"),
        ("SFTConfig", "max_steps", True, "'max_steps' takes int, not bool True"),
        ("SFTConfig", "max_steps", 3.0, "'max_steps' takes int, not float 3.0 (write 3)"),
        ("SFTConfig", "max_steps", 3.5, "'max_steps' takes int, not float 3.5"),
        ("SFTConfig", "packing", 1, "'packing' takes bool, not int 1"),
        ("SFTConfig", "max_length", "512", "'max_length' takes int or null, not str '512' (write 512)"),
        ("LoraConfig", "rank_pattern", [1], "'rank_pattern' takes dict or null, not list [1]"),
        ("LoraConfig", "bias", "lora", "'bias' must be one of none, all, lora_only, not 'lora'"),
        ("LoraConfig", "runtime_config", {}, "'runtime_config' takes a Python object, which a recipe can't hold"),
        (
            "SFTConfig",
            "parallelism_config",
            {},
            "'parallelism_config' takes a Python object, which a recipe can't hold",
        ),
    ],
)
def test_wrong_values_are_named(config: str, key: str, value: object, expected: str) -> None:
    assert message(config, {key: value}).startswith(expected)


def test_choices_suggest_the_closest() -> None:
    text = message("SFTConfig", {"lr_scheduler_type": "cosin"})
    assert text.startswith("'lr_scheduler_type' must be one of linear, cosine, ")
    assert text.endswith(", not 'cosin' (did you mean 'cosine'?)")
    assert message("DPOConfig", {"loss_type": ["sigmoid", "hing"]}).endswith("(did you mean 'hinge'?)")
    assert "not '1'" in message("DPOConfig", {"loss_type": [1]})


def test_unknown_fields_suggest_fields_and_own_keys_but_no_reserved_ones() -> None:
    expected = "unknown field 'learning_rat' of SFTConfig (did you mean 'learning_rate'?)"
    assert message("SFTConfig", {"learning_rat": 1.0}) == expected
    assert "did you mean" not in message("SFTConfig", {"zzzz": 1})
    assert message("LoraConfig", {"flavur": 1}, own={"flavour"}).endswith("(did you mean 'flavour'?)")
    assert "'push_to_hub'" not in message("SFTConfig", {"push_to_hubb": 1}, reserved={"push_to_hub": "no"})
    # A field of another method's class is as unknown as any.
    assert message("RewardConfig", {"beta": 0.1}).startswith("unknown field 'beta' of RewardConfig")


def test_old_names_say_what_to_write_instead() -> None:
    expected = "unknown field 'warmup_ratio' of SFTConfig (use 'warmup_steps', which takes a fraction of all steps)"
    assert message("SFTConfig", {"warmup_ratio": 0.1}) == expected
    assert message("SFTConfig", {"torch_dtype": "bfloat16"}).endswith("(use `model.dtype`)")
    # No hint at a field that this class has not.
    assert "'max_length'" not in message("GRPOConfig", {"max_seq_length": 5})
    assert "model.dtype" not in message("BitsAndBytesConfig", {"dtype": "bfloat16"})


def test_reserved_fields_say_what_to_do() -> None:
    reserved = {"output_dir": "use `--out`", "no_cuda": "use `hardware`"}
    assert message("SFTConfig", {"output_dir": "x"}, reserved=reserved) == "'output_dir' is set by llmkit: use `--out`"
    assert message("SFTConfig", {"no_cuda": True}, reserved=reserved) == "'no_cuda' is set by llmkit: use `hardware`"


def test_all_problems_are_collected_with_their_paths() -> None:
    with pytest.raises(FieldsError) as caught:
        check("SFTConfig", {"seed": "x", "packing": True, "nope": 1}, path=("training",))
    assert [path for path, _ in caught.value.errors] == [("training", "seed"), ("training", "nope")]
    assert str(caught.value) == "\n".join(text for _, text in caught.value.errors)


def test_one_of() -> None:
    assert one_of("a", ["a", "b"]) == "a"
    with pytest.raises(ValueError, match=re.escape("must be one of cat, dog, not 'catt' (did you mean 'cat'?)")):
        one_of("catt", (name for name in ("cat", "dog")))


def test_describe() -> None:
    found = describe("DPOConfig")
    assert list(found) == sorted(found)
    assert found["beta"] == fields.FieldInfo("beta", ("float",), 0.1, (), found["beta"].help)
    assert found["beta"].help.startswith("Parameter controlling the deviation")
    assert found["learning_rate"].default == 1e-6
    assert describe("SFTConfig")["learning_rate"].default == 2e-5
    with pytest.raises(ValueError, match=re.escape("no config class 'SFTConfg'") + ".*did you mean 'SFTConfig'"):
        describe("SFTConfg")


def test_json_schema() -> None:
    schema = json_schema("DPOConfig", reserved={"output_dir": "x"})
    properties = schema["properties"]
    assert schema["additionalProperties"] is False
    assert "output_dir" not in properties
    assert "parallelism_config" not in properties
    assert properties["learning_rate"]["type"] == "number"
    assert properties["max_length"]["type"] == ["integer", "null"]
    assert properties["eval_strategy"]["enum"] == ["no", "steps", "epoch"]
    text, items = properties["loss_type"]["anyOf"]
    assert text["enum"] == items["items"]["enum"]
    assert properties["ddp_backend"]["anyOf"][1] == {"type": "null"}


@pytest.mark.parametrize("config", [*TRAINERS, "LoraConfig", "BitsAndBytesConfig"])
def test_defaults_pass_their_own_check(config: str) -> None:
    found = describe(config)
    check(config, {f.name: f.default for f in found.values() if f.name != "runtime_config"})
    assert all(f.help and len(f.help) <= 200 and "\n" not in f.help for f in found.values())


def test_the_table_says_what_comes_from_trl_experimental() -> None:
    table = json.loads((ROOT / "llmkit" / "recipe" / "fields.json").read_text(encoding="utf-8"))["configs"]
    modules = {name: entry["module"] for name, entry in table.items() if "module" in entry}
    assert modules.keys() == set(TRAINERS)
    experimental = {name for name, module in modules.items() if module.startswith("trl.experimental.")}
    assert experimental == set(EXPERIMENTAL)


def test_the_losses_of_cpo_are_choices() -> None:
    check("CPOConfig", {"loss_type": "simpo", "simpo_gamma": 1.0, "alpha": 0.25})
    assert message("CPOConfig", {"loss_type": "simp"}).endswith("(did you mean 'simpo'?)")
    assert message("ORPOConfig", {"loss_type": "simpo"}).startswith("unknown field 'loss_type' of ORPOConfig")


def test_the_reader_imports_no_torch() -> None:
    code = (
        "import sys; from llmkit.recipe import fields; fields.describe('SFTConfig'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_old_names_are_gone_and_their_replacements_exist() -> None:
    known = {name for config in [*TRAINERS, "LoraConfig"] for name in describe(config)}
    training = {name for config in TRAINERS for name in describe(config)}
    for config in [*TRAINERS, "LoraConfig"]:
        # CPOConfig has an `alpha` of its own; no class has both the old name and the new one.
        both = [old for old, (new, _) in fields.RENAMED.items() if {old, new} <= set(describe(config))]
        assert not both, config
    assert set(fields.RENAMED) & known == {"alpha"}
    assert {target for target, _ in fields.RENAMED.values()} <= known
    assert not set(fields.GONE) & training
    assert not set(fields.GONE) & set(fields.RENAMED)


def test_hints_and_reserved_keys_name_what_exists() -> None:
    from llmkit.recipe.recipe import Data, Model, Training

    sections: dict[str, Any] = {"model": Model, "data": Data}
    for section, key in re.findall(r"`(\w+)\.(\w+)`", " ".join(fields.GONE.values())):
        assert key in sections[section].model_fields
    known = {name for config in TRAINERS for name in describe(config)}
    removed = {"no_cuda", "use_mps_device"}  # transformers 4 had them
    assert set(Training.reserved) - known <= removed


def test_the_table_is_what_the_installed_libraries_give() -> None:
    spec = importlib.util.spec_from_file_location("field_table", ROOT / "scripts" / "field_table.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TABLE.read_text(encoding="utf-8") == script.text(), "run `python scripts/field_table.py`"


def test_lora_sub_configs_are_built_from_dicts() -> None:
    import dataclasses

    from peft import LoraConfig

    for name in ("velora_config", "kasa_config", "eva_config", "corda_config", "lora_ga_config", "arrow_config",
                 "use_bdlora", "monteclora_config"):  # fmt: skip
        kinds = describe("LoraConfig")[name].types
        assert "dict" in kinds
        values: dict[str, Any] = {name: {}}
        assert dataclasses.is_dataclass(getattr(LoraConfig(**values), name))
