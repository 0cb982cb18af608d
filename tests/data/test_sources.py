from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmkit.data import sources
from llmkit.data.shapes import Shape
from llmkit.errors import DataError, LlmkitError, RecipeError, SetupError
from llmkit.recipe.recipe import Source

if TYPE_CHECKING:
    from collections.abc import Callable

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
BOM = b"\xef\xbb\xbf"


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


# --- readers ---


@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize("name", ["data/train.jsonl", "train.ndjson", "lines.json"])
def test_json_lines_keep_their_line_numbers(tmp_path: Path, name: str, start: bytes) -> None:
    path = write(tmp_path, name, start + '{"text": "é"}\r\n\n{"text": "a\u2028b"}'.encode())
    assert read(tmp_path, path) == [(f"{path}:1", {"text": "é"}), (f"{path}:3", {"text": "a\u2028b"})]


@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize(
    "wrap", ['[{"text": "a"},\n {"text": "b"}]', '{"v": 1, "rows": [{"text": "a"}, {"text": "b"}]}']
)
def test_json_documents_count_their_rows(tmp_path: Path, wrap: str, start: bytes) -> None:
    path = write(tmp_path, "train.json", start + wrap.encode())
    assert read(tmp_path, path) == [("train.json[0]", {"text": "a"}), ("train.json[1]", {"text": "b"})]


@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize(("name", "comma"), [("t.csv", ","), ("t.tsv", "\t")])
def test_csv_places_are_the_lines_on_which_rows_begin(tmp_path: Path, name: str, comma: str, start: bytes) -> None:
    rows = ["prompt,label", '"two\nlines",x', "", "é,"]
    path = write(tmp_path, name, start + "\n".join(row.replace(",", comma) for row in rows).encode())
    assert read(tmp_path, path) == [
        (f"{name}:2", {"prompt": "two\nlines", "label": "x"}),
        (f"{name}:5", {"prompt": "é", "label": ""}),
    ]


def test_csv_field_may_be_long(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "text\n" + "x" * 300_000)
    assert len(read(tmp_path, path)[0][1]["text"]) == 300_000


def test_parquet_counts_its_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, "t.parquet", [{"text": str(i)} for i in range(1500)])
    rows = read(tmp_path, path)
    assert len(rows) == 1500
    assert rows[1200] == ("t.parquet[1200]", {"text": "1200"})


def test_parquet_conversation_converts_without_its_nulls(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "name": "bot"}]
    path = write_parquet(tmp_path, "t.parquet", [{"messages": turns}])
    assert list(sources.read_examples(source(path, "messages"), tmp_path)) == [("t.parquet[0]", {"messages": turns})]


def test_folder_reads_its_own_files_in_order(tmp_path: Path) -> None:
    write(tmp_path, "d/b.jsonl", '{"text": "2"}')
    write(tmp_path, "d/a.csv", "text\n1")
    for ignored in ("d/README.md", "d/.hidden.jsonl", "d/test/c.jsonl"):
        write(tmp_path, ignored, '{"text": "no"}')
    assert read(tmp_path, "d/") == [("d/a.csv:2", {"text": "1"}), ("d/b.jsonl:1", {"text": "2"})]


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


# --- broken files ---


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("t.jsonl", '{"a": 1}\n{"a": }\n', "t.jsonl:2", "not JSON: Expecting value at column 7"),
        ("t.jsonl", '{"a": 1}\n\n{"a": "b\n', "t.jsonl:3", "not JSON: Unterminated string starting at at column 7"),
        ("t.jsonl", '{"a": 1}\n[1, 2]\n', "t.jsonl:2", "a row must be a JSON object, not [1, 2]"),
        ("t.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "t.jsonl:2", "not UTF-8: byte 0xe9 at column 8"),
        ("t.jsonl", "", "t.jsonl", "holds no rows"),
        ("t.jsonl", "\n \n", "t.jsonl", "holds no rows"),
        ("t.json", "", "t.json", "holds no rows"),
        ("t.json", "[]", "t.json", "holds no rows"),
        ("t.json", '[{"a": 1},\n {"a": }]', "t.json:2", "not JSON: Expecting value at column 8"),
        ("t.json", '{"a": 1}\n{"a": }', "t.json:2", "not JSON: Expecting value at column 7"),
        ("t.json", '[{"a": 1}, 7]', "t.json[1]", "a row must be a JSON object, not 7"),
        ("t.json", '{"a": 1}', "t.json", "not an object with 0 lists of objects"),
        ("t.json", '{"a": [{}], "b": [{}]}', "t.json", "not an object with 2 lists of objects"),
        ("t.json", "3", "t.json", "not a single value"),
        ("t.json", b'[{"a": "\n\xff"}]', "t.json:2", "not UTF-8: byte 0xff at column 1"),
        ("t.csv", "", "t.csv", "holds no rows"),
        ("t.csv", "a,b\n", "t.csv", "holds no rows"),
        ("t.csv", "a,b\n1,2\n1,2,3\n", "t.csv:3", "3 fields, but the header names 2 columns"),
        ("t.csv", "a,a\n1,2\n", "t.csv:1", "must name the columns, each once; it is 'a', 'a'"),
        ("t.csv", "a,\n1,2\n", "t.csv:1", "must name the columns, each once; it is 'a', ''"),
        ("t.csv", 'a,b\n1,2\n"1,2\n', "t.csv:3", "not CSV: unexpected end of data"),
        ("t.csv", b"a\n\xe9\n", "t.csv:2", "not UTF-8: byte 0xe9 at column 1"),
        ("t.parquet", "PAR0", "t.parquet", "not a readable parquet file"),
        ("t.xml", "<a/>", "t.xml", "can't read .xml; data files are .jsonl, .ndjson, .json, .csv, .tsv, .parquet"),
        ("d/README.md", "x", "d", "the folder holds no data file of its own"),
    ],
)
def test_broken_files_say_where(tmp_path: Path, name: str, content: str | bytes, where: str, what: str) -> None:
    write(tmp_path, name, content)
    error = refusal(lambda: read(tmp_path, name.removesuffix("/README.md")))
    assert error.where == where
    assert what in error.what


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
    assert call == {"path": "org/rows", "name": "main", "split": "train", "revision": "abc"}


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


def test_common_shape() -> None:
    talks = [source("a.jsonl", "messages"), source("b.jsonl", "alpaca")]
    assert sources.common_shape(talks) is Shape.CONVERSATION
    tasks = [source(f"reasoning_gym:{name}", "prompt", options={"size": 4}) for name in ("gcd", "lcm")]
    assert sources.common_shape(tasks) is Shape.PROMPT
    error = refusal(lambda: sources.common_shape([*talks, source("c.jsonl", "text")]), RecipeError)
    assert "a.jsonl is conversation (format messages)" in error.what
    assert "c.jsonl is text (format text)" in error.what


def examples(folder: Path, rows: list[dict[str, Any]], row_format: str) -> list[tuple[str, dict[str, Any]]]:
    path = write(folder, "t.jsonl", "\n".join(map(json.dumps, rows)))
    return list(sources.read_examples(source(path, row_format), folder))


def test_examples_are_converted(tmp_path: Path) -> None:
    assert examples(tmp_path, [{"text": "a", "id": 1}], "text") == [("t.jsonl:1", {"text": "a"})]


def test_rows_that_teach_nothing_are_left_out_and_told(tmp_path: Path) -> None:
    texts = [("a", "b"), ("a", "a"), ("a", ""), ("a", "c")]
    rows = [{"prompt": "x", "chosen": chosen, "rejected": rejected} for chosen, rejected in texts]
    path = write(tmp_path, "t.jsonl", "\n".join(map(json.dumps, rows)))
    told: list[str] = []
    kept = list(sources.read_examples(source(path, "preference"), tmp_path, told.append))
    assert [where for where, _ in kept] == ["t.jsonl:1", "t.jsonl:4"]
    assert told == ["the answers are equal", "an answer is empty"]
    assert [where for where, _ in examples(tmp_path, rows, "preference")] == ["t.jsonl:1", "t.jsonl:4"]


def test_a_broken_row_among_them_stops_the_reading(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "chosen": "a", "rejected": rejected} for rejected in ("a", 3)]
    error = refusal(lambda: examples(tmp_path, rows, "preference"))
    assert str(error) == "t.jsonl:2: column 'rejected' must be a string, not a number"


def test_unusable_row_says_where(tmp_path: Path) -> None:
    error = refusal(lambda: examples(tmp_path, [{"text": "a"}, {"text": ""}], "text"))
    assert str(error) == "t.jsonl:2: column 'text' is empty"


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        (
            {"instruction": "a", "output": "b"},
            "The source has `format: text`; the row's columns fit `format: alpaca`.",
        ),
        (
            {"prompt": "a", "completion": "b"},
            "The source has `format: text`; the row's columns fit `format: prompt_completion` or `format: prompt`.",
        ),
        ({"question": "a"}, "No format fits these columns; rename them. Formats and the columns they need: alpaca: "),
    ],
)
def test_first_row_of_another_format_names_what_fits(tmp_path: Path, row: dict[str, Any], remedy: str) -> None:
    error = refusal(lambda: examples(tmp_path, [row], "text"))
    assert error.where == "t.jsonl:1"
    assert (error.remedy or "").startswith(remedy)


def test_missing_column_further_down_is_a_plain_error(tmp_path: Path) -> None:
    error = refusal(lambda: examples(tmp_path, [{"text": "a"}, {"instruction": "a", "output": "b"}], "text"))
    assert (error.where, error.remedy) == ("t.jsonl:2", None)


@pytest.mark.parametrize(
    ("folder", "row_format", "count"),
    [("lf_identity", "alpaca", 91), ("lf_glaive_toolcall", "sharegpt", 600)],
)
def test_shared_folders(folder: str, row_format: str, count: int) -> None:
    if not SHARED.is_dir():
        pytest.skip("no shared data beside the repository")
    assert sum(1 for _ in sources.read_examples(source(folder, row_format), SHARED)) == count
