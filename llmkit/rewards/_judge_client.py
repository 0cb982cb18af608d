"""Asks an OpenAI-compatible endpoint for one chat answer: with a time limit, retries, and a cache by content."""

# urllib, for one POST of JSON: llmkit itself depends on no HTTP client, and what it would bring (connection pools,
# HTTP/2) is nothing beside the seconds that a judge takes to answer.

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.errors import RunError

BACKOFF = 1.0
"""Seconds before the first retry; each further one waits twice as long."""
LONGEST_WAIT = 60.0
"""Seconds of waiting that a `Retry-After` can ask for."""
ANSWER_BYTES = 8 << 20
SHOWN = 300
BUSY = (408, 429)

Message = dict[str, str]


class AttemptError(Exception):
    """An attempt failed in a way that may pass; `wait` is how many seconds the server asks for, if it does."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how patiently."""

    url: str
    """Base URL, e.g. `http://localhost:8000/v1`."""
    model: str
    temperature: float | None
    timeout: float
    """Seconds from the request to the end of the answer, for each attempt."""
    retries: int
    key: str | None = field(default=None, repr=False)

    def ask(self, messages: Sequence[Message]) -> str:
        """Return the answer to `messages`.

        Retries when the server is busy, broken or not to be reached. Raises RunError when it stays so, refuses, or
        answers with something that is no chat completion. The key is in no message.
        """
        attempts = self.retries + 1
        for attempt in range(attempts):
            try:
                return self._answer(self._post(messages))
            except AttemptError as error:
                if attempt + 1 == attempts:
                    raise RunError(
                        f"the judge at {self.url} failed {attempts} times, at last: {error}",
                        remedy="Is it up, and is `url` right? `retries`, `timeout` and `workers` may be eased.",
                    ) from error
                wait = BACKOFF * 2**attempt if error.wait is None else error.wait
                time.sleep(min(wait, LONGEST_WAIT))
        raise AssertionError("every attempt returns or raises")

    def _post(self, messages: Sequence[Message]) -> bytes:
        asked: dict[str, Any] = {"model": self.model, "messages": list(messages)}
        if self.temperature is not None:
            asked["temperature"] = self.temperature
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(asked).encode(), headers, method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as response:
                return _read(response, deadline)
        except urllib.error.HTTPError as error:
            body = self._shown(error.read(ANSWER_BYTES))
            if error.code in BUSY or error.code >= 500:
                raise AttemptError(f"HTTP {error.code}: {body}", _retry_after(error)) from error
            raise RunError(f"the judge at {self.url} refuses the request: HTTP {error.code}: {body}") from error
        except (OSError, http.client.HTTPException) as error:
            raise AttemptError(self._shown(f"{type(error).__name__}: {error}".encode())) from error

    def _answer(self, body: bytes) -> str:
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise RunError(
                f"the judge at {self.url} answered with something that is no chat completion: {self._shown(body)}",
                remedy="`url` is the base that `/chat/completions` is put behind, such as http://localhost:8000/v1.",
            ) from error
        return content if isinstance(content, str) else ""  # a model that only reasoned, or called a tool

    def _shown(self, body: bytes) -> str:
        """Return the start of an answer, without the key: some servers repeat it."""
        text = body.decode("utf-8", "replace")
        if self.key is not None:
            text = text.replace(self.key, "***")
        return text[:SHOWN]


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Return the body; the timeout of urllib alone starts anew with every byte."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError("the answer did not end in time")
        if size > ANSWER_BYTES:
            raise OSError("the answer does not end")
    return b"".join(parts)


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    value = error.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


class Answers:
    """Answers kept by what was asked, one file each.

    Files and not a database: they are written by renaming, which is atomic on network file systems, too, where the
    locks of a database are not to be trusted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, asked: Sequence[object]) -> Path:
        name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"

    def find(self, asked: Sequence[object]) -> str | None:
        """Return the answer that was kept for `asked`, or None."""
        path = self._path(asked)
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["answer"])
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError) as error:
            raise RunError(f"{path} is damaged", remedy="Remove it; it is only a kept answer of a judge.") from error

    def keep(self, asked: Sequence[object], answer: str) -> None:
        """Keep `answer`."""
        path = self._path(asked)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with open(handle, "w", encoding="utf-8") as file:
            json.dump({"asked": asked, "answer": answer}, file)
        os.replace(name, path)
