from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from llmkit.methods._by_length import ByLength, GroupsByLength, longest
from llmkit.runs.prepare import prepare


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"input_ids": [[1, 2], [1]], "labels": [[1, 2], [1]]}, [2, 1]),
        ({"prompt_ids": [[1], [1, 2]], "chosen_ids": [[1, 2], [1]], "rejected_ids": [[1], [1, 2, 3]]}, [3, 5]),
        ({"chosen_ids": [[1, 2], [1]], "rejected_ids": [[1], [1, 2, 3]]}, [2, 3]),  # a reward model's pairs
        ({"chosen_input_ids": [[1, 2], [1]], "rejected_input_ids": [[1], [1, 2, 3]]}, [2, 3]),  # ORPO's and CPO's
    ],
)
def test_the_longest_sequence_of_each_row(columns: dict[str, Any], expected: list[int]) -> None:
    assert longest(Dataset.from_dict(columns)).tolist() == expected
    assert longest(Dataset.from_dict(columns).select([1, 0])).tolist() == expected[::-1]


def rows(count: int) -> list[dict[str, Any]]:
    turns = [("ab " * (1 + 7 * i % 23), "cd " * (1 + 5 * i % 11)) for i in range(count)]
    return [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in turns]


def test_the_planner_groups_rows_by_length_and_batches_are_hardly_padded(recipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(48)), encoding="utf-8")
    sources = f"data.train=[{{path: {path}, format: messages}}]"
    size = "training.per_device_train_batch_size=4"
    trainer = prepare(recipe(sources, "data.eval=null", size), output_dir=tmp_path / "out").trainer
    assert isinstance(trainer, GroupsByLength)
    assert trainer.args.train_sampling_strategy == "group_by_length", "the planner's choice"
    lengths = longest(trainer.train_dataset).tolist()
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, ByLength)
    assert (sampler.batch_size, list(sampler.lengths)) == (4, lengths)
    order = list(sampler)
    assert sorted(order) == list(range(48)), "each row once"
    batches = [order[start : start + 4] for start in range(0, 48, 4)]
    computed = sum(4 * max(lengths[i] for i in batch) for batch in batches)
    assert computed < 1.2 * sum(lengths)
    unsorted = sum(4 * max(lengths[start : start + 4]) for start in range(0, 48, 4))
    assert computed - sum(lengths) < (unsorted - sum(lengths)) / 4


def test_batches_come_in_random_order_but_for_the_longest_row_and_a_short_batch() -> None:
    lengths = [1 + 7 * i % 230 for i in range(1002)]
    sampler = ByLength(4, lengths, 1)
    order = list(sampler)
    assert sorted(order) == list(range(1002))
    assert len(sampler) == 1002
    widths = [max(lengths[i] for i in order[start : start + 4]) for start in range(0, 1000, 4)]
    assert widths[0] == max(lengths)
    falls = sum(early > late for early, late in itertools.pairwise(widths))
    assert 100 < falls < 150, "half of 249 pairs, and not nearly all of them as in order of length"
    groups = [set(list(ByLength(4, lengths, seed))[:4]) for seed in range(5)]
    assert len({frozenset(group) for group in groups}) > 1, "other rows meet in a batch with another seed"


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5])
def test_few_rows(count: int) -> None:
    assert sorted(ByLength(4, list(range(count)), 1)) == list(range(count))


def test_the_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    lengths = [1 + 7 * i % 23 for i in range(64)]

    def order(seed: int, epoch: int, random_state: int) -> list[int]:
        torch.manual_seed(random_state)
        sampler = ByLength(4, lengths, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 1, random_state=5) == order(1, 1, random_state=6)
    assert order(1, 1, 5) != order(1, 0, 5)
    assert order(1, 1, 5) != order(2, 1, 5)


def test_a_run_that_goes_on_in_its_second_epoch_sees_the_rows_that_are_left(recipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(24)), encoding="utf-8")
    epochs = ("training.max_steps=-1", "training.num_train_epochs=2", "training.per_device_train_batch_size=4")
    saves = ("training.save_strategy=steps", "training.save_steps=8", "data.eval=null")

    def losses(checkpoint: str | None = None) -> list[float]:
        sources = f"data.train=[{{path: {path}, format: messages}}]"
        trainer = prepare(recipe(sources, *epochs, *saves), output_dir=tmp_path / "out").trainer
        trainer.train(resume_from_checkpoint=checkpoint)
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    straight = losses()
    assert len(straight) == 12
    assert losses(str(tmp_path / "out" / "checkpoint-8")) == straight
