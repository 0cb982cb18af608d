"""The ledger says what became of the rows, and refuses to lose one."""

from __future__ import annotations

from collections import Counter

import pytest

from llmkit.data.ledger import Account, Ledger
from llmkit.data.splits import Row


def test_a_lost_row_is_noticed() -> None:
    with pytest.raises(AssertionError):
        Ledger(train={"a.jsonl": Account(read=3, kept=2)}).to_dict()


def test_sentences_name_every_fate() -> None:
    account = Account(read=10, kept=7, truncated=2, dropped=Counter({"too long": 3}), tokens=1234, trained_tokens=400)
    assert Ledger(train={"a.jsonl": account}).sentences() == [
        "train: a.jsonl: 7 of 10 rows kept, 3 dropped (too long), 2 truncated, 1,234 tokens, 400 trained"
    ]


def unpaired(label: bool, *, truncated: bool = False) -> Row:
    return Row("a:1", {"label": label}, {"prompt_ids": [1, 2], "completion_ids": [3, 4, 5]}, truncated=truncated)


def test_unpaired_feedback_says_how_many_are_good_and_bad() -> None:
    account = Account()
    for row in (unpaired(True), unpaired(True), unpaired(False, truncated=True)):
        account.keep(row)
    account.drop("an answer is empty")
    assert account.sentence() == (
        "3 of 4 rows kept, 1 dropped (an answer is empty), 2 good and 1 bad, 1 truncated, 15 tokens, 9 trained"
    )
    account.check()
    assert account.to_dict()["verdicts"] == {"good": 2, "bad": 1}


def test_a_row_given_up_leaves_no_trace_but_its_reason() -> None:
    account = Account()
    account.keep(unpaired(True))
    account.keep(unpaired(False, truncated=True))
    account.give_up(unpaired(False, truncated=True), "held out")
    assert account == Account(2, 1, 0, Counter({"held out": 1}), 5, 3, Counter({"good": 1, "bad": 0}))
    account.check()


def test_prompts_have_tokens_and_none_of_them_is_trained() -> None:
    account = Account()
    account.keep(Row("a:1", {}, {"prompt_ids": [1, 2, 3]}))
    assert account.sentence() == "1 of 1 rows kept, 3 tokens"
    assert "verdicts" not in account.to_dict()


def test_a_kept_row_without_a_verdict_among_those_with_one_is_noticed() -> None:
    with pytest.raises(AssertionError):
        Account(read=2, kept=2, verdicts=Counter({"good": 1})).check()
