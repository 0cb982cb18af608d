"""The ledger says what became of the rows, and refuses to lose one."""

from __future__ import annotations

from collections import Counter

import pytest

from llmkit.data.ledger import Account, Ledger


def test_a_lost_row_is_noticed() -> None:
    with pytest.raises(AssertionError):
        Ledger(train={"a.jsonl": Account(read=3, kept=2)}).to_dict()


def test_sentences_name_every_fate() -> None:
    account = Account(read=10, kept=7, truncated=2, dropped=Counter({"too long": 3}), tokens=1234, trained_tokens=400)
    assert Ledger(train={"a.jsonl": account}).sentences() == [
        "train: a.jsonl: 7 of 10 rows kept, 3 dropped (too long), 2 truncated, 1,234 tokens, 400 trained"
    ]
