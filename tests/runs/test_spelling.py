"""Tokens as text: every character can be seen, and every boundary of what is trained stays in sight."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.runs.spelling import Gap, Passage, Piece, places, spell, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def passage(tokenizer: PreTrainedTokenizerFast, *texts: str) -> Passage:
    """Return texts as one passage: every second one is trained."""
    ids: list[int] = []
    weights: list[float] = []
    for number, text in enumerate(texts):
        new = tokenizer(text)["input_ids"]
        ids += new
        weights += [float(number % 2)] * len(new)
    return Passage("", ids, weights)


def text_of(parts: list[Piece | Gap]) -> str:
    return "".join(part.text if isinstance(part, Piece) else f"<{part.tokens}>" for part in parts)


# --- characters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc", "a↵\nb⇥c"),
        ("\r\n", "␍↵\n"),
        ("\x1b[2J\x00\x7f", "␛[2J␀␡"),
        ("\u202edlrow", "‹U+202E›dlrow"),
        ("a\u200bb\ufeff\x9b", "a‹U+200B›b‹U+FEFF›‹U+009B›"),
        ("1\u00a0000", "1⍽000"),
        ("naïve 你好　👩\u200d👧", "naïve 你好　👩\u200d👧"),
    ],
)
def test_what_could_not_be_seen_has_a_mark(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    shown = visible(text)
    assert all(character == "\n" or (character >= " " and not "\x7f" <= character < "\xa0") for character in shown)
    assert shown.count("\n") == text.count("\n") == shown.count("↵") - text.count("↵")


def test_a_file_is_named_once() -> None:
    assert places(["a.jsonl:1", "a.jsonl:22", "b.json[0]", "b.json[3]"], 4) == "a.jsonl:1, :22, b.json[0], [3]"
    assert places(["a.jsonl:1", "x", "a.jsonl:2"], 9) == "a.jsonl:1, x, a.jsonl:2, …"
    assert places([], 0) == ""


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_the_pieces_are_the_text_and_every_token_is_in_one(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = passage(tokenizer, "what is two?<|im_end|>\n", "it is fóur 你<|im_end|>")
    parts = spell(tokenizer, whole, 1000)
    assert text_of(parts) == "what is two?<|im_end|>↵\nit is fóur 你<|im_end|>"
    pieces = [part for part in parts if isinstance(part, Piece)]
    assert [token for piece in pieces for token in piece.ids] == list(whole.ids)
    assert [piece.weight for piece in pieces for _ in piece.ids] == list(whole.weights)
    assert [piece.text for piece in pieces if piece.special] == ["<|im_end|>", "<|im_end|>"]
    # The bytes of one character are one piece.
    [chinese] = [piece for piece in pieces if "你" in piece.text]
    assert len(chinese.ids) > 1


def test_spaces_at_an_end_can_be_seen(tokenizer: PreTrainedTokenizerFast) -> None:
    parts = spell(tokenizer, passage(tokenizer, "two plus ", " four  yes\n  no<|im_end|> "), 1000)
    assert text_of(parts) == "two plus··four··yes↵\n··no<|im_end|>·"


def test_a_lone_byte_is_shown_and_joins_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    half = tokenizer("你")["input_ids"][:1]
    ids = [*half, *tokenizer("yes<|im_end|>")["input_ids"], *half]
    parts = spell(tokenizer, Passage("", ids, [0.0] * len(ids)), 1000)
    assert text_of(parts) == "\ufffdyes<|im_end|>\ufffd"


def test_a_word_keeps_the_space_that_a_tokenizer_puts_at_its_beginning() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "<unk>": 1, "▁yes": 2, "▁no": 3, "▁": 4}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Metaspace()
    tokens.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", unk_token="<unk>")
    parts = spell(tokenizer, Passage("", [2, 3, 2], [0.0, 1.0, 1.0]), 10)
    assert [part.text for part in parts if isinstance(part, Piece)] == ["yes", "no", " yes"]


# --- long passages ---------------------------------------------------------------------------------------------------


def test_long_runs_lose_their_middle_and_keep_their_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    one = tokenizer("x")["input_ids"]
    assert len(one) == 1
    weights = [0.0] * 300 + [1.0] * 5 + [0.0] * 200 + [1.0] * 100
    parts = spell(tokenizer, Passage("", one * 605, weights), 120)
    gaps = [part for part in parts if isinstance(part, Gap)]
    pieces = [part for part in parts if isinstance(part, Piece)]
    assert sum(gap.tokens for gap in gaps) + len(pieces) == 605
    assert len(pieces) <= 120
    assert [gap.weight for gap in gaps] == [0.0, 0.0, 1.0]
    assert [gap.trained for gap in gaps] == [0, 0, gaps[2].tokens]
    # Around each boundary there are tokens on either side.
    kinds = [type(part).__name__[0] + str(int(part.weight)) for part in parts]
    for left, right in (("P0", "P1"), ("P1", "P0")):
        assert any(pair == (left, right) for pair in zip(kinds, kinds[1:], strict=False))


def test_a_space_beside_a_gap_is_at_no_end(tokenizer: PreTrainedTokenizerFast) -> None:
    space = tokenizer(" ")["input_ids"]
    [x] = tokenizer("x")["input_ids"]
    parts = spell(tokenizer, Passage("", [x, *space] * 100, [1.0] * 200), 41)
    head, gap, tail = (list(group) for _, group in groupby(parts, lambda part: isinstance(part, Gap)))
    assert text_of(head) == "x " * 10
    assert text_of(tail) == "x " * 9 + "x·"
    assert gap == [Gap(160, 160, 1.0)]


def test_many_turns_keep_the_first_and_the_last(tokenizer: PreTrainedTokenizerFast) -> None:
    one = tokenizer("x")["input_ids"]
    weights = [float(index // 10 % 2) for index in range(2000)]
    parts = spell(tokenizer, Passage("", one * 2000, weights), 160)
    [gap] = [part for part in parts if isinstance(part, Gap)]
    assert gap.tokens == 2000 - 100
    assert gap.trained == gap.tokens // 2
    assert gap.weight == 0.0


def test_a_cut_through_a_character_leaves_it_out(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("你" * 100)["input_ids"]
    for most in range(40, 60):
        parts = spell(tokenizer, Passage("", ids, [1.0] * len(ids)), most)
        assert set(text_of([part for part in parts if isinstance(part, Piece)])) == {"你"}
        shown = sum(len(part.ids) if isinstance(part, Piece) else part.tokens for part in parts)
        assert shown == len(ids)


@given(st.data())
def test_nothing_is_lost_or_doubled(data: st.DataObject) -> None:
    from llmkit.runs.spelling import _stretches

    weights = data.draw(st.lists(st.sampled_from([0.0, 1.0, 0.5]), max_size=400))
    most = data.draw(st.integers(1, 300))
    stretches = list(_stretches(weights, most))
    covered = [index for stretch in stretches for index in range(stretch.start, stretch.stop)]
    assert covered == list(range(len(weights)))
    for stretch in stretches:
        if stretch.shown:
            assert set(weights[stretch.start : stretch.stop]) == {stretch.weight}
