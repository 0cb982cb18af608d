"""The judge reward, against a server in this process that answers as told."""

from __future__ import annotations

import doctest
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.shapes import RowError
from llmkit.data.splits import Row
from llmkit.errors import RecipeError, RunError, SetupError
from llmkit.rewards import _judge_client
from llmkit.rewards import judge as module
from llmkit.rewards.base import score_part
from llmkit.rewards.judge import Judge, rating

ROW = {"prompt": "What is 2 + 2?", "answer": "4"}
KEY = "sk-very-secret-17"


class Server:
    """Answers with the next of `plan` (the last one for ever), and remembers what was asked."""

    def __init__(self) -> None:
        self.plan: list[Callable[[BaseHTTPRequestHandler], None]] = [says("Fine.\n8")]
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.running = self.highest = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with outer.lock:
                    outer.asked.append(json.loads(body))
                    outer.keys.append(self.headers["Authorization"])
                    outer.paths.append(self.path)
                    outer.running += 1
                    outer.highest = max(outer.highest, outer.running)
                    reply = outer.plan.pop(0) if len(outer.plan) > 1 else outer.plan[0]
                try:
                    reply(self)
                except OSError:
                    pass  # the client has given up
                finally:
                    with outer.lock:
                        outer.running -= 1

            def log_message(self, *args: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def prompts(self) -> list[str]:
        return [asked["messages"][0]["content"] for asked in self.asked]


def sends(status: int, body: bytes, headers: dict[str, str] | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def says(text: str | None) -> Callable[[BaseHTTPRequestHandler], None]:
    return sends(200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode())


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """The waits between attempts; nobody waits for them. The cache is empty."""
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "cache"))
    waited: list[float] = []
    monkeypatch.setattr(_judge_client.time, "sleep", waited.append)
    return waited


@pytest.fixture
def judge(server: Server) -> Callable[..., Judge]:
    return lambda **fields: Judge(**{"type": "judge", "url": server.url, "model": "m", **fields})


real_sleep = time.sleep


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("7", 7.0),
        ("Good.\n\n7.5\n", 7.5),
        ("Score: 7/10", 7.0),
        ("**Rating: 10 out of 10**.", 10.0),
        ("It scores 3.", 3.0),
        ("0", 0.0),
        ("Rating: **8**/10", 8.0),
        ("Rating: **8/10**", 8.0),
        ("`8` / 10", 8.0),
        ("**8** out of **10**", 8.0),
        ("7 of 10", 7.0),
        ("Score: 7 Out Of 10.", 7.0),
        ("7 points out of 10", 7.0),
        ("7 points", 7.0),
        ("4 out of a possible 10", 4.0),
        ("2 (out of 10)", 2.0),
        ("(2)/10", 2.0),
        ("[[8]]", 8.0),
        ("$\\boxed{8}$", 8.0),
        ("8/10.0", 8.0),
        ("- 8", 8.0),
        ("8/10/10", None),
        ("7 of 5", None),
        ("6 on a scale of 0 to 10", None),
        ("an 8 because it is 9", None),
        ("Not 10, but 8", None),
        ("3. Rating: 8", None),
        ("2*3", None),
        ("8,5", None),
        ("7\u00bd", None),
        ("7 1/2", None),
        ("1e1", None),
        ("\u22121", None),
        ("7\u20138", None),
        ("8%", None),
        ("8+", None),
        ("10/10\nBecause it is right", None),
        ("7/5", None),  # its own scale
        ("11", None),
        ("-1", None),
        ("7-8", None),
        ("between 7 and 8 or so", None),
        ("1,000", None),
        ("", None),
        ("\n", None),
    ],
)
def test_the_rating_is_the_number_that_the_answer_ends_with(answer: str, expected: float | None) -> None:
    assert rating(answer, 10) == expected


@pytest.mark.parametrize("unit", [" ", "*", "x", "(", "8 ", "of ", "-", "points "])
def test_a_long_line_takes_no_time(unit: str) -> None:
    start = time.perf_counter()
    for text in (unit * (100_000 // len(unit)) + "x", "8" + unit * (100_000 // len(unit)) + "x"):
        rating(text, 10)
    assert time.perf_counter() - start < 2.0


def test_the_example() -> None:
    assert doctest.testmod(module).failed == 0


def test_an_answer_without_a_rating_names_the_row(judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_judge_client.Endpoint, "ask", lambda self, messages: messages[0]["content"])
    rows = [Row(where=f"rows.jsonl:{i}", example=ROW) for i in range(4)]
    with pytest.raises(
        RunError, match=r"(?s)rows\.jsonl:2: reward `judge`: the judge's last line .*completion: 'none'"
    ):
        score_part(judge(prompt="{completion}"), ["7", "7", "none", "none"], rows)


def test_the_question_and_its_rating(server: Server, judge: Callable[..., Judge]) -> None:
    asked = judge(prompt="Q {prompt} A {completion} R {answer} {} {x y}", scale=20)
    assert asked.score("it is {answer} {nothing}", ROW) == 0.4
    assert server.asked == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Q What is 2 + 2? A it is {answer} {nothing} R 4 {} {x y}"}],
            "temperature": 0.0,
        }
    ]
    assert server.paths == ["/v1/chat/completions"]
    assert server.keys == [None]


def test_the_default_rubric_holds_the_question_and_the_completion(server: Server, judge: Callable[..., Judge]) -> None:
    row = {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]}
    assert judge(temperature=None).score("four", row) == 0.8
    assert "system: Be brief.\n\nuser: 2 + 2?" in server.prompts()[0]
    assert "<answer>\nfour\n</answer>" in server.prompts()[0]
    assert "temperature" not in server.asked[0]


def test_nothing_is_asked_twice(server: Server, judge: Callable[..., Judge]) -> None:
    assert judge().scores(["a", "b", "a"], [ROW] * 3) == [0.8] * 3
    assert len(server.asked) == 2
    assert judge().scores(["b", "a"], [ROW] * 2) == [0.8] * 2
    assert len(server.asked) == 2
    # Another question, another model, another temperature: another answer.
    for other in (judge(model="n"), judge(temperature=1.0), judge(prompt="{completion}?")):
        other.score("a", ROW)
    assert len(server.asked) == 5
    judge(cache=False).score("a", ROW)
    assert len(server.asked) == 6


def test_a_kept_answer_is_read_with_the_scale_of_today(server: Server, judge: Callable[..., Judge]) -> None:
    assert judge().score("a", ROW) == 0.8
    assert judge(scale=16).score("a", ROW) == 0.5
    assert len(server.asked) == 1


def test_a_damaged_kept_answer_is_named(judge: Callable[..., Judge], tmp_path: Path) -> None:
    judge().score("a", ROW)
    (path,) = (tmp_path / "cache" / "judge").glob("*/*.json")
    path.write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=f"{path.name} is damaged"):
        judge().score("a", ROW)


def test_a_broken_server_is_asked_again(server: Server, judge: Callable[..., Judge], waits: list[float]) -> None:
    server.plan = [sends(500, b"oops"), sends(503, b""), says("8")]
    assert judge().score("a", ROW) == 0.8
    assert waits == [1.0, 2.0]


def test_a_busy_server_says_how_long_to_wait(server: Server, judge: Callable[..., Judge], waits: list[float]) -> None:
    long_ago = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.plan = [
        *(sends(429, b"slow down", {"Retry-After": value}) for value in ("7", "9999", long_ago, "soon")),
        says("8"),
    ]
    assert judge(retries=4).score("a", ROW) == 0.8
    assert waits == [7.0, 60.0, 0.0, 8.0]


def test_a_server_that_stays_broken_is_an_error(
    server: Server, judge: Callable[..., Judge], waits: list[float]
) -> None:
    server.plan = [sends(500, b"oops")]
    with pytest.raises(RunError, match="failed 3 times, at last: HTTP 500: oops"):
        judge(retries=2).score("a", ROW)
    assert waits == [1.0, 2.0]


@pytest.mark.parametrize("how", ["silent", "dripping"])
def test_a_slow_server_is_not_waited_for(server: Server, judge: Callable[..., Judge], how: str) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            real_sleep(0.05)

    def silence(handler: BaseHTTPRequestHandler) -> None:
        real_sleep(1.5)

    server.plan = [silence if how == "silent" else drip]
    started = time.monotonic()
    with pytest.raises(RunError, match="failed 2 times, at last: TimeoutError"):
        judge(timeout=0.3, retries=1).score("a", ROW)
    assert time.monotonic() - started < 5


def test_a_server_that_is_not_there_is_an_error(judge: Callable[..., Judge]) -> None:
    with pytest.raises(RunError, match="(?s)judge at http://127.0.0.1:9/v1 failed 2 times.*refused.*Is it up"):
        judge(url="http://127.0.0.1:9/v1", retries=1).score("a", ROW)


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices": []}', b"[]", b'{"choices": [{"message": null}]}'])
def test_an_answer_that_is_no_chat_completion_is_an_error(
    server: Server, judge: Callable[..., Judge], body: bytes
) -> None:
    server.plan = [sends(200, body)]
    with pytest.raises(RunError, match="no chat completion"):
        judge().score("a", ROW)


def test_a_refusal_is_not_repeated(server: Server, judge: Callable[..., Judge]) -> None:
    server.plan = [sends(400, b"no such model")]
    with pytest.raises(RunError, match="HTTP 400: no such model"):
        judge().score("a", ROW)
    assert len(server.asked) == 1


def test_an_answer_without_a_number_is_asked_once_more(server: Server, judge: Callable[..., Judge]) -> None:
    server.plan = [says("Quite good"), says("6")]
    assert judge().score("a", ROW) == 0.6
    assert [m["role"] for m in server.asked[1]["messages"]] == ["user", "assistant", "user"]
    assert server.asked[1]["messages"][1]["content"] == "Quite good"
    assert judge().score("a", ROW) == 0.6
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("answer", "shown"), [("I would rather not", "I would rather not"), (None, "''"), ("12", "12")]
)
def test_no_number_is_an_error_and_no_zero(
    server: Server, judge: Callable[..., Judge], answer: str | None, shown: str
) -> None:
    server.plan = [says(answer)]
    with pytest.raises(RunError, match=f"does not hold one number from 0 to 10, asked twice.*{shown}"):
        judge().score("a", ROW)
    assert len(server.asked) == 2
    with pytest.raises(RunError):  # it is not kept
        judge().score("a", ROW)
    assert len(server.asked) == 4


def test_requests_at_once_are_bounded(server: Server, judge: Callable[..., Judge]) -> None:
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        real_sleep(0.03)
        says("8")(handler)

    server.plan = [slowly]
    assert judge(workers=3).scores([str(i) for i in range(12)], [ROW] * 12) == [0.8] * 12
    assert 2 <= server.highest <= 3


def test_each_completion_has_its_own_rating(
    server: Server, judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_judge_client.Endpoint, "ask", lambda self, messages: messages[0]["content"])
    completions = [str(i % 10) for i in range(30)]
    assert judge(prompt="{completion}").scores(completions, [ROW] * 30) == [i % 10 / 10 for i in range(30)]


def test_the_key_is_sent_and_never_shown(
    server: Server, judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    asked = judge(api_key_env="JUDGE_KEY", retries=0)
    asked.check_setup(tmp_path)
    asked.score("a", ROW)
    assert server.keys == [f"Bearer {KEY}"]
    assert KEY not in repr(asked)
    assert not [p for p in (tmp_path / "cache").rglob("*.json") if KEY in p.read_text(encoding="utf-8")]
    for reply in (sends(401, f"bad key {KEY}".encode()), sends(500, KEY.encode()), sends(200, KEY.encode())):
        server.plan = [reply]
        with pytest.raises(RunError) as caught:
            asked.score("b", ROW)
        assert KEY not in str(caught.value)
        assert "***" in str(caught.value)


def test_a_redirect_does_not_carry_the_key_elsewhere(
    server: Server, judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.plan = [sends(302, b"", {"Location": f"{server.url}/elsewhere"})]
    with pytest.raises(RunError, match="HTTP 302"):
        judge(api_key_env="JUDGE_KEY").score("a", ROW)
    assert len(server.asked) == 1


@pytest.mark.parametrize("key", ["", "two words", "line\n", "schlüssel"])
def test_a_key_that_can_not_be_one_is_refused(
    judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(SetupError, match=r"\$JUDGE_KEY") as caught:
        judge(api_key_env="JUDGE_KEY").check_setup(Path())
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1"])
def test_an_address_that_is_none_is_refused(judge: Callable[..., Judge], url: str) -> None:
    with pytest.raises(RecipeError, match="must start with http"):
        judge(url=url).check_setup(Path())


@pytest.mark.parametrize("url", ["https://me:sk-17@host/v1", "https://host/v1?key=sk-17", "https://host/v1#sk-17"])
def test_a_key_in_the_address_is_refused_unseen(judge: Callable[..., Judge], url: str) -> None:
    with pytest.raises(RecipeError, match="an address alone") as caught:
        judge(url=url).check_setup(Path())
    assert "sk-17" not in str(caught.value)


def test_a_prompt_without_the_completion_is_refused(judge: Callable[..., Judge]) -> None:
    with pytest.raises(RecipeError, match=r"lacks \{completion\}"):
        judge(prompt="Rate {answer}").check_setup(Path())
    judge().check_setup(Path())


def test_a_row_without_a_column_of_the_prompt_is_refused(judge: Callable[..., Judge]) -> None:
    asked = judge(prompt="{completion} {answr}")
    with pytest.raises(RowError, match="no column 'answr'"):
        asked.check_row(ROW)
    judge().check_row(ROW)


def test_no_answer_is_known_to_be_golden(judge: Callable[..., Judge]) -> None:
    # An honest judge may give the row's bare answer less than the full rating.
    assert judge().golden({"answer": 4}) is None
