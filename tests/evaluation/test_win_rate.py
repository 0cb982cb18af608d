"""Win rate, against a judge in this process that chooses as told."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import DataError, RecipeError, RunError, SetupError
from llmkit.evaluation.base import Sample, Score
from llmkit.evaluation.win_rate import WinRate

ANSWERS = re.compile(r'<answer number="1">\n(.*?)\n</answer>.*<answer number="2">\n(.*?)\n</answer>', re.DOTALL)


def fair(prompt: str) -> str:
    """Choose the answer with more letters g in it."""
    found = ANSWERS.search(prompt)
    assert found
    first, second = (text.count("g") for text in found.groups())
    return f"I looked at both.\n{0 if first == second else 1 if first > second else 2}"


class Server:
    """Answers with what `judge` says to the prompt, and remembers what was asked."""

    def __init__(self) -> None:
        self.judge: Callable[[str], str] = fair
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                outer.keys.append(self.headers["Authorization"])
                said = {"role": "assistant", "content": outer.judge(body["messages"][0]["content"])}
                reply = json.dumps({"choices": [{"message": said}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *args: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "cache"))
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


@pytest.fixture
def win_rate(server: Server) -> Callable[..., WinRate]:
    return lambda **fields: WinRate(**{"type": "win_rate", "url": server.url, "model": "m", **fields})


def base_score(answers: list[str]) -> Score:
    samples = tuple(Sample(f"eval.jsonl:{i}", "what is it?", None, text) for i, text in enumerate(answers, start=1))
    return Score({}, len(answers), samples)


def test_a_fair_judge(told, win_rate, server):
    tuned, base = ["g", "x", "gg", "same"], ["x", "g", "gy", "same"]
    subject = told(tuned, ["r"] * 4)
    subject.base = base_score(base)
    score = win_rate().score(subject)
    assert score.per_row == {"win_rate": (1.0, 0.0, 1.0, 0.5)}
    assert score.metrics == {"win_rate": 0.625}
    assert [sample.answer for sample in score.samples] == tuned
    pairs = {ANSWERS.search(asked["messages"][0]["content"]).groups() for asked in server.asked}
    assert pairs == {("g", "x"), ("x", "g"), ("gg", "gy"), ("gy", "gg")}, "both orders; nothing for equal answers"
    assert len(server.asked) == 4, "and nothing twice"


@pytest.mark.parametrize("choice", ["1", "2", "0"])
def test_a_judge_that_looks_at_the_place_alone_finds_nothing(told, win_rate, server, choice):
    server.judge = lambda prompt: choice
    subject = told(["a", "b"], ["r", "r"])
    subject.base = base_score(["c", "d"])
    assert win_rate().score(subject).per_row == {"win_rate": (0.5, 0.5)}


@pytest.mark.parametrize("preferred", ["tuned", "base"])
def test_preferred_in_one_order_and_tied_in_the_other_is_a_tie(told, win_rate, server, preferred):
    server.judge = lambda prompt: ("1" if preferred == "tuned" else "2") if '1">\ntuned' in prompt else "0"
    subject = told(["tuned"], ["r"])
    subject.base = base_score(["base"])
    assert win_rate().score(subject).metrics == {"win_rate": 0.5}


def test_the_base_itself_has_no_metric_and_asks_nobody(told, win_rate, server):
    score = win_rate().score(told(["a", "b"], ["r", "r"]))
    assert (score.metrics, score.per_row, score.rows) == ({}, {}, 2)
    assert [sample.answer for sample in score.samples] == ["a", "b"]
    assert not server.asked


def test_against_the_reference(told, win_rate):
    score = win_rate(against="reference").score(told(["gg", "", "g"], ["g", "g", "g"]))
    assert score.per_row == {"win_rate": (1.0, 0.0, 0.5)}


def test_against_the_reference_needs_one(subject, win_rate, server):
    asked = subject([{"prompt": "a"}])
    with pytest.raises(DataError, match="eval.jsonl:1: the row has no reference answer"):
        win_rate(against="reference").score(asked)
    assert not server.asked


def test_a_conversation_is_shown_as_a_whole(subject, win_rate, server, monkeypatch):
    monkeypatch.setattr("llmkit.evaluation._generation.generate", lambda *_, **__: ["g"])
    turns = [("system", "be brief"), ("user", "one?"), ("assistant", "1"), ("user", "two?"), ("assistant", "2")]
    person = subject([{"messages": [{"role": role, "content": text} for role, text in turns]}])
    person.base = base_score(["x"])
    win_rate(prompt="{prompt}|{completion}|{other}").check_row(person.rows[0])
    server.judge = lambda prompt: "0"
    win_rate(prompt="{prompt}|{completion}|{other}", temperature=None).score(person)
    shown = "system: be brief\n\nuser: one?\n\nassistant: 1\n\nuser: two?"
    asked = sorted(asked["messages"][0]["content"] for asked in server.asked)
    assert asked == [f"{shown}|g|x", f"{shown}|x|g"]
    assert "temperature" not in server.asked[0]


def test_judgements_are_kept(told, win_rate, server):
    for _ in range(2):
        subject = told(["g"], ["r"])
        subject.base = base_score(["x"])
        assert win_rate().score(subject).metrics == {"win_rate": 1.0}
    assert len(server.asked) == 2
    win_rate(cache=False).score(subject)
    assert len(server.asked) == 4


@pytest.mark.parametrize(("said", "message"), [("1.5", "wrote 1.5 instead of 1, 2 or 0"), ("7", "from 0 to 2, asked")])
def test_a_judge_that_does_not_choose_stops_the_run(told, win_rate, server, said, message):
    server.judge = lambda prompt: said
    subject = told(["a"], ["r"])
    subject.base = base_score(["b"])
    with pytest.raises(RunError, match=f"eval.jsonl:1: .*{message}"):
        win_rate(workers=1).score(subject)


def test_the_key_is_sent(told, win_rate, server, monkeypatch, tmp_path):
    spec = win_rate(api_key_env="WIN_RATE_KEY")
    monkeypatch.delenv("WIN_RATE_KEY", raising=False)
    with pytest.raises(SetupError, match=r"\$WIN_RATE_KEY, which is not set"):
        spec.check_setup(tmp_path)
    monkeypatch.setenv("WIN_RATE_KEY", "sk-1")
    subject = told(["a"], ["r"])
    subject.base = base_score(["b"])
    spec.score(subject)
    assert set(server.keys) == {"Bearer sk-1"}


def test_what_can_not_work_is_refused_before(win_rate, tmp_path):
    with pytest.raises(RecipeError, match="lacks {other}"):
        win_rate(prompt="{completion}").check_setup(tmp_path)
    with pytest.raises(RecipeError, match="lacks {completion}"):
        win_rate(prompt="{other}").check_setup(tmp_path)
    with pytest.raises(RecipeError, match="must start with http"):
        win_rate(url="localhost:8000/v1").check_setup(tmp_path)
    win_rate().check_setup(tmp_path)


def test_a_column_of_the_prompt_must_be_there(subject, win_rate, server):
    person = subject([{"prompt": "a", "topic": "b"}, {"prompt": "a"}])
    with pytest.raises(DataError, match="eval.jsonl:2: no column 'topic'"):
        win_rate(prompt="{topic} {completion} {other}").score(person)
    assert not server.asked


def test_a_shortened_copy_still_judges(told, win_rate):
    """`llmkit rehearse` makes answers short in a copy of the evaluation."""
    spec = win_rate().model_copy(update={"max_new_tokens": 4})
    subject = told(["g"], ["r"])
    subject.base = base_score(["x"])
    assert spec.score(subject).metrics == {"win_rate": 1.0}
