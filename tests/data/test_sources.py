from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmkit.data import sources
from llmkit.data.shapes import RowError, Shape, UnlearnableError
from llmkit.errors import DataError, LlmkitError, RecipeError, SetupError
from llmkit.recipe.recipe import Source

if TYPE_CHECKING:
    from collections.abc import Callable


def source(path: str, row_format: str = "text", **keys: Any) -> Source:
    return Source(path=path, format=row_format, **keys)


def read(folder: Path, path: str, **keys: Any) -> list[tuple[str, dict[str, Any]]]:
    return list(sources.read_rows(source(path, **keys), folder))


def write(folder: Path, name: str, content: str | bytes) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def write_parquet(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    arrow = pytest.importorskip("pyarrow")
    arrow.parquet = pytest.importorskip("pyarrow.parquet")
    arrow.parquet.write_table(arrow.Table.from_pylist(rows), folder / name)
    return name


def refusal(action: Callable[[], object], error: type[LlmkitError] = DataError) -> LlmkitError:
    with pytest.raises(error) as caught:
        action()
    return caught.value


# --- where rows come from ---


def test_parquet_conversation_converts_without_its_nulls(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "name": "bot"}]
    path = write_parquet(tmp_path, "t.parquet", [{"messages": turns}])
    assert list(sources.read_examples(source(path, "messages"), tmp_path)) == [("t.parquet[0]", {"messages": turns})]


def test_max_rows_stops_before_what_follows(tmp_path: Path) -> None:
    path = write(tmp_path, "t.jsonl", '{"text": "a"}\n{"text": "b"}\nbroken')
    assert len(read(tmp_path, path, max_rows=2)) == 2


def test_absolute_and_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "t.jsonl", '{"text": "a"}')
    monkeypatch.setenv("HOME", str(tmp_path))
    elsewhere = tmp_path / "recipes"
    absolute = str(tmp_path / "t.jsonl")
    assert read(elsewhere, absolute) == [(f"{absolute}:1", {"text": "a"})]
    assert read(elsewhere, "~/t.jsonl") == [("~/t.jsonl:1", {"text": "a"})]


def test_made_rows() -> None:
    rows = read(Path(), "made:orders", row_format="messages", split="test", max_rows=4)
    assert [where for where, _ in rows] == [f"made:orders[{i}]" for i in range(4)]
    assert read(Path(), "made:orders", row_format="messages", max_rows=1) != rows[:1]


def test_package_file_is_read_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "some_rows/__init__.py", "raise RuntimeError('imported')")
    write(tmp_path, "some_rows/data/t.jsonl", '{"text": "a"}')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert read(Path(), "package:some-rows/data/t.jsonl") == [("package:some-rows/data/t.jsonl:1", {"text": "a"})]
    assert "some_rows" not in sys.modules
    error = refusal(lambda: read(Path(), "package:some_rows/data/tt.jsonl"))
    assert error.what == "no such file (did you mean 't.jsonl'?)"


# --- sources that are not there ---


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "data/train.jsonl", "{}")
    for action in (sources.check_source, sources.read_rows):
        error = refusal(lambda act=action: act(source("data/trian.jsonl"), tmp_path))  # type: ignore[misc]
        assert error.where == "data/trian.jsonl"
        assert error.what == "no such file (did you mean 'train.jsonl'?)"
    error = refusal(lambda: sources.check_source(source("./data2/train"), tmp_path))
    assert error.what == "no such file, and its folder isn't there either"
    refusal(lambda: sources.check_source(source("a/b/c"), tmp_path))


@pytest.mark.parametrize(
    ("path", "suffix", "meant"),
    [
        ("chat.jsnol", ".jsnol", ".jsonl"),
        ("chat.cvs", ".cvs", ".csv"),
        ("rows.parqet", ".parqet", ".parquet"),
        ("data/chat.jsnol", ".jsnol", ".jsonl"),
    ],
)
def test_a_misspelt_suffix_is_no_hub_id(tmp_path: Path, path: str, suffix: str, meant: str) -> None:
    write(tmp_path, "data/chat.jsonl", "{}")
    error = refusal(lambda: sources.check_source(source(path), tmp_path))
    assert error.what == f"no such file, and {suffix!r} is no suffix of a data file (did you mean {meant!r}?)"


@pytest.mark.parametrize("path", ["org/chat.jsnol", "a.b.jsnol", "glue.v2", "squad"])
def test_a_hub_id_stays_one(tmp_path: Path, path: str) -> None:
    assert sources.local_path(source(path), tmp_path) is None


def test_only_the_recipe_folder_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "here/rows/t.jsonl", "{}")
    monkeypatch.chdir(tmp_path / "here")
    error = refusal(lambda: sources.check_source(source("rows"), tmp_path))
    assert "there is one in the current directory" in error.what


@pytest.mark.parametrize(
    ("path", "keys", "error", "text"),
    [
        ("made:order", {}, DataError, "made:order: llmkit makes no data set 'order' (did you mean 'orders'?)\nMade"),
        ("made:orders", {"split": "eval"}, DataError, "made:orders: no split 'eval'\nSplits: train, test."),
        ("made:orders", {"revision": "x"}, RecipeError, "made:orders: a made data set has no `revision`"),
        ("made:orders", {"options": {"size": 3}}, RecipeError, "made:orders: a made data set has no `options`"),
        ("t.jsonl", {"split": "train"}, RecipeError, "t.jsonl: a local file has no `split`\nLeave `split` out."),
        ("t.jsonl", {"options": {"size": 3}}, RecipeError, "t.jsonl: a local file has no `options`\nLeave `options`"),
        ("org/rows", {"options": {"size": 3}}, RecipeError, "org/rows: a hub data set has no `options`"),
        ("reasoning_gym:chain_sum", {"revision": "x"}, RecipeError, "a reasoning_gym task has no `revision`"),
        ("t.xml", {}, DataError, "t.xml: can't read .xml"),
        ("t.jsonl", {"header": ("a",)}, RecipeError, "t.jsonl: `header` names the columns of .csv, .tsv, .txt files"),
        ("made:orders", {"header": ("a",)}, RecipeError, "made:orders: `header` names the columns of .csv"),
        ("org/rows", {"header": ("a",)}, RecipeError, "org/rows: `header` names the columns of .csv"),
        ("t.jsonl", {"columns": {"txet": "a"}}, RecipeError, "'text' has no column 'txet' (did you mean 'text'?)\nIts"),
        ("org/rows", {"columns": {"text": "{{ a"}}, RecipeError, "org/rows: `columns.text` is no Jinja: "),
        ("t.jsonl", {"python": "gone.py:f"}, RecipeError, "gone.py: `python`: the file can't be read"),
        ("package:no-such-rows/t.jsonl", {}, SetupError, "is installed\npip install no-such-rows"),
        ("package:a.b/t.jsonl", {}, SetupError, "no Python package 'a.b' is installed"),
        ("package:json", {}, DataError, "must be written package:NAME/path/of/file"),
        ("package:json/t.jsonl", {}, DataError, "no such file"),
        ("package:this/t.jsonl", {}, DataError, "is a single Python module and holds no files"),
    ],
)
def test_check_source_refuses(
    tmp_path: Path, path: str, keys: dict[str, Any], error: type[LlmkitError], text: str
) -> None:
    write(tmp_path, "t.jsonl", "{}")
    write(tmp_path, "t.xml", "<a/>")
    assert text in str(refusal(lambda: sources.check_source(source(path, **keys), tmp_path), error))


@pytest.mark.parametrize("path", ["t.jsonl", "made:orders", "reasoning_gym:chain_sum", "gsm8k", "openai/gsm8k", "made"])
def test_check_source_passes(tmp_path: Path, path: str) -> None:
    write(tmp_path, "t.jsonl", "not read")
    sources.check_source(source(path), tmp_path)


def test_only_what_a_generator_makes_is_generated() -> None:
    paths = ("made:orders", "reasoning_gym:gcd", "made", "t.jsonl", "package:a/t.jsonl", "org/rows")
    assert [sources.is_generated(source(path)) for path in paths] == [True, True, False, False, False, False]


# --- the hub ---


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], dict[str, Any]]:
    """Let `datasets.load_dataset` return or raise what it is given; returns the arguments of the call."""
    datasets = pytest.importorskip("datasets")

    def prepare(result: object) -> dict[str, Any]:
        call: dict[str, Any] = {}

        def load_dataset(path: str, **keys: Any) -> object:
            call.update(keys, path=path)
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return call

    return prepare


def test_hub_rows(tmp_path: Path, load: Callable[[object], dict[str, Any]]) -> None:
    call = load([{"text": "a"}, {"text": "b"}])
    rows = read(tmp_path, "org/rows", name="main", revision="abc", max_rows=1)
    assert rows == [("org/rows/train[0]", {"text": "a"})]
    assert call == {"path": "org/rows", "name": "main", "split": "train", "revision": "abc", "streaming": False}


def test_a_hub_stream_may_fail_while_it_is_read(tmp_path: Path, load: Callable[[object], dict[str, Any]]) -> None:
    def stream() -> Any:
        yield {"text": "a"}
        raise ConnectionError("gone")

    call = load(stream())
    rows = sources.read_rows(source("org/rows", streaming=True), tmp_path)
    assert next(rows) == ("org/rows/train[0]", {"text": "a"})
    assert call["streaming"] is True
    error = refusal(lambda: next(rows), SetupError)
    assert error.where == "org/rows (split train, revision main)"


def test_offline_hub_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = refusal(lambda: read(tmp_path, "org/no-such-rows", split="test", revision="abc"), SetupError)
    assert error.where == "org/no-such-rows (split test, revision abc)"
    assert error.what == "neither a local file nor a cached data set, and HF_HUB_OFFLINE is set"
    for part in ("HF_HOME", constants.HF_HUB_CACHE, "unset HF_HUB_OFFLINE", "point `path` to a local .jsonl"):
        assert part in (error.remedy or "")


def test_unreachable_hub(
    tmp_path: Path, load: Callable[[object], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # It answers when it is asked first, and not any more when the rows are loaded.
    monkeypatch.setattr("llmkit.data.hub.require_hub", lambda what: None)
    load(ConnectionError("Couldn't reach 'org/rows' on the Hub"))
    error = refusal(lambda: read(tmp_path, "org/rows", name="main"), SetupError)
    assert error.where == "org/rows (name main, split train, revision main)"
    assert "the hub can't be reached: Couldn't reach" in error.what
    assert "Either go online" in (error.remedy or "")


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (
            ValueError("Unknown split \"tets\". Should be one of ['train', 'test']."),
            "no split 'tets' (did you mean 'test'?)\nSplits: train, test.",
        ),
        (ValueError("Bad split: tets. Available splits: ['train']"), "no split 'tets'\nSplits: train."),
        (ValueError("Config name is missing."), "Config name is missing.\n`name` chooses"),
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), "can't be loaded: Dataset scripts"),
    ],
)
def test_hub_refusals(tmp_path: Path, load: Callable[[object], dict[str, Any]], raised: Exception, text: str) -> None:
    load(raised)
    error = refusal(lambda: read(tmp_path, "org/rows", split="tets"))
    assert text in str(error)
    assert error.where == "org/rows"


def test_unknown_hub_id(tmp_path: Path, load: Callable[[object], dict[str, Any]]) -> None:
    exceptions = pytest.importorskip("datasets.exceptions")
    load(exceptions.DatasetNotFoundError("Dataset 'org/rows' doesn't exist on the Hub or cannot be accessed."))
    error = refusal(lambda: read(tmp_path, "org/rows"), SetupError)
    assert "not found on the hub: Dataset 'org/rows' doesn't exist" in str(error)


# --- formats ---


def test_formats_of_every_name() -> None:
    names = (
        *("alpaca", "messages", "preference", "prompt", "prompt_completion"),
        *("question", "scored", "sharegpt", "text", "unpaired"),
    )
    assert [sources.load_format(name).name for name in names] == list(names)
    assert {sources.load_format(name).shape for name in names} == set(Shape)
    error = refusal(lambda: sources.load_format("sharegtp"), RecipeError)
    assert error.what == "no format 'sharegtp' (did you mean 'sharegpt'?)"


def test_common_shape_of_named_formats_needs_no_rows() -> None:
    talks = [source("a.jsonl", "messages"), source("b.jsonl", "alpaca")]
    assert sources.common_shape(talks, Path(), read=False) is Shape.CONVERSATION
    assert sources.common_shape([*talks, source("c.jsonl", "auto")], Path(), read=False) is Shape.CONVERSATION
    assert sources.common_shape([source("c.jsonl", "auto")], Path(), read=False) is None
    tasks = [source(f"reasoning_gym:{name}", "prompt", options={"size": 4}) for name in ("gcd", "lcm")]
    assert sources.common_shape(tasks, Path(), read=True) is Shape.PROMPT
    error = refusal(lambda: sources.common_shape([*talks, source("c.jsonl", "text")], Path(), read=False), RecipeError)
    assert "a.jsonl is conversation (format messages)" in error.what
    assert "c.jsonl is text (format text)" in error.what
    refusal(lambda: sources.common_shape([], Path(), read=False), RecipeError)


def test_common_shape_of_recognised_formats(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", '{"instruction": "x", "output": "y"}')
    write(tmp_path, "b.jsonl", '{"text": "x", "url": "y"}')
    talks = [source("a.jsonl", "auto"), source("made:orders", "auto")]
    assert sources.common_shape(talks, tmp_path, read=True) is Shape.CONVERSATION
    error = refusal(lambda: sources.common_shape([*talks, source("b.jsonl", "auto")], tmp_path, read=True), RecipeError)
    because = "because column `text` is a string; not read: `url`"
    assert f"b.jsonl is text (format text, {because})" in error.what


def test_format_of(tmp_path: Path) -> None:
    path = write(tmp_path, "t.jsonl", 'broken\n{"text": "a"}')
    assert sources.known_format(source(path, "auto")) is None
    assert sources.known_format(source(path, "text")) == sources.load_format("text")
    assert sources.format_of(source(path, "auto"), tmp_path) == sources.Chosen(
        sources.load_format("text"), "column `text` is a string"
    )
    assert sources.format_of(source("gone.jsonl", "text"), tmp_path).reason == "the recipe says `format: text`"


def test_the_default_is_auto(tmp_path: Path) -> None:
    path = write(tmp_path, "t.jsonl", '{"text": "a"}')
    assert list(sources.read_examples(Source(path=path), tmp_path)) == [("t.jsonl:1", {"text": "a"})]


Placed = list[tuple[str, dict[str, Any] | str]]


def examples(folder: Path, rows: list[Any], row_format: str, **keys: Any) -> Placed:
    """Return what `read_examples` yields; a RowError is its text, one that teaches nothing in brackets."""
    path = write(folder, "t.jsonl", "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    placed = sources.read_examples(source(path, row_format, **keys), folder)
    return [(where, _told(row)) for where, row in placed]


def _told(row: dict[str, Any] | RowError) -> dict[str, Any] | str:
    if not isinstance(row, RowError):
        return row
    assert row.__traceback__ is None, "an error that is kept holds the frames it passed through"
    return f"({row})" if isinstance(row, UnlearnableError) else str(row)


def test_examples_are_converted(tmp_path: Path) -> None:
    assert examples(tmp_path, [{"text": "a", "id": 1}], "text") == [("t.jsonl:1", {"text": "a"})]


def test_every_row_has_its_place_and_its_fate(tmp_path: Path) -> None:
    pair = {"prompt": "x", "chosen": "a", "rejected": "b"}
    rows = [
        pair,
        pair | {"rejected": "a"},
        "broken",
        pair | {"chosen": ""},
        pair | {"rejected": 3},
        {"chosen": "a"},
        pair,
    ]
    for row_format in ("preference", "auto"):
        assert examples(tmp_path, rows, row_format) == [
            ("t.jsonl:1", pair),
            ("t.jsonl:2", "(the answers are equal)"),
            ("t.jsonl:3", "not JSON: Expecting value at column 1"),
            ("t.jsonl:4", "(an answer is empty)"),
            ("t.jsonl:5", "column 'rejected' must be a string, not a number"),
            ("t.jsonl:6", "no column 'rejected'; the row's columns: chosen"),
            ("t.jsonl:7", pair),
        ]


def test_recognition_reads_no_row_twice_and_loses_none(tmp_path: Path) -> None:
    rows = [{"text": str(i)} for i in range(50)]
    assert [row for _, row in examples(tmp_path, rows, "auto")] == rows
    assert len(examples(tmp_path, rows, "auto", max_rows=7)) == 7


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        (
            {"instruction": "a", "output": "b"},
            "The source has `format: text`; the row fits `format: alpaca`.",
        ),
        (
            {"prompt": "a", "completion": "b"},
            "The source has `format: text`; the row fits `format: prompt_completion` or `format: prompt`.",
        ),
        (
            {"question": "a"},
            "Say which column is which, e.g. `columns: {text: question}`.\nFormats and the columns they",
        ),
    ],
)
@pytest.mark.parametrize("before", [[], ["broken"]])
def test_first_row_of_another_format_names_what_fits(
    tmp_path: Path, row: dict[str, Any], remedy: str, before: list[Any]
) -> None:
    error = refusal(lambda: examples(tmp_path, [*before, row], "text"))
    assert error.where == f"t.jsonl:{len(before) + 1}"
    assert (error.remedy or "").startswith(remedy)


def test_missing_column_further_down_is_a_broken_row(tmp_path: Path) -> None:
    rows = examples(tmp_path, [{"text": "a"}, {"instruction": "a", "output": "b"}], "text")
    assert rows[1] == ("t.jsonl:2", "no column 'text'; the row's columns: instruction, output")


def test_a_source_of_broken_rows_alone_is_read_to_its_end(tmp_path: Path) -> None:
    assert len(examples(tmp_path, ["broken", "1", "{"], "text")) == 3
    error = refusal(lambda: examples(tmp_path, ["broken", "1", "{"], "auto"))
    assert error.what == "none of the first 3 rows can be read; this one: not JSON: Expecting value at column 1"
    assert error.where == "t.jsonl:1"


def test_recognition_looks_behind_many_broken_rows(tmp_path: Path) -> None:
    rows = examples(tmp_path, [*["broken"] * 100, {"text": "a"}], "auto")
    assert rows[-1] == ("t.jsonl:101", {"text": "a"})


def test_zeros_that_a_crash_left_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path, "t.txt", b"one\n\n" + b"\0" * 4096 + b"\n\ntwo")
    fates = [row for _, row in sources.read_examples(Source(path=path), tmp_path)]
    assert [str(row) if isinstance(row, RowError) else row["text"] for row in fates] == [
        "one",
        "column 'text' is empty",
        "two",
    ]
