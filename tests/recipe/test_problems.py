"""What each kind of mistake in a recipe is called, and where it is said to stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.errors import RecipeError
from llmkit.recipe.loading import load_recipe

LINES = {
    "model": "{name: some/model}",
    "data": "{train: [{path: made:orders, format: messages}], eval: 0.1}",
    "method": "{type: sft}",
}


@pytest.fixture
def message(tmp_path: Path) -> Callable[..., str]:
    """Return a function that gives the message for a recipe with some of its sections replaced (None: left out)."""

    def refuse(**sections: str | None) -> str:
        path = tmp_path / "recipe.yaml"
        written = {key: value for key, value in {**LINES, **sections}.items() if value is not None}
        path.write_text("".join(f"{key}: {value}\n" for key, value in written.items()), encoding="utf-8")
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        assert caught.value.exit_code == 2
        return str(caught.value).replace(f"{tmp_path}/", "")

    return refuse


def test_the_sections_of_these_tests_are_a_valid_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in LINES.items()), encoding="utf-8")
    assert load_recipe(path).data.eval == 0.1


@pytest.mark.parametrize(
    ("section", "value", "line", "key", "close", "place", "some_choices"),
    [
        ("modle", "{name: a}", 4, "modle", "model", "a recipe", "adapter, checkpoints, data, evaluation"),
        ("model", "{name: a, revison: b}", 1, "revison", "revision", "`model`", "allow_pickle, attn_implementation"),
        ("data", "{train: [{path: a, format: text}], evl: 0.1}", 2, "evl", "eval", "`data`", "audit, broken, eval"),
        (
            "data",
            "{train: [{path: a, format: text, splt: b}]}",
            2,
            "splt",
            "split",
            "`data.train.0`",
            "columns, format, header, max_rows",
        ),
        (
            "data",
            "{train: [{path: a, format: text}], eval: [{path: b, format: text, pth: c}]}",
            2,
            "pth",
            "path",
            "`data.eval.0`",
            "columns, format, header, max_rows",
        ),
        ("method", "{type: sft, tpe: a}", 3, "tpe", "type", "`method`", "type"),
        ("hardware", "{devise: cpu}", 4, "devise", "device", "`hardware`", "device"),
        ("evaluation", "[{type: perplexity, limt: 1}]", 4, "limt", "limit", "`evaluation.0`", "batch_size, limit"),
        (
            "evaluation",
            "[{type: perplexity}, {type: exact_match, max_new_token: 1}]",
            4,
            "max_new_token",
            "max_new_tokens",
            "`evaluation.1`",
            "batch_size, ",
        ),
        (
            "export",
            "[{type: merged, dtpe: float32}]",
            4,
            "dtpe",
            "dtype",
            "`export.0`",
            "dtype, max_kl, max_score_difference, type",
        ),
    ],
)
def test_an_unknown_key_lists_the_choices_and_the_closest(
    message: Callable[..., str],
    section: str,
    value: str,
    line: int,
    key: str,
    close: str,
    place: str,
    some_choices: str,
) -> None:
    text = message(**{section: value})
    assert text.startswith(f"recipe.yaml:{line}: unknown key {key!r} (did you mean {close!r}?); {place} takes ")
    assert some_choices in text.partition(" takes ")[2]


def test_an_unknown_key_close_to_nothing_has_no_guess(message: Callable[..., str]) -> None:
    assert message(hardware="{zzz: 1}") == "recipe.yaml:4: unknown key 'zzz'; `hardware` takes device"


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"model": None}, "recipe.yaml:1: `model` is missing"),
        ({"data": None}, "recipe.yaml:1: `data` is missing"),
        ({"method": None}, "recipe.yaml:1: `method` is missing"),
        ({"model": "{revision: a}"}, "recipe.yaml:1: `model.name` is missing"),
        ({"data": "{eval: 0.1}"}, "recipe.yaml:2: `data.train` is missing"),
        ({"data": "{train: [{format: text}]}"}, "recipe.yaml:2: `data.train.0.path` is missing"),
        (
            {"data": "{train: [{path: a, format: text}], eval: [{format: text}]}"},
            "recipe.yaml:2: `data.eval.0.path` is missing",
        ),
    ],
)
def test_a_missing_key_is_named_at_the_section_that_lacks_it(
    message: Callable[..., str], sections: dict[str, str | None], expected: str
) -> None:
    assert message(**sections) == expected


@pytest.mark.parametrize(
    ("sections", "start"),
    [
        ({"model": "{name: 5}"}, "recipe.yaml:1: `model.name`: input should be a valid string (it is 5)"),
        ({"model": "{name: ''}"}, "recipe.yaml:1: `model.name`: string should have at least 1 character"),
        (
            {"model": "{name: a, trust_remote_code: 1}"},
            "recipe.yaml:1: `model.trust_remote_code`: input should be a valid boolean (it is 1)",
        ),
        (
            {"model": "{name: a, dtype: float64}"},
            "recipe.yaml:1: `model.dtype` must be one of float32, bfloat16, float16, not 'float64' "
            "(did you mean 'float16'?)",
        ),
        (
            {"model": "{name: a, allow_pickle: b.bin}"},
            "recipe.yaml:1: `model.allow_pickle` must be a list, not 'b.bin'",
        ),
        ({"data": "{train: a.jsonl}"}, "recipe.yaml:2: `data.train` must be a list, not 'a.jsonl'"),
        ({"data": "{train: {path: a}}"}, "recipe.yaml:2: `data.train` must be a list, not {'path': 'a'}"),
        ({"data": "{train: []}"}, "recipe.yaml:2: `data.train` should have at least 1 item"),
        (
            {"data": "{train: [{path: a, format: text, max_rows: 0}]}"},
            "recipe.yaml:2: `data.train.0.max_rows`: input should be greater than or equal to 1 (it is 0)",
        ),
        (
            {"data": "{train: [{path: a, format: text}], eval: 2}"},
            "recipe.yaml:2: `data.eval`: a share of the training rows must lie between 0 and 1, not 2",
        ),
        (
            {"data": "{train: [{path: a, format: text}], eval: half}"},
            "recipe.yaml:2: `data.eval`: input should be a valid",
        ),
        (
            {"data": "{train: [{path: a, format: text}], overflow: trunc}"},
            "recipe.yaml:2: `data.overflow` must be one of drop, truncate, split, error, not 'trunc' "
            "(did you mean 'truncate'?)",
        ),
        (
            {"hardware": "{device: gpu}"},
            "recipe.yaml:4: `hardware.device` must be one of auto, cpu, cuda, mps, not 'gpu'",
        ),
        (
            {"evaluation": "[{type: perplexity, limit: x}]"},
            "recipe.yaml:4: `evaluation.0.limit`: input should be a valid integer (it is 'x')",
        ),
        ({"evaluation": "perplexity"}, "recipe.yaml:4: `evaluation` must be a list, not 'perplexity'"),
        ({"export": "{type: merged}"}, "recipe.yaml:4: `export` must be a list, not {'type': 'merged'}"),
    ],
)
def test_a_wrong_type_says_what_is_wanted_and_what_is_there(
    message: Callable[..., str], sections: dict[str, str], start: str
) -> None:
    assert message(**sections).startswith(start)


def test_an_unknown_row_format_lists_the_formats(message: Callable[..., str]) -> None:
    text = message(data="{train: [{path: a, format: mesages}]}")
    assert text.startswith("recipe.yaml:2: `data.train.0.format`: must be one of auto, alpaca, messages, ")
    assert text.endswith("not 'mesages' (did you mean 'messages'?)")


@pytest.mark.parametrize(
    ("section", "value", "key", "choice", "given", "close"),
    [
        ("method", "{type: stf}", "method.type", "sft", "stf", "sft"),
        ("adapter", "{type: lra}", "adapter.type", "lora", "lra", "lora"),
        ("quantization", "{type: nf5}", "quantization.type", "int8", "nf5", "nf4"),
        ("evaluation", "[{type: perplxity}]", "evaluation.0.type", "exact_match", "perplxity", "perplexity"),
        ("export", "[{type: adapter}, {type: mergd}]", "export.1.type", "adapter", "mergd", "merged"),
    ],
)
def test_an_unknown_type_lists_the_variants(
    message: Callable[..., str], section: str, value: str, key: str, choice: str, given: str, close: str
) -> None:
    line = 3 if section == "method" else 4
    text = message(**{section: value})
    assert text.startswith(f"recipe.yaml:{line}: `{key}` must be one of ")
    assert choice in text.partition("one of ")[2].partition(", not ")[0].split(", ")
    assert text.endswith(f", not {given!r} (did you mean {close!r}?)")


@pytest.mark.parametrize("section", ["method", "adapter", "quantization"])
def test_a_variant_without_its_type_says_so(message: Callable[..., str], section: str) -> None:
    assert f"`{section}" in (text := message(**{section: "{}"}))
    assert "`type`" in text or f"`{section}.type` is missing" in text


@pytest.mark.parametrize("value", ["[[]]", "[5]", "[null]"])
def test_a_type_that_is_no_word_is_refused_like_any_other(message: Callable[..., str], value: str) -> None:
    assert "`method" in message(method=f"{{type: {value}}}", training="{sed: 1}")


@pytest.mark.parametrize(
    ("section", "value", "expected"),
    [
        ("adapter", "lora", "`adapter` is a section: write `{type: lora}`"),
        ("quantization", "nf4", "`quantization` is a section: write `{type: nf4}`"),
        ("method", "sft", "`method` is a section: write `{type: sft}`"),
        ("evaluation", "[perplexity]", "`evaluation.0` is a section: write `{type: perplexity}`"),
        ("export", "[merged]", "`export.0` is a section: write `{type: merged}`"),
        ("model", "some/model", "`model` must be a mapping of keys to values, not 'some/model'"),
        ("training", "fast", "`training` must be a mapping of keys to values, not 'fast'"),
        ("training", "[1]", "`training` must be a mapping of keys to values, not [1]"),
        ("hardware", "cpu", "`hardware` must be a mapping of keys to values, not 'cpu'"),
        ("data", "null", "`data` must be a mapping of keys to values, not None"),
    ],
)
def test_a_section_given_as_a_plain_value(message: Callable[..., str], section: str, value: str, expected: str) -> None:
    line = {"model": 1, "data": 2, "method": 3}.get(section, 4)
    assert message(**{section: value}) == f"recipe.yaml:{line}: {expected}"


@pytest.mark.parametrize(
    ("word", "lines"),
    [
        ("qlora", ["method: {type: sft}", "adapter: {type: lora}", "quantization: {type: nf4}"]),
        ("lora", ["method: {type: sft}", "adapter: {type: lora}"]),
        ("dora", ["method: {type: sft}", "adapter: {type: lora, use_dora: true}"]),
        ("full", ["method: {type: sft}"]),
    ],
)
def test_a_combination_as_method_shows_the_lines_to_write(
    message: Callable[..., str], tmp_path: Path, word: str, lines: list[str]
) -> None:
    for spelt in (word, f"{{type: {word}}}", f"{{type: {word.upper()}}}"):
        text = message(method=spelt)
        assert text.startswith("recipe.yaml:3: ")
        assert "is not a method: " in text
        assert [line.strip() for line in text.splitlines()[1:]] == lines
    # The lines that it shows are a valid recipe.
    path = tmp_path / "mended.yaml"
    path.write_text(f"model: {LINES['model']}\ndata: {LINES['data']}\n" + "\n".join(lines) + "\n", encoding="utf-8")
    assert load_recipe(path).method.type == "sft"


@pytest.mark.parametrize(
    ("section", "value", "expected"),
    [
        ("training", "{learning_rat: 1}", "unknown field 'learning_rat' of SFTConfig (did you mean 'learning_rate'?)"),
        ("training", "{lr: 1}", "unknown field 'lr' of SFTConfig (use 'learning_rate')"),
        ("training", "{learning_rate: fast}", "'learning_rate' takes float, not str 'fast'"),
        ("training", "{output_dir: x}", "'output_dir' is set by llmkit: the run folder is chosen with `llmkit run"),
        ("training", "{use_cpu: true}", "'use_cpu' is set by llmkit: use `hardware.device: cpu`"),
        ("adapter", "{type: lora, rr: 4}", "unknown field 'rr' of LoraConfig (did you mean 'r'?)"),
        ("adapter", "{type: lora, r: four}", "'r' takes int, not str 'four'"),
        ("adapter", "{type: lora, task_type: CAUSAL_LM}", "'task_type' is set by llmkit: the method decides it"),
        ("quantization", "{type: nf4, bnb_4bit_compute_dtyp: a}", "(did you mean 'bnb_4bit_compute_dtype'?)"),
        ("quantization", "{type: int8, load_in_8bit: true}", "'load_in_8bit' is set by llmkit"),
    ],
)
def test_a_library_field_is_refused_at_its_own_line(
    message: Callable[..., str], section: str, value: str, expected: str
) -> None:
    text = message(**{section: value.replace("{", "{\n  ").replace("type: lora, ", "type: lora,\n  ")})
    line = 6 if "type: lora" in value else 5
    assert text.startswith(f"recipe.yaml:{line}: `{section}.")
    assert expected in text


def test_all_problems_are_reported_at_once_each_with_its_line(message: Callable[..., str]) -> None:
    text = message(
        model="{name: 5}",
        data="{train: [{path: a, format: text, x: 1}, {format: text}]}",
        adapter="{type: lora, rr: 4, alpa: 2}",
        training="{sed: 1, learning_rate: fast}",
        evaluation="[{type: nothing}]",
        hardware="{device: gpu}",
        modle="{}",
    )
    keys = ["`model.name`", "'x'", "`data.train.1.path`", "`adapter.rr`", "`adapter.alpa`", "`training.sed`"]
    keys += ["`training.learning_rate`", "`evaluation.0.type`", "`hardware.device`", "'modle'"]
    places = {key: [line for line in text.splitlines() if key in line] for key in keys}
    assert {key: len(found) for key, found in places.items()} == dict.fromkeys(keys, 1)
    numbers = {key: int(found[0].split(":")[1]) for key, found in places.items()}
    assert list(numbers.values()) == [1, 2, 2, 4, 4, 5, 5, 6, 7, 8]
    assert len(text.splitlines()) == len(keys)


def test_training_alone_is_reported_once(message: Callable[..., str]) -> None:
    assert len(message(training="{sed: 1}").splitlines()) == 1
    assert len(message(training="{sed: 1}", hardware="{device: gpu}").splitlines()) == 2
    # Without a method nobody knows which fields there are.
    assert len(message(training="{sed: 1}", method=None).splitlines()) == 1


def test_an_empty_list_and_its_broken_items_are_one_problem(message: Callable[..., str]) -> None:
    assert message(data="{train: [{path: a, format: text, x: 1}]}").count("\n") == 0
