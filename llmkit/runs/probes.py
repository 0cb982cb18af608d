"""Golden answers of rows, and the probes that deserve nothing, which the reward workbench scores beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from string import Template
from typing import Any

from llmkit.data.splits import Row
from llmkit.errors import RecipeError, did_you_mean
from llmkit.rewards.base import Reward

GOLDEN, REPEATED, ANOTHER, FOR_ALL = "golden", "repeated answer", "another row's answer", "one answer for all"
PROBES = 10
"""How many probes there are, those made in two ways counted twice."""

REFUSAL = "I'm sorry, but I can't help with that."
FILLER = "The quick brown fox jumps over the lazy dog. "
LONG = 20_000
"""Most characters of a probe."""

TOKEN = 4
"""Characters of a token of English text, about: a probe is no longer than an answer of the run can get."""

REPEATS = 20
"""How often the probe `repeated answer` says the golden answer, where that fits."""

STAND_INS = ("answer", "solution", "completion")
"""Columns whose text stands in for a golden answer where no reward tells one."""

Candidates = Sequence[tuple[str, ...]]
"""For each row, the completions that are taken for one probe; the best of them counts. Empty: the row has none."""

STAND_IN = f"the rows' own answers (column {', '.join(STAND_INS)}), since no reward tells one"


def golden_answers(
    rewards: Sequence[Reward], rows: Sequence[Row], template: str | None = None
) -> tuple[list[list[str | None]], str]:
    """Return the golden answer of each reward for each row (None: it tells none), and in words where they come from.

    Raises RecipeError if `template` names a column that a row lacks.
    """
    if template is not None:
        filled = [_filled(template, row) for row in rows]
        return [list(filled) for _ in rewards], "the template"
    told = [[reward.golden(row.example) for row in rows] for reward in rewards]
    if any(text is not None for own in told for text in own):
        names = ", ".join(reward.name for reward, own in zip(rewards, told, strict=True) if any(own))
        return told, f"told by {names}"
    stand_ins = [_stand_in(row.example) for row in rows]
    if any(stand_ins):
        return [list(stand_ins) for _ in rewards], STAND_IN
    return told, "none"


def _filled(template: str, row: Row) -> str:
    try:
        return Template(template).substitute(row.example)
    except KeyError as error:
        name = str(error.args[0])
        hint = did_you_mean(name, row.example)
        columns = ", ".join(row.example)
        raise RecipeError(f"--golden names ${name}, and the row has only {columns}{hint}", where=row.where) from error
    except ValueError as error:
        raise RecipeError(f"--golden {template!r}: {error}", remedy="Write a dollar sign itself as $$.") from error


def _stand_in(example: Mapping[str, Any]) -> str | None:
    values = (example.get(name) for name in STAND_INS)
    return next((str(value) for value in values if isinstance(value, (str, int, float))), None)


# --- probes ----------------------------------------------------------------------------------------------------------


def probes(rows: Sequence[Row], golden: Candidates, max_tokens: int) -> Iterator[tuple[str, Candidates]]:
    """Yield each probe's name and its completions; one that can't be made from a row is an empty tuple there.

    A name that comes more than once is one probe made in several ways: the one with the best mean counts. `max_tokens`
    is the most that an answer can have: rewards need not bear more (a reward model refuses what it can't read).
    """
    room = min(LONG, TOKEN * max_tokens)
    yield GOLDEN, golden
    yield "empty", [("",)] * len(rows)
    yield "very long", [((FILLER * (room // len(FILLER) + 1))[:room],)] * len(rows)
    yield "copied prompt", [(prompt_text(row)[:room],) for row in rows]
    yield "refusal", [(REFUSAL,)] * len(rows)
    yield REPEATED, [tuple(_repeated(text, room) for text in own if text) for own in golden]
    yield "format only", [tuple(form for text in own if (form := form_of(text)) != text) for own in golden]
    yield ANOTHER, [_another(golden, index) for index in range(len(rows))]
    for text in _commonest(golden):
        yield FOR_ALL, [(text,)] * len(rows)


_KEPT = re.compile(r"""</?[\w-]+>|\\[A-Za-z]+|"[^"\n]*"\s*:|[^\W_]""")


def form_of(text: str) -> str:
    r"""Return `text` with other letters and digits in it; tags, \commands and JSON keys stay.

    Every digit becomes another one, so that the form of a number is never the number itself.
    """

    def other(match: re.Match[str]) -> str:
        found = match[0]
        if len(found) > 1:
            return found
        if found.isdecimal():
            return str((int(found) + 5) % 10)
        return "x" if found != "x" else "y"

    return _KEPT.sub(other, text)


def _repeated(text: str, room: int) -> str:
    times = min(max(room // (len(text) + 1), 2), REPEATS)
    return "\n".join([text] * times)


def _commonest(golden: Candidates) -> list[str]:
    """Return the answer that is golden for most rows, and the one for most but not all (which the first may hide)."""
    if len(golden) < 2:
        return []
    counts = Counter(text for own in golden for text in own)
    ranked = [text for text, _ in counts.most_common()]
    return list(dict.fromkeys([*ranked[:1], *[text for text in ranked if counts[text] < len(golden)][:1]]))


def _another(golden: Candidates, index: int) -> tuple[str, ...]:
    """Return the answers of the next row that are none of this row's own."""
    for distance in range(1, len(golden)):
        others = golden[(index + distance) % len(golden)]
        found = tuple(text for text in others if text not in golden[index])
        if found:
            return found
    return ()


def prompt_text(row: Row) -> str:
    """Return what the user says last, or the prompt itself where it is a string."""
    prompt = row.example["prompt"]
    if isinstance(prompt, str):
        return prompt
    users = [message for message in prompt if message["role"] == "user"]
    return str((users or prompt)[-1]["content"])
