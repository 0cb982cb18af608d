"""Preflight's figures are those of a policy with known success rates, and its advice follows from them."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import DataError, RecipeError, SetupError
from llmkit.model.generation import Continuation
from llmkit.planning.plan import Decision, Plan
from llmkit.recipe.recipe import Recipe
from llmkit.runs import pace, report
from llmkit.runs.drawing import Sampled, sampling_kwargs
from llmkit.runs.pace import Pace, completions_per_step, generation_batch, steps_of_run
from llmkit.runs.preflight import (
    Preflight,
    Prompt,
    Silent,
    pass_at_k,
    preflight,
    silent_groups,
    summarize,
)
from llmkit.runs.prepare import plan

BATCH = ("training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=2")


@pytest.fixture
def rewarded(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Recipe]:
    """Return a maker of GRPO recipes over 12 sums, whose answers `exact_match` compares with."""

    def make(*overrides: str) -> Recipe:
        rows = [{"prompt": f"what is {i} plus {i}?", "answer": str(2 * i)} for i in range(12)]
        (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return recipe(
            "method={type: grpo}",
            "data={train: [{path: sums.jsonl, format: prompt}]}",
            "rewards=[{type: exact_match}]",
            "training.num_generations=4",
            "training.max_completion_length=8",
            *BATCH,
            *overrides,
        )

    return make


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[int], int], None]:
    """Return a setter of the policy: of `samples` answers to prompt i, the first `right[i]` are right and stop early.

    A right answer takes 3 tokens, a wrong one all 8 and is cut off.
    """

    def set_policy(right: Sequence[int], samples: int) -> None:
        def sample(model: Any, tokenizer: Any, prompts: Sequence[list[int]], **settings: Any) -> list[Continuation]:
            assert len(prompts) == len(right) * samples
            assert settings["max_new_tokens"] == 8
            found = []
            for index, ids in enumerate(prompts):
                number = int(tokenizer.decode(ids).split()[2])
                good = index % samples < right[index // samples]
                text = f" {2 * number}\n" if good else "no idea"
                found.append(Continuation((5,) * (3 if good else 8), text, stopped=good))
            return found

        monkeypatch.setattr("llmkit.runs.drawing.sample", sample)

    return set_policy


# --- estimators, against brute force ---------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 5, 8])
def test_pass_at_k_is_the_share_of_all_draws_with_a_pass(samples: int) -> None:
    for passed in range(samples + 1):
        answers = [True] * passed + [False] * (samples - passed)
        for k in range(1, samples + 1):
            draws = [any(draw) for draw in itertools.combinations(answers, k)]
            assert pass_at_k(samples, passed, k) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.parametrize("group", [2, 3, 6])
def test_silent_groups_are_the_share_of_all_draws_that_are_equal(group: int) -> None:
    totals = [[0.0] * 6, [1.0] * 6, [0.5] * 6, [1, 1, 1, 0, 0, 0.5], [0.1 + 0.2, 0.3, 0.3, 0.3, 1, 1]]

    def drawn(value: float) -> float:
        draws = [[draw for draw in itertools.combinations(row, group)] for row in totals]
        return statistics.fmean(
            sum(all(abs(v - value) < 1e-6 for v in draw) for draw in row) / len(row) for row in draws
        )

    found = silent_groups(totals, group, pass_at=1.0)
    assert found.all_right == pytest.approx(drawn(1.0))
    assert found.all_wrong == pytest.approx(drawn(0.0))
    assert found.all_equal == pytest.approx(drawn(0.5) + drawn(0.3))
    assert found.share == pytest.approx(sum(drawn(v) for v in (0.0, 0.3, 0.5, 1.0)))


# --- a policy whose success rates are known --------------------------------------------------------------------------


def test_the_figures_of_a_scripted_policy(
    rewarded: Callable[..., Recipe], scripted: Callable[..., None], tmp_path: Path
) -> None:
    right = [0, 0, 4, 1]
    scripted(right, 4)
    found = preflight(rewarded(), prompts=4, samples=4, out=tmp_path / "found.json")
    assert (found.prompts, found.samples, found.group) == (4, 4, 4)
    # Rows 0, 3, 6 and 9 of 12.
    assert [a.where for a in found.answers[::4]] == [f"sums.jsonl:{n}" for n in (1, 4, 7, 10)]
    assert (found.reward, found.parts) == (5 / 16, {"exact_match": 5 / 16})
    assert (found.pass_at, found.pass_at_from) == (1.0, "golden answers")
    assert found.passes == pytest.approx([5 / 16, (0 + 0 + 1 + 3 / 6) / 4, (0 + 0 + 1 + 3 / 4) / 4, 2 / 4])
    assert found.silent == Silent(all_right=1 / 4, all_wrong=2 / 4, all_equal=0.0)
    assert found.clipped == 11 / 16
    assert found.lengths == {"10%": 3, "50%": 8, "90%": 8, "95%": 8, "100%": 8}
    assert found.answers[8] == Sampled(
        "sums.jsonl:7", "what is 6 plus 6?", " 12\n", 3, False, 1.0, {"exact_match": 1.0}
    )
    written = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert written["passes"] == list(found.passes)
    assert written["advice"] == list(found.advice)
    assert written["answers"][8]["completion"] == " 12\n"
    assert written["pace"]["seconds"] == pytest.approx(found.pace.seconds)


def test_groups_are_the_runs_and_not_what_was_sampled(
    rewarded: Callable[..., Recipe], scripted: Callable[..., None]
) -> None:
    scripted([1, 4], 8)
    found = preflight(rewarded(), prompts=2, samples=8)
    assert found.group == 4
    # 35 of 70 draws of 4 miss the one right answer; of 4 right and 4 wrong, one draw each is alike.
    assert (found.silent.all_right, found.silent.all_wrong) == pytest.approx((1 / 140, 36 / 140))
    scripted([1, 4], 2)
    assert preflight(rewarded("training.num_generations=8"), prompts=2, samples=2).group == 2


def test_what_passes_is_what_was_asked_or_the_best_answer_seen(
    rewarded: Callable[..., Recipe], scripted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted([2, 1], 4)
    assert preflight(rewarded(), prompts=2, samples=4, pass_at=0.0).passes == (1.0,) * 4
    weighted = rewarded("rewards=[{type: exact_match, weight: 3.0}]")
    assert preflight(weighted, prompts=2, samples=4).pass_at == 3.0
    monkeypatch.setattr("llmkit.rewards.exact_match.ExactMatch.golden", lambda self, row: None)
    found = preflight(weighted, prompts=2, samples=4)
    assert (found.pass_at, found.pass_at_from) == (3.0, "the best answer seen")
    scripted([0, 0], 4)
    found = preflight(weighted, prompts=2, samples=4)
    assert (found.pass_at, found.pass_at_from, found.passes) == (1.0, "no answer stood out", (0.0,) * 4)


@pytest.mark.parametrize("adapter", ["adapter.r=4", "adapter=null"])
def test_a_real_model_is_sampled_and_timed(rewarded: Callable[..., Recipe], adapter: str) -> None:
    made = rewarded(adapter, "training.beta=0.1")
    found = preflight(made, prompts=3, samples=2)
    assert len(found.answers) == 6
    assert found.clipped > 0.5, "a random model hardly ever says the end token"
    assert all(0 < a.tokens <= 8 for a in found.answers)
    assert all((a.tokens == 8) or not a.clipped for a in found.answers)
    assert len({a.completion for a in found.answers}) > 1
    assert min(found.pace.generate, found.pace.score, found.pace.learn) > 0
    assert (found.pace.completions, found.pace.steps) == (8.0, 3)
    assert found.pace.hours == pytest.approx(found.pace.seconds * 3 / 3600)
    again = preflight(made, prompts=3, samples=2)
    assert [a.completion for a in again.answers] == [a.completion for a in found.answers]
    other = preflight(rewarded(adapter, "training.seed=7"), prompts=3, samples=2)
    assert [a.completion for a in other.answers] != [a.completion for a in found.answers]


def test_nothing_is_loaded_where_it_cannot_work(
    rewarded: Callable[..., Recipe], recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def loaded(*_: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("llmkit.runs.preflight.open_model", loaded)
    with pytest.raises(RecipeError, match="there is no reward to try"):
        preflight(recipe())
    (tmp_path / "taken.json").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match=r"taken\.json exists already, and is not overwritten"):
        preflight(rewarded(), out=tmp_path / "taken.json")
    made = rewarded()
    rows = (tmp_path / "sums.jsonl").read_text(encoding="utf-8")
    (tmp_path / "sums.jsonl").write_text(rows + '{"prompt": "and?"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"sums\.jsonl:13: no column 'answer'"):
        preflight(made, prompts=2)


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ("{top_p: 0.9, temperature: 0.5}", {"top_p": 0.9, "temperature": 0.5}),
        ("{max_new_tokens: 3, seed: 9, no_repeat_ngram_size: 2}", {"max_new_tokens": 3, "seed": 9}),
        ("'{\"top_k\": 5}'", {"top_k": 5}),
        ("{eos_token_id: 1, pad_token_id: 0, do_sample: true, use_cache: false, num_beams: 1}", {}),
        ("{do_sample: false}", {"temperature": 0.0}),
    ],
)
def test_generation_kwargs_win_as_they_do_in_trl(
    rewarded: Callable[..., Recipe], given: str, changed: dict[str, Any]
) -> None:
    plain, made = rewarded("training.top_p=0.7"), rewarded("training.top_p=0.7", f"training.generation_kwargs={given}")
    further = {"no_repeat_ngram_size": 2} if "ngram" in given else {}
    assert sampling_kwargs(made, plan(made)) == {**sampling_kwargs(plain, plan(plain)), **changed, **further}


def test_generation_kwargs_reach_a_real_model(rewarded: Callable[..., Recipe]) -> None:
    made = rewarded("training.generation_kwargs={top_p: 0.9, temperature: 0.7, max_new_tokens: 3, eos_token_id: 1}")
    found = preflight(made, prompts=2, samples=2)
    assert max(answer.tokens for answer in found.answers) <= found.max_completion_length == 3


@pytest.mark.parametrize(
    ("given", "said"), [("'{top'", "is not JSON"), ("'[1]'", "must be an object"), ("{num_beams: 2}", "without beams")]
)
def test_generation_kwargs_that_make_no_sense_are_refused(
    rewarded: Callable[..., Recipe], given: str, said: str
) -> None:
    made = rewarded(f"training.generation_kwargs={given}")
    with pytest.raises(RecipeError, match=said):
        sampling_kwargs(made, plan(made))


def test_the_folder_of_the_figures_is_made_before_anything_is_sampled(
    rewarded: Callable[..., Recipe], scripted: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scripted([1, 2], 2)
    out = tmp_path / "figures" / "new" / "pre.json"
    preflight(rewarded(), prompts=2, samples=2, out=out)
    assert json.loads(out.read_text(encoding="utf-8"))["prompts"] == 2

    def loaded(*_: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("llmkit.runs.preflight.open_model", loaded)
    with pytest.raises(SetupError, match=r"pre\.json of --out can't be made"):
        preflight(rewarded(), prompts=2, samples=2, out=out / "more.json")


def test_a_prompt_without_room_for_an_answer_is_said(
    rewarded: Callable[..., Recipe], scripted: Callable[..., None], tmp_path: Path
) -> None:
    made = rewarded()
    scripted([1], 2)
    assert "positions" not in "".join(preflight(made, prompts=1, samples=2).advice)
    rows = (tmp_path / "sums.jsonl").read_text(encoding="utf-8")
    (tmp_path / "sums.jsonl").write_text(
        rows + json.dumps({"prompt": "what is " + "2 plus " * 300 + "2?", "answer": "602"}) + "\n", encoding="utf-8"
    )
    # Only the first row is sampled; training would refuse the last one.
    found = preflight(made, prompts=1, samples=2)
    assert found.longest is not None
    assert (found.longest.where, found.longest.positions) == ("sums.jsonl:13", 256)
    assert found.longest.tokens > 256
    said = f"has {found.longest.tokens} tokens, which with `training.max_completion_length: 8` is more than the model's"
    assert any(said in line and "256 positions: training refuses it" in line for line in found.advice)


# --- advice ----------------------------------------------------------------------------------------------------------


def advised(right: Sequence[int], samples: int = 4, *, clipped: int = 0, wrong: float = 0.0, **pace_: float) -> str:
    """Return the advice on a policy with `right[i]` passes of `samples`, of whose answers the first few are clipped."""
    totals = [1.0 if n < count else wrong for count in right for n in range(samples)]
    answers = [Sampled("", "", "", 9, i < clipped, value, {"x": value}) for i, value in enumerate(totals)]
    seconds = {"generate": 6.0, "score": 0.1, "learn": 3.0, **pace_}
    timed = Pace(**seconds, completions=8, steps=10)
    found: Preflight = summarize(
        answers, samples, group=4, pass_at=(1.0, "given"), max_completion_length=64, pace=timed
    )
    return "\n".join(found.advice)


def test_a_fine_signal_is_said_to_be_fine() -> None:
    assert advised([1, 2, 3, 0]) == "The signal is fine: 75% of the groups of 4 have answers to compare."


@pytest.mark.parametrize(
    ("right", "words"),
    [
        ([0, 0, 0], ["100% of the groups of 4 are all wrong", "not one answer passes", "SFT first"]),
        ([0, 0, 0, 1], ["75% of the groups of 4 are all wrong", "more generations", "easier prompts"]),
        ([4, 4, 1], ["67% of the groups of 4 are all right already", "harder prompts"]),
        ([4, 4, 0, 0, 1], ["80% of the groups of 4 give no signal (40% all right, 40% all wrong)", "leave out"]),
    ],
)
def test_lost_signal_is_explained(right: Sequence[int], words: list[str]) -> None:
    said = advised(right)
    assert [word for word in words if word not in said] == []


def test_rare_successes_say_how_many_generations_would_find_one() -> None:
    # 1 of 16: a draw of 8 finds it half of the time, a draw of 4 misses it in 3 of 4.
    assert "`training.num_generations: 8`" in advised([1, 1, 1], samples=16)


def test_rewards_in_between_that_never_differ() -> None:
    said = advised([0, 0, 0, 0, 0, 4], wrong=0.5)
    assert "83% of the groups of 4 are all wrong" in said, "the lowest reward seen is wrong, whatever it is"
    answers = [Sampled("", "", "", 9, False, v, {}) for v in [0.0, 1.0, *[0.5] * 2, *[0.25] * 2]]
    timed = Pace(1, 0, 1, completions=2, steps=1)
    found = summarize(answers, 2, group=2, pass_at=(1.0, "given"), max_completion_length=9, pace=timed)
    assert "67% of the groups of 2 earn one and the same reward, neither right nor wrong" in found.advice[0]


def test_clipped_answers_and_slow_rewards_are_called_out() -> None:
    assert "cut off" not in advised([1, 2, 3, 0], clipped=3)
    said = advised([1, 2, 3, 0], clipped=4)
    assert "25% of the answers are cut off at `training.max_completion_length: 64`" in said
    assert "Raise it (to 128, say)" in said
    assert "hardly any ends by itself" in advised([1, 2, 3, 0], clipped=16)
    assert "Scoring takes 50% of a step" in advised([1, 2, 3, 0], score=9.0)


@pytest.mark.parametrize(("tokens", "positions", "said"), [(192, 256, False), (193, 256, True), (999, None, False)])
def test_the_longest_answer_must_fit_behind_the_longest_prompt(tokens: int, positions: int | None, said: bool) -> None:
    answers = [Sampled("", "", "", 9, False, v, {}) for v in (0.0, 1.0)]
    timed = Pace(1, 0, 1, completions=2, steps=1)
    longest = Prompt("rows.jsonl:3", tokens, positions)
    found = summarize(
        answers, 2, group=2, pass_at=(1.0, "given"), max_completion_length=64, pace=timed, longest=longest
    )
    assert any("The prompt of rows.jsonl:3 has 193 tokens" in line for line in found.advice) == said


@pytest.mark.parametrize(
    ("field", "name"),
    [("use_vllm", "vLLM"), ("use_transformers_continuous_batching", "continuous batching"), ("bf16", None)],
)
def test_another_engine_than_the_one_measured_is_said(
    rewarded: Callable[..., Recipe], field: str, name: str | None
) -> None:
    made = rewarded("training.max_steps=2")
    planned = plan(made)
    others = tuple(d for d in planned.decisions if d.key != f"training.{field}")
    the_plan = Plan(planned.hardware, planned.size, (*others, Decision(f"training.{field}", True, "a planted one")))
    timed = pace.pace_of(made, the_plan, rows=12, answers=8, generating=8.0, scoring=8.0, learning=0.1)
    assert timed.engine == name
    answers = [Sampled("", "", "", 9, False, v, {}) for v in (0.0, 1.0)]
    found = summarize(answers, 2, group=2, pass_at=(1.0, "given"), max_completion_length=64, pace=timed)
    printed = [value for _, value in report._taken(found)]
    assert (f"measured with `generate`; the run samples with {name}" in printed) == (name is not None)
    assert any("Scoring takes" in line for line in found.advice) == (name is None)


# --- the run's numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "batch", "completions", "steps"),
    [
        (["training.max_steps=7"], 8, 8, 7),
        # 12 rows x 4 answers, 8 a step, 2 epochs.
        (["training.max_steps=-1", "training.num_train_epochs=2"], 8, 8, 12),
        (["training.max_steps=-1", "training.num_train_epochs=2", "data.eval=0.34"], 8, 8, 8),
        (["training.max_steps=-1", "training.num_train_epochs=1", "training.num_iterations=2"], 8, 4, 12),
        (["training.max_steps=1", "training.steps_per_generation=4"], 16, 8, 1),
        (["training.max_steps=1", "training.generation_batch_size=32"], 32, 8, 1),
    ],
)
def test_completions_and_steps(
    rewarded: Callable[..., Recipe], overrides: list[str], batch: int, completions: int, steps: int
) -> None:
    made = rewarded(*overrides)
    the_plan = plan(made)
    assert generation_batch(made, the_plan) == batch
    assert completions_per_step(made, the_plan) == completions
    assert steps_of_run(made, the_plan, rows=12) == steps


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [
        ([], 0),
        (["training.beta=0.1"], 1),
        (["training.num_iterations=2"], 1),
        (["training.steps_per_generation=1"], 0),
        (["method.type=rloo"], 2),
        (["method.type=rloo", "training.beta=0.0"], 1),
        (["training.beta=0.1", "training.steps_per_generation=4"], 2),
    ],
)
def test_passes_before_the_ones_that_learn(rewarded: Callable[..., Recipe], overrides: list[str], passes: int) -> None:
    made = rewarded(*overrides)
    assert pace._extra_passes(made, plan(made)) == passes


def test_a_micro_batch_is_padded_as_trl_pads_it(model: Any, tokenizer: Any) -> None:
    batch = pace._padded([[7], [8, 9]], [[1, 2, 3], [4]], model, tokenizer)
    assert batch["input_ids"].tolist() == [[0, 7, 1, 2, 3], [8, 9, 4, 0, 0]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]


def test_the_time_of_a_step_is_scaled_to_its_completions(rewarded: Callable[..., Recipe]) -> None:
    made = rewarded("training.max_steps=50", "training.num_iterations=2")
    found = pace.pace_of(made, plan(made), rows=12, answers=16, generating=32.0, scoring=8.0, learning=0.5)
    # Each step takes 8 completions, and each completion is taken twice: 4 are sampled per step.
    assert (found.generate, found.score, found.learn, found.seconds) == (8.0, 2.0, 2.0, 12.0)
    assert found.hours == pytest.approx(600 / 3600)
