"""Files -> rows with their places: JSONL, JSON, CSV, TSV, Parquet, and folders of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmkit.errors import DataError

# The longest CSV field; csv's own 131072 characters are too few for documents, and a C long may have only 32 bits.
LONGEST_FIELD = 2**31 - 1

Placed = Iterator[tuple[str, dict[str, Any]]]
"""Rows, each after its place."""


def read_folder(folder: Path, label: str) -> Placed:
    """Yield the rows of all data files right inside `folder`, by name; raises DataError if there are none."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in READERS and p.name[0] != "." and p.is_file())
    if not files:
        raise DataError(
            f"the folder holds no data file of its own ({', '.join(READERS)})",
            where=label,
            remedy="Folders inside it are not searched, so that train and test files are never mixed.",
        )
    for file in files:
        yield from read_file(file, f"{label.rstrip('/')}/{file.name}")


def read_file(path: Path, label: str) -> Placed:
    """Yield the rows of one file, each after `label` and its line or index; raises DataError where one is broken."""
    reader = reader_of(path, label)
    try:
        yield from reader(path, label)
    except OSError as exc:
        raise DataError(f"can't be read: {exc.strerror or exc}", where=label) from exc


def reader_of(path: Path, label: str) -> Callable[[Path, str], Placed]:
    """Return the reader for a file's suffix; raises DataError for one that no reader takes."""
    try:
        return READERS[path.suffix.lower()]
    except KeyError:
        raise DataError(
            f"can't read {path.suffix or 'a file without a suffix'}; data files are {', '.join(READERS)}", where=label
        ) from None


def _lines(path: Path, label: str) -> Iterator[str]:
    """Yield the lines with their ends, without a byte-order mark; raises DataError for one that isn't UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as exc:
                raise DataError(
                    f"not UTF-8: byte 0x{line[exc.start]:02x} at column {exc.start + 1}",
                    where=f"{label}:{number}",
                    remedy="Save the file as UTF-8.",
                ) from exc


def _read_jsonl(path: Path, label: str) -> Placed:
    for number, line in enumerate(_lines(path, label), start=1):
        if not line.strip():
            continue
        where = f"{label}:{number}"
        try:
            # Without the line's end, an unclosed string is reported as such.
            row = json.loads(line.rstrip("\r\n"))
        except json.JSONDecodeError as exc:
            raise DataError(f"not JSON: {exc.msg} at column {exc.colno}", where=where) from exc
        yield where, _object(row, where)


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"a row must be a JSON object, not {json.dumps(row, ensure_ascii=False)[:40]}", where=where)
    return row


def _read_json(path: Path, label: str) -> Placed:
    lines = list(_lines(path, label))
    text = "".join(lines)
    if not text.strip():
        return
    try:
        document = json.loads(text)
    except json.JSONDecodeError as exc:
        if _is_object(next(line for line in lines if line.strip())):
            yield from _read_jsonl(path, label)
            return
        raise DataError(f"not JSON: {exc.msg} at column {exc.colno}", where=f"{label}:{exc.lineno}") from exc
    for index, row in enumerate(_rows_of(document, label)):
        where = f"{label}[{index}]"
        yield where, _object(row, where)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _rows_of(document: Any, label: str) -> list[Any]:
    if isinstance(document, list):
        return document
    values = document.values() if isinstance(document, dict) else ()
    lists = [value for value in values if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) != 1:
        found = f"an object with {len(lists)} lists of objects" if isinstance(document, dict) else "a single value"
        raise DataError(f"must be a list of objects, or an object with one such list, not {found}", where=label)
    return lists[0]


def _read_csv(path: Path, label: str, delimiter: str = ",") -> Placed:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(_lines(path, label), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        where = f"{label}:{reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as exc:
            raise DataError(f"not CSV: {exc}", where=where) from exc
        if fields is None:
            return
        if not fields:  # a blank line
            continue
        if not header:
            header = _header(fields, where)
        elif len(fields) != len(header):
            raise DataError(f"{len(fields)} fields, but the header names {len(header)} columns", where=where)
        else:
            yield where, dict(zip(header, fields, strict=True))


def _header(fields: list[str], where: str) -> list[str]:
    names = [field.strip() for field in fields]
    if "" in names or len(set(names)) < len(names):
        raise DataError(
            f"the first line must name the columns, each once; it is {', '.join(map(repr, names))}", where=where
        )
    return names


def _read_tsv(path: Path, label: str) -> Placed:
    return _read_csv(path, label, delimiter="\t")


def _read_parquet(path: Path, label: str) -> Placed:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    index = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"{label}[{index}]", row
                    index += 1
    except arrow.ArrowInvalid as exc:
        raise DataError(f"not a readable parquet file: {exc}", where=label) from exc


READERS: dict[str, Callable[[Path, str], Placed]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
