"""Files of a run that are damaged behind its back: what is left is used, or the error says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import LONG, STEPS, Case, began_at, differences, last_step
from harness import At, Fault

from llmkit.recipe.recipe import Keep
from llmkit.runs.recovery.checkpoints import Checkpoints


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def garble(file: Path) -> None:
    """Put in bytes that are no text."""
    content = file.read_bytes()
    file.write_bytes(content[:-20] + b"\xff\xfe\x80" + content[-17:])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


DAMAGES: tuple[Callable[[Path], None], ...] = (flip, truncate, Path.unlink, empty, lengthen)


def newest(run: Path) -> Path:
    return run / "checkpoints" / f"checkpoint-{STEPS}"


@pytest.fixture
def finished(plain: Case, tmp_path: Path) -> Path:
    """Return a run that has its checkpoints, and no trained model yet."""
    return plain.copy(tmp_path / "run")


def test_a_damaged_file_of_a_checkpoint_is_always_noticed(plain: Case, tmp_path: Path) -> None:
    """Each file, each damage; what a resumed run does then is tested below."""
    place = tmp_path / "checkpoints"
    said: list[str] = []
    shutil.copytree(plain.straight / "checkpoints", place)
    found = Checkpoints(place, Keep(), said.append).last()
    assert found is not None
    assert found.name == f"checkpoint-{STEPS}"
    for file in sorted(path for path in found.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        for damage in DAMAGES:
            damage(file)
            said.clear()
            before = Checkpoints(place, Keep(), said.append).last()
            assert before is not None
            assert before.name == f"checkpoint-{STEPS - 2}", f"{damage.__name__} {file.name}"
            assert f"checkpoint-{STEPS}" in " ".join(said), f"{damage.__name__} {file.name}"
            # A manifest that names another number blames the file that has it no more.
            assert file.name in " ".join(said) or file.name == "manifest.json", f"{damage.__name__} {file.name}"
            file.write_bytes(whole)


def checkpoint_files(run: Path) -> list[str]:
    return sorted(str(p.relative_to(newest(run))) for p in newest(run).rglob("*") if p.is_file())


def test_a_damaged_checkpoint_is_passed_over(plain: Case, tmp_path: Path) -> None:
    """The files that training goes on from, each with a damage of its own; all of them in the long variant."""
    files = checkpoint_files(plain.straight)
    if not LONG:
        files = [name for name in files if name.endswith((".safetensors", "trainer_state.json", "manifest.json"))]
    assert len(files) >= 3
    for index, name in enumerate(files):
        run = plain.copy(tmp_path / str(index))
        DAMAGES[index % len(DAMAGES)](newest(run) / name)
        ended = plain.ends_the_same(run)
        assert began_at(ended) == STEPS - 2, ended.said
        assert f"checkpoint-{STEPS}" in ended.said
        assert Path(name).name in ended.said


def test_a_checkpoint_whose_damage_is_not_a_fault_of_its_hashes_is_no_trap(finished: Path, plain: Case) -> None:
    """A file that somebody has put into it is not loaded, and neither is a folder that only looks like a checkpoint."""
    (newest(finished) / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    (finished / "checkpoints" / "checkpoint-99").mkdir()
    (finished / "checkpoints" / "checkpoint-mine").mkdir()
    ended = plain.run(finished, "--resume")
    assert ended.code == 0, ended.said
    assert not (finished / "pwned").exists()
    left = [d for d in differences(finished, plain.straight) if "checkpoint" not in d]
    assert left == []


def test_with_no_whole_checkpoint_left_nothing_wrong_is_trained(finished: Path, plain: Case) -> None:
    for state in finished.glob("checkpoints/checkpoint-*/trainer_state.json"):
        truncate(state)
    ended = plain.run(finished, "--resume")
    assert f"checkpoint-{STEPS}" in ended.said
    assert f"checkpoint-{STEPS - 2}" in ended.said
    if ended.code == 0:
        assert began_at(ended) == 0
        assert differences(finished, plain.straight) == []
    else:
        assert ended.code == 2, ended.said
        assert "start" in ended.error


FILES = ("recipe.yaml", "lock.json", "plan.json", "metrics.jsonl")


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_of_a_run_are_said_or_mended(name: str, plain: Case, tmp_path: Path) -> None:
    """It ends as the undisturbed run does, or with a sentence that names the file; never with a traceback."""
    whole = (plain.straight / name).read_bytes()
    run, refused = plain.copy(tmp_path / "run"), 0
    for damage in (truncate, garble, flip, Path.unlink):
        (run / name).write_bytes(whole)
        damage(run / name)
        ended = plain.run(run, "--resume")
        what = f"{damage.__name__} {name}: {ended.code}\n{ended.said}"
        if ended.code == 0:
            left = differences(run, plain.straight)
            assert not left, f"{left} {what}"
            run = plain.copy(tmp_path / damage.__name__)
        else:
            refused += 1
            assert ended.code == 2, what
            assert name in ended.error, what
            assert "\n" in ended.error, f"no remedy: {what}"
    if refused:
        (run / name).write_bytes(whole)
        plain.ends_the_same(run)


def test_metrics_that_are_no_metrics_are_said_or_mended(finished: Path, plain: Case) -> None:
    """Whole lines of JSON that no run has written."""
    lines = (finished / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines[1:1] = ["[1, 2]", "17", "null", '{"stap": 2}', '{"step": "two"}', ""]
    (finished / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plain.ends_the_same(finished)


def test_data_that_change_under_a_run_are_noticed_when_it_goes_on(plain: Case, tmp_path: Path) -> None:
    """What was read was read; on resume other rows would be another training."""
    rows, run = plain.recipe.with_name("rows.jsonl"), tmp_path / "run"
    whole = rows.read_bytes()
    line = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) + "\n"
    try:
        ended = plain.run(run, fault=Fault("append", (At("open", r"/metrics\.jsonl$", 3),), (str(rows), line)))
        assert ended.code == 0, ended.said
        assert differences(run, plain.straight) == []
        refused = plain.run(run, "--resume")
        assert refused.code == 2, refused.said
        assert "rows.jsonl" in refused.error
        rows.write_bytes(whole)
        shutil.rmtree(run / "checkpoints" / f"checkpoint-{STEPS}")
        ended = plain.run(run, "--resume", fault=Fault("remove", (At("open", r"/metrics\.jsonl$"),), (str(rows),)))
        assert ended.code == 0, ended.said
        assert not rows.exists()
        assert differences(run, plain.straight) == []
        refused = plain.run(run, "--resume")
        assert refused.code == 2, refused.said
        assert "rows.jsonl" in refused.error
        assert last_step(run) == STEPS
    finally:
        rows.write_bytes(whole)
    plain.ends_the_same(run)


def test_a_finished_run_that_goes_on_stays_as_it_is(sft: Case, tmp_path: Path) -> None:
    """Its last step is not the end of an epoch: it must not take another one."""
    run = tmp_path / "run"
    shutil.copytree(sft.straight, run)
    sft.ends_the_same(run)
