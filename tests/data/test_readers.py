from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from llmkit.data import readers
from llmkit.data.readers import DataFile
from llmkit.data.shapes import RowError
from llmkit.errors import DataError

BOM = b"\xef\xbb\xbf"

Rows = list[tuple[str, dict[str, Any]]]


def write(folder: Path, name: str, content: str | bytes) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def read(folder: Path, name: str, *header: str) -> Rows:
    """Return the rows of a file or folder; a broken one is the text of its error."""
    path = folder / name
    placed = (
        readers.read_folder(path, name, header) if path.is_dir() else readers.read_file(DataFile(path, name, header))
    )
    return [(where, str(row) if isinstance(row, RowError) else row) for where, row in placed]  # type: ignore[misc]


def write_parquet(folder: Path, name: str, table: Any) -> str:
    pytest.importorskip("pyarrow.parquet").write_table(table, folder / name)
    return name


# --- rows and their places ---


@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize("name", ["data/train.jsonl", "train.ndjson", "lines.json"])
def test_json_lines_keep_their_line_numbers(tmp_path: Path, name: str, start: bytes) -> None:
    path = write(tmp_path, name, start + '{"text": "é"}\r\n\n {"text": "a\u2028b"} '.encode())
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


def test_a_table_without_a_header_takes_the_names_given(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", '"1, 2",B\n3,A\n4\n')
    assert read(tmp_path, path, "question", "answer") == [
        ("t.csv:1", {"question": "1, 2", "answer": "B"}),
        ("t.csv:2", {"question": "3", "answer": "A"}),
        ("t.csv:3", "1 fields, but the header names 2 columns"),
    ]


def test_plain_text_is_read_by_paragraphs(tmp_path: Path) -> None:
    path = write(tmp_path, "t.txt", BOM + b"\n\nA:\r\n  One.\n \t\nB:\tTwo.\n\n\n\n")
    assert read(tmp_path, path) == [("t.txt:3", {"text": "A:\n  One."}), ("t.txt:6", {"text": "B:\tTwo."})]


def test_plain_text_with_column_names_is_read_by_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "t.txt", 'Hi.\t"Salut".\tx\n\nRun!\tCours !\n')
    assert read(tmp_path, path, "en", "fr", "by") == [
        ("t.txt:1", {"en": "Hi.", "fr": '"Salut".', "by": "x"}),
        ("t.txt:3", "2 fields, but the header names 3 columns"),
    ]
    assert [row for _, row in read(tmp_path, path, "text")][1:] == ["2 fields, but the header names 1 columns"]


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("t.jsonl.gz", '{"a": "é"}\n', [("t.jsonl.gz:1", {"a": "é"})]),
        ("t.JSON.GZ", '[{"a": 1}]', [("t.JSON.GZ[0]", {"a": 1})]),
        ("t.csv.gz", "a\n1\n", [("t.csv.gz:2", {"a": "1"})]),
        ("t.txt.gz", "one\n\ntwo", [("t.txt.gz:1", {"text": "one"}), ("t.txt.gz:3", {"text": "two"})]),
    ],
)
def test_gzipped_files(tmp_path: Path, name: str, text: str, rows: Rows) -> None:
    assert read(tmp_path, write(tmp_path, name, gzip.compress(text.encode()))) == rows


def test_parquet_counts_its_rows(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    path = write_parquet(tmp_path, "t.parquet", arrow.Table.from_pylist([{"text": str(i)} for i in range(1500)]))
    rows = read(tmp_path, path)
    assert len(rows) == 1500
    assert rows[1200] == ("t.parquet[1200]", {"text": "1200"})


def test_folder_reads_its_own_files_in_order(tmp_path: Path) -> None:
    write(tmp_path, "d/b.jsonl", '{"text": "2"}')
    write(tmp_path, "d/a.csv", "text\n1")
    for ignored in ("d/README.md", "d/.hidden.jsonl", "d/test/c.jsonl", "d/LICENSE.txt"):
        write(tmp_path, ignored, '{"text": "no"}')
    assert read(tmp_path, "d/") == [("d/a.csv:2", {"text": "1"}), ("d/b.jsonl:1", {"text": "2"})]


def test_folder_of_plain_text_alone_is_read(tmp_path: Path) -> None:
    write(tmp_path, "d/a.txt", "one")
    write(tmp_path, "d/README.md", "no")
    assert read(tmp_path, "d") == [("d/a.txt:1", {"text": "one"})]


# --- a broken row is told, and reading goes on ---


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": }', "not JSON: Expecting value at column 7"),
        (b'{"a": "b', "not JSON: Unterminated string starting at at column 7"),
        (b'{"a": 1} {"a": 2}', "not JSON: Extra data at column 10"),
        (b'{"a": 1}}', "not JSON: Extra data at column 9"),
        (b"[1, 2]", "a row must be a JSON object, not [1, 2]"),
        (b'"text"', 'a row must be a JSON object, not "text"'),
        (b"null", "a row must be a JSON object, not null"),
        (b'"\\ud800"', 'a row must be a JSON object, not "\\ud800"'),
        (b'{"a": "\xe9"}', "not UTF-8: byte 0xe9 at column 8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8: byte 0xed at column 8"),  # a surrogate as bytes
        (b"\0\0\0\0", "not JSON: Expecting value at column 1"),
        (b'{"a": ' + b"[" * 100_000, "not readable JSON: maximum recursion depth exceeded"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not readable JSON: Exceeds the limit (4300 digits)"),
        (rb'{"a": "x\ud800y"}', r"column 'a' has a lone surrogate (\ud800), which is no character"),
        (rb'{"a": "\uDC00"}', r"column 'a' has a lone surrogate (\udc00)"),
        (rb'{"a": "\ud83d", "b": "\ude00"}', r"column 'a' has a lone surrogate (\ud83d)"),
        (rb'{"a": [{"b": ["\ude00\ud83d"]}]}', r"column 'a' has a lone surrogate (\ude00)"),
        (rb'{"a": {"\ud800": 1}}', r"column 'a' has a lone surrogate (\ud800)"),
        (rb'{"\ud800": 1}', r"column '\ud800' has a lone surrogate (\ud800)"),
    ],
)
def test_broken_json_line(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path, "t.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    (_, first), (where, error), third = read(tmp_path, path)
    assert (first, third) == ({"a": 1}, ("t.jsonl:3", {"a": 2}))
    assert where == "t.jsonl:2"
    assert str(error).startswith(reason)


def test_whole_surrogate_pairs_are_characters(tmp_path: Path) -> None:
    path = write(tmp_path, "t.jsonl", rb'{"a": ["\ud83d\ude00"], "b": "\\ud800", "c": "\u00e9"}')
    assert read(tmp_path, path) == [("t.jsonl:1", {"a": ["😀"], "b": "\\ud800", "c": "é"})]


def test_broken_rows_of_a_json_document(tmp_path: Path) -> None:
    path = write(tmp_path, "t.json", rb'[{"a": 1}, 7, {"a": ["\ud800"]}, {"a": "\ud83d\ude00"}]')
    assert [row for _, row in read(tmp_path, path)] == [
        {"a": 1},
        "a row must be a JSON object, not 7",
        r"column 'a' has a lone surrogate (\ud800), which is no character",
        {"a": "😀"},
    ]


def test_json_lines_in_a_json_file_may_be_broken(tmp_path: Path) -> None:
    path = write(tmp_path, "t.json", '{"a": 1}\n{"a": }\n{"a": 3}')
    assert [row for _, row in read(tmp_path, path)] == [{"a": 1}, "not JSON: Expecting value at column 7", {"a": 3}]


def test_broken_csv_rows(tmp_path: Path) -> None:
    lines = [b"a,b", b"1,2", b"1,2,3", b'"x"y,2', b"\xe9,1", b'"two', b'lines"z,3', b"", b"4,5"]
    assert read(tmp_path, write(tmp_path, "t.csv", b"\n".join(lines))) == [
        ("t.csv:2", {"a": "1", "b": "2"}),
        ("t.csv:3", "3 fields, but the header names 2 columns"),
        ("t.csv:4", "not CSV: ',' expected after '\"'"),
        ("t.csv:5", "not UTF-8: byte 0xe9 at column 1"),
        ("t.csv:6", "not CSV: ',' expected after '\"'"),
        ("t.csv:7", "not CSV: ',' expected after '\"' (in the row that begins on line 6)"),
        ("t.csv:9", {"a": "4", "b": "5"}),
    ]


def test_every_line_that_an_open_quote_swallows_counts_as_broken(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", 'a,b\n1,2\n"1,2\n' + "3,4\n" * 50)
    rows = read(tmp_path, path)
    assert [where for where, row in rows] == [f"t.csv:{line}" for line in range(2, 54)]
    assert [type(row) for _, row in rows] == [dict] + [str] * 51
    assert rows[1][1] == "not CSV: unexpected end of data"


def test_broken_paragraph(tmp_path: Path) -> None:
    path = write(tmp_path, "t.txt", b"one\n\ntwo\n\xe9\nmore\n\nthree")
    assert read(tmp_path, path) == [
        ("t.txt:1", {"text": "one"}),
        ("t.txt:3", "not UTF-8: byte 0xe9 at column 1"),
        ("t.txt:7", {"text": "three"}),
    ]


def test_parquet_rows_that_are_not_utf8(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    column = arrow.Array.from_buffers(arrow.string(), 3, arrow.array([b"good", b"\xff", b"fine"]).buffers())
    path = write_parquet(tmp_path, "t.parquet", arrow.table({"text": column}))
    assert read(tmp_path, path) == [
        ("t.parquet[0]", {"text": "good"}),
        ("t.parquet[1]", "not UTF-8: byte 0xff"),
        ("t.parquet[2]", {"text": "fine"}),
    ]


# --- rows that are too long, in bounded memory ---

LONG = b"x" * 3000


@pytest.mark.parametrize(
    ("name", "content", "broken", "last"),
    [
        ("t.jsonl", b'{"a": "%s"}\n{"a": "z"}' % LONG, ["t.jsonl:1"], "t.jsonl:2"),
        ("t.jsonl", LONG * 4 + b'\n{"a": "z"}', ["t.jsonl:1"], "t.jsonl:2"),
        ("t.json", b'[{"a": "%s"},\n{"a": "z"}]' % LONG, ["t.json[0]"], "t.json[1]"),
        ("t.json", b'{"a": "z"}\n{"a": "%s"}\n{"a": "z"}' % LONG, ["t.json:2"], "t.json:3"),
        ("t.csv", b"a\n%s\nz" % LONG, ["t.csv:2"], "t.csv:3"),
        ("t.csv", b'a\n"%s"\nz' % b"\n".join([b"x" * 700] * 3), ["t.csv:2", "t.csv:3"], "t.csv:5"),
        ("t.txt", b"%s\n\nz" % LONG, ["t.txt:1"], "t.txt:3"),
        ("t.txt", b"%s\n\nz" % b"\n".join([b"x" * 700] * 3), ["t.txt:1"], "t.txt:5"),
    ],
)
def test_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, broken: list[str], last: str
) -> None:
    monkeypatch.setattr(readers, "LONGEST", 1000)
    rows = read(tmp_path, write(tmp_path, name, content))
    errors = [(where, str(row)) for where, row in rows if isinstance(row, str)]
    assert [where for where, _ in errors][: len(broken)] == broken
    assert all("longer than" in reason or "field larger than" in reason for _, reason in errors[: len(broken)])
    assert rows[-1][0] == last
    assert list(rows[-1][1].values()) == ["z"]


def test_a_row_of_parquet_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr(readers, "LONGEST", 1000)
    path = write_parquet(tmp_path, "t.parquet", arrow.table({"text": ["a", "x" * 3000, "z"]}))
    assert [row for _, row in read(tmp_path, path)] == [{"text": "a"}, readers.TOO_LONG, {"text": "z"}]


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.txt"])
def test_the_rest_of_a_long_line_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(readers, "LONGEST", 100_000)
    path = write(tmp_path, name, b"a\n" + b"x" * 30_000_000 + b"\n")
    tracemalloc.start()
    try:
        rows = read(tmp_path, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(rows) >= 1
    assert isinstance(rows[-1][1], str)
    assert peak < 5_000_000  # a megabyte is skipped at a time


def test_many_rows_take_no_more_memory_than_few(tmp_path: Path) -> None:
    line = json.dumps({"messages": [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi!"}]})
    path = write(tmp_path, "t.jsonl", f"{line}\n" * 30_000)
    tracemalloc.start()
    try:
        count = sum(1 for _ in readers.read_file(DataFile(tmp_path / path, path)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 30_000
    assert peak < 500_000


# --- trouble of the whole file ---


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("t.jsonl", '{"a": 1}\n'.encode("utf-16"), "t.jsonl", "not UTF-8 but UTF-16"),
        ("t.csv", "a\n1\n".encode("utf-16-be").join([b"\xfe\xff", b""]), "t.csv", "not UTF-8 but UTF-16"),
        ("t.json", '[{"a": 1},\n {"a": }]', "t.json:2", "not JSON: Expecting value at column 8"),
        ("t.json", '{"a": 1}', "t.json", "not an object with 0 lists of objects"),
        ("t.json", '{"a": [{}], "b": [{}]}', "t.json", "not an object with 2 lists of objects"),
        ("t.json", "3", "t.json", "not a single value"),
        ("t.json", "[" * 100_000, "t.json", "not readable JSON: maximum recursion depth"),
        ("t.json", b'[{"a": "\n\xff"}]', "t.json:2", "not UTF-8: byte 0xff at column 1"),
        ("t.csv", "a,a\n1,2\n", "t.csv:1", "must name the columns, each once; it is 'a', 'a'"),
        ("t.csv", "a,\n1,2\n", "t.csv:1", "must name the columns, each once; it is 'a', ''"),
        ("t.csv", b"\xe9\na\n", "t.csv:1", "not UTF-8: byte 0xe9 at column 1"),
        ("t.csv", '"a\n1\n', "t.csv:1", "not CSV: unexpected end of data"),
        ("t.csv", "a;b\n1;2\n", "t.csv:1", "the fields are separated by `;`, not by commas"),
        ("t.csv", '"a";"b"\n1;2\n', "t.csv:1", "the fields are separated by `;`, not by commas"),
        ("t.csv", "a\tb\n1\t2\n", "t.csv:1", "the fields are separated by tabs, not by commas"),
        ("t.jsonl", '[{"a": 1}]', "t.jsonl", "this is a JSON document, not one object on each line"),
        ("t.jsonl", '[\n{"a": 1},\n{"a": 2}\n]', "t.jsonl", "this is a JSON document"),
        ("t.jsonl", '\n[{"a": 1},\n{"a": 2}]', "t.jsonl", "this is a JSON document"),
        ("t.jsonl", '{\n  "data": [{"a": 1}]\n}', "t.jsonl", "this is a JSON document"),
        ("t.parquet", "PAR0", "t.parquet", "not a readable parquet file"),
        ("t.jsonl.gz", "no gzip", "t.jsonl.gz", "can't be read: Not a gzipped file"),
        ("t.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], "t.jsonl.gz", "not a whole gzip file"),
        (
            "t.xml",
            "<a/>",
            "t.xml",
            "can't read .xml; data files are .jsonl, .ndjson, .json, .csv, .tsv, .txt, .parquet",
        ),
        ("t.parquet.gz", "", "t.parquet.gz", "can't read .parquet.gz"),
        ("t.gz", "", "t.gz", "can't read .gz"),
        ("rows", "", "rows", "can't read a file without a suffix"),
        ("d/README.md", "x", "d", "the folder holds no data file of its own"),
    ],
)
def test_unreadable_files_say_where(tmp_path: Path, name: str, content: str | bytes, where: str, what: str) -> None:
    write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read(tmp_path, name.removesuffix("/README.md"))
    assert caught.value.where == where
    assert what in caught.value.what


@pytest.mark.parametrize("first", [b'{"a": 1', b"[1", b"[1, 2]", b'{"a": [', b"{"])
def test_a_broken_first_line_makes_no_document(tmp_path: Path, first: bytes) -> None:
    rows = read(tmp_path, write(tmp_path, "t.jsonl", first + b'\n{"a": 2}\n'))
    assert isinstance(rows[0][1], str)
    assert rows[1:] == [("t.jsonl:2", {"a": 2})]


@pytest.mark.parametrize(("name", "sign"), [("t.csv", ","), ("t.tsv", "\t"), ("t.txt", "\t")])
def test_a_header_that_the_file_has_already(tmp_path: Path, name: str, sign: str) -> None:
    write(tmp_path, name, f"a {sign}b\n1{sign}2\n")
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, "a", "b")
    assert str(caught.value) == f"{name}:1: the first line names the columns already\nLeave out `header`."
    write(tmp_path, name, f"1{sign}2\na{sign}b\n")
    assert read(tmp_path, name, "a", "b")[1] == (f"{name}:2", {"a": "a", "b": "b"})


@pytest.mark.parametrize("content", ["text\na; b\n", "a;b,c\n1,2\n"])
def test_a_semicolon_may_stand_in_a_csv_file(tmp_path: Path, content: str) -> None:
    assert len(read(tmp_path, write(tmp_path, "t.csv", content))) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [(f"t.{suffix}", text) for suffix in ("json", "jsonl", "txt") for text in ("", "\n \n")]
    + [("t.json", "[]"), ("t.csv", ""), ("t.csv", "a,b\n")],
)
def test_empty_files_have_no_rows(tmp_path: Path, name: str, content: str) -> None:
    assert read(tmp_path, write(tmp_path, name, content)) == []
