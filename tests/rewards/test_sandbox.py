"""The sandbox: what hostile programs try, with all layers and with those that a container without namespaces has."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.errors import RunError
from llmkit.rewards import _sandbox
from llmkit.rewards._sandbox import Limits, Outcome, probe, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox's layers are Linux's")

LIMITS = Limits(seconds=60, memory_mb=256, disk_mb=4, processes=4)
SHORT = replace(LIMITS, seconds=1.5)  # for what would go on for ever
CONTAINER = frozenset({"landlock", "seccomp"})
TO_ALL_FILES = """
import os
def tell():
    for fd in range(3, 60):
        try:
            os.write(fd, b"{}")
        except OSError:
            pass
tell()
"""


@pytest.fixture(params=["all layers", "no namespaces"])
def layers(request: pytest.FixtureRequest) -> frozenset[str]:
    had = probe(Limits()).layers
    return had if request.param == "all layers" else had & CONTAINER


@pytest.fixture(autouse=True)
def boxes() -> Iterator[Path]:
    """A temporary folder of the test's own, to see that nothing is left in it. All users can walk to it."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        tempfile.tempdir = name
        yield Path(name)
        tempfile.tempdir = before
        assert not list(Path(name).glob("llmkit-*"))


@pytest.fixture
def marked() -> Iterator[str]:
    """A name that programs give to their processes; none of them may be left in the end."""
    name = f"lk{os.urandom(5).hex()}"
    yield name
    assert not alive(name)


def alive(name: str) -> list[str]:
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            dead = (comm.parent / "stat").read_text().rpartition(")")[2].split()[
                0
            ] == "Z"  # nobody has asked for it yet
            if comm.read_text().strip() == name and not dead:
                found.append(comm.parent.name)
        except OSError:
            pass
    return found


def called(name: str) -> str:
    return f"import ctypes, os, time\nctypes.CDLL(None).prctl(15, {name!r}.encode(), 0, 0, 0)\n"


def passes(outcome: Outcome) -> bool:
    return all(outcome.passed)


def test_each_test_passes_or_fails_by_itself(layers: frozenset[str]) -> None:
    outcome = run(
        "def f(x):\n    return x + 1", ["assert f(1) == 2", "assert f(1) == 3", "assert f(2) == 3"], LIMITS, layers
    )
    assert outcome.passed == (True, False, True)
    assert outcome.problems == ("", "AssertionError: ", "")
    assert outcome.layers == layers


def test_a_program_that_does_not_run_fails_all_its_tests(layers: frozenset[str]) -> None:
    for program, problem in [
        ("def f(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("a = '\ud800'", "UnicodeEncodeError"),
        ("\0", "ValueError|SyntaxError"),
        ("(" * 50_000, "Error|signal"),
    ]:
        outcome = run(program, ["pass", "pass"], LIMITS, layers)
        assert outcome.passed == (False, False)
        assert any(name in outcome.problems[0] for name in problem.split("|"))


@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "print('1 passed'); import os; os._exit(0)",
        "import builtins as b\nb.AssertionError = b.BaseException = None\nb.exec = b.compile = b.ascii = print",
        "import __main__\n__main__.run_program = __main__.reporter = __main__.check = print",
        "import os\nos.write = lambda *a: 1",
        "import os\nos._exit = lambda *a: 1",
        TO_ALL_FILES.format("test 0 1 ''\\n"),
        TO_ALL_FILES.format("0123456789abcdef" * 2 + " test 0 1 ''\\n") + "os._exit(0)",
        "import builtins\nbuiltins.exec = lambda *a: None",
        "import os\nos.fork()",
    ],
)
def test_what_fails_is_not_made_to_pass(program: str, layers: frozenset[str]) -> None:
    # Exits, prints, replaced builtins, a changed harness, false reports: the test still fails.
    assert not any(run(program, ["assert False, 'no'"], LIMITS, layers).passed)


def test_a_test_that_exits_is_not_passed_and_ends_the_rest(layers: frozenset[str]) -> None:
    outcome = run("import os\ndef f():\n    os._exit(0)", ["assert True", "f()", "assert True"], LIMITS, layers)
    assert outcome.passed == (True, False, False)
    assert outcome.problems[1] == "not reached: the program ended with exit code 0"


def test_an_endless_loop_ends_at_the_wall_clock(layers: frozenset[str]) -> None:
    for loop in ("while True: pass", "import time\nwhile True: time.sleep(9)"):
        started = time.monotonic()
        outcome = run("", ["assert True", loop, "assert True"], SHORT, layers)
        assert outcome.passed == (True, False, False)
        assert outcome.problems[1] == "not reached: the program ended after 1.5 seconds"
        assert time.monotonic() - started < 30


def test_a_fork_bomb_is_bounded_and_leaves_nothing(layers: frozenset[str], marked: str) -> None:
    bomb = called(marked) + "while True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    highest, stop = [0], threading.Event()

    def count() -> None:
        while not stop.wait(0.1):
            highest[0] = max(highest[0], len(alive(marked)))

    thread = threading.Thread(target=count)
    thread.start()
    outcome = run(bomb, ["assert True"], SHORT, layers)
    stop.set()
    thread.join()
    assert not passes(outcome)
    assert 2 <= highest[0] <= LIMITS.processes


def test_a_thread_bomb_is_bounded(layers: frozenset[str]) -> None:
    bomb = "import threading, time\nfor _ in range(50):\n    threading.Thread(target=time.sleep, args=(60,)).start()"
    assert run(bomb, ["pass"], LIMITS, layers).problems == ("RuntimeError: can't start new thread",)


def test_ten_gigabytes_are_not_to_be_had(layers: frozenset[str]) -> None:
    assert run("bytearray(10 << 30)", ["pass"], LIMITS, layers).problems == ("MemoryError: ",)
    slowly = "held = []\nwhile True:\n    held.append(bytearray(1 << 20))"
    assert run(slowly, ["pass"], LIMITS, layers).problems == ("MemoryError: ",)
    elsewhere = "import os\nfd = os.memfd_create('x')"
    assert "PermissionError" in run(elsewhere, ["pass"], LIMITS, layers).problems[0]


def test_files_stay_within_the_folder(layers: frozenset[str], boxes: Path) -> None:
    (boxes / "kept").write_text("kept")
    (boxes / "kept").chmod(0o666)
    mode = (boxes / "kept").stat().st_mode
    program = f"""
import os
open("own", "w").write("mine")
os.mkdir("folder")
os.symlink({str(boxes)!r}, "link")
def tried(what, *arguments):
    try:
        what(*arguments)
    except OSError:
        return False
    return True
"""
    outside = str(boxes)
    tests = [
        "assert open('own').read() == 'mine' and sorted(os.listdir('.')) == ['folder', 'link', 'own']",
        "assert os.getcwd() == os.environ['HOME']",
        f"assert not tried(open, {outside!r} + '/new', 'w')",
        "assert not tried(open, 'link/new', 'w')",
        "assert not tried(open, 'link/kept', 'a')",
        "assert not tried(os.truncate, 'link/kept', 0)",
        "assert not tried(os.chmod, 'link/kept', 0)",
        "assert not tried(os.utime, 'link/kept', (0, 0))",
        "assert not tried(os.unlink, 'link/kept')",
        "assert not tried(os.rename, 'own', 'link/own')",
        "assert not tried(os.rename, 'link/kept', 'kept')",
        "assert not tried(os.link, 'link/kept', 'kept')",
        "assert not tried(os.mkdir, '/tmp/llmkit-new')",
        "assert not tried(open, '/dev/shm/llmkit-new', 'w')",
        "assert not tried(os.mkfifo, '../fifo')",
        "assert not tried(open, '/proc/self/oom_score_adj', 'w')",
    ]
    outcome = run(program, tests, LIMITS, layers)
    assert dict(zip(tests, outcome.problems, strict=True)) == dict.fromkeys(tests, "")
    assert [path.name for path in boxes.iterdir()] == ["kept"]
    assert (boxes / "kept").read_text() == "kept"
    assert (boxes / "kept").stat().st_mode == mode


def test_files_are_bounded(layers: frozenset[str]) -> None:
    assert "OSError" in run("open('big', 'wb').write(bytes(5 << 20))", ["pass"], LIMITS, layers).problems[0]
    if "mounts" in layers:
        many = "for i in range(5):\n    open(str(i), 'wb').write(bytes(1 << 20))"
        assert "No space left" in run(many, ["pass"], LIMITS, layers).problems[0]


def test_folders_deeper_than_any_path_are_removed(layers: frozenset[str]) -> None:
    # shutil.rmtree would need a recursion per level.
    deep = "import os\nfor _ in range(1500):\n    os.mkdir('deeper')\n    os.chdir('deeper')"
    assert passes(run(deep, ["pass"], LIMITS, layers))


def test_the_network_and_local_sockets_are_out_of_reach(layers: frozenset[str], boxes: Path) -> None:
    with socket.socket() as listener, socket.socket(socket.AF_UNIX) as local:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        local.bind(str(boxes / "service"))
        (boxes / "service").chmod(0o777)
        local.listen()
        for family, address in [("AF_INET", listener.getsockname()), ("AF_UNIX", str(boxes / "service"))]:
            program = f"import socket\nsocket.socket(socket.{family}).connect({address!r})"
            assert run(program, ["pass"], LIMITS, layers).problems == (
                "PermissionError: [Errno 1] Operation not permitted",
            )


def test_asyncio_works_without_a_network(layers: frozenset[str]) -> None:
    program = "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 3"
    assert passes(run(program, ["assert asyncio.run(f()) == 3"], LIMITS, layers))


def test_secrets_are_not_to_be_seen(layers: frozenset[str], boxes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (boxes / "key").write_text("secret")
    (boxes / "key").chmod(0o644)
    program = f"""
import os, glob
def seen(path):
    try:
        return bool(os.listdir(path) if os.path.isdir(path) else open(path, "rb").read())
    except OSError:
        return False
paths = [{str(boxes / "key")!r}, {str(boxes)!r}, {__file__!r}, {str(Path.home())!r}]
paths += ["/etc/passwd", "/", "/tmp", "/proc"]
paths += [f"/proc/{{pid}}/{{name}}" for pid in (1, {os.getpid()}, os.getppid()) for name in ("environ", "cmdline")]
"""
    tests = [
        "assert [p for p in paths if seen(p)] == []",
        "assert not [v for v in os.environ.values() if 'secret' in v]",
    ]
    assert run(program, tests, LIMITS, layers).problems == ("", "")


def test_other_processes_are_out_of_reach(layers: frozenset[str]) -> None:
    linker = next(path for folder in ("/lib64", "/lib") for path in Path(folder).glob("ld-*.so.*"))
    program = f"""
import ctypes, fcntl, os, resource, signal, subprocess, sys
def tried(what, *arguments):
    try:
        what(*arguments)
    except (OSError, PermissionError, ValueError):
        return False
    return True
pids = (os.getppid(), {os.getpid()}, -1, 0, 1)
"""
    tests = [
        "assert not any(tried(os.kill, pid, signal.SIGTERM) for pid in pids)",
        "assert not any(tried(os.killpg, abs(pid), signal.SIGKILL) for pid in pids)",
        f"assert not tried(resource.prlimit, {os.getpid()}, resource.RLIMIT_NOFILE, (1, 1))",
        "r, w = os.pipe()\nassert not tried(fcntl.fcntl, r, fcntl.F_SETOWN, pids[0])",
        "import socket, struct\none, other = socket.socketpair()\n"
        "for request in (0x8901, 0x8902):\n"
        "    assert not tried(fcntl.ioctl, one, request, struct.pack('i', os.getpid()))",
        "assert not tried(os.setpriority, os.PRIO_PROCESS, pids[1], 19)",
        "assert ctypes.CDLL(None).unshare(0x10000000) == -1",
        "assert not tried(subprocess.run, ['/bin/true'])",
        "assert not tried(subprocess.run, [sys.executable, '-c', ''])",
        # A program that it has made: a copy of the dynamic linker, which runs by itself.
        "with open(os.open('made', os.O_CREAT | os.O_WRONLY, 0o755), 'wb') as file:\n"
        f"    file.write(open({str(linker)!r}, 'rb').read())\n"
        "assert not tried(subprocess.run, ['./made', '--version'])",
    ]
    outcome = run(program, tests, LIMITS, layers)
    assert dict(zip(tests, outcome.problems, strict=True)) == dict.fromkeys(tests, "")


def test_a_program_that_ignores_signals_is_ended(layers: frozenset[str], marked: str) -> None:
    program = called(marked) + (
        "import signal\nfor s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    time.sleep(1)"
    )
    assert not passes(run(program, ["pass"], SHORT, layers))


def test_a_background_process_does_not_outlive_the_program(layers: frozenset[str], marked: str) -> None:
    program = (
        called(marked)
        + "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)"
    )
    assert passes(run(program, ["time.sleep(0.2)"], LIMITS, layers))


def test_the_program_ends_with_its_supervisor(
    layers: frozenset[str], marked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sandbox, "GRACE_SECONDS", -28.0)
    with pytest.raises(RunError, match="did not end"):
        run(called(marked) + "time.sleep(60)", ["pass"], Limits(seconds=30), layers)
    time.sleep(0.3)


def test_output_is_of_no_consequence(layers: frozenset[str]) -> None:
    loud = "line = 'x' * 99\nfor _ in range(100_000):\n    print(line)"
    assert passes(run(loud, ["assert True"], LIMITS, layers))
    assert passes(run("import os\nos.close(0)\nos.close(1)\nos.close(2)", ["assert True"], LIMITS, layers))
    assert not passes(run("import os\nos.closerange(0, 99)", ["assert True"], LIMITS, layers))


def test_false_reports_without_end_cost_the_row(layers: frozenset[str]) -> None:
    flood = TO_ALL_FILES.format("x" * 65536) + "while True:\n    tell()\n"
    assert not passes(run(flood, ["pass"], SHORT, layers))


@pytest.mark.parametrize(
    "crash",
    [
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f([x])\nf(1)",
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr(self)\nrepr(A())",
        "import ctypes\nctypes.string_at(0)",
    ],
)
def test_a_crash_costs_the_row(crash: str, layers: frozenset[str]) -> None:
    assert not passes(run(crash, ["pass"], SHORT, layers))
    assert passes(run("", ["pass"], LIMITS, layers))


def test_the_hash_of_a_string_is_the_same_each_time(layers: frozenset[str]) -> None:
    first, second = (run("", ["raise KeyError(hash('a'))"], LIMITS, layers).problems for _ in range(2))
    assert first == second


def test_dataclasses_and_pickle_find_their_module(layers: frozenset[str]) -> None:
    program = """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Point:
    x: int
if __name__ == "__main__":
    raise RuntimeError("its own demonstration")
"""
    test = "import pickle\nassert pickle.loads(pickle.dumps(Point(3))) == Point(3)"
    assert run(program, [test], LIMITS, layers).problems == ("",)


def test_a_program_is_read_as_it_stands(layers: frozenset[str]) -> None:
    # Not with the harness's own `from __future__ import annotations`.
    assert passes(run("def f(x: int): pass", ["assert f.__annotations__ == {'x': int}"], LIMITS, layers))


def test_a_layer_that_is_gone_is_an_error_and_no_score() -> None:
    with pytest.raises(RunError, match=r"(?s)broke down.*\['moat'\]"):
        run("", ["pass"], LIMITS, ["moat"])


def test_namespaces_that_break_half_way_are_done_without(boxes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # AppArmor on Ubuntu 23.10 and later: the namespaces are made, and then uid_map can't be written.
    start = "    uid, gid = os.geteuid(), os.getegid()\n"
    text = _sandbox.CHILD.read_text(encoding="utf-8")
    assert text.count(start) == 1
    child = boxes / "child.py"
    child.write_text(text.replace(start, f"{start}    raise PermissionError(13, 'uid_map')\n"), encoding="utf-8")
    monkeypatch.setattr(_sandbox, "CHILD", child)
    outcome = run("", ["pass"], LIMITS)
    assert passes(outcome)
    assert outcome.layers == probe(Limits()).layers - {"namespaces", "mounts"}
    # No layer that has been promised is left out.
    with pytest.raises(RunError, match="uid_map"):
        run("", ["pass"], LIMITS, ["namespaces"])


def test_the_probe_finds_what_is_open() -> None:
    # Shown by leaving layers out: without the filter there are sockets, without Landlock there are files.
    had = probe(Limits()).layers
    assert probe(Limits()).gaps == ()
    if {"landlock", "seccomp"} <= had:
        assert probe(Limits(), CONTAINER).gaps == ()
        assert "reach the network" in probe(Limits(), frozenset({"landlock"})).gaps
        assert "read your files" in probe(Limits(), frozenset({"seccomp"})).gaps
    assert set(probe(Limits(), frozenset()).gaps) >= {
        "reach the network",
        "change files outside its folder",
        "read your files",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="all the other tests already run as an ordinary user")
def test_it_holds_for_an_ordinary_user() -> None:
    # Root becomes somebody else for the program. An ordinary user owns the trainer and the program, so that more
    # depends on the layers; leaving some out shows what each of them is for.
    def other(script: str) -> subprocess.CompletedProcess[str]:
        python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
        environment = {"PYTHONPATH": str(Path(_sandbox.__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
        user = {"user": 12345, "group": 12345, "extra_groups": []}
        return subprocess.run([python, "-c", script], env=environment, cwd="/", capture_output=True, text=True, **user)

    try:
        tried = other("import sys, llmkit.rewards._sandbox\nassert sys.version_info >= (3, 11)")
    except PermissionError:
        pytest.skip("no Python that an ordinary user can run")
    if tried.returncode != 0:
        pytest.skip("no Python 3.11 that an ordinary user can run, or llmkit is not readable to all users")
    script = """
        import time
        from llmkit.rewards._sandbox import Limits, probe, run
        limits = Limits()
        full = probe(limits)
        assert full.gaps == (), full
        host = "import socket, os\\nsocket.sethostname('mine')"
        assert "PermissionError" in run(host, ["pass"], limits, full.layers).problems[0]
        files = "change files outside its folder"
        expected = {
            ("landlock", "seccomp"): set(),
            ("namespaces", "mounts"): {"read your files"},
            ("landlock",): {"reach the network", files, "signal other processes"},
            ("seccomp",): {files, "read your files"},
            (): {"reach the network", files, "read your files", "signal other processes"},
        }
        for layers, gaps in expected.items():
            if set(layers) <= full.layers:
                assert set(probe(limits, frozenset(layers)).gaps) == gaps, layers
        bomb = "import os\\nos.fork() and os.setsid()\\nwhile True:\\n    try: os.fork()\\n    except OSError: pass"
        for program in (bomb, "import os\\nos.kill(0, 9)"):
            assert run(program, ["pass"], Limits(seconds=1.5), ()).passed == (False,)
    """
    result = other(textwrap.dedent(script))
    assert result.returncode == 0, result.stderr
