"""The ledger says what became of the rows, and refuses to lose one."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from llmkit.data.ledger import Account, Broken, Ledger, Share
from llmkit.data.splits import Row
from llmkit.data.store import Listed, Rows


def test_a_lost_row_is_noticed() -> None:
    with pytest.raises(AssertionError):
        Ledger(train={"a.jsonl": Account(read=3, kept=2, pieces=2)}).to_dict()


def test_sentences_name_every_fate() -> None:
    account = Account(
        read=11,
        kept=7,
        truncated=2,
        split=1,
        pieces=9,
        dropped=Counter({"too long": 3}),
        broken=[Broken("a.jsonl:4", "not JSON")],
        tokens=1234,
        trained_tokens=400,
    )
    account.check()
    assert Ledger(train={"a.jsonl": account}).sentences() == [
        "train: a.jsonl: 7 of 11 rows kept, 3 dropped (too long), 1 broken, 2 truncated, 1 split into 3 pieces, "
        "1,234 tokens, 400 trained"
    ]


def test_the_mix_is_said_by_rows_and_by_tokens() -> None:
    share = Share(rows=30, tokens=1200, trained_tokens=100, row_share=0.3, token_share=0.25)
    ledger = Ledger(mix={"a.jsonl": share})
    assert ledger.sentences() == ["mix: a.jsonl: 30 rows (30.0%), 1,200 tokens (25.0%)"]
    assert ledger.to_dict()["mix"]["a.jsonl"]["row_share"] == 0.3


def rows(*found: Row) -> Rows:
    return Rows([Listed(found)])


def unpaired(label: bool, *, truncated: bool = False) -> Row:
    return Row("a:1", {"label": label}, {"prompt_ids": [1, 2], "completion_ids": [3, 4, 5]}, truncated=truncated)


def test_unpaired_feedback_says_how_many_are_good_and_bad() -> None:
    account = Account()
    account.keep(rows(unpaired(True), unpaired(True), unpaired(False, truncated=True)))
    account.drop("an answer is empty", "a:4")
    assert account.sentence() == (
        "3 of 4 rows kept, 1 dropped (an answer is empty), 2 good and 1 bad, 1 truncated, 15 tokens, 9 trained"
    )
    account.check()
    assert account.to_dict()["verdicts"] == {"good": 2, "bad": 1}
    assert account.places == {"an answer is empty": ["a:4"]}


def test_a_row_given_up_leaves_no_trace_but_its_reason_and_place() -> None:
    account = Account()
    account.keep(rows(unpaired(True), unpaired(False, truncated=True)))
    account.give_up(rows(unpaired(False, truncated=True)), "held out")
    assert account == Account(
        read=2,
        kept=1,
        pieces=1,
        dropped=Counter({"held out": 1}),
        tokens=5,
        trained_tokens=3,
        verdicts=Counter({"good": 1, "bad": 0}),
        places={"held out": ["a:1"]},
    )
    account.check()


def test_the_pieces_of_a_split_row_count_as_one_row() -> None:
    long = Row("a:1", {}, {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [1, 2, 3, 4, 5, 6]})
    account = Account()
    account.keep(rows(*long.pieces(2), Row("a:2", {}, {"input_ids": [1], "labels": [1]})))
    assert (account.read, account.kept, account.split, account.pieces) == (2, 2, 1, 4)
    account.check()
    account.give_up(rows(*long.pieces(2)), "held out")
    assert (account.kept, account.split, account.pieces, account.dropped["held out"]) == (1, 0, 1, 1)
    account.check()


def test_prompts_have_tokens_and_none_of_them_is_trained() -> None:
    account = Account()
    account.keep(rows(Row("a:1", {}, {"prompt_ids": [1, 2, 3]})))
    assert account.sentence() == "1 of 1 rows kept, 3 tokens"
    assert "verdicts" not in account.to_dict()


def test_a_kept_row_without_a_verdict_among_those_with_one_is_noticed() -> None:
    with pytest.raises(AssertionError):
        Account(read=2, kept=2, pieces=2, verdicts=Counter({"good": 1})).check()


def test_two_sources_of_one_name_share_an_account() -> None:
    first, second = Account(), Account()
    first.keep(rows(unpaired(True)))
    second.keep(rows(unpaired(False)))
    second.drop("an answer is empty", "a:2")
    second.quarantine("a:3", "not JSON")
    first.add(second)
    first.check()
    assert (first.read, first.kept, len(first.broken)) == (4, 2, 1)
    assert first.verdicts == {"good": 1, "bad": 1}
    assert first.places == {"an answer is empty": ["a:2"]}


def test_what_is_cached_comes_back() -> None:
    account = Account()
    account.drop("an answer is empty", "a:2")
    account.quarantine("a:3", "not JSON")
    assert Account.from_cache(json.loads(json.dumps(account.to_cache()))) == account
