"""Files -> rows with their places: JSONL, JSON, CSV, TSV, plain text, Parquet, gzipped ones, and folders of them.

A row that can't be read is yielded as the RowError that says why, and reading goes on behind it. Files are read line by
line, and of a line that is too long only the beginning, so memory stays flat; a `.json` document is held as a whole.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from llmkit.data.shapes import RowError
from llmkit.data.surrogates import check_strings, has_surrogates
from llmkit.errors import DataError
from llmkit.recipe.links import leading_out

LONGEST = 50_000_000
"""Bytes of the longest line, field or row that is read."""

_SKIPPED = 1 << 20
"""Bytes that are held while the rest of a line that is too long is skipped."""

Placed = Iterator[tuple[str, dict[str, Any] | RowError]]
"""Rows, or why one can't be read, each after its place."""


@dataclass(frozen=True)
class DataFile:
    """A file, what messages call it, and the names of its columns if its first line doesn't give them."""

    path: Path
    label: str
    header: tuple[str, ...] = field(default=())

    @property
    def suffix(self) -> str:
        """The suffix that says how the file is read, in lower case; that of `rows.jsonl.gz` is `.jsonl`."""
        return Path(self.path.stem).suffix.lower() if self.zipped else self.path.suffix.lower()

    @property
    def zipped(self) -> bool:
        """Whether the file is gzipped."""
        return self.path.suffix.lower() == ".gz"

    def open(self) -> BinaryIO:
        """Open the bytes behind a byte-order mark; raises DataError for a file in UTF-16 or UTF-32."""
        file: BinaryIO = io.BufferedReader(gzip.GzipFile(self.path)) if self.zipped else self.path.open("rb")
        start = file.read(3)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError("not UTF-8 but UTF-16 or UTF-32", where=self.label, remedy="Save the file as UTF-8.")
        file.seek(3 if start == b"\xef\xbb\xbf" else 0)
        return file


def read_folder(folder: Path, label: str, header: tuple[str, ...] = ()) -> Placed:
    """Yield the rows of all data files right inside `folder`, by name; raises DataError if there are none.

    Plain text is read only where there is nothing else, since it is often a licence or a list of requirements.
    """
    for file in files_in(folder, label, header):
        yield from read_file(file)


def files_in(folder: Path, label: str, header: tuple[str, ...] = ()) -> list[DataFile]:
    """Return the files that `read_folder` reads; raises DataError if there are none."""
    inside = sorted(p for p in folder.iterdir() if p.name[0] != "." and p.is_file())
    files = [DataFile(path, f"{label.rstrip('/')}/{path.name}", header) for path in inside]
    files = [file for file in files if file.suffix in READERS]
    files = [file for file in files if file.suffix != ".txt"] or files
    for link in leading_out((file.path for file in files), folder):
        raise DataError(
            f"{link.name} is a link out of the folder, to {link.resolve()}",
            where=label,
            remedy="If that file is meant, name it as a source of its own.",
        )
    if not files:
        raise DataError(
            f"the folder holds no data file of its own ({', '.join(READERS)})",
            where=label,
            remedy="Folders inside it are not searched, so that train and test files are never mixed.",
        )
    return files


def read_file(file: DataFile) -> Placed:
    """Yield the rows of one file, each after the file's label and its line or index.

    Raises DataError for trouble of the whole file.
    """
    reader = reader_of(file)
    try:
        yield from reader(file)
    except OSError as exc:  # gzip's BadGzipFile as well
        raise DataError(f"can't be read: {exc.strerror or exc}", where=file.label) from exc
    except (EOFError, zlib.error) as exc:
        raise DataError(f"not a whole gzip file: {exc}", where=file.label) from exc


def reader_of(file: DataFile) -> Callable[[DataFile], Placed]:
    """Return the reader for a file's suffix; raises DataError for one that no reader takes."""
    if file.suffix in READERS and not (file.zipped and file.suffix == ".parquet"):
        return READERS[file.suffix]
    suffix = "".join(file.path.suffixes[-2:]) if file.zipped else file.path.suffix
    raise DataError(
        f"can't read {suffix or 'a file without a suffix'}; data files are {', '.join(READERS)}", where=file.label
    )


# --- lines -----------------------------------------------------------------------------------------------------------


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines with their ends; of one that is longer than LONGEST, only more bytes than that."""
    while line := file.readline(LONGEST + 1):
        if len(line) > LONGEST:
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(_SKIPPED)
        yield line


def _text(line: bytes) -> str:
    """Return the line as text; raises RowError for one that is too long or not UTF-8."""
    if len(line) > LONGEST:
        raise RowError(TOO_LONG)
    try:
        return line.decode()
    except UnicodeDecodeError as exc:
        raise RowError(f"not UTF-8: byte 0x{line[exc.start]:02x} at column {exc.start + 1}") from None


TOO_LONG = f"longer than {LONGEST // 1_000_000} MB"


# --- JSON ------------------------------------------------------------------------------------------------------------


def _read_jsonl(file: DataFile) -> Placed:
    with file.open() as stream:
        filled = (line.strip() for line in _lines(stream) if line.strip())
        if _is_document(next(filled, b""), next(filled, b"")):
            raise DataError(
                "this is a JSON document, not one object on each line", where=file.label, remedy="Name it .json."
            )
    with file.open() as stream:
        for number, line in enumerate(_lines(stream), start=1):
            try:
                row: dict[str, Any] | RowError = _json_row(line)
            except RowError as error:
                if not line.strip():
                    continue
                row = error.with_traceback(None)
            yield f"{file.label}:{number}", row


def _is_document(first: bytes, second: bytes) -> bool:
    """Whether a file that begins with these lines is one list, or one object over several lines."""
    if _is_object(second):
        return False
    if first.startswith(b"["):
        value = _value(first)
        return value is None or (isinstance(value, list) and any(isinstance(item, dict) for item in value))
    return bool(second) and first.startswith(b"{") and first.endswith((b"{", b"[", b","))


def _value(line: bytes) -> Any:
    """Return the JSON value of a line; None if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _json_row(line: bytes) -> dict[str, Any]:
    # Without the line's end, an unclosed string is reported as such.
    text = _text(line).rstrip("\r\n")
    try:
        # What `json.loads` does, without its steps for other callers; white space and mistakes are left to it.
        row, end = _DECODER.raw_decode(text) if text.startswith("{") else (None, -1)
        if end != len(text):
            row = json.loads(text)
    except json.JSONDecodeError as exc:
        raise RowError(f"not JSON: {exc.msg} at column {exc.colno}") from None
    except (ValueError, RecursionError) as exc:  # a number of too many digits; brackets nested too deeply
        raise RowError(f"not readable JSON: {exc}") from None
    row = _object(row)
    if has_surrogates(text):
        check_strings(row)
    return row


_DECODER = json.JSONDecoder()


def _object(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RowError(f"a row must be a JSON object, not {json.dumps(row, ensure_ascii=True)[:40]}")
    return row


def _read_json(file: DataFile) -> Placed:
    with file.open() as stream:
        filled = (line for line in _lines(stream) if line.strip())
        by_lines = _is_object(next(filled, b"")) and next(filled, None) is not None
    if by_lines:
        yield from _read_jsonl(file)
        return
    with file.open() as stream:
        text = _whole(stream.read(), file.label)
    if not text.strip():
        return
    try:
        document = json.loads(text)
    except json.JSONDecodeError as exc:
        raise DataError(f"not JSON: {exc.msg} at column {exc.colno}", where=f"{file.label}:{exc.lineno}") from exc
    except (ValueError, RecursionError) as exc:
        raise DataError(f"not readable JSON: {exc}", where=file.label) from exc
    surrogates, large = has_surrogates(text), len(text) > LONGEST
    for index, row in enumerate(_rows_of(document, file.label)):
        yield f"{file.label}[{index}]", _checked(row, surrogates, large)


def _checked(row: Any, surrogates: bool, large: bool) -> dict[str, Any] | RowError:
    """Return the row, or why it can't be used; `surrogates` and `large` say what the file may hold."""
    try:
        if surrogates:
            check_strings(_object(row))
        if large and len(json.dumps(row, default=str)) > LONGEST:
            raise RowError(TOO_LONG)
        return _object(row)
    except RowError as error:
        return error.with_traceback(None)


def _is_object(line: bytes) -> bool:
    return isinstance(_value(line), dict)


def _whole(content: bytes, label: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        line, start = content.count(b"\n", 0, exc.start) + 1, content.rfind(b"\n", 0, exc.start) + 1
        raise DataError(
            f"not UTF-8: byte 0x{content[exc.start]:02x} at column {exc.start - start + 1}",
            where=f"{label}:{line}",
            remedy="Save the file as UTF-8.",
        ) from exc


def _rows_of(document: Any, label: str) -> list[Any]:
    if isinstance(document, list):
        return document
    values = document.values() if isinstance(document, dict) else ()
    lists = [value for value in values if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) != 1:
        found = f"an object with {len(lists)} lists of objects" if isinstance(document, dict) else "a single value"
        raise DataError(f"must be a list of objects, or an object with one such list, not {found}", where=label)
    return lists[0]


# --- tables ----------------------------------------------------------------------------------------------------------


class _TextLines:
    """The lines of a file as text; one that can't be read raises RowError, and the next call goes on behind it."""

    def __init__(self, file: BinaryIO) -> None:
        self._lines = _lines(file)
        self.number = 0
        """Number of the line that was read last."""

    def __iter__(self) -> _TextLines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        return _text(line)


def _records(lines: _TextLines, delimiter: str) -> Iterator[tuple[int, list[str] | RowError]]:
    """Yield each record after the line that it begins on.

    A broken record may have swallowed good ones (a quote that is never closed), so each of its lines counts as broken.
    """
    csv.field_size_limit(LONGEST)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        begun = lines.number + 1
        try:
            fields = next(reader, None)
        except (csv.Error, RowError) as error:
            reason = f"not CSV: {error}" if isinstance(error, csv.Error) else str(error)
            yield begun, RowError(reason)
            for number in range(begun + 1, lines.number + 1):
                yield number, RowError(f"{reason} (in the row that begins on line {begun})")
            continue
        if fields is None:
            return
        if fields:  # a blank line has none
            yield begun, fields


def _read_csv(file: DataFile, delimiter: str = ",") -> Placed:
    if delimiter == "," and not file.header:
        _check_delimiter(file)
    with file.open() as stream:
        yield from _table(file, _records(_TextLines(stream), delimiter))


def _check_delimiter(file: DataFile) -> None:
    """Raise DataError if the first line has something other than commas between its fields."""
    with file.open() as stream:
        first = next(_lines(stream), b"")
    between = {b";": ("`;`", "Save it with commas, or with tabs as .tsv."), b"\t": ("tabs", "Name it .tsv.")}
    for sign, (called, remedy) in between.items():
        if sign in first.strip() and b"," not in first:
            raise DataError(
                f"the fields are separated by {called}, not by commas", where=f"{file.label}:1", remedy=remedy
            )


def _table(file: DataFile, records: Iterable[tuple[int, list[str] | RowError]]) -> Placed:
    """Yield the rows of records, of which the first names the columns unless the recipe does."""
    header: list[str] = list(file.header)
    first = True
    for number, fields in records:
        where = f"{file.label}:{number}"
        if isinstance(fields, RowError):
            if not header:
                raise DataError(str(fields), where=where, remedy="The first line must name the columns.")
            yield where, fields
        elif not header:
            header = _header(fields, where)
        elif first and [field.strip() for field in fields] == header:
            raise DataError("the first line names the columns already", where=where, remedy="Leave out `header`.")
        elif len(fields) != len(header):
            yield where, RowError(f"{len(fields)} fields, but the header names {len(header)} columns")
        else:
            yield where, dict(zip(header, fields, strict=True))
        first = False


def _header(fields: list[str], where: str) -> list[str]:
    names = [field.strip() for field in fields]
    if "" in names or len(set(names)) < len(names):
        raise DataError(
            f"the first line must name the columns, each once; it is {', '.join(map(repr, names))}",
            where=where,
            remedy="If it is a row already, name the columns in the recipe: `header: [question, answer, ...]`.",
        )
    return names


def _read_tsv(file: DataFile) -> Placed:
    return _read_csv(file, delimiter="\t")


# --- plain text ------------------------------------------------------------------------------------------------------


def _read_txt(file: DataFile) -> Placed:
    with file.open() as stream:
        lines = enumerate(_lines(stream), start=1)
        if file.header:
            yield from _table(file, ((number, _fields(line)) for number, line in lines if line.strip()))
        else:
            yield from _paragraphs(lines, file.label)


def _fields(line: bytes) -> list[str] | RowError:
    """Return the parts of a line between its tabs: in plain text, a quote is a quote."""
    try:
        return _text(line).rstrip("\r\n").split("\t")
    except RowError as error:
        return error.with_traceback(None)


def _paragraphs(lines: Iterable[tuple[int, bytes]], label: str) -> Placed:
    """Yield the parts of a text between its blank lines, each after the line that it begins on."""
    begun, size = 0, 0
    parts: list[str] = []
    broken: RowError | None = None
    for number, line in chain(lines, [(0, b"")]):
        if not line.strip():
            if begun:
                yield f"{label}:{begun}", broken or {"text": "\n".join(parts)}
            begun, size, parts, broken = 0, 0, [], None
            continue
        begun, size = begun or number, size + len(line)
        try:
            if broken is None and size > LONGEST:
                raise RowError(f"a paragraph {TOO_LONG}; with `header: [text]`, each line is a row")
            if broken is None:
                parts.append(_text(line).rstrip("\r\n"))
        except RowError as error:
            broken, parts = error.with_traceback(None), []


# --- parquet ---------------------------------------------------------------------------------------------------------


def _read_parquet(file: DataFile) -> Placed:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    index = 0
    try:
        with parquet.ParquetFile(file.path) as table:
            for batch in table.iter_batches(batch_size=1024):
                for row in _rows_of_batch(batch):
                    yield f"{file.label}[{index}]", row
                    index += 1
    except arrow.ArrowInvalid as exc:
        raise DataError(f"not a readable parquet file: {exc}", where=file.label) from exc


def _rows_of_batch(batch: Any) -> Iterable[dict[str, Any] | RowError]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:  # parquet doesn't check its strings
        rows = [_row_of_batch(batch.slice(index, 1)) for index in range(batch.num_rows)]
    if batch.nbytes <= LONGEST:
        return cast(Iterable[dict[str, Any] | RowError], rows)
    return [row if isinstance(row, RowError) else _checked(row, surrogates=False, large=True) for row in rows]


def _row_of_batch(row: Any) -> dict[str, Any] | RowError:
    try:
        found: dict[str, Any] = row.to_pylist()[0]
    except UnicodeDecodeError as exc:
        return RowError(f"not UTF-8: byte 0x{exc.object[exc.start]:02x}")
    return found


READERS: dict[str, Callable[[DataFile], Placed]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_txt,
    ".parquet": _read_parquet,
}
"""The readers, by suffix; each but Parquet's reads gzipped files (`.jsonl.gz`) too."""

TABLES = (".csv", ".tsv", ".txt")
"""Suffixes of files whose columns `header` may name."""
