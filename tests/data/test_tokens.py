"""Each shape has its own tokenizing; a batch gives what its rows give alone."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from llmkit.data.shapes import RowError, Shape
from llmkit.data.tokens import BY_SHAPE, Rules, tokenize

ASKED = [{"role": "user", "content": "hi"}]
SAID = [{"role": "assistant", "content": "yes"}]
EXAMPLES: dict[Shape, dict[str, Any]] = {
    Shape.CONVERSATION: {"messages": ASKED + SAID},
    Shape.PROMPT_COMPLETION: {"prompt": "two plus", "completion": " two"},
    Shape.TEXT: {"text": "maybe"},
    Shape.PREFERENCE: {"prompt": ASKED, "chosen": SAID, "rejected": [{"role": "assistant", "content": "no"}]},
    Shape.UNPAIRED: {"prompt": ASKED, "completion": SAID, "label": True},
    Shape.PROMPT: {"prompt": ASKED},
}
LONE = "\ud800"
BROKEN: dict[Shape, dict[str, Any]] = {
    Shape.CONVERSATION: {"messages": [{"role": "user", "content": LONE}, *SAID]},
    Shape.PROMPT_COMPLETION: {"prompt": "two plus", "completion": LONE},
    Shape.TEXT: {"text": LONE},
    Shape.PREFERENCE: {"prompt": LONE, "chosen": "yes", "rejected": "no"},
    Shape.UNPAIRED: {"prompt": [{"role": "user", "content": LONE}], "completion": SAID, "label": True},
    Shape.PROMPT: {"prompt": LONE},
}


def test_every_shape_is_tokenized() -> None:
    assert set(BY_SHAPE) == set(EXAMPLES) == set(BROKEN) == set(Shape)


@pytest.mark.parametrize("shape", list(Shape))
def test_a_row_that_can_not_be_read_costs_no_other(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> None:
    assert tokenizer.eos_token_id is not None
    stops = frozenset({tokenizer.eos_token_id})
    (alone,) = tokenize(tokenizer, shape, [EXAMPLES[shape]], stops)
    found = tokenize(tokenizer, shape, [BROKEN[shape], EXAMPLES[shape], BROKEN[shape], EXAMPLES[shape]], stops)
    assert found[1] == found[3] == alone
    assert not isinstance(alone, RowError)
    for row in (found[0], found[2]):
        assert isinstance(row, RowError)
        assert "lone surrogate, '\\ud800'" in str(row)


@pytest.mark.parametrize("shape", list(Shape))
def test_no_rows_give_none(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> None:
    assert tokenize(tokenizer, shape, [], frozenset({1}), Rules(train_on="last")) == []


def test_a_batch_of_texts_is_tokenized_in_one_call(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = type(tokenizer)._encode_plus

    def counted(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(text))
        return plain(self, text, *args, **kwargs)

    monkeypatch.setattr(type(tokenizer), "_encode_plus", counted)
    assert tokenizer.eos_token_id is not None
    tokenize(tokenizer, Shape.CONVERSATION, [EXAMPLES[Shape.CONVERSATION]] * 7, frozenset({tokenizer.eos_token_id}))
    assert calls == [7]
