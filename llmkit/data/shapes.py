"""The shapes of training rows, in TRL's spelling, and the error of one row."""

from __future__ import annotations

from enum import StrEnum


class Shape(StrEnum):
    """What a converted row holds. A format declares the shape it yields, a method the shapes it accepts."""

    CONVERSATION = "conversation"
    """`messages`: [{role, content}], roles system, user, assistant, tool; optionally `tools`."""

    PROMPT_COMPLETION = "prompt_completion"
    """`prompt`, `completion`: two strings, trained on the completion only."""

    TEXT = "text"
    """`text`: one string, trained on every token."""

    PREFERENCE = "preference"
    """`prompt`, `chosen`, `rejected`: each a list of messages, or each a string."""

    UNPAIRED = "unpaired"
    """`prompt`, `completion`, `label` (true is good): prompt and completion lists of messages, or strings."""

    PROMPT = "prompt"
    """`prompt`: a list of messages or a string; any other columns are kept, for rewards."""


class RowError(ValueError):
    """One row can't be used; the message is the reason, without the place (the reader knows it)."""


class UnlearnableError(RowError):
    """One row teaches nothing, e.g. a pair of equal answers: it is dropped and counted, and the run goes on.

    The message is the reason in the ledger, so it is short and the same for all such rows.
    """


class LeftOutError(UnlearnableError):
    """The recipe says that the row is to be left out."""


EQUAL = "the answers are equal"
EMPTY = "an answer is empty"
