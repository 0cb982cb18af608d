"""Rows made from a model's answers: what a scripted policy earns, what is kept of it, and that a stop loses nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.errors import DataError, RecipeError
from llmkit.model.generation import Continuation
from llmkit.runs.progress import Narrator
from llmkit.runs.sampling import Sampling, sample, seed_at

Answers = dict[int, list[tuple[str, bool]]]
"""What the policy says to each sum: the text, and whether it ends by itself."""

RIGHT = [("{}", True), ("no idea", True), ("{}", True), ("none", False)]
WRONG = [("no idea", True), ("none", True), ("no idea", True), ("what?", False)]
CUT = [("{}", False), ("no idea", True), ("none", True), ("{}", False)]
LIMIT = 8


@pytest.fixture
def sums(grpo_file: Callable[..., Path]) -> Path:
    """A GRPO recipe on the tiny model over 12 sums, asked as messages; four answers fit in a batch."""
    rows = [
        {"prompt": [{"role": "user", "content": f"what is {i} plus {i}?"}], "answer": str(2 * i)} for i in range(12)
    ]
    return grpo_file("sums", rows, max_steps=1, max_completion_length=LIMIT, per_device_train_batch_size=4)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


class Policy:
    """Says what it was told, and remembers how it was asked. A right answer is `{}`."""

    def __init__(self) -> None:
        self.says: Callable[[int], list[tuple[str, bool]]] = lambda number: RIGHT
        self.batches: list[tuple[list[int], int]] = []
        self.stops_at: int | None = None

    def __call__(self, model: Any, tokenizer: Any, prompts: Sequence[list[int]], **settings: Any) -> list[Continuation]:
        assert settings["max_new_tokens"] == LIMIT
        numbers = [int(re.findall(r"\d+", tokenizer.decode(ids))[0]) for ids in prompts]
        if self.stops_at in numbers:
            raise KeyboardInterrupt
        self.batches.append((numbers, settings["seed"]))
        found, said = [], dict.fromkeys(numbers, 0)
        for number in numbers:
            text, stopped = self.says(number)[said[number]]
            said[number] += 1
            found.append(Continuation((5,) * (3 if stopped else LIMIT), text.format(2 * number), stopped=stopped))
        return found


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Policy:
    """The policy that answers in place of the model."""
    made = Policy()
    monkeypatch.setattr("llmkit.runs.drawing.sample", made)
    return made


def made(sums: Path, *overrides: str, out: str = "rows.jsonl", **options: Any) -> tuple[list[dict[str, Any]], Sampling]:
    """Return the rows that are written, and what was found."""
    found = sample(sums, overrides, out=sums.with_name(out), **{"samples": 4, **options})
    return read(found.out), found


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_the_figures_of_a_scripted_policy(sums: Path, policy: Policy) -> None:
    policy.says = {0: RIGHT, 3: WRONG, 6: CUT, 9: RIGHT}.__getitem__
    rows, found = made(sums, prompts=4)
    # Rows 0, 3, 6 and 9 of 12.
    assert [row["where"] for row in rows] == ["sums.jsonl:1", "sums.jsonl:10"]
    assert rows[1] == {
        "messages": [{"role": "user", "content": "what is 9 plus 9?"}, {"role": "assistant", "content": "18"}],
        "reward": 1.0,
        "where": "sums.jsonl:10",
    }
    tally = found.tally
    assert (found.pass_at, found.pass_at_from) == (1.0, "golden answers")
    assert tally.dropped == {"no answer reached 1": 1, "cut off at 8 tokens": 1}
    assert (tally.prompts, tally.answered, tally.kept, tally.done) == (4, 4, 2, 4)
    assert (tally.answers, tally.passed, tally.clipped, tally.repeated) == (16, 6, 5, 4)
    assert found.passes == 6 / 16
    assert (tally.mean_reward, tally.mean_kept_reward) == (6 / 16, 1.0)
    assert tally.tokens == 11 * 3 + 5 * LIMIT
    ledger = json.loads((found.out.parent / "rows.jsonl.ledger").read_text(encoding="utf-8"))
    assert ledger["tally"] == tally.to_dict()


def test_pairs_are_the_best_against_the_worst(sums: Path, policy: Policy) -> None:
    policy.says = {0: RIGHT, 3: WRONG, 6: CUT, 9: [("{}", True)] * 4}.__getitem__
    rows, found = made(sums, prompts=4, keep="pairs")
    (row,) = rows
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"], row["margin"]) == ("0", "no idea", 1.0)
    assert found.tally.dropped == {"all answers earn the same": 2, "all answers are the same": 1}
    assert found.passes == 8 / 16
    rows, found = made(sums, "rewards.0.weight=0.5", out="far.jsonl", prompts=4, keep="pairs", margin=0.6)
    assert rows == []
    assert found.tally.dropped["the rewards differ by less than 0.6"] == 1


def test_all_answers_are_kept_with_their_scores(sums: Path, policy: Policy) -> None:
    rows, found = made(sums, prompts=2, keep="all")
    assert [(row["completions"], row["scores"]) for row in rows] == [
        (["0", "no idea"], [1.0, 0.0]),
        (["12", "no idea"], [1.0, 0.0]),
    ]
    assert (found.tally.kept, found.tally.kept_answers, found.tally.mean_kept_reward) == (2, 4, 0.5)


def test_answers_that_were_cut_off_are_kept_if_asked(sums: Path, policy: Policy) -> None:
    policy.says = lambda number: CUT
    assert made(sums, prompts=2)[0] == []
    rows, _ = made(sums, out="cut.jsonl", prompts=2, truncated=True)
    assert [row["messages"][-1]["content"] for row in rows] == ["0", "12"]


def test_strings_are_continued(sums: Path, policy: Policy) -> None:
    write(sums.with_name("sums.jsonl"), [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(3)])
    rows, found = made(sums)
    assert rows[2] == {"prompt": "2 + 2 =", "completion": "4", "reward": 1.0, "where": "sums.jsonl:3"}
    assert "format: prompt_completion" in found.override


def test_a_mixture_of_prompts_is_refused(sums: Path, policy: Policy) -> None:
    path = sums.with_name("sums.jsonl")
    path.write_text(path.read_text(encoding="utf-8") + '{"prompt": "1 + 1 =", "answer": "2"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"sums\.jsonl:13: this prompt is a string, and that of sums\.jsonl:1 is messa"):
        made(sums)


def test_the_threshold_is_what_golden_answers_earn_or_what_was_given(sums: Path, policy: Policy) -> None:
    rows, found = made(sums, "rewards.0.weight=3.0", prompts=2)
    assert (found.pass_at, [row["reward"] for row in rows]) == (3.0, [3.0, 3.0])
    policy.says = lambda number: WRONG
    rows, found = made(sums, out="low.jsonl", prompts=2, threshold=0.0)
    assert (found.pass_at, found.pass_at_from, len(rows)) == (0.0, "given", 2)


def test_without_a_golden_answer_somebody_must_say_what_is_good(sums: Path, policy: Policy) -> None:
    length = "rewards=[{type: length, unit: characters, target: 2, tolerance: 4}]"
    with pytest.raises(RecipeError, match="nobody can say what a good answer earns"):
        made(sums, length)
    rows, found = made(sums, length, prompts=2, threshold=1.0)
    assert [row["messages"][-1]["content"] for row in rows] == ["12"]
    # Pairs only compare.
    rows, found = made(sums, length, prompts=2, keep="pairs", out="pairs.jsonl")
    assert (len(rows), found.pass_at, found.passes) == (2, None, None)


def test_a_prompt_without_room_for_an_answer_is_counted(sums: Path, policy: Policy) -> None:
    path = sums.with_name("sums.jsonl")
    long = {"prompt": [{"role": "user", "content": "what is " + "2 plus " * 300 + "2?"}], "answer": "602"}
    path.write_text(path.read_text(encoding="utf-8") + json.dumps(long) + "\n", encoding="utf-8")
    _, found = made(sums)
    assert found.tally.dropped == {"the prompt leaves no room for 8 tokens in the model's 256 positions": 1}
    assert (found.tally.prompts, found.tally.answered, found.tally.kept) == (13, 12, 12)


def test_what_is_held_out_is_not_sampled(sums: Path, policy: Policy) -> None:
    rows, found = made(sums, "data.eval=0.25")
    assert found.tally.prompts == 9
    held_out = {row.where for row in llmkit.runs.prepare.prepare_data(loaded(sums, "data.eval=0.25")).splits.eval}
    assert len(held_out) == 3
    assert not held_out & {row["where"] for row in rows}


def test_an_answer_that_the_template_changes_is_counted(sums: Path, policy: Policy, tokenizer: Any) -> None:
    # As DeepSeek's R1: sampling begins behind <think>, and a conversation has it in the answer or not at all.
    thinking = tokenizer.chat_template.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    assert thinking != tokenizer.chat_template
    sums.with_name("thinking.jinja").write_text(thinking, encoding="utf-8")
    _, found = made(sums, prompts=2)
    assert found.tally.altered == 0
    _, found = made(sums, "model.chat_template=thinking.jinja", out="thinking.jsonl", prompts=2)
    assert (found.tally.kept, found.tally.altered) == (2, 2)


# --- stopping and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [4, 8, 3])
def test_a_stopped_command_goes_on_where_it_was(sums: Path, policy: Policy, batch_size: int) -> None:
    policy.says = lambda number: [RIGHT, WRONG, CUT][number % 3]
    whole, straight = made(sums, out="whole.jsonl", batch_size=batch_size)
    asked, policy.batches, policy.stops_at = policy.batches, [], 6
    with pytest.raises(KeyboardInterrupt):
        made(sums, batch_size=batch_size)
    done = sum(len(set(numbers)) for numbers, _ in policy.batches)
    assert 4 <= done <= 6
    assert len(read(sums.with_name("rows.jsonl"))) == -(-done // 3)
    policy.stops_at = None
    rows, found = made(sums, batch_size=batch_size)
    assert policy.batches == asked, "each prompt is asked once, with the seed it has in a straight run"
    assert rows == whole
    same = {**straight.tally.to_dict(), "seconds": 0}
    assert {**found.tally.to_dict(), "seconds": 0} == same


def test_what_is_finished_is_told_again_without_a_model(
    sums: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, found = made(sums, prompts=2)

    def loaded(*_: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("llmkit.runs.sampling.open_model", loaded)
    assert made(sums, prompts=2) == (rows, found)


@pytest.mark.parametrize(
    ("overrides", "options", "said"),
    [
        ((), {"samples": 2}, "samples was 4 and is 2"),
        ((), {"temperature": 0.5}, "temperature was 1.0 and is 0.5"),
        ((), {"prompts": 3}, "prompts was 2 and is 3"),
        ((), {"keep": "pairs"}, "keep was best and is pairs"),
        (("training.seed=7",), {}, "seed was 42 and is 7"),
        (("training.top_p=0.9",), {}, "top_p was 1.0 and is 0.9"),
        (("rewards.0.weight=2.0",), {}, "other rewards"),
    ],
)
def test_a_file_is_of_one_kind(
    sums: Path, policy: Policy, overrides: tuple[str, ...], options: dict[str, Any], said: str
) -> None:
    before, _ = made(sums, prompts=2)
    with pytest.raises(RecipeError, match=r"rows\.jsonl was begun with other settings") as error:
        made(sums, *overrides, **{"prompts": 2, **options})
    assert said in str(error.value)
    assert read(sums.with_name("rows.jsonl")) == before


def test_other_rows_and_other_weights_are_noticed(
    sums: Path, policy: Policy, tiny_folder: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    made(sums, f"model.name={copy}", prompts=2)
    (copy / "model.safetensors").touch()
    with pytest.raises(RecipeError, match="other weights"):
        made(sums, f"model.name={copy}", prompts=2)
    made(sums, out="second.jsonl", prompts=2)
    path = sums.with_name("sums.jsonl")
    path.write_text(path.read_text(encoding="utf-8").replace('"answer": "12"', '"answer": "13"'), encoding="utf-8")
    with pytest.raises(RecipeError, match="begun with other settings: other rows"):
        made(sums, out="second.jsonl", prompts=2)


def test_seeds_are_of_the_batch_alone() -> None:
    seeds = {seed_at(seed, place) for seed in range(20) for place in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert seed_at(1, 2) == seed_at(1, 2)


# --- refused before anything is loaded -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": "worst"}, "--keep must be one of best, pairs, all"),
        ({"keep": "pairs", "samples": 1}, "takes at least two --samples"),
        ({"margin": 0.5}, "--keep best makes none"),
        ({"keep": "all", "threshold": 0.5}, "has no use for a --threshold"),
        ({"temperature": 0.0}, "at temperature 0 there is only one answer"),
        ({"temperature": -1.0, "samples": 1}, "at temperature -1"),
        ({"out": "rows.json"}, r"rows\.json must end with \.jsonl"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(
    sums: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    def loaded(*_: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("llmkit.runs.sampling.open_model", loaded)
    with pytest.raises(RecipeError, match=said):
        made(sums, **options)
    assert not list(sums.parent.glob("rows*"))


def test_a_recipe_without_prompts_or_rewards_is_refused(recipe_file: Path, sums: Path) -> None:
    with pytest.raises(RecipeError, match="method 'sft' learns from its rows alone"):
        sample(recipe_file)
    with pytest.raises(RecipeError, match="learns from rewards, and the recipe has none"):
        sample(sums, ["rewards=[]"])
    tools = 'def add(a: int) -> int:\n    """Add.\n\n    Args:\n        a: One.\n    """\n    return a\n'
    sums.with_name("tools.py").write_text(tools, encoding="utf-8")
    with pytest.raises(RecipeError, match="sample samples single answers"):
        sample(sums, ["method.tools=['tools.py:add']"])


# --- a real model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def readable(tokenizer: Any) -> str:
    """Override that keeps a random model from saying half a character."""
    return f"training.generation_kwargs={{suppress_tokens: {halves(tokenizer)}}}"


def halves(tokenizer: Any) -> list[int]:
    return [i for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([i])]


def loaded(path: Path, *overrides: str) -> Any:
    return llmkit.load_recipe(path, overrides)


def test_a_real_model_is_sampled_the_same_again(sums: Path, readable: str) -> None:
    options = {"prompts": 3, "keep": "all", "truncated": True}
    rows, found = made(sums, readable, **options)
    assert (len(rows), found.tally.answers) == (3, 12)
    assert len({text for row in rows for text in row["completions"]}) > 6
    assert found.tally.clipped > 6, "a random model hardly ever says the end token"
    assert 0 < found.tally.tokens <= 12 * LIMIT
    assert found.tally.tokens_per_second > 0
    assert made(sums, readable, out="again.jsonl", **options)[0] == rows
    other, _ = made(sums, readable, "training.seed=7", out="other.jsonl", **options)
    assert [row["completions"] for row in other] != [row["completions"] for row in rows]
    bytes_, _ = made(sums, out="bytes.jsonl", **options)
    assert not any("\ufffd" in text for row in bytes_ for text in row["completions"])
    cold, _ = made(sums, readable, out="cold.jsonl", temperature=1e-5, **options)
    assert all(len(row["completions"]) == 1 for row in cold), "near 0 all answers are the likeliest one"


def test_progress_is_told(sums: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("llmkit.runs.progress.PLAIN_SECONDS", 0.0)
    narrator = Narrator()
    monkeypatch.setattr(narrator, "say", said.append)
    policy.says = lambda number: RIGHT if number else WRONG
    made(sums, prompts=3, narrator=narrator)
    assert any(line.startswith("3 prompts x 4 answers of ") for line in said)
    bars = [line for line in said if line.startswith("sampling ")]
    assert bars[0].startswith("sampling 4/12 0 of 1 prompts kept · reward 0.000 · ")
    assert bars[1].startswith("sampling 8/12 1 of 2 prompts kept · reward 0.250 · ")
    assert all(line.endswith(" left") and "tokens/s" in line for line in bars)


# --- what comes next -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "method", "row_format"), [("best", "sft", "messages"), ("pairs", "dpo", "preference")]
)
def test_the_lines_of_the_next_recipe_are_one(
    sums: Path, policy: Policy, tmp_path: Path, keep: str, method: str, row_format: str
) -> None:
    _, found = made(sums, prompts=2, keep=keep)
    elsewhere = tmp_path / "elsewhere" / "next.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text("\n".join(found.recipe) + "\n", encoding="utf-8")
    read_back = loaded(elsewhere)
    assert (read_back.method.type, read_back.data.train[0].format) == (method, row_format)
    assert Path(read_back.data.train[0].path) == found.out
    assert read_back.model == loaded(sums).model
    assert read_back.adapter == loaded(sums).adapter


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("keep", ["best", "pairs", "all"])
def test_what_is_written_trains_without_a_mapping(sums: Path, policy: Policy, keep: str, plain: bool) -> None:
    import shlex

    if plain:
        write(sums.with_name("sums.jsonl"), [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(12)])
    rows, found = made(sums, keep=keep)
    assert len(rows) == 12
    following = sums.with_name("next.yaml")
    following.write_text("\n".join(found.recipe) + "\n", encoding="utf-8")
    (override,) = shlex.split(found.override)
    for source in (override, f"data.train=[{{path: {found.out}}}]"):
        prepared = llmkit.prepare(loaded(following, source, "training.report_to=none"))
        assert [row.where for row in prepared.splits.train] == [f"{found.out}:{n}" for n in range(1, 13)]
        assert all(row.trained_tokens for row in prepared.splits.train)
        said = prepared.tokenizer.decode([t for t in last_answer(prepared.splits.train[3]) if t >= 3])
        assert said.strip() == "6"


def last_answer(row: Any) -> list[int]:
    """Return the trained tokens of a row; of a pair the better answer."""
    return row.answers[0] if row.answers else [label for label in row.labels if label != -100]


@pytest.mark.slow
def test_a_tuned_model_is_sampled_and_trained_on(sums: Path, tmp_path: Path, readable: str) -> None:
    from llmkit.runs.runner import run

    # A reward that random answers differ in, so that a step learns something.
    length = "rewards=[{type: length, unit: characters, target: 4, tolerance: 9}]"
    run(loaded(sums, length, readable, "training.learning_rate=1.0e-2"), out=tmp_path / "run")
    options = {"prompts": 3, "keep": "all", "truncated": True}
    base, _ = made(sums, length, readable, **options)
    tuned = sample(tmp_path / "run", samples=4, out=tmp_path / "tuned.jsonl", **options)
    rows = read(tuned.out)
    assert [row["where"] for row in rows] == [row["where"] for row in base]
    assert [row["completions"] for row in rows] != [row["completions"] for row in base]
    following = tmp_path / "next.yaml"
    following.write_text("\n".join(tuned.recipe) + "\n", encoding="utf-8")
    recipe = loaded(following)
    assert recipe.model.name == str(tmp_path / "run" / "model")
    assert recipe.adapter is not None
    assert recipe.adapter.kwargs() == {}, "training goes on from the run's adapter"
    llmkit.plan(recipe)
