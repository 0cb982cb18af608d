"""Where llmkit keeps what it makes, and how it knows that a file is still the same."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from llmkit.recipe import places

OLD = time.time() - 3600


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of the files that were really read, one entry a reading."""
    found: list[Path] = []
    really = places._hash_of
    monkeypatch.setattr(places, "_hash_of", lambda path: (found.append(path), really(path))[1])
    places._kept_hash.cache_clear()
    return found


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKIT_CACHE", "~/mine")
    assert places.cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("LLMKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert places.cache_folder() == Path("/somewhere/llmkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert places.cache_folder() == Path.home() / ".cache" / "llmkit"


def test_a_file_that_stays_the_same_is_read_once(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    os.utime(path, (OLD, OLD))
    # SHA-256 of "abc": the example of FIPS 180-4.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert [places.file_hash(path) for _ in range(3)] == [known] * 3
    assert read == [path]


def test_a_file_that_changes_is_read_again(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    os.utime(path, (OLD, OLD))
    first = places.file_hash(path)
    path.write_bytes(b"two")  # as long as before
    os.utime(path, (OLD + 1, OLD + 1))
    assert places.file_hash(path) == hashlib.sha256(b"two").hexdigest() != first
    other = tmp_path / "b.bin"
    other.write_bytes(b"six")
    os.utime(other, (OLD + 1, OLD + 1))
    other.replace(path)  # with the same size and the same time of change, and still another file
    assert places.file_hash(path) == hashlib.sha256(b"six").hexdigest()
    assert len(read) == 3


def test_a_file_just_written_is_never_taken_for_known(tmp_path: Path, read: list[Path]) -> None:
    # Both may be written within one tick of the file system's clock, and are then told apart by nothing but content.
    path = tmp_path / "a.bin"
    for content in (b"one", b"two", b"six"):
        path.write_bytes(content)
        assert places.file_hash(path) == hashlib.sha256(content).hexdigest()
    assert len(read) == 3


def test_a_text_is_hashed_as_utf8() -> None:
    assert places.text_hash("é") == hashlib.sha256(b"\xc3\xa9").hexdigest()
