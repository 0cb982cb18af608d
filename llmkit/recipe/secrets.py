"""Tokens and passwords, taken out of whatever is logged, printed or written to a run folder.

Known are the values of environment variables whose names call them secret, the hub's token, and what its form gives
away: passwords in URLs, the keys of headers and queries, tokens of widely used services.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"

LEAST = 8
"""Characters of the shortest value that is hidden: shorter ones stand in ordinary text."""

_NAMED = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|(?:^|_)(?:KEYS?|PASS|AUTH)(?:_|$)",
    re.IGNORECASE,
)
_PATH = re.compile(r"(?:[/~]|\.\.?/|[A-Za-z]:\\)[\w./\\ ~-]*")
_NUMBER = re.compile(r"[\d.,:+-]+")

# What stands in a URL or a header ends at white space, a quote or a backslash: text may be JSON inside of JSON.
_PASSWORD = re.compile(r"""(://[^\s/:@?#"'<>\\]*):([^\s/?#"'<>\\]+)@""")
_USER = re.compile(r"""://[^\s/:@?#"'<>\\]{16,}@""")
_QUERY = re.compile(
    r"([?&](?:[\w.-]*(?:token|secret|passwd|password|api_?key|signature|credential)|key|sig|auth)=)"
    r"""[^&\s"'#<>\\]+""",
    re.IGNORECASE,
)
# Between a header's name and what it holds. A quote that ends the name needs one before the value: JSON's numbers stay.
_IS = r"""(?:\\?["']\s*[:=]\s*\\?["']|\s*[:=]\s*(?:\\?'|\\")?)"""
_VALUE = r"""[^\s"',;}\\]+"""
_AUTHORIZATION = re.compile(rf"(authorization{_IS}(?:(?:bearer|basic|digest|token)\s+)?){_VALUE}", re.IGNORECASE)
_BEARER = re.compile(r"(\bbearer\s+)(?=[\w.~+/-]*\d)[\w.~+/=-]{8,}", re.IGNORECASE)
_API_KEY = re.compile(rf"(api-key{_IS}){_VALUE}", re.IGNORECASE)

_SHAPES = (
    ("://", _PASSWORD, rf"\1:{HIDDEN}@"),
    ("://", _USER, f"://{HIDDEN}@"),
    ("?", _QUERY, rf"\1{HIDDEN}"),
    ("uthorization", _AUTHORIZATION, rf"\1{HIDDEN}"),
    ("UTHORIZATION", _AUTHORIZATION, rf"\1{HIDDEN}"),
    ("earer", _BEARER, rf"\1{HIDDEN}"),
    ("EARER", _BEARER, rf"\1{HIDDEN}"),
    ("pi-key", _API_KEY, rf"\1{HIDDEN}"),
    ("PI-KEY", _API_KEY, rf"\1{HIDDEN}"),
    ("pi-Key", _API_KEY, rf"\1{HIDDEN}"),
    ("PI-Key", _API_KEY, rf"\1{HIDDEN}"),
    ("hf_", re.compile(r"\bhf_[A-Za-z0-9]{24,}"), HIDDEN),
    ("api_org_", re.compile(r"\bapi_org_[A-Za-z0-9]{24,}"), HIDDEN),
    ("sk-", re.compile(r"(?<![A-Za-z0-9])sk-(?:[a-z0-9]{1,12}-){0,3}[A-Za-z0-9_]{20,}[\w-]*"), HIDDEN),
    ("gh", re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}"), HIDDEN),
    ("github_pat_", re.compile(r"\bgithub_pat_\w{20,}"), HIDDEN),
    ("glpat-", re.compile(r"\bglpat-[\w-]{16,}"), HIDDEN),
    ("AKIA", re.compile(r"\bAKIA[0-9A-Z]{16}\b"), HIDDEN),
    ("ASIA", re.compile(r"\bASIA[0-9A-Z]{16}\b"), HIDDEN),
    ("xox", re.compile(r"\bxox[abeprs]-[\w-]{10,}"), HIDDEN),
    ("AIza", re.compile(r"\bAIza[\w-]{35}"), HIDDEN),
    ("eyJ", re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+"), HIDDEN),
    ("PRIVATE KEY", re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----(?:[^-]|-(?!----))*-----END \1-----"), HIDDEN),
)
"""A piece without which the pattern can't match (it is quickly looked for), the pattern, and what is left."""


def redact(text: str) -> str:
    """Return `text` with `***` in place of every secret that is known or told by its form."""
    # The environment is looked at anew every second, and at once when it grows.
    for secret in _known(len(os.environ), int(time.monotonic())):
        if secret in text:
            text = text.replace(secret, HIDDEN)
    for piece, pattern, left in _SHAPES:
        if piece in text:
            text = pattern.sub(left, text)
    return text


def secret_places(values: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the key path of every text in `values` (mappings, lists and plain values) that holds a secret."""
    if isinstance(values, str):
        if redact(values) != values:
            yield path
    elif isinstance(values, Mapping | list | tuple):
        items = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in items:
            yield from secret_places(value, (*path, key))


@functools.lru_cache(maxsize=1)
def _known(*state: int) -> tuple[str, ...]:
    """Return the secrets of the environment in each way they may be written, the longest first."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if _NAMED.search(name):
            # A key of several lines is quoted line by line.
            found.update(line.strip() for line in (value, *value.splitlines()))
        found.update(password for _, password in _PASSWORD.findall(value))
    found.add(_hub_token(_token_file()))
    written = {form for value in found if _stands_out(value) for form in _forms(value)}
    return tuple(sorted(written, key=len, reverse=True))


def _stands_out(value: str) -> bool:
    """Whether a value can't be part of ordinary text: it is no path, no address, no number and no plain word."""
    if len(value) < LEAST or "://" in value:
        return False
    return not (_PATH.fullmatch(value) or _NUMBER.fullmatch(value) or (value.isalpha() and len(value) < 2 * LEAST))


def _forms(value: str) -> Iterator[str]:
    """Yield a value as it is, as JSON and Python write it in quotes, and as URLs do."""
    escaped = value.replace("\\", "\\\\")
    yield value
    yield escaped.replace('"', '\\"').replace("\n", "\\n")
    yield escaped.replace("'", "\\'").replace("\n", "\\n")
    yield "".join(sign if sign.isascii() else f"\\u{ord(sign):04x}" for sign in escaped.replace('"', '\\"'))
    yield re.sub(r"[^A-Za-z0-9_.~-]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), value)


def _token_file() -> str:
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return os.path.expanduser(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token"))


@functools.cache
def _hub_token(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(10_000).strip()
    except (OSError, UnicodeDecodeError):
        return ""  # nobody is logged in, or it is no token
