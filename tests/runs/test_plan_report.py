"""What `llmkit plan` prints: every figure at its place, whatever the width, and the same in the JSON file."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from llmkit.planning.case import Case
from llmkit.planning.edits import Edit
from llmkit.planning.hardware import CATALOGUE, GIB
from llmkit.planning.memory import USABLE, Estimate
from llmkit.planning.planner import plan
from llmkit.planning.sharding import Sharding
from llmkit.planning.size import ModelSize
from llmkit.recipe.recipe import Recipe
from llmkit.runs.plan_report import BEGINS, SPARE, Outlook, Way, print_outlook, size, verdict

SIZE = ModelSize(10**9, exact=True, source="by hand")
MEMORY = 24 * GIB
ROOM = int(USABLE * MEMORY)


def memory(peak: float, **parts: float) -> Estimate:
    """An estimate, in GiB, that needs most while it trains."""
    counted = {name: round(count * GIB) for name, count in parts.items()}
    peaks = {"load": GIB, "train": round(peak * GIB), "sample": 0, "evaluate": GIB // 2, "save": 3 * GIB}
    return Estimate(parts=counted, peaks=peaks, exact=frozenset({"weights", "optimizer"}) & set(counted))


def edit(override: str = "training.gradient_checkpointing", *, fits: bool = True, slower: float = 1.3) -> Edit:
    return Edit({override: True}, saves=2 * GIB, peak=9 * GIB, slower=slower, fits=fits, why="because [brackets]")


@pytest.fixture
def outlook(recipe: Callable[..., Recipe]) -> Callable[..., Outlook]:
    def make(
        estimate: Estimate | None, *edits: Edit, count: int = 1, ways: tuple[Way, ...] = (), known: bool = True
    ) -> Outlook:
        hardware = replace(CATALOGUE["rtx4090"], memory_bytes=MEMORY, count=count)
        it = recipe()
        size = SIZE if known else None
        return Outlook("tiny", Case(it, hardware, size), plan(it, hardware, size), estimate, ways, edits)

    return make


def printed(found: Outlook, width: int = 100) -> str:
    stream = io.StringIO()
    print_outlook(found, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 MiB"), (310 * 2**20, "310.0 MiB"), (GIB, "1.0 GiB"), (1.5 * GIB, "1.5 GiB"), (1300 * GIB, "1,300.0 GiB")],
)
def test_sizes_are_readable(count: float, text: str) -> None:
    assert size(count) == text


def test_parts_say_whether_they_are_counted(outlook: Callable[..., Outlook]) -> None:
    lines = printed(outlook(memory(10, weights=4, activations=6, kv_cache=0))).splitlines()
    [weights] = [line for line in lines if line.startswith("weights ")]
    [activations] = [line for line in lines if line.startswith("activations ")]
    assert "4.0 GiB" in weights
    assert weights.rstrip().endswith("counted")
    assert activations.rstrip().endswith("estimated")
    assert activations.count("█") == 24  # the largest part
    assert weights.count("█") == 16
    assert not any(line.startswith("kv cache") for line in lines)  # there is none


def test_peaks_are_shares_of_the_device(outlook: Callable[..., Outlook]) -> None:
    lines = printed(outlook(memory(12, weights=4))).splitlines()
    [train] = [line for line in lines if line.startswith("train ")]
    assert "12.0 GiB" in train
    assert "50%" in train
    assert train.count("█") == 12
    assert not any(line.startswith("sample ") for line in lines)  # SFT samples nothing


def test_a_bar_stays_in_the_window(outlook: Callable[..., Outlook]) -> None:
    assert max(map(len, printed(outlook(memory(1000, weights=900))).splitlines())) <= 100


def test_a_run_that_fits_says_what_is_left(outlook: Callable[..., Outlook]) -> None:
    found = outlook(memory(10.4, weights=4))
    assert found.fits is True
    assert verdict(found) == "Fits: 10.4 GiB of the 20.4 GiB that may be filled (85% of 24.0 GiB); 10.0 GiB are left."


def test_a_run_that_does_not_fit_says_by_how_much_and_when(outlook: Callable[..., Outlook]) -> None:
    found = outlook(memory(30.4, weights=4))
    assert found.fits is False
    assert verdict(found) == (
        "Does not fit: 30.4 GiB to train, 10.0 GiB more than the 20.4 GiB that may be filled (85% of 24.0 GiB)."
    )


@pytest.mark.parametrize(("peak", "fits"), [(ROOM / GIB, True), ((ROOM + 1) / GIB, False)])
def test_the_last_byte_decides(outlook: Callable[..., Outlook], peak: float, fits: bool) -> None:
    assert outlook(memory(peak, weights=4)).fits is fits


def test_a_model_of_unknown_size_has_decisions_and_no_figures(outlook: Callable[..., Outlook]) -> None:
    found = outlook(None, known=False)
    text = printed(found, 300)
    assert found.fits is None
    assert "its size is not known" in text
    assert "The size of the model is not known" in text
    assert "Most at once" not in text
    assert "Edits" not in text
    assert "training.gradient_checkpointing" in text
    assert json.loads(found.to_json())["memory"] is None


def test_edits_can_be_pasted_at_any_width(outlook: Callable[..., Outlook]) -> None:
    long = Edit(
        {"training.per_device_train_batch_size": 1, "training.gradient_accumulation_steps": 16, "adapter.type": "lora"},
        saves=GIB,
        peak=GIB,
        slower=1.0,
        fits=True,
        why="why " * 40,
    )
    for width in (60, 100, 160):
        lines = [line.rstrip() for line in printed(outlook(memory(30, weights=4), long), width).splitlines()]
        assert (
            "--set training.per_device_train_batch_size=1 --set training.gradient_accumulation_steps=16 "
            "--set adapter.type=lora"
        ) in lines
        assert all(line.startswith("    ") for line in lines if "why why" in line)


def test_an_edit_says_what_it_saves_and_costs(outlook: Callable[..., Outlook]) -> None:
    text = printed(outlook(memory(30, weights=4), edit(), edit("training.x", fits=False, slower=1.0)))
    assert "fits: saves 2.0 GiB, peak 9.0 GiB, about 30% slower" in text
    assert "\n    saves 2.0 GiB, peak 9.0 GiB, no slower" in text
    assert "because [brackets]" in text


def test_what_changes_the_result_is_said(outlook: Callable[..., Outlook]) -> None:
    assert "changes what is learnt" not in printed(outlook(memory(30, weights=4), edit()))
    assert "changes what is learnt" in printed(outlook(memory(30, weights=4), replace(edit(), same=False)))


def test_a_run_that_fits_is_not_buried_under_edits(outlook: Callable[..., Outlook]) -> None:
    many = [edit(f"training.x{i}") for i in range(SPARE + 3)]
    fitting = printed(outlook(memory(10, weights=4), *many))
    assert fitting.count("--set") == SPARE
    assert "and 3 more" in fitting
    assert "fits: " not in fitting  # it does without them
    assert printed(outlook(memory(30, weights=4), *many)).count("--set") == SPARE + 3


def test_where_no_edit_is_enough_it_is_said(outlook: Callable[..., Outlook]) -> None:
    said = "None of these is enough"
    assert said in printed(outlook(memory(30, weights=4), edit(fits=False)))
    assert said not in printed(outlook(memory(30, weights=4), edit()))
    assert said not in printed(outlook(memory(10, weights=4), edit(fits=False)))


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_several_gpus_have_a_table(outlook: Callable[..., Outlook]) -> None:
    states = {
        "weights": 8.0,
        "adapter": 1,
        "gradients": 8,
        "optimizer": 16,
        "activations": 1,
        "logits": 1,
        "workspace": 2,
    }
    ways = (
        Way(Sharding("ddp", 8), memory(37, **states), None),
        Way(Sharding("fsdp", 8), memory(9, weights=1, gradients=1, optimizer=2, activations=1, workspace=3), None),
        Way(Sharding("zero3", 8), None, "it can't be cut up"),
    )
    text = printed(outlook(memory(37, **states), edit(), count=8, ways=ways))
    assert "Each of 8 GPUs" in text
    [ddp] = [line for line in text.splitlines() if line.startswith("DDP ")]
    assert cells(ddp) == ["DDP", "9.0 GiB", "8.0 GiB", "16.0 GiB", "2.0 GiB", "2.0 GiB", "37.0 GiB", "too much"]
    [fsdp] = [line for line in text.splitlines() if line.startswith("FSDP2 ")]
    assert cells(fsdp) == ["FSDP2", "1.0 GiB", "1.0 GiB", "2.0 GiB", "1.0 GiB", "3.0 GiB", "9.0 GiB", "fits"]
    assert "ZeRO-3: it can't be cut up" in text
    assert "Divided between the GPUs it would (FSDP2)" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100


def test_one_device_has_no_table_of_several(outlook: Callable[..., Outlook]) -> None:
    text = printed(outlook(memory(10, weights=4)))
    assert "GPUs" not in text
    assert "each GPU" not in text.split("Decisions")[0]


def test_the_json_has_every_figure(outlook: Callable[..., Outlook]) -> None:
    ways = (Way(Sharding("fsdp", 8), memory(9, weights=1), None), Way(Sharding("zero3", 8), None, "no"))
    found = outlook(memory(30, weights=4), edit(), count=8, ways=ways)
    text = found.to_json()
    assert text.startswith(BEGINS)
    values = json.loads(text)
    assert values["plan_of"] == "tiny"
    assert values["fits"] is False
    assert values["usable_bytes"] == ROOM
    assert values["hardware"]["count"] == 8
    assert values["memory"]["parts"] == {"weights": 4 * GIB}
    assert values["memory"]["exact"] == ["weights"]
    assert values["memory"]["peak"] == values["memory"]["peaks"]["train"] == 30 * GIB
    assert [way["type"] for way in values["ways"]] == ["fsdp", "zero3"]
    assert values["ways"][1]["refusal"] == "no"
    [one] = values["edits"]
    assert one["overrides"] == ["training.gradient_checkpointing=true"]
    assert one["settings"] == {"training.gradient_checkpointing": True}
    assert (one["saves"], one["peak"], one["slower"], one["fits"]) == (2 * GIB, 9 * GIB, 1.3, True)
    assert {d["key"] for d in values["decisions"]} == {d.key for d in found.plan.decisions}
