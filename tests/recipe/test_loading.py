"""YAML -> Document -> Recipe: places, `extends`, `--set`, and the text that a run keeps."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from llmkit.errors import RecipeError
from llmkit.recipe.loading import Document, load_recipe, read_document

SMALL = """model: {name: some/model}
data:
  train: [{path: made:orders, format: messages}]
method: {type: sft}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of recipe files in one folder."""

    def make(text: str | bytes, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


@pytest.fixture
def read(write: Callable[..., Path]) -> Callable[..., Document]:
    """Return a reader of recipe text with overrides."""
    return lambda text, *overrides: read_document(write(text), overrides)


@pytest.fixture
def refusal(write: Callable[..., Path]) -> Callable[..., str]:
    """Return a function that gives the message with which a text and its overrides are refused, without the folder."""

    def message(text: str | bytes, *overrides: str) -> str:
        path = write(text)
        with pytest.raises(RecipeError) as caught:
            read_document(path, overrides)
        return str(caught.value).replace(f"{path.parent}/", "")

    return message


# --- values and lines ------------------------------------------------------------------------------------------------


def test_origins_have_the_lines_of_block_and_flow_yaml(read: Callable[..., Document]) -> None:
    document = read(
        "# what it shows\n"
        "model:\n"
        "  name: x\n"
        "\n"
        "data: {train: [{path: a,\n"
        "                format: b}],\n"
        "       eval: 0.1}\n"
        "export:\n"
        "- type: merged\n"
        "- {type: adapter}\n"
    )
    lines = {
        (): "recipe.yaml:1",
        ("model",): "recipe.yaml:2",
        ("model", "name"): "recipe.yaml:3",
        ("data", "train"): "recipe.yaml:5",
        ("data", "train", 0, "path"): "recipe.yaml:5",
        ("data", "train", 0, "format"): "recipe.yaml:6",
        ("data", "eval"): "recipe.yaml:7",
        ("export", 0, "type"): "recipe.yaml:9",
        ("export", 1): "recipe.yaml:10",
        ("export", 1, "type"): "recipe.yaml:10",
    }
    assert {path: document.origin(path).rpartition("/")[2] for path in lines} == lines


def test_origin_of_an_absent_key_is_the_section_around_it(read: Callable[..., Document]) -> None:
    document = read("a: 1\nmodel:\n  name: x\n")
    assert document.origin(("model", "revision")).endswith("recipe.yaml:2")
    assert document.origin(("nothing", "at", "all")) == f"{document.path}:1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-6", 5e-6),
        ("1e-4", 1e-4),
        ("2.0e-4", 2e-4),
        ("1_000", 1000),
        ("0o17", 15),
        ("017", 17),
        ("0x10", 16),
        (".inf", float("inf")),
        ("yes", "yes"),
        ("on", "on"),
        ("12:30:45", "12:30:45"),
        ("2020-12-31", "2020-12-31"),
        ("2020-13-45", "2020-13-45"),
        ("=", "="),
        ("true", True),
        ("~", None),
        ("", None),
        ("'5e-6'", "5e-6"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(read: Callable[..., Document], text: str, value: Any) -> None:
    for found in (read(f"a: {text}\n").values["a"], read("a: 1\n", f"a={text}").values["a"]):
        assert found == value
        assert type(found) is type(value)


def test_anchors_and_merge_keys_are_resolved_to_plain_values(read: Callable[..., Document]) -> None:
    values = read("on: &x true\nboth: [*x, *x]\nbase: &b {r: 4}\nadapter:\n  <<: *b\n  s: 5e-6\n").values
    assert values == {"on": True, "both": [True, True], "base": {"r": 4}, "adapter": {"r": 4, "s": 5e-6}}
    assert {type(v) for v in (values["on"], *values["both"])} == {bool}
    assert (type(values), type(values["both"]), type(values["adapter"])) == (dict, list, dict)


def test_a_byte_order_mark_is_no_part_of_the_first_key(read: Callable[..., Document]) -> None:
    assert read(b"\xef\xbb\xbfa: 1\n").values == {"a": 1}


# --- what is no recipe -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("model: {name: a}\ntraining:\n  seed: 1\n  seed: 2\n", "recipe.yaml:4", "'seed' stands twice"),
        ("a: 1\na: 2\n", "recipe.yaml:2", "'a' stands twice"),
        ("a: {b: 1, b: 2}\n", "recipe.yaml:1", "'b' stands twice"),
        ("model:\n\tname: a\n", "recipe.yaml:2", "does not allow tabs"),
        ("a: 1\n  \tb: 2\n", "recipe.yaml:2", "does not allow tabs"),
        ("a: 1\nb: c: d\t# a tab, but not the culprit\n", "recipe.yaml:2", "mapping values are not allowed"),
        ("", "recipe.yaml", "the file is empty"),
        ("# only a comment\n", "recipe.yaml", "`llmkit recipes`"),
        ("- 1\n- 2\n", "recipe.yaml:1", "a recipe is a mapping"),
        ("just words\n", "recipe.yaml:1", "model, data and method"),
        ("a: [1\nb: 2\n", "recipe.yaml:2", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "recipe.yaml:2", "another document"),
        ("a: *nowhere\n", "recipe.yaml:1", "undefined alias"),
        ("a: 1\nb: !!bool x\n", "recipe.yaml:2", "not valid YAML"),
        ("a: 1\nb: \x01\n", "recipe.yaml:2", "#x0001"),
        ("a:\n  " + "[" * 1000, "recipe.yaml:2", "nested too deeply"),
        (b"a: 1\nb: caf\xe9\n", "recipe.yaml:2", "not UTF-8"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_line(
    refusal: Callable[..., str], text: str | bytes, where: str, words: str
) -> None:
    message = refusal(text)
    assert message.startswith(f"{where}: ")
    assert words in message


def test_a_missing_file_names_the_closest_one(write: Callable[..., Path]) -> None:
    path = write(SMALL, "lora_qwen.yaml")
    with pytest.raises(RecipeError, match=r"no such recipe: .*lora_qwn\.yaml \(did you mean 'lora_qwen\.yaml'\?\)"):
        load_recipe(path.with_name("lora_qwn.yaml"))
    with pytest.raises(RecipeError, match=r"no such recipe: .*zzz\.yaml\n`llmkit recipes`"):
        load_recipe(path.with_name("zzz.yaml"))


def test_what_is_no_file_is_refused(write: Callable[..., Path]) -> None:
    path = write(SMALL)
    with pytest.raises(RecipeError, match="is a folder, not a recipe file"):
        load_recipe(path.parent)
    with pytest.raises(RecipeError, match="Not a directory"):
        load_recipe(path / "below.yaml")
    with pytest.raises(RecipeError, match="File name too long"):
        load_recipe(path.with_name("x" * 300))


# --- extends ---------------------------------------------------------------------------------------------------------


def test_extends_merges_by_presence_and_remembers_whose_line_it_was(write: Callable[..., Path]) -> None:
    base = write("model: {name: a, revision: r}\nadapter: {type: lora, r: 4}\ntraining: {seed: 1}\n", "base.yaml")
    child = write("extends: base.yaml\nmodel: {name: b}\ntraining:\n  max_steps: 3\nadapter: null\n", "child.yaml")
    document = read_document(child)
    assert document.values == {
        "model": {"name": "b", "revision": "r"},
        "adapter": None,
        "training": {"seed": 1, "max_steps": 3},
    }
    assert document.origin(("model", "name")) == f"{child}:2"
    assert document.origin(("model", "revision")) == f"{base}:1"
    assert document.origin(("training", "seed")) == f"{base}:3"
    assert document.origin(("training", "max_steps")) == f"{child}:4"
    assert document.origin(("adapter",)) == f"{child}:5"
    assert document.origin(("adapter", "r")) == f"{child}:5"


def test_extends_replaces_lists_whole(write: Callable[..., Path]) -> None:
    write("export: [{type: merged, max_kl: 0.1}, {type: adapter}]\n", "base.yaml")
    child = write("extends: base.yaml\nexport: [{type: merged}]\n", "child.yaml")
    document = read_document(child)
    assert document.values == {"export": [{"type": "merged"}]}
    assert document.origin(("export", 1, "type")) == f"{child}:2"
    assert document.origin(("export", 0, "max_kl")) == f"{child}:2"


def test_extends_brings_a_section_back_that_the_parent_switched_off(write: Callable[..., Path]) -> None:
    write("adapter: null\n", "base.yaml")
    assert read_document(write("extends: base.yaml\nadapter: {r: 4}\n")).values == {"adapter": {"r": 4}}


@pytest.mark.parametrize(
    ("base", "child", "merged"),
    [
        ("{type: lora, r: 4}", "{type: other, s: 1}", {"type": "other", "s": 1}),
        ("{type: lora, r: 4}", "{type: lora, s: 1}", {"type": "lora", "r": 4, "s": 1}),
        ("{type: lora, r: 4}", "{s: 1}", {"type": "lora", "r": 4, "s": 1}),
        ("{r: 4}", "{type: lora}", {"r": 4, "type": "lora"}),
        ("{type: lora, r: 4}", "{}", {"type": "lora", "r": 4}),
    ],
)
def test_only_another_type_replaces_a_section(
    write: Callable[..., Path], base: str, child: str, merged: dict[str, Any]
) -> None:
    write(f"adapter: {base}\n", "base.yaml")
    document = read_document(write(f"extends: base.yaml\nadapter: {child}\n", "child.yaml"))
    assert document.values == {"adapter": merged}
    own = document.origin(("adapter", "r")).endswith("base.yaml:1")
    assert own == ("r" in merged)


def test_a_chain_of_three_starts_each_path_from_its_own_file(write: Callable[..., Path]) -> None:
    top = write("a: 1\nb: 1\nc: 1\n", "shared/deep/top.yaml")
    middle = write("extends: deep/top.yaml\nb: 2\nc: 2\n", "shared/middle.yaml")
    bottom = write("extends: shared/middle.yaml\nc: 3\n", "bottom.yaml")
    document = read_document(bottom)
    assert document.values == {"a": 1, "b": 2, "c": 3}
    assert [document.origin((k,)) for k in "abc"] == [f"{top}:1", f"{middle}:2", f"{bottom}:2"]
    assert document.folder == bottom.parent


def test_extends_takes_a_path_in_the_home_folder(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write("a: 1\n", "home/base.yaml")
    assert read_document(write("extends: ~/base.yaml\n", "work/child.yaml")).values == {"a": 1}


def test_a_circle_of_extends_is_refused_with_its_files(write: Callable[..., Path]) -> None:
    write("extends: b.yaml\n", "a.yaml")
    write("extends: c.yaml\n", "b.yaml")
    path = write("extends: a.yaml\n", "c.yaml")
    with pytest.raises(RecipeError, match=r"goes in a circle: c\.yaml -> a\.yaml -> b\.yaml -> c\.yaml"):
        read_document(path)
    with pytest.raises(RecipeError, match=r"goes in a circle: me\.yaml -> me\.yaml"):
        read_document(write("extends: me.yaml\n", "me.yaml"))


def test_a_missing_parent_is_refused_at_its_line(write: Callable[..., Path], refusal: Callable[..., str]) -> None:
    write("a: 1\n", "base.yaml")
    message = refusal("a: 1\nextends: bse.yaml\n")
    assert message == "recipe.yaml:2: no such recipe: bse.yaml (did you mean 'base.yaml'?)"
    assert refusal("extends: [base.yaml]\n") == "recipe.yaml:1: `extends` takes one path of a recipe file"


def test_a_problem_in_a_parent_names_the_parent(write: Callable[..., Path]) -> None:
    write(SMALL + "training:\n  sed: 1\n", "base.yaml")
    with pytest.raises(RecipeError, match=r"^\S*/base\.yaml:6: .*'sed'.*did you mean 'seed'"):
        load_recipe(write("extends: base.yaml\n", "child.yaml"))


# --- --set -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("a=2", ("a",), 2),
        ("new.deep.key=x", ("new", "deep", "key"), "x"),
        ("d.x=null", ("d", "x"), None),
        ("d.x=", ("d", "x"), None),
        ("d.x=[1, {y: 5e-6}]", ("d", "x"), [1, {"y": 5e-6}]),
        ("d.x={y: [1]}", ("d", "x"), {"y": [1]}),
        ("d.x=a=b", ("d", "x"), "a=b"),
        ("l.0.k=9", ("l", 0, "k"), 9),
        ("l.1={k: 2}", ("l", 1), {"k": 2}),
        ("nothing.k=1", ("nothing", "k"), 1),
        ("d.5=1", ("d", "5"), 1),
        (" a =2", ("a",), 2),
    ],
)
def test_an_override_sets_one_value_and_says_so(
    read: Callable[..., Document], override: str, path: tuple[str | int, ...], value: Any
) -> None:
    before = {"a": 1, "d": {"x": 1, "z": 1}, "l": [{"k": 1}], "nothing": None}
    document = read("a: 1\nd: {x: 1, z: 1}\nl: [{k: 1}]\nnothing: null\n", override)
    found: Any = document.values
    for part in path:
        found = found[part]
    assert found == value
    assert document.origin(path) == f"--set {override}"
    assert document.origin((*path, "below")) == f"--set {override}"
    assert document.values["d"]["z"] == 1
    untouched = {key for key in before if key != path[0]}
    assert {key: document.values[key] for key in untouched} == {key: before[key] for key in untouched}
    assert document.origin(("d", "z")).endswith("recipe.yaml:2")


def test_overrides_are_applied_in_order_and_can_append(read: Callable[..., Document]) -> None:
    document = read("l: [1]\n", "l.1=2", "l.2=3", "l.0=0", "m={n: 1}", "m.n=2")
    assert document.values == {"l": [0, 2, 3], "m": {"n": 2}}
    assert document.origin(("l", 2)) == "--set l.2=3"
    assert document.origin(("m", "n")) == "--set m.n=2"
    assert document.origin(("m",)) == "--set m={n: 1}"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("a", "--set takes key=value, e.g. --set training.learning_rate=1e-4, not 'a'"),
        ("=1", "--set takes key=value"),
        (" =1", "--set takes key=value"),
        ("a=[", "--set a=[: the value is not valid YAML: '['"),
        ("a={b: 1, b: 2}", "not valid YAML"),
        ("a=!!int x", "not valid YAML"),
        ("a.b=1", "`a` is a single value and has no 'b' in it"),
        ("a.b.c=1", "`a` is a single value"),
        ("l.3=1", "`l` is a list of 1; '3' is not one of its places"),
        ("l.1.k=1", "`l` is a list of 1; '1' is not one of its places"),
        ("l.-1=1", "'-1' is not one of its places"),
        ("l.k=1", "'k' is not one of its places"),
        ("l.²=1", "'²' is not one of its places"),
        ("l.0.k.m=1", "`l.0.k` is a single value and has no 'm' in it"),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(refusal: Callable[..., str], override: str, words: str) -> None:
    assert words in refusal("a: 1\nl: [{k: 1}]\n", override)


def test_a_problem_in_an_override_names_the_override(write: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"^--set training\.sed=1: .*did you mean 'seed'"):
        load_recipe(write(SMALL), ["training.sed=1"])


# --- the text --------------------------------------------------------------------------------------------------------


def test_a_recipe_without_parents_and_overrides_keeps_its_own_text(write: Callable[..., Path]) -> None:
    text = "# what it shows\n" + SMALL + "# the end\n"
    path = write(text)
    assert read_document(path).text() == text
    assert load_recipe(path).written == text


@pytest.mark.parametrize("base", ["a: 1\n", "{}\n", "a: 2\nb: 2\n"])
def test_the_text_of_a_merged_recipe_stands_on_its_own(write: Callable[..., Path], base: str) -> None:
    write(base, "base.yaml")
    document = read_document(write("extends: base.yaml\na: 2\nb: 2\n", "child.yaml"))
    assert "extends" not in document.text()
    again = read_document(write(document.text(), "elsewhere/recipe.yaml"))
    assert again.values == document.values == {"a": 2, "b": 2}


def test_loading_the_text_of_a_recipe_gives_the_same_recipe(write: Callable[..., Path]) -> None:
    write(SMALL + "training: {learning_rate: 5e-6, seed: 1}\nadapter: {type: lora, r: 4}\n", "base.yaml")
    child = write("extends: base.yaml\nevaluation: [{type: perplexity, limit: 3}]\ndata: {eval: 0.5}\n", "child.yaml")
    for overrides in ([], ["adapter.lora_dropout=0.1", "training.seed=2"], ["adapter=null"]):
        recipe = load_recipe(child, overrides)
        again = load_recipe(write(recipe.written, "run.yaml"))
        assert again.model_dump() == recipe.model_dump()
        assert again.training.kwargs() == recipe.training.kwargs()
        assert load_recipe(write(again.written, "run-2.yaml")).written == again.written


def test_a_long_prompt_survives_a_merge(write: Callable[..., Path], read: Callable[..., Document]) -> None:
    prompt = "\t" + '"Answer\tin JSON", with the keys: ' * 8 + "\n\n  # and nothing else"
    text = Document(write("a: 1\n"), {"a": prompt}, {}).text()
    assert read(text).values == {"a": prompt}


def test_relative_paths_start_from_the_file_that_is_run(write: Callable[..., Path]) -> None:
    write(SMALL, "shared/base.yaml")
    child = write("extends: shared/base.yaml\n", "mine/../child.yaml")
    assert load_recipe(child).folder == child.resolve().parent


# --- properties ------------------------------------------------------------------------------------------------------

# What YAML can hold: printable characters, no lone surrogates.
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co"), exclude_characters="\ufeff"), max_size=12
)
# Longer than a line, with all that makes a YAML writer quote and fold.
prose = st.lists(st.sampled_from(["a b", " ", "\t", "\n", ": ", "'", '"', " #", "\\", "é"]), min_size=50, max_size=90)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False)
    | texts
    | prose.map("".join)
    | st.sampled_from(["yes", "5e-6", "null", "~", "1_0", "0o7", "- a", "# b", "a: b", "2020-01-01", "<<", "*x", "%"])
)
names = texts.filter(bool) | st.sampled_from(["model", "type", "r", "1", "true", "null", "a.b"])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))
documents = st.dictionaries(names.filter(lambda name: name != "extends"), values, min_size=1, max_size=3)


def _refused(call: Callable[[], object]) -> str | None:
    """Return the message of a RecipeError, None if there is none; anything else passes through."""
    try:
        call()
    except RecipeError as error:
        return str(error)
    return None


def _dump(value: Any) -> str:
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = 2**31
    yaml.dump(value, stream)
    return stream.getvalue()


@settings(max_examples=80, deadline=None)
@given(documents)
def test_any_plain_document_reads_back_as_it_was_written(document: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(_dump(document), encoding="utf-8", newline="")
        read = read_document(path)
        assert read.values == document
        # And what is kept of a changed one is the changed one.
        changed = read_document(path, ["added.by.set=[1, null]"])
        path.write_text(changed.text(), encoding="utf-8", newline="")
        assert read_document(path).values == {**document, "added": {"by": {"set": [1, None]}}}


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.sampled_from(["model", "l", "a", "0", "1", "2", "-1", "", "type", "²", "x y"]) | texts, max_size=4),
    texts | st.sampled_from(["[", "{a: 1}", "[1]", "!!int x", "&a *a", "? ", "|", "2020-99-99", "!x y", "'", "null"]),
    st.booleans(),
)
def test_no_override_raises_anything_but_a_recipe_error(keys: list[str], value: str, equals: bool) -> None:
    override = ".".join(keys) + ("=" if equals else "") + value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(SMALL + "l: [1, {a: 1}]\n", encoding="utf-8")
        said = _refused(lambda: read_document(path, [override]))
        if said is None:
            assert f"--set {override}" in read_document(path, [override]).origins.values()
        else:
            assert "--set" in said


@settings(max_examples=120, deadline=None)
@given(st.text(max_size=30) | st.text("[]{}:,-&*!|>'\"#%@?\t\n a1.", max_size=30))
def test_no_text_raises_anything_but_a_recipe_error(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
        said = _refused(lambda: load_recipe(path))
        assert said is not None, "no such text is a whole recipe"
        assert str(path) in said
