"""GRPO on a tiny model: what rewards are given, what stops a run, what is said; nothing is learnt of nothing."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from llmkit.errors import DataError, RecipeError, RunError, SetupError
from llmkit.methods.grpo import oddities
from llmkit.recipe.recipe import Recipe
from llmkit.rewards.exact_match import ExactMatch
from llmkit.runs.prepare import Prepared, prepare
from llmkit.runs.progress import Narrator

Maker = Callable[..., Recipe]
ROOT = Path(__file__).parents[2]
QUICK = ("training.save_strategy=no", "training.bf16=false")


@pytest.fixture
def rl(recipe: Maker, rows_file: Path) -> Maker:
    """Return a maker of GRPO recipes on 24 questions: groups of 4, 2 prompts per step, answers of at most 6 tokens."""
    rows = [{"prompt": [{"role": "user", "content": f"what is {i}?"}], "answer": i, "level": None} for i in range(24)]
    rows_file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return lambda *overrides: recipe(
        "data.train.0.format=prompt",
        "method.type=grpo",
        "rewards=[{type: exact_match}]",
        "training.num_generations=4",
        "training.per_device_train_batch_size=8",
        "training.max_completion_length=6",
        *overrides,
    )


def scored(monkeypatch: pytest.MonkeyPatch, score: Callable[[str, Any], Any]) -> None:
    """Let the reward `exact_match` give what `score` says."""
    monkeypatch.setattr(ExactMatch, "score", lambda self, completion, row: score(completion, row))


def letters(completion: str, row: Any) -> float:
    return sum(character.isalpha() for character in completion) / 10


def started(recipe: Recipe, **kwargs: Any) -> tuple[Prepared, io.StringIO]:
    said = io.StringIO()
    return prepare(recipe, narrator=Narrator(Console(file=said, width=1000)), **kwargs), said


def logs(prepared: Prepared) -> list[dict[str, Any]]:
    return [entry for entry in prepared.trainer.state.log_history if "loss" in entry]


# --- What is learnt --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["adapter=null", "adapter.r=4"], ids=["full", "lora"])
def test_a_reward_of_nothing_changes_nothing_and_is_called_out(
    rl: Maker, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    scored(monkeypatch, lambda completion, row: 0.0)
    prepared, said = started(rl(adapter, "training.max_steps=5", *QUICK))
    before = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    prepared.trainer.train()
    assert prepared.trainer.state.global_step == 5
    assert all(torch.equal(value, before[name]) for name, value in prepared.model.state_dict().items())
    lines = [line for line in said.getvalue().splitlines() if "without any signal" in line]
    assert len(lines) == 1
    assert "3 steps in a row" in lines[0]
    assert "No answer earned anything" in lines[0]


def test_the_reward_rises(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, letters)
    settings = ("training.max_steps=20", "training.learning_rate=1e-2", "training.lr_scheduler_type=constant")
    prepared, said = started(rl("adapter=null", *settings, *QUICK))
    prepared.trainer.train()
    rewards = [entry["reward"] for entry in logs(prepared)]
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])
    assert "without any signal" not in said.getvalue()


def test_gspo_trains(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, letters)
    gspo = ("training.importance_sampling_level=sequence", "training.loss_type=grpo", "training.num_iterations=2")
    prepared, _ = started(rl(*gspo, "training.max_steps=4", "training.learning_rate=2e-2", *QUICK))
    prepared.trainer.train()
    # Steps 2 and 4 learn again from the answers of steps 1 and 3: only there is the ratio not 1.
    assert ["reward" in entry for entry in logs(prepared)] == [True, False, True, False]
    assert logs(prepared)[0]["loss"] == pytest.approx(0, abs=1e-6)
    assert abs(logs(prepared)[1]["loss"]) > 1e-3


def test_the_reference_of_full_training_is_the_base(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, letters)
    prepared, _ = started(rl("adapter=null", "training.beta=0.1", "training.max_steps=3", *QUICK))
    reference = prepared.trainer.ref_model
    before = [value.clone() for value in reference.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, prepared.model.state_dict().values(), strict=True))
    prepared.trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, reference.state_dict().values(), strict=True))
    divergences = [entry["kl"] for entry in logs(prepared)]
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert divergences[2] > 1e-4


@pytest.mark.parametrize("quantization", ["quantization=null", "quantization.type=nf4"])
def test_the_reference_of_an_adapter_is_the_base_without_it(
    rl: Maker, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    scored(monkeypatch, letters)
    prepared, _ = started(rl(quantization, "training.beta=0.1", "training.max_steps=3", *QUICK))
    assert prepared.trainer.ref_model is None
    prepared.trainer.train()
    divergences = [entry["kl"] for entry in logs(prepared)]
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert divergences[2] > 1e-4
    trained = [p for p in prepared.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}


def test_two_and_two_steps_are_four(rl: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scored(monkeypatch, letters)
    settings = ("training.max_steps=4", "training.save_steps=2", "training.beta=0.05", "training.bf16=false")
    straight, _ = started(rl(*settings), output_dir=tmp_path / "run")
    straight.trainer.train()
    resumed, _ = started(rl(*settings), output_dir=tmp_path / "run")
    resumed.trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for key in ("reward", "loss", "kl", "entropy", "grad_norm"):
        assert [entry[key] for entry in logs(resumed)] == [entry[key] for entry in logs(straight)]


# --- Rewards ---------------------------------------------------------------------------------------------------------


def test_rewards_get_the_answer_and_the_row_as_it_was_read(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Any]] = []
    scored(monkeypatch, lambda completion, row: float(not seen.append((completion, row))))
    prepared, _ = started(rl("training.max_steps=1", *QUICK))
    seen.clear()
    prepared.trainer.train()
    rows = {row.example["answer"]: row.example for row in prepared.splits.train}
    assert len(seen) == 8
    assert [row["answer"] for _, row in seen] == [seen[0][1]["answer"]] * 4 + [seen[4][1]["answer"]] * 4
    # The very object: an integer has not become a float, and None has not gone.
    assert all(row is rows[row["answer"]] for _, row in seen)
    assert all(isinstance(text, str) and "<|im_end|>" not in text and "<|pad|>" not in text for text, _ in seen)


def test_each_part_is_logged_by_its_name_and_weighted(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExactMatch, "scores", lambda self, texts, rows: [len(self.name) + t.count("a") for t in texts])
    parts = "rewards=[{type: exact_match}, {type: exact_match, label: b, weight: -2.0}]"
    prepared, _ = started(rl(parts, "training.max_steps=1", *QUICK))
    prepared.trainer.train()
    [entry] = logs(prepared)
    first, second = entry["rewards/exact_match/mean"], entry["rewards/b/mean"]
    assert first == pytest.approx(second + len("exact_match") - 1)
    assert entry["reward"] == pytest.approx(first - 2 * second, abs=1e-5)


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (math.nan, "returned nan, which is no finite number"),
        (None, "returned None, which is no finite number"),
        ("1", "returned '1', which is no finite number"),
    ],
)
def test_a_reward_that_is_no_number_stops_the_run(
    rl: Maker, monkeypatch: pytest.MonkeyPatch, result: Any, sentence: str
) -> None:
    prepared, _ = started(rl("training.max_steps=2", *QUICK))
    scored(monkeypatch, lambda completion, row: result)
    with pytest.raises(RunError, match=f"reward `exact_match` {sentence}") as caught:
        prepared.trainer.train()
    assert caught.value.where.startswith("rows.jsonl:")


def test_a_reward_that_raises_names_its_row(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, _ = started(rl("training.max_steps=9", *QUICK))
    bad = prepared.splits.train[3]

    def score(completion: str, row: Any) -> float:
        if row is bad.example:
            raise KeyError("solution")
        return 0.0

    scored(monkeypatch, score)
    with pytest.raises(RunError, match="reward `exact_match` raised KeyError: 'solution'") as caught:
        prepared.trainer.train()
    assert caught.value.where == bad.where


def test_a_reward_that_loses_a_value_stops_the_run(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, _ = started(rl("training.max_steps=1", *QUICK))
    monkeypatch.setattr(ExactMatch, "scores", lambda self, texts, rows: [0.0] * (len(texts) - 1))
    with pytest.raises(RunError, match="returned 7 values for 8 completions"):
        prepared.trainer.train()


def test_a_broken_reward_is_found_before_anything_is_sampled(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, lambda completion, row: 1 / 0)
    with pytest.raises(RunError, match="ZeroDivisionError"):
        started(rl(*QUICK))


# --- What is watched -------------------------------------------------------------------------------------------------


def test_samples_are_kept(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, letters)
    kept: list[dict[str, Any]] = []
    prepared, _ = started(rl("training.max_steps=2", *QUICK), keep_samples=kept.extend)
    prepared.trainer.train()
    assert [sample["step"] for sample in kept] == [1] * 4 + [2] * 4
    places = {row.where: row.example["prompt"][-1]["content"] for row in prepared.splits.train}
    for sample in kept:
        assert list(sample) == ["step", "where", "prompt", "completion", "rewards", "reward", "advantage"]
        assert sample["prompt"] == places[sample["where"]]
        assert sample["reward"] == sample["rewards"]["exact_match"]
        assert sample["reward"] == pytest.approx(letters(sample["completion"], None), abs=1e-6)
    # Of the first prompt the best and the worst answer, then two answers to the other one.
    assert kept[0]["where"] == kept[1]["where"] != kept[2]["where"] == kept[3]["where"]
    assert kept[0]["reward"] >= kept[1]["reward"]
    assert kept[0]["advantage"] >= 0 >= kept[1]["advantage"]
    assert json.loads(json.dumps(kept)) == kept


def test_chosen_samples() -> None:
    from llmkit.methods._rollouts import chosen

    assert chosen([0.1, 0.9, 0.0, 0.5, 0.7, 0.2, 0.3, 0.8], group=4) == [1, 2, 4, 5]
    assert chosen([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], group=4) == [0, 4, 5, 6]
    assert chosen([0.1, 0.9], group=2) == [1, 0]


def test_a_step_is_split_into_its_parts(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(completion: str, row: Any) -> float:
        import time

        time.sleep(0.02)
        return letters(completion, row)

    scored(monkeypatch, slow)
    prepared, _ = started(rl("training.max_steps=2", "training.gradient_accumulation_steps=2", *QUICK))
    prepared.trainer.train()
    for entry in logs(prepared):
        # 16 completions in one generation for both batches of the step.
        assert 0.32 <= entry["time/score"] < entry["step_time"]
        assert entry["time/generate"] > 0
        parts = entry["time/generate"] + entry["time/score"] + entry["time/learn"]
        assert parts == pytest.approx(entry["step_time"], abs=0.05)


def test_the_run_stops_beyond_its_bound_on_the_divergence(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, letters)
    settings = ("training.beta=0.01", "training.learning_rate=0.05", "training.max_steps=20", *QUICK)
    prepared, _ = started(rl("method={type: grpo, max_kl: 0.05}", *settings))
    with pytest.raises(RunError, match=r"for 3 steps in a row, at step \d+: beyond `method.max_kl: 0.05`"):
        prepared.trainer.train()
    assert all(entry["kl"] > 0.05 for entry in logs(prepared)[-3:])


def test_one_step_beyond_the_bound_is_borne(rl: Maker) -> None:
    prepared, _ = started(rl("training.beta=0.1", "method.max_kl=5", *QUICK))
    for kl in (6.0, 6.0, 4.9, 6.0, 6.0):
        prepared.trainer._hold(5.0, kl, 1)
    with pytest.raises(RunError):
        prepared.trainer._hold(5.0, 5.1, 1)


def test_a_divergence_that_is_no_number_is_beyond_every_bound(rl: Maker) -> None:
    prepared, _ = started(rl("training.beta=0.1", "method.max_kl=5", "training.max_steps=1", *QUICK))
    prepared.trainer.model.train()
    prepared.trainer._metrics["train"]["kl"] = [math.nan]
    with pytest.raises(RunError, match="is not a number, at step 0: beyond `method.max_kl: 5`"):
        prepared.trainer.log({"loss": 0.0})


def test_the_model_is_given_the_audited_tokens(rl: Maker, rows_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, letters)
    tool = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}
    rows = [{"prompt": [{"role": "user", "content": f"q {i}"}], "answer": "a", "tools": [tool]} for i in range(8)]
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prepared, _ = started(rl("training.max_steps=1", *QUICK))
    seen: list[list[int]] = []
    real = prepared.trainer._generate_single_turn
    monkeypatch.setattr(
        prepared.trainer, "_generate_single_turn", lambda ids, *a, **k: seen.extend(ids) or real(ids, *a, **k)
    )
    prepared.trainer.train()
    audited = [row.tokens["prompt_ids"] for row in prepared.splits.train]
    assert seen
    assert all(ids in audited for ids in seen)


def test_held_out_prompts_are_scored_while_training(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, letters)
    kept: list[dict[str, Any]] = []
    settings = ("training.eval_strategy=steps", "training.eval_steps=1", "training.max_steps=2")
    prepared, _ = started(rl(*settings, *QUICK), keep_samples=kept.extend)
    prepared.trainer.train()
    found = [entry["eval_reward"] for entry in prepared.trainer.state.log_history if "eval_reward" in entry]
    assert len(found) == 2
    assert {sample["where"] for sample in kept} <= {row.where for row in prepared.splits.train}
    assert len(kept) == 8
    assert all(entry["time/generate"] < entry["step_time"] for entry in logs(prepared))


def test_dropout_while_sampling_is_said(rl: Maker) -> None:
    _, said = started(rl("adapter.lora_dropout=0.1", *QUICK))
    assert "answers are sampled with dropout on" in said.getvalue()
    _, said = started(rl("adapter.lora_dropout=0.1", "training.disable_dropout=true", *QUICK))
    assert "dropout" not in said.getvalue()


# --- What is refused -------------------------------------------------------------------------------------------------


def checked(recipe: Recipe) -> None:
    recipe.method.check_recipe(recipe)


def test_a_good_recipe_passes_without_torch(rl: Maker, recipe_file: Path) -> None:
    recipe = rl("training.beta=0.04", "method.max_kl=0.5")
    checked(recipe)
    (recipe_file.parent / "whole.yaml").write_text(recipe.written, encoding="utf-8")
    code = (
        "import sys; from llmkit.recipe.loading import load_recipe; r = load_recipe(sys.argv[1]);"
        "r.method.check_recipe(r); print('torch' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(recipe_file.parent / "whole.yaml")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["training.per_device_train_batch_size=6"],
            r"6 completions per batch x 1 gradient_accumulation_steps = 6, and groups of `training.num_generations: 4` "
            r"don't divide them\nNearest that do: gradient_accumulation_steps 2, or per_device_train_batch_size 8, "
            "or num_generations 3",
        ),
        (["training.num_generations=1"], "`training.num_generations` must be at least 2, not 1"),
        (["method.max_kl=0.1"], "`method.max_kl: 0.1` bounds the KL divergence, which is not computed with beta 0"),
        (["training.auto_find_batch_size=true"], "would halve the batch and split the groups"),
        (["training.steps_per_generation=3", "training.per_device_train_batch_size=2"], "x 3 steps_per_generation = 6"),
        (["training.generation_batch_size=20"], "can't be divided by `training.per_device_train_batch_size: 8`"),
        (
            ["training.generation_batch_size=24", "training.num_generations=5"],
            r"can't be divided by `training.num_generations: 5`\nNearest that can: 20 or 25",
        ),
        (["training.generation_batch_size=8", "training.steps_per_generation=1"], "say the same"),
        (["training.eval_strategy=epoch", "training.num_generations_eval=3"], "groups of 3 answers don't divide it"),
    ],
)
def test_what_can_not_be_trained_is_refused(rl: Maker, overrides: Sequence[str], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        checked(rl(*overrides))


def test_what_the_planner_decides_is_not_refused(recipe: Maker, rl: Maker) -> None:
    given = rl("training.num_generations=3")
    training = {k: v for k, v in given.training.kwargs().items() if k != "gradient_accumulation_steps"}
    checked(given.model_copy(update={"training": type(given.training)(**training)}))


def test_vllm_is_refused_where_it_can_not_be_used(rl: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = rl("training.use_vllm=true")
    with pytest.raises(SetupError, match="vllm is not installed"):
        checked(recipe)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(SetupError, match="on CPUs TRL can't hand the trained weights to vLLM"):
        checked(recipe)


def test_fewer_rows_than_prompts_of_a_step(rl: Maker) -> None:
    settings = ("data.train.0.max_rows=3", "data.eval=null", "training.gradient_accumulation_steps=2")
    with pytest.raises(DataError, match=r"answers to 4 prompts \(16 completions in groups of 4\), .* only 3 rows"):
        started(rl(*settings, *QUICK))


def test_rows_left_out_of_an_epoch_are_counted(rl: Maker) -> None:
    _, said = started(rl("data.train.0.max_rows=7", "data.eval=null", *QUICK))
    assert "1 of 7 rows are left out of each epoch: a step takes 2 prompts" in said.getvalue()


def test_text_and_messages_do_not_mix(rl: Maker, rows_file: Path) -> None:
    rows = [{"prompt": "two", "answer": "2"}, {"prompt": [{"role": "user", "content": "three"}], "answer": "3"}]
    rows_file.write_text("".join(json.dumps(r) + "\n" for r in rows * 4), encoding="utf-8")
    with pytest.raises(DataError, match="as its prompt and .* messages"):
        started(rl("data.eval=null", *QUICK))


def test_prompts_of_plain_text_train(rl: Maker, rows_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, letters)
    rows = [{"prompt": f"{i} is", "answer": str(i)} for i in range(8)]
    rows_file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    kept: list[dict[str, Any]] = []
    prepared, _ = started(rl("data.eval=null", "training.max_steps=1", *QUICK), keep_samples=kept.extend)
    prepared.trainer.train()
    assert kept[0]["prompt"].endswith(" is")
    assert kept[0]["reward"] == pytest.approx(letters(kept[0]["completion"], None), abs=1e-6)


def test_prompts_without_room_for_an_answer(rl: Maker) -> None:
    recipe = rl("training.max_completion_length=300", *QUICK)
    from llmkit.data.splits import Row
    from llmkit.methods._policy import check_rows

    row = Row("rows.jsonl:5", {"prompt": "x"}, {"prompt_ids": [1] * 20})
    job = SimpleNamespace(
        splits=SimpleNamespace(train=(row,), eval=()),
        model=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=256)),
        recipe=recipe,
    )
    args = SimpleNamespace(generation_batch_size=4, num_generations=4, max_completion_length=237)
    with pytest.raises(DataError, match="the prompt has 20 tokens, .* more than the model's 256 positions") as caught:
        check_rows(job, args)
    assert caught.value.where == "rows.jsonl:5"
    args.max_completion_length = 236
    check_rows(job, args)


def test_continuous_batching_that_would_cast_the_weights(rl: Maker) -> None:
    with pytest.raises(RecipeError, match="casts the trained weights to 16 bits for good"):
        started(rl("training.use_transformers_continuous_batching=true", "training.bf16=true"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss_type": "luspo"}, "luspo: its paper weights whole sequences"),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "vespo weights sequences itself"),
        ({"importance_sampling_level": "sequence"}, "GSPO's paper takes `training.loss_type: grpo`"),
        ({"loss_type": "cispo"}, "ScaleRL takes 5.0"),
    ],
)
def test_what_is_odd_is_said(settings: dict[str, Any], words: str) -> None:
    usual = {"loss_type": "dapo", "importance_sampling_level": "token", "epsilon": 0.2, "epsilon_high": None}
    assert oddities(SimpleNamespace(**usual)) == []
    [line] = oddities(SimpleNamespace(**{**usual, **settings}))
    assert words in line


# --- Tools -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def calculator(tmp_path: Path) -> str:
    """Return the shipped tool, copied beside the recipe as a user's would be."""
    shutil.copy(ROOT / "recipes" / "grpo_tools_qwen.py", tmp_path)
    return "grpo_tools_qwen.py:calculator"


@pytest.fixture
def with_tools(rl: Maker, tiny_folder: Path, tmp_path: Path) -> Maker:
    """Return a maker of recipes for a tiny model whose template shows tool calls (that of Qwen 3)."""
    import trl

    folder = tmp_path / "tools-model"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    return lambda *overrides: rl(
        f"model.name={folder}",
        f"model.chat_template={template}",
        "training.max_completion_length=300",
        "training.max_steps=1",
        *QUICK,
        *overrides,
    )


def answers(prepared: Prepared, monkeypatch: pytest.MonkeyPatch, texts: Sequence[str]) -> None:
    """Let the model answer with these texts, one for each turn."""
    turns = iter(texts)

    def generate(prompt_ids: Any, *_: Any, **__: Any) -> Any:
        text = next(turns)
        return [[*prepared.tokenizer(text)["input_ids"], prepared.tokenizer.eos_token_id] for _ in prompt_ids], None

    monkeypatch.setattr(prepared.trainer, "_generate_single_turn", generate)


CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "6 * 7"}}\n</tool_call>'


def test_a_tool_is_called_and_the_last_answer_is_rewarded(
    with_tools: Maker, calculator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    scored(monkeypatch, lambda completion, row: float(bool(seen.append(completion))))
    kept: list[dict[str, Any]] = []
    tool = f"method={{type: grpo, tools: ['{calculator}']}}"
    recipe = with_tools(tool)
    checked(recipe)
    prepared, _ = started(recipe, keep_samples=kept.extend)
    answers(prepared, monkeypatch, [CALL, "It is 42."])
    seen.clear()
    prepared.trainer.train()
    assert seen == ["It is 42."] * 8
    [entry] = logs(prepared)
    assert entry["tools/call_frequency"] == 1
    assert entry["tools/failure_frequency"] == 0
    messages = kept[0]["messages"]
    assert [message["role"] for message in messages] == ["assistant", "tool", "assistant"]
    assert messages[1]["content"] == "42"
    assert kept[0]["completion"] == "It is 42."
    assert "calculator" in prepared.tokenizer.apply_chat_template(
        prepared.splits.train[0].example["prompt"], tools=prepared.trainer.tools, tokenize=False
    )


def test_an_environment_is_given_the_row(with_tools: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "env.py").write_text(
        "class Quiz:\n"
        "    def reset(self, answer, **row):\n"
        "        self.answer, self.asked = answer, 0\n"
        "        return f' (not {answer + 1})'\n"
        "    def hint(self) -> str:\n"
        '        """Say more."""\n'
        "        self.asked += 1\n"
        "        return f'{self.answer}!'\n"
        "    def get_reward(self) -> float:\n"
        "        return float(self.asked)\n",
        encoding="utf-8",
    )
    kept: list[dict[str, Any]] = []
    recipe = with_tools("method={type: grpo, environment: 'env.py:Quiz'}")
    checked(recipe)
    prepared, _ = started(recipe, keep_samples=kept.extend)
    call = '<tool_call>\n{"name": "hint", "arguments": {}}\n</tool_call>'
    answers(prepared, monkeypatch, [call, "done"])
    prepared.trainer.train()
    [entry] = logs(prepared)
    assert entry["rewards/Quiz/mean"] == 1
    places = {row.where: row.example["answer"] for row in prepared.splits.train}
    assert kept[0]["messages"][1]["content"] == f"{places[kept[0]['where']]}!"


def test_an_environment_whose_reward_is_no_number_stops_the_run(
    with_tools: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = "class Quiz:\n    def reset(self, **row): pass\n    def get_reward(self): return float('nan')\n"
    tool = "    def hint(self) -> str:\n        'Say more.'\n        return ''\n"
    (tmp_path / "env.py").write_text(source + tool, encoding="utf-8")
    prepared, _ = started(with_tools("method={type: grpo, environment: 'env.py:Quiz'}"))
    answers(prepared, monkeypatch, ["done"])
    with pytest.raises(RunError, match="reward `Quiz` returned nan") as caught:
        prepared.trainer.train()
    assert caught.value.where.startswith("rows.jsonl:")


def test_a_template_that_shows_no_tools_is_refused(rl: Maker, calculator: str) -> None:
    tool = f"method={{type: grpo, tools: ['{calculator}']}}"
    with pytest.raises(SetupError, match="the chat template does not show tool calls"):
        started(rl(tool, *QUICK))


def test_a_missing_tool_is_refused_before_anything_is_loaded(rl: Maker) -> None:
    with pytest.raises(SetupError, match="tools.py can't be read"):
        checked(rl("method={type: grpo, tools: ['tools.py:add']}"))
