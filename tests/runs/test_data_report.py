"""What `llmkit data` prints: with colours, and in a pipe with marks instead."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from llmkit.data.audit import Finding
from llmkit.data.ledger import Account, Broken
from llmkit.data.lengths import Bin
from llmkit.data.shapes import Shape
from llmkit.data.splits import Row
from llmkit.runs.data_report import bar, print_seen, row_facts, token_count
from llmkit.runs.seeing import Batching, Lost, Origin, Seen, Shown, passages
from llmkit.runs.spelling import Passage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GREEN, RED, CYAN, RESET = "\x1b[32m", "\x1b[31m", "\x1b[36m", "\x1b[0m"


@pytest.fixture
def seen(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Seen]:
    """Return a maker of what is seen, with rows and changes."""

    def make(rows: Sequence[Row] = (), **changes: Any) -> Seen:
        account = Account(read=3, kept=2, pieces=2, tokens=30, trained_tokens=6)
        values: dict[str, Any] = {
            "title": "mine",
            "model": "tiny",
            "shape": Shape.CONVERSATION,
            "tokenizer": tokenizer,
            "rows": 2,
            "streamed": False,
            "held_out": 0,
            "sources": (Origin("train", "a.jsonl", account, "messages", "columns fit", 1.0, 1.0),),
            "lost": (Lost("a.jsonl", "longer than 9 tokens", 1, ("a.jsonl:3",)),),
            "broken": (),
            "max_length": 9,
            "histogram": (Bin(1, 4, 1), Bin(5, 9, 2)),
            "lengths": {"least": 1, "most": 9},
            "trained": {"least": 1, "most": 5},
            "batch_size": 4,
            "batchings": (Batching("shuffled", 0.5, "", True), Batching("packed", 0.0, "packing: true", False)),
            "shown": tuple(Shown("first", "train", row, tuple(passages(row)), {}) for row in rows),
            "findings": (),
        }
        return Seen(**{**values, **changes})

    return make


def printed(seen: Seen, *, colour: bool = False, width: int = 120) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, color_system="standard" if colour else None
    )
    print_seen(seen, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def conversation(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str, weight: float = 1.0) -> Row:
    before, after = tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"]
    tokens = {"input_ids": before + after, "labels": [-100] * len(before) + after}
    if weight != 1:
        tokens["loss_weights"] = [0.0] * len(before) + [weight] * len(after)
    return Row("a.jsonl:1", {}, tokens, "a.jsonl")


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "text"), [(0, ""), (1e-9, "▏"), (0.25, "█"), (0.5, "██"), (0.53, "██▏"), (1, "████")]
)
def test_bars_are_as_long_as_their_share(share: float, text: str) -> None:
    assert bar(share, 4) == text


def test_everything_is_printed(seen: Callable[..., Seen]) -> None:
    text = printed(seen(held_out=4))
    for words in (
        "mine  2 conversation rows, 4 held out, as tiny reads them",
        "train  a.jsonl     2 of 3     100%      30       100%      20%",
        "a.jsonl: format messages (columns fit)",
        "   1  longer than 9 tokens  a.jsonl:3",
        "1 to 4  ████████████████ 1",
        "5 to 9  ████████████████████████████████ 2",
        "max_length",
        "tokens       1     9",
        "shuffled          50%  ████████████████  this recipe",
        "packed             0%                    training: {packing: true}",
        "Nothing is wrong with these rows.",
    ):
        assert words in text
    assert "\x1b" not in text


def test_rows_that_are_split_cut_or_judged_are_counted(seen: Callable[..., Seen]) -> None:
    account = Account(read=9, kept=9, truncated=1, split=2, pieces=12)
    account.verdicts.update(good=5, bad=4)
    text = printed(seen(sources=(Origin("train", "a.jsonl", account, None, "", 1.0, 0.0),)))
    assert "a.jsonl: 1 truncated; 2 split into 5 pieces; 5 good, 4 bad" in text


def test_broken_rows_are_named_but_not_all(seen: Callable[..., Seen]) -> None:
    broken = [Broken(f"a.jsonl:{i}", f"reason {'i' * (i // 2)}") for i in range(50)]
    text = printed(seen(lost=(), broken=tuple(broken)))
    assert f"2  broken: reason {'i' * 19}  a.jsonl:38, :39" in " ".join(text.split(" ")).replace("  a.j", "  a.j")
    assert "a.jsonl:40" not in text
    assert "10  broken as well" in text


def test_broken_rows_are_grouped_by_their_reason(seen: Callable[..., Seen]) -> None:
    reasons = [f"the template renders message {i % 4} differently" for i in range(30)] + ["not JSON"]
    text = printed(seen(lost=(), broken=tuple(Broken(f"a.jsonl:{i}", why) for i, why in enumerate(reasons))))
    assert "30  broken: the template renders message N differently  a.jsonl:0, :1, :2" in text
    assert " 1  broken: not JSON " in text
    assert text.count("broken") == 2


def test_a_stream_shows_its_first_rows(seen: Callable[..., Seen]) -> None:
    assert "mine  the first 2 conversation rows of a stream, as tiny reads them" in printed(seen(streamed=True))


def test_findings_are_printed_last_with_their_places(seen: Callable[..., Seen]) -> None:
    found = Finding("x", "error", "3 rows are [bold]wrong[/bold]", 3, 9, ("a.jsonl:1", "a.jsonl:2"), "Mend them.")
    assert printed(seen(findings=(found,))).endswith(
        "Findings\nerror (x): 3 rows are [bold]wrong[/bold]\n  a.jsonl:1, :2, …\n  Mend them.\n"
    )


def test_an_accepted_finding_is_told_apart(seen: Callable[..., Seen]) -> None:
    found = (Finding("echo", "warning", "a"), Finding("overlap", "warning", "b", accepted=True))
    assert printed(seen(findings=found)).endswith("Findings\nwarning (echo): a\naccepted (overlap): b\n")


def test_the_tokens_of_pairs_say_of_what(seen: Callable[..., Seen]) -> None:
    text = printed(seen(shape=Shape.PREFERENCE))
    assert "longer sequence            1     9" in text
    assert "trained, both answers      1     5" in text


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_pipe_has_marks_for_what_is_trained(seen: Callable[..., Seen], tokenizer: PreTrainedTokenizerFast) -> None:
    row = conversation(tokenizer, "<|im_start|>user\ntwo? ", " four<|im_end|>")
    text = printed(seen([row]))
    assert "<|im_start|>user↵\ntwo?·⟦·four<|im_end|>⟧\n" in text
    assert "⟦trained⟧." in text


def test_a_terminal_has_colours_and_no_marks(seen: Callable[..., Seen], tokenizer: PreTrainedTokenizerFast) -> None:
    text = printed(seen([conversation(tokenizer, "<|im_start|>two?", "four<|im_end|>")]), colour=True)
    assert f"{CYAN}<|im_start|>{RESET}two?{GREEN}four{RESET}" in text.replace(f"{RESET}{GREEN}", "")
    assert "⟦" not in text


def test_no_color_has_marks_on_a_terminal_too(
    seen: Callable[..., Seen], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟦four⟧" in printed(seen([conversation(tokenizer, "two?", "four")]), colour=True)


def test_a_factor_of_the_loss_is_named(seen: Callable[..., Seen], tokenizer: PreTrainedTokenizerFast) -> None:
    assert "two?⟦×0.5 four⟧" in printed(seen([conversation(tokenizer, "two?", "four", 0.5)]))


def test_what_is_avoided_is_red(seen: Callable[..., Seen]) -> None:
    ids = {"prompt_ids": [40], "chosen_ids": [41], "rejected_ids": [42]}
    text = printed(seen([Row("a:1", {}, ids)]), colour=True)
    titles = [line for line in text.splitlines() if "──" in line]
    assert ["prompt" in titles[0], "chosen" in titles[1], "rejected" in titles[2]] == [True] * 3
    after = text.split("chosen")[1]
    assert GREEN in after.split("rejected")[0]
    assert RED not in after.split("rejected")[0]
    assert RED in after.split("rejected")[1]


def test_rows_cannot_act_on_the_terminal(seen: Callable[..., Seen], tokenizer: PreTrainedTokenizerFast) -> None:
    row = conversation(tokenizer, "\x1b[2J[bold red]x[/]\x07", "\u202e\x1b]0;title\x07")
    columns = {"[red]a": "[blink]b"}
    text = printed(seen([row], shown=(Shown("first", "train", row, tuple(passages(row)), columns),)))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "␛[2J[bold red]x[/]␇⟦‹U+202E›␛]0;title␇⟧" in text
    assert "[red]a: [blink]b" in text


def test_long_rows_are_cut_in_their_middle(seen: Callable[..., Seen], tokenizer: PreTrainedTokenizerFast) -> None:
    text = printed(seen([conversation(tokenizer, "x" * 1000, "y" * 1000)]), width=1000)
    assert "… 920 more tokens …x" in text
    assert "xx⟦yy" in text
    assert "… 920 more tokens …y" in text


def test_the_facts_of_a_row() -> None:
    row = Row("a:1", {}, {"input_ids": [1, 2], "labels": [-100, 2]}, truncated=True, part=1)
    shown = Shown("longest", "eval", row, tuple(passages(row)), {})
    expected = ["longest", "2 tokens, 1 trained", "cut off at its end", "piece 2 of a long row", "held out"]
    assert row_facts(shown) == expected
    assert token_count(Passage("x", [1], [1.0])) == "1 token, all trained"
    assert token_count(Passage("x", [1, 2], [0.0, 0.0])) == "2 tokens"
