"""A finished run opened again gives the scores, exports and answers it gave when it ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.errors import DataError, RecipeError, SetupError
from llmkit.recipe.recipe import Recipe
from llmkit.runs.answering import answer_file, chat
from llmkit.runs.progress import Narrator
from llmkit.runs.reopen import evaluate, export, read_prompts
from llmkit.runs.runner import RunResult, run

Maker = Callable[..., Recipe]


@pytest.fixture(params=["adapter.r=4", "adapter=null", "quantization.type=nf4"], ids=["lora", "full", "nf4"])
def finished(recipe: Maker, tmp_path: Path, request: pytest.FixtureRequest) -> RunResult:
    return run(recipe(request.param, "evaluation=[{type: perplexity}]"), out=tmp_path / "run")


def test_scores_are_those_of_the_run(finished: RunResult) -> None:
    again = evaluate(finished.folder)
    for name, scores in (("base", finished.base), ("tuned", finished.tuned)):
        assert again[name][0].metrics["loss"] == pytest.approx(scores[0].metrics["loss"], rel=1e-4), name
    assert again["tuned"][0].metrics["loss"] < again["base"][0].metrics["loss"]


def test_a_recipe_file_scores_its_base_alone(recipe_file: Path, recipe: Maker, tmp_path: Path) -> None:
    overrides = ["evaluation=[{type: perplexity}]"]
    finished = run(recipe(*overrides), out=tmp_path / "run")
    assert list(evaluate(recipe_file, overrides)) == ["base"]
    base = evaluate(recipe_file, overrides)["base"][0].metrics["loss"]
    assert base == pytest.approx(finished.base[0].metrics["loss"], rel=1e-5)
    with pytest.raises(RecipeError, match="has no `evaluation`"):
        evaluate(recipe_file)


def test_rows_that_are_held_out_anew_are_not_scored(recipe: Maker, rows_file: Path, tmp_path: Path) -> None:
    finished = run(recipe("evaluation=[{type: perplexity}]"), out=tmp_path / "run")
    with rows_file.open("a", encoding="utf-8") as file:
        turns = [{"role": "user", "content": "what is new?"}, {"role": "assistant", "content": "this is"}]
        file.write(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(DataError, match="the eval rows are not those that .* was started with"):
        evaluate(finished.folder)


def test_an_export_can_be_made_later(recipe: Maker, recipe_file: Path, tmp_path: Path) -> None:
    finished = run(recipe(), out=tmp_path / "run")
    with pytest.raises(RecipeError, match="has no `export`"):
        export(finished.folder)
    (done,) = export(finished.folder, ["export=[{type: merged}]"])
    assert done.path == finished.folder / "export" / "merged"
    assert done.checks["mean_kl"] < 1e-6
    with pytest.raises(SetupError, match="takes the folder of a finished run"):
        export(recipe_file, ["export=[{type: merged}]"])


def test_prompts_are_answered_in_order_by_the_tuned_model(finished: RunResult, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "what is", "id": 1}, {"prompt": [{"role": "user", "content": "what is 2 plus 2?"}], "id": 2}]
    prompts.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    answers = tmp_path / "answers.jsonl"

    def answer(target: Path, to: Path) -> list[dict[str, object]]:
        answer_file(target, prompts, to, (), temperature=0, max_new_tokens=6, batch_size=4, seed=0, narrator=Narrator())
        return [json.loads(line) for line in to.read_text(encoding="utf-8").splitlines()]

    found = answer(finished.folder, answers)
    assert [r["id"] for r in found] == [1, 2]
    assert all(isinstance(r["answer"], str) for r in found)
    with pytest.raises(DataError, match="is not overwritten"):
        answer(finished.folder, answers)


def test_a_broken_prompt_names_its_line(finished: RunResult, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"promt": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"prompts\.jsonl:2: each line is an object with a `prompt`"):
        answer_file(
            finished.folder,
            prompts,
            tmp_path / "out.jsonl",
            (),
            temperature=0,
            max_new_tokens=2,
            batch_size=1,
            seed=0,
            narrator=Narrator(),
        )


def test_a_line_ends_only_where_json_lines_end(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\u0085four"
    rows = [{"prompt": text}, {"prompt": "b"}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    assert read_prompts(prompts) == rows


def test_a_conversation_is_kept_until_cleared(
    finished: RunResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmkit.runs import answering

    seen: list[list[str]] = []

    def record(opened: object, messages: list[dict[str, str]], *_: object) -> str:
        seen.append([m["content"] for m in messages])
        return "fine"

    monkeypatch.setattr(answering, "_answer", record)
    lines = iter(["hello", "and?", "/clear", "again", "/quit", "never"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    chat(finished.folder, (), system="be short", temperature=0, max_new_tokens=4)
    assert seen == [["be short", "hello"], ["be short", "hello", "fine", "and?"], ["be short", "again"]]


def test_an_answer_streams_to_the_terminal(
    finished: RunResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["what is 2 plus 2?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    chat(finished.folder, (), system=None, temperature=0, max_new_tokens=8)
    assert capsys.readouterr().out.strip()


@pytest.fixture
def pairs_file(rows_file: Path) -> Path:
    lines = [
        {
            "prompt": [{"role": "user", "content": f"what is {i} plus {i % 5}?"}],
            "chosen": [{"role": "assistant", "content": f"it is {i + i % 5}"}],
            "rejected": [{"role": "assistant", "content": "maybe " * (1 + i % 3)}],
        }
        for i in range(24)
    ]
    rows_file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return rows_file


@pytest.mark.usefixtures("pairs_file")
@pytest.mark.parametrize("adapter", ["adapter.r=4", "adapter=null"], ids=["lora", "full"])
def test_a_reward_model_is_scored_again_and_answers_nothing(recipe: Maker, tmp_path: Path, adapter: str) -> None:
    overrides = ("method.type=reward", "data.train.0.format=preference", adapter)
    finished = run(recipe(*overrides, "evaluation=[{type: preference_accuracy}]"), out=tmp_path / "run")
    again = evaluate(finished.folder)
    for name, scores in (("base", finished.base), ("tuned", finished.tuned)):
        assert set(scores[0].metrics) == {"preference_accuracy", "reward_margin"}
        assert again[name][0].per_row["reward_margin"] == pytest.approx(scores[0].per_row["reward_margin"], abs=1e-4)
    assert again["tuned"][0].metrics["reward_margin"] > again["base"][0].metrics["reward_margin"]
    with pytest.raises(RecipeError, match="is a reward model: it scores answers and writes none"):
        chat(finished.folder, (), system=None, temperature=0, max_new_tokens=4)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n', encoding="utf-8")
    with pytest.raises(RecipeError, match="is a reward model"):
        answer_file(
            finished.folder,
            prompts,
            tmp_path / "answers.jsonl",
            (),
            temperature=0,
            max_new_tokens=2,
            batch_size=1,
            seed=0,
            narrator=Narrator(),
        )
    assert not (tmp_path / "answers.jsonl").exists()


@pytest.mark.usefixtures("pairs_file")
def test_the_tuned_model_is_compared_with_the_base(recipe: Maker, tmp_path: Path) -> None:
    overrides = ("method.type=dpo", "data.train.0.format=preference", "training.max_steps=6")
    finished = run(recipe(*overrides), out=tmp_path / "run")
    found = evaluate(finished.folder, ["evaluation=[{type: preference_accuracy}]"])
    base, tuned = found["base"][0], found["tuned"][0]
    assert "reward_margin" not in base.metrics
    gained = tuned.metrics["preference_margin"] - base.metrics["preference_margin"]
    assert tuned.metrics["reward_margin"] == pytest.approx(gained, abs=1e-4)
    assert gained > 0


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="is not a run folder"):
        evaluate(tmp_path)


def test_a_recipe_of_ones_own_is_not_taken_for_a_run(tmp_path: Path, recipe_file: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text(recipe_file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(SetupError, match="no lock.json"):
        evaluate(tmp_path / "mine")
