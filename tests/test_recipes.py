"""Every shipped recipe is valid and says what it is; all for SFT and one for each other method run on a tiny model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.recipe.loading import load_recipe
from llmkit.recipe.shipped import shipped_recipes
from llmkit.recipe.spec import variant_names
from llmkit.runs.checks import check

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
MODELS = ("qwen", "smollm2")
LONGEST_LINE = 120


def _name(path: Path) -> str:
    return path.stem


RUNNABLE = [path for path in RECIPES if load_recipe(path).method.type == "sft"]


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_validates(path: Path) -> None:
    check(load_recipe(path))


def test_validating_them_all_loads_no_torch() -> None:
    code = (
        "import sys; from llmkit.recipe.loading import load_recipe; from llmkit.runs.checks import check\n"
        "for path in sys.argv[1:]: check(load_recipe(path))\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *map(str, RECIPES)], check=True, timeout=60)


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_first_line_says_what_it_shows(path: Path) -> None:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert re.match(r"# \w.{30,}", first), first
    assert len(first) <= LONGEST_LINE


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_file_name_is_what_then_model(path: Path) -> None:
    assert path.stem == "quickstart" or re.fullmatch(rf"[a-z][a-z0-9_]*_({'|'.join(MODELS)})", path.stem)


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_name_agrees_with_sections(path: Path) -> None:
    recipe = load_recipe(path)
    bits = recipe.quantization.bits if recipe.quantization else 16
    family = path.stem.partition("_")[0]
    expected = {"sft": (False, 16), "lora": (True, 16), "qlora": (True, 4), "int8": (True, 8)}
    if family in expected:
        assert (recipe.adapter is not None, bits) == expected[family]


def test_llmkit_recipes_lists_them_all() -> None:
    assert [recipe.path for recipe in shipped_recipes()] == RECIPES


@pytest.mark.parametrize("path", RUNNABLE, ids=_name)
def test_two_steps_on_a_tiny_model(path: Path, tiny_folder: Path, rows_file: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from llmkit.runs.runner import run

    recipe = load_recipe(path, [*_small(path), f"model.name={tiny_folder}", f"data.train={_source(rows_file)}"])
    result = run(recipe, out=tmp_path / "run")

    assert len(result.losses) == 2
    assert [score.metrics.keys() for score in result.base] == [score.metrics.keys() for score in result.tuned]
    assert [exported.type for exported in result.exported] == [export.type for export in recipe.export]
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        change = (trained(ids).logits - base(ids).logits).abs().max()
    assert change > 1e-6


PREFERENCES = "[{path: made:units, format: preference, max_rows: 12}]"
OTHERS = {
    "dpo_smollm2": PREFERENCES,
    "orpo_qwen": PREFERENCES,
    "simpo_qwen": PREFERENCES,
    "reward_smollm2": PREFERENCES,
    "kto_qwen": "[{path: FILE, format: unpaired}]",
    "grpo_smollm2": "[{path: 'reasoning_gym:syllogism', format: prompt, max_rows: 12}]",
    "rloo_qwen": "[{path: FILE, format: question}]",
}
"""One recipe for each other method, with rows that are here."""


@pytest.mark.parametrize("name", OTHERS)
def test_one_step_of_every_other_method(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    from llmkit.runs.runner import run

    rows = tmp_path / "rows.jsonl"
    path = next(p for p in RECIPES if p.stem == name)
    judged = load_recipe(path).method.type == "kto"
    row = (
        '{{"prompt": "q {0}", "completion": "a {0}", "label": {1}}}\n'
        if judged
        else '{{"question": "{0}", "answer": "{0}"}}\n'
    )
    rows.write_text("".join(row.format(i, str(i % 2 == 0).lower()) for i in range(12)), encoding="utf-8")
    source = OTHERS[name].replace("FILE", str(rows))
    changes = [f"model.name={tiny_folder}", f"data.train={source}", *_small(path)]
    if load_recipe(path).method.needs_rewards:
        changes += ["training.max_completion_length=4", "training.num_generations=4"]
    # Answers of a random model all earn nothing, and an adapter that learnt nothing is refused: one that is paid for.
    paid = "rewards=[{type: length, unit: characters, target: 4, tolerance: 9}]"
    changes += [paid] if load_recipe(path).method.needs_rewards else []
    recipe = load_recipe(path, changes)
    result = run(recipe, out=tmp_path / "run")
    assert [exported.type for exported in result.exported] == [export.type for export in recipe.export]
    assert all(score.metrics for score in (*result.base, *result.tuned))
    assert (tmp_path / "run" / "model" / "adapter_config.json").is_file()


def test_every_method_is_run_by_a_recipe() -> None:
    assert {load_recipe(p).method.type for p in RECIPES} == set(variant_names("llmkit.methods"))
    assert {load_recipe(p).method.type for p in RECIPES if p.stem in OTHERS} | {"sft"} == set(
        variant_names("llmkit.methods")
    )


def _source(rows: Path) -> str:
    return f"[{{path: {rows}, format: messages}}]"


def _small(path: Path) -> list[str]:
    """Return the overrides that make a recipe's run take seconds; its method, adapter and exports stay."""
    changes = ["data.eval=0.25", "hardware.device=cpu", "training.max_steps=2", "training.report_to=none"]
    changes += ["training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=1"]
    for index, evaluation in enumerate(load_recipe(path).evaluation):
        changes.append(f"evaluation.{index}.limit=2")
        if "max_new_tokens" in type(evaluation).model_fields:
            changes.append(f"evaluation.{index}.max_new_tokens=4")
    return changes
