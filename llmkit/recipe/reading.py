"""A YAML text -> plain values, and the line of each. Nothing in it can name a Python object, or outgrow its text.

Only ruamel's parser is used, and the values are built from its events: so each key has its line, an alias is counted as
all that it stands for, and what YAML has beyond JSON (tags, sets, several documents) is refused where it stands. Dates
are strings, as YAML 1.2 has them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scanner import Scanner

from llmkit.recipe.spec import KeyPath

MOST = 1500
"""Values of a text, each alias counted as all that it stands for."""

DEEPEST = 32
"""Mappings and lists within each other."""

TOO_DEEP = f"nested too deeply: more than {DEEPEST} mappings and lists within each other"

SHOWN = 60
"""Characters of a value that a message shows."""

CORE = "tag:yaml.org,2002:"

UNFIT = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Control characters, and halves of characters: no file name, no prompt and no terminal takes them."""

PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
"""Both halves of a character."""


class TextError(ValueError):
    """What is wrong with a text, and its line, counted from 1."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what)
        self.line = line


@dataclass(frozen=True)
class _Node:
    """A value and the line that it, or its key, begins on; what a mapping or a list holds are nodes again."""

    line: int
    value: Any
    size: int = 1
    """Values, with all that are in it."""
    height: int = 0
    """Mappings and lists within each other, its own first."""


def read_values(text: str) -> tuple[Any, dict[KeyPath, int]]:
    """Return the values that a YAML text holds (None if it is empty), and the line of each key and item.

    Raises TextError for what is no YAML 1.2, or nothing that a recipe can hold.
    """
    reader = _Reader(text)
    try:
        root = reader.document()
    except TextError:
        raise
    except MarkedYAMLError as error:
        raise _syntax_error(text, error) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise TextError(f"not valid YAML: the character #x{error.character:04x} is not allowed", line) from error
    except Exception as error:  # noqa: BLE001 - ruamel's scanner stumbles over some texts in ways of its own
        raise TextError(f"not valid YAML: {type(error).__name__}: {error}", reader.line) from error
    lines: dict[KeyPath, int] = {}
    return _plain(root, (), lines), lines


def _plain(node: _Node, path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    if path:
        lines[path] = node.line
    if isinstance(node.value, dict):
        return {key: _plain(inner, (*path, key), lines) for key, inner in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(inner, (*path, index), lines) for index, inner in enumerate(node.value)]
    return node.value


class _Scanner(Scanner):
    """ruamel's, which reads a thousand characters ahead, and takes a second for that many brackets."""

    def fetch_flow_collection_start(self, TokenClass: Any, to_push: str) -> None:
        if len(self.flow_context) >= DEEPEST:
            raise TextError(TOO_DEEP, self.reader.line + 1)
        super().fetch_flow_collection_start(TokenClass, to_push)


class _Reader:
    """The values of one text, built as its events come."""

    def __init__(self, text: str) -> None:
        self.yaml = YAML(typ="safe", pure=True)
        self.yaml.Scanner = _Scanner
        self.events = self.yaml.parse(text)
        self.anchors: dict[str, _Node] = {}
        self.count = 0
        self.line = 1

    def document(self) -> _Node:
        """Return the one document of the text; null if there is none."""
        self._next()
        start = self._next()
        if isinstance(start, StreamEndEvent):
            return _Node(1, None)
        if isinstance(start, DocumentStartEvent) and start.version is not None and tuple(start.version) != (1, 2):
            self._refuse("a recipe is YAML 1.2; leave out the line `%YAML`")
        root = self._node(self._next(), 0)
        self._next()
        if not isinstance(self._next(), StreamEndEvent):
            self._refuse("another document begins here, and a recipe is one document")
        return root

    def _next(self) -> Any:
        event = next(self.events)
        self.line = event.start_mark.line + 1
        return event

    def _refuse(self, what: str) -> NoReturn:
        raise TextError(what, self.line)

    def _node(self, event: Any, depth: int) -> _Node:
        self._check_depth(depth)
        made = _BUILDERS[type(event)](self, event, depth)
        # What a mapping or a list holds has been counted before it.
        self._count(made.size if isinstance(event, AliasEvent) else 1)
        if not isinstance(event, AliasEvent) and event.anchor is not None:
            self.anchors[event.anchor] = made
        return made

    def _count(self, size: int) -> None:
        self.count += size
        if self.count > MOST:
            self._refuse(f"more than {MOST} values, each alias counted as all that it stands for")

    def _alias(self, event: Any, depth: int) -> _Node:
        if event.anchor not in self.anchors:
            self._refuse(f"undefined alias {_short(event.anchor)}: no value above it has that name")
        found = self.anchors[event.anchor]
        self._check_depth(depth + found.height)
        return replace(found, line=self.line)

    def _list(self, event: Any, depth: int) -> _Node:
        self._check_tag(event, "seq")
        line, items = self.line, []
        while not isinstance(item := self._next(), SequenceEndEvent):
            items.append(self._node(item, depth + 1))
        return _Node(line, items, *_measured(items))

    def _mapping(self, event: Any, depth: int) -> _Node:
        self._check_tag(event, "map")
        line = self.line
        found: dict[str, _Node] = {}
        merged: list[_Node] | None = None
        while not isinstance(key := self._next(), MappingEndEvent):
            key_line = self.line
            if not isinstance(key, ScalarEvent):
                self._refuse("a key must be a word, not a list, a mapping or an alias")
            name, is_merge = self._key(key)
            if name in found or (is_merge and merged is not None):
                self._refuse(f"key {_short(name)} stands twice in the same section")
            value = self._node(self._next(), depth + 1)
            if is_merge:
                merged = self._parents(value)
            else:
                found[name] = replace(value, line=key_line)
        for parent in merged or ():
            for name, inherited in parent.value.items():
                if name not in found:
                    self._count(inherited.size)
                    found[name] = inherited
        return _Node(line, found, *_measured(found.values()))

    def _key(self, event: Any) -> tuple[str, bool]:
        """Return a key as it is spelled, and whether it is YAML's merge key."""
        tag = self._tag_of(event)
        if event.ctag is not None and tag != f"{CORE}str":
            self._refuse_tag(tag)
        return self._characters(event.value), tag == f"{CORE}merge"

    def _parents(self, value: _Node) -> list[_Node]:
        parents = value.value if isinstance(value.value, list) else [value]
        if not all(isinstance(parent.value, dict) for parent in parents):
            self._refuse("`<<` merges a mapping, or a list of mappings")
        return parents

    def _scalar(self, event: Any, depth: int) -> _Node:
        tag = self._tag_of(event)
        kind = tag.removeprefix(CORE)
        if event.ctag is not None and kind not in (*_SCALARS, "str"):
            self._refuse_tag(tag)
        line = self.line
        if kind not in _SCALARS:
            return _Node(line, self._characters(event.value))
        try:
            value = getattr(self.yaml.constructor, _SCALARS[kind])(ScalarNode(None, event.value))
        except Exception as error:  # noqa: BLE001 - how ruamel's conversions fail is anyone's guess
            raise TextError(f"not valid YAML: {_short(event.value)} is no {kind}", line) from error
        if value is None and event.value.lower() not in ("", "~", "null"):
            self._refuse(f"not valid YAML: {_short(event.value)} is no null")
        self._check_size(value, event.value)
        return _Node(line, value)

    def _tag_of(self, event: Any) -> str:
        """Return the tag that is written, or the one that YAML 1.2 sees in the value."""
        if event.ctag is not None and str(event.ctag) != "!":
            return str(event.ctag)
        return str(self.yaml.resolver.resolve(ScalarNode, event.value, event.implicit))

    def _check_tag(self, event: Any, kind: str) -> None:
        if event.ctag is not None and str(event.ctag) not in (f"{CORE}{kind}", "!"):
            self._refuse_tag(str(event.ctag))

    def _refuse_tag(self, tag: str) -> NoReturn:
        written = f"!!{tag.removeprefix(CORE)}" if tag.startswith(CORE) else tag
        self._refuse(f"the tag {_short(written)} means nothing in a recipe; leave it out")

    def _check_depth(self, depth: int) -> None:
        if depth > DEEPEST:
            self._refuse(TOO_DEEP)

    def _characters(self, text: str) -> str:
        """Return `text`, in which JSON may have written a character in two halves."""
        whole = PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
        unfit = UNFIT.search(whole)
        if unfit is not None:
            self._refuse(f"{_short(text)} holds the character U+{ord(unfit[0]):04X}, which no recipe takes")
        return whole

    def _check_size(self, value: Any, text: str) -> None:
        if isinstance(value, int) and value.bit_length() > 64:
            self._refuse(f"{_short(text)} is a whole number of more than 64 bits")
        if isinstance(value, float) and math.isinf(value) and "inf" not in text.lower():
            self._refuse(f"{_short(text)} is larger than any floating-point number")


def _measured(inner: Collection[_Node]) -> tuple[int, int]:
    """Return the size and the height of a mapping or a list of these."""
    return 1 + sum(node.size for node in inner), 1 + max((node.height for node in inner), default=0)


_BUILDERS = {
    AliasEvent: _Reader._alias,
    MappingStartEvent: _Reader._mapping,
    ScalarEvent: _Reader._scalar,
    SequenceStartEvent: _Reader._list,
}

_SCALARS: Mapping[str, str] = {
    "bool": "construct_yaml_bool",
    "float": "construct_yaml_float",
    "int": "construct_yaml_int",
    "null": "construct_yaml_null",
}
"""The kinds of YAML 1.2 beside strings, and what of ruamel reads each."""


def _syntax_error(text: str, error: MarkedYAMLError) -> TextError:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    marked = text.split("\n")[line - 1 : line]
    if any("\t" in one[: len(one) - len(one.lstrip())] for one in marked):
        return TextError("YAML does not allow tabs here; indent with spaces", line)
    return TextError(f"not valid YAML: {error.problem or error.context}", line)


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 3]}..."
