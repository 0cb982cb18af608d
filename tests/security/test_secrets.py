"""Tokens and passwords stand in no file that a run writes, and in nothing that it says."""

from __future__ import annotations

import json
import logging
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.recipe import secrets
from llmkit.recipe.secrets import redact, secret_places
from llmkit.runs.folder import RunFolder, captured_logs


@pytest.fixture(autouse=True)
def looked_at_anew() -> Iterator[None]:
    """Variables come and go here within the second that what is known of them is kept."""
    secrets._known.cache_clear()
    yield
    secrets._known.cache_clear()


TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        # URLs
        ("https://me:geheim@example.org/x", "https://me:***@example.org/x"),
        ("https://:geheim@example.org", "https://:***@example.org"),
        ("postgres://me:p@ss@db:5432/x", "postgres://me:***@db:5432/x"),
        ("https://0123456789abcdef0123@example.org", "https://***@example.org"),
        ("https://x.org/a?b=1&access_token=abc&c=2", "https://x.org/a?b=1&access_token=***&c=2"),
        ("https://x.org/a?api_key=abc", "https://x.org/a?api_key=***"),
        ("https://s3/x?X-Amz-Signature=abc&y=1", "https://s3/x?X-Amz-Signature=***&y=1"),
        # headers
        ("Authorization: Bearer x", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic bWU6Z2VoZWlt'}", "{'authorization': 'Basic ***'}"),
        (r'{"sent": "{\"Authorization\": \"Bearer abc\"}"}', r'{"sent": "{\"Authorization\": \"Bearer ***\"}"}'),
        ("AUTHORIZATION=token abc", "AUTHORIZATION=token ***"),
        ("{'x-api-key': 'abc'}", "{'x-api-key': '***'}"),
        ("X-API-Key: abc", "X-API-Key: ***"),
        ("authorization='abc'", "authorization='***'"),
        ("it sent bearer a1b2c3d4e5", "it sent bearer ***"),
        ("X-Api-Key: abc", "X-Api-Key: ***"),
        # tokens
        (f"logged in with {TOKEN}.", "logged in with ***."),
        ("sk-proj-a1B2c3D4e5F6g7H8i9J0k1L2", "***"),
        ("sk-ant-api03-a1B2c3D4e5F6g7H8i9J0k1L2-x", "***"),
        ("ghp_a1B2c3D4e5F6g7H8i9J0", "***"),
        ("github_pat_a1B2c3D4e5F6g7H8i9J0", "***"),
        ("glpat-a1B2c3D4e5F6g7H8", "***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("xoxb-123456789012-abc", "***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-def", "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "***"),
    ],
)
def test_what_its_form_gives_away(text: str, left: str) -> None:
    assert redact(text) == left
    assert redact(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://huggingface.co/org/name?download=true",
        "http://localhost:8000/v1",
        "ssh://git@github.com/x",
        "mail me@example.org",
        "hf_hub_download, hf_transfer",
        "sk-learn, task-generation-of-something-quite-long-0123456789",
        "the bearer of this letter",
        "author, authority, authorization",
        '{"authorization": 5, "x-api-key": null, "Authorization=": true}',
        "a token, 128 tokens, tokens_per_second",
        '{"step": 1, "loss": 0.6931471805599453, "num_tokens": 12345678}',
        "model: {name: Qwen/Qwen2.5-1.5B-Instruct, revision: 989aa7980e4cf806f80c7fef2b1adb7bc71aa306}",
        "data.train[0]: a?b=c&d=e",
        "12:30:01 a:b@c",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "PGPASSWORD",
        "DB_PASS",
        "MY_AUTH",
        "X_CREDENTIALS",
        "key_a",
    ],
)
def test_values_of_variables_with_such_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "w3iRd-value/1")
    assert redact("it is w3iRd-value/1, and xw3iRd-value/1x") == "it is ***, and x***x"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MONKEY", "w3iRd-value/1"),  # no key
        ("AUTHOR", "w3iRd-value/1"),
        ("COMPASS", "w3iRd-value/1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("BASE_TOKENIZER", "Qwen/Qwen3-0.6B"),
        ("MAX_TOKENS", "12345678"),
        ("SSH_AUTH_SOCK", "/tmp/ssh-x1/agent.1"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "~/keys/a1.json"),
        ("MY_KEY", "short12"),
        ("MY_SECRET", "training"),
        ("AUTH_URL", "https://login.example.org/a1"),
    ],
)
def test_values_that_are_ordinary_text_are_left(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert redact(f"x {value} y") == f"x {value} y"


@pytest.mark.parametrize("value", ['pa55"w0rd\\x1', "it's-a-s3cret", "s3cret/with space", "s3cr€t-1234"])
def test_a_secret_is_found_however_it_is_written(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    from urllib.parse import quote

    monkeypatch.setenv("MY_PASSWORD", value)
    url = quote(value, safe="")
    for text in (value, json.dumps(value), json.dumps(value, ensure_ascii=False), repr(value), f"x{value}x", url):
        assert value not in redact(text)
        assert "***" in redact(text), text


def test_a_key_of_several_lines_is_found_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "first-l1ne-of-it\nsecond-l1ne-of-it\n")
    assert redact("> second-l1ne-of-it <") == "> *** <"
    assert redact(json.dumps("first-l1ne-of-it\nsecond-l1ne-of-it")) == '"***"'


def test_a_password_in_the_url_of_any_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pr0xy-pa55@proxy:3128")
    assert redact("user me, password pr0xy-pa55") == "user me, password ***"


def test_the_hubs_own_token_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("an-old-t0ken\n", encoding="utf-8")
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert redact("with an-old-t0ken") == "with ***"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    secrets._known.cache_clear()
    assert redact("with an-old-t0ken") == "with an-old-t0ken"


def test_a_variable_that_is_set_later_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert redact("l8ter-and-later") == "l8ter-and-later"
    monkeypatch.setenv("LATER_TOKEN", "l8ter-and-later")
    assert redact("l8ter-and-later") == "***"


TRICKY = st.sampled_from(
    [
        "authorization",
        "Authorization:",
        "AUTHORIZATION=",
        "x-api-key",
        "Api-Key: ",
        "bearer ",
        "?token=",
        "://a:b",
        "@x",
    ]
)
TEXT = st.lists(st.one_of(TRICKY, st.text(max_size=12)), max_size=4).map("".join)
SCALAR = st.one_of(TEXT, st.floats(allow_nan=False), st.integers(), st.booleans(), st.none())


@settings(max_examples=200)
@given(TEXT)
def test_any_text_can_be_redacted_twice(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@settings(max_examples=200)
@given(st.dictionaries(TEXT, st.one_of(SCALAR, st.lists(SCALAR, max_size=3)), max_size=4))
def test_json_stays_json(values: dict[str, Any]) -> None:
    written = json.dumps({**values, "url": "https://me:geheim@example.org", "key": TOKEN}, ensure_ascii=False)
    found = json.loads(redact(written))
    assert found["url"] == "https://me:***@example.org"
    assert found["key"] == "***"


def test_long_texts_take_no_longer_than_they_are() -> None:
    """No pattern goes back and forth: 200 kB of what each begins with, where one that did would take minutes."""
    for piece in (
        "://",
        "://a:",
        "?",
        "?a",
        "&token",
        "authorization: ",
        "bearer ",
        "sk-a-",
        "eyJa",
        "hf_",
        "ghp_",
        "-----BEGIN PRIVATE KEY-----",
    ):
        text = piece * (200_000 // len(piece))
        began = time.process_time()
        redact(text)
        assert time.process_time() - began < 1.0, piece


def test_it_costs_next_to_nothing() -> None:
    """Of what a step takes; a line of metrics is written in some 50 microseconds, and a fast step takes 50 ms."""
    line = json.dumps({"step": 100, **{f"name/of/metric_{i}": 0.123456789 * i for i in range(12)}})
    redact(line)
    best = min(_seconds(lambda: redact(line), 200) for _ in range(5))
    assert best < 50e-6  # 3 to 5 microseconds where nothing else runs
    tracemalloc.start()
    redact(line)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def _seconds(act: Callable[[], object], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        act()
    return (time.perf_counter() - began) / times


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_secrets_in_a_recipe_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "s3cret-in-it")
    values = {
        "model": {"name": "org/name", "revision": TOKEN},
        "data": {"train": [{"path": "https://me:geheim@example.org/rows.jsonl", "weight": 1.0}, {"path": "x.jsonl"}]},
        "rewards": [{"type": "judge", "prompt": "say s3cret-in-it"}],
        "training": {"report_to": "none", "seed": 1, "fp16": None},
    }
    found = list(secret_places(values))
    assert found == [("model", "revision"), ("data", "train", 0, "path"), ("rewards", 0, "prompt")]


def test_the_shipped_recipes_hold_no_secrets() -> None:
    from llmkit.recipe.loading import read_document
    from llmkit.recipe.shipped import shipped_recipes

    assert shipped_recipes()
    for shipped in shipped_recipes():
        document = read_document(shipped.path)
        assert list(secret_places(document.values)) == []
        assert redact(document.text()) == document.text()  # what is kept in a run folder is the recipe itself


# --- run folders -----------------------------------------------------------------------------------------------------


def test_nothing_is_written_into_a_run_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_text("a.txt", f"token {TOKEN}\n")
    folder.write_json("b.json", {"url": "https://me:geheim@example.org", "n": 1})
    folder.append_metrics({"step": 1, "note": f"Authorization: Bearer {TOKEN}"})
    folder.append_samples([{"step": 1, "completion": f"my key is {TOKEN}"}])
    with folder.logging() as handler, captured_logs(handler):
        logging.getLogger("transformers").error("with %s", TOKEN)
        try:
            raise ValueError(f"bad token {TOKEN}")
        except ValueError:
            logging.getLogger("trl").exception("failed")
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir() if path.is_file()}
    assert set(written) == {"a.txt", "b.json", "metrics.jsonl", "samples.jsonl", "log.txt"}
    for name, text in written.items():
        assert TOKEN not in text, name
        assert "geheim" not in text, name
        assert "***" in text, name
    assert folder.read_json("b.json") == {"url": "https://me:***@example.org", "n": 1}
    assert [json.loads(line)["step"] for line in written["metrics.jsonl"].splitlines()] == [1]
    assert "ValueError: bad token ***" in written["log.txt"]


def test_a_whole_run_tells_no_secret(whole_run: Any, planted: tuple[str, ...]) -> None:
    """Its row function logs them, warns of them, and a row and a comment of the recipe hold some."""
    assert whole_run.code == 0, whole_run.said
    files = [path for path in whole_run.folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    for secret in planted:
        forms = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
        assert not [form for form in forms if form in whole_run.said]
        assert not [path for path in files for form in forms if form.encode() in path.read_bytes()], secret


def test_what_was_hidden_in_a_whole_run_was_there(whole_run: Any) -> None:
    """The traps work: what is hidden was logged."""
    log = (whole_run.folder / "log.txt").read_text(encoding="utf-8")
    assert "sent Authorization: Bearer ***" in log
    assert "asked https://me:***@example.org for what is " in log
    assert "'MY_SERVICE_TOKEN': '***'" in log
    assert (whole_run.folder / "recipe.yaml").read_text(encoding="utf-8").startswith("# asks http://someone:***@127.")


def test_a_run_with_hidden_secrets_can_be_opened_again(whole_run: Any) -> None:
    from llmkit.runs.reopen import recipe_of

    recipe, folder = recipe_of(whole_run.folder)
    assert recipe.data.train[0].python == "hook.py:leak"
    assert folder is not None
    for name in ("lock.json", "plan.json", "ledger.json", "evaluation.json"):
        assert folder.read_json(name)
