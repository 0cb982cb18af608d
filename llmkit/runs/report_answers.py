"""Answers as the report shows them: base beside tuned, or run beside run, with the words marked that differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest

from llmkit.runs.reported import Answer, Evaluated, Regression, Reported, Sampled
from llmkit.runs.word_differences import ALIKE, Piece, compare_words

LONGEST = 1500
"""Characters of a text that are on the page."""

NUMBERS = 30
"""Numbers of rows that are on the page, of each metric."""

SHOWN, MORE = 4, 16
"""Cards that are seen at once, and those that open below them."""


@dataclass(frozen=True)
class Text:
    """A text in pieces, with the number of characters at its end that are left out."""

    pieces: tuple[Piece, ...]
    left_out: int = 0


@dataclass(frozen=True)
class Said:
    """What one model answered."""

    heading: str
    run: int | None
    """Counted from 0; None for the base model."""
    mark: str
    """The element that marks words which others lack: `del` or `ins`."""
    text: Text
    right: bool | None
    """Whether it is the reference to the letter; None where there is none."""


@dataclass(frozen=True)
class Card:
    """One prompt and the answers to it."""

    where: str
    title: str
    prompt: Text
    reference: Text | None
    answers: tuple[Said, ...]
    note: str


@dataclass(frozen=True)
class Shelf:
    """Cards: the first are seen at once, the others open."""

    first: tuple[Card, ...]
    more: tuple[Card, ...]


def plain(text: str) -> Text:
    """Return a text without marks, cut if it is long."""
    return Text((Piece(text[:LONGEST], own=False),), max(0, len(text) - LONGEST))


def _shelf(cards: Iterable[Card]) -> Shelf:
    found = tuple(islice(cards, SHOWN + MORE))
    return Shelf(found[:SHOWN], found[SHOWN:])


# --- after training --------------------------------------------------------------------------------------------------


def samples(runs: Sequence[Reported]) -> Shelf:
    """Return the first answers of the evaluations: base beside tuned of one run, or the tuned models of several."""
    return _shelf(_base_beside_tuned(runs[0]) if len(runs) == 1 else _side_by_side(runs))


def _base_beside_tuned(run: Reported) -> Iterator[Card]:
    seen = set()
    for evaluated in run.evaluations:
        for base, tuned in zip_longest(_answers(evaluated, "base"), _answers(evaluated, "tuned")):
            first: Answer = base or tuned
            said = [(name, found.answer) for name, found in (("base", base), ("tuned", tuned)) if found]
            # Evaluations share answers.
            if (key := (first.where, first.prompt, *said)) not in seen:
                seen.add(key)
                runs = [None if name == "base" else 0 for name, _ in said]
                yield _card(evaluated.name, first.where, first.prompt, first.reference, said, runs)


def _side_by_side(runs: Sequence[Reported]) -> Iterator[Card]:
    """Yield a card for each prompt that at least two of the runs were given."""
    found: dict[tuple[str, str, str | None], dict[int, tuple[str, str]]] = {}
    for index, run in enumerate(runs):
        for evaluated in run.evaluations:
            for answer in _answers(evaluated, "tuned"):
                given = found.setdefault((answer.where, answer.prompt, answer.reference), {})
                given.setdefault(index, (evaluated.name, answer.answer))
    for (where, prompt, reference), by_run in found.items():
        if len(by_run) > 1:
            title = next(iter(by_run.values()))[0]
            said = [("tuned", answer) for _, answer in by_run.values()]
            yield _card(title, where, prompt, reference, said, list(by_run))


def _answers(evaluated: Evaluated, model: str) -> tuple[Answer, ...]:
    found = evaluated.base if model == "base" else evaluated.tuned
    return found.samples if found else ()


def regressions(run: Reported) -> Shelf:
    """Return rows that the base model got right and the tuned one wrong, where they have answers."""
    return _shelf(card for found in run.regressions if (card := _regression(found)) is not None)


def _regression(found: Regression) -> Card | None:
    if found.base is None or found.tuned is None:
        return None
    said = [("base", found.base), ("tuned", found.tuned)]
    card = _card(found.metric, found.where, found.prompt, found.reference, said, [None, 0])
    # A metric may have judged by more than equality with the reference.
    return replace(card, answers=tuple(replace(one, right=None) for one in card.answers))


def bare_regressions(run: Reported) -> list[tuple[str, str]]:
    """Return the numbers of such rows without answers, by metric; the first ones of many."""
    rows: dict[str, list[str]] = {}
    for found in run.regressions:
        if found.base is None and found.row is not None:
            rows.setdefault(found.metric, []).append(f"{found.row:,}")
    return [
        (metric, ", ".join(many[:NUMBERS]) + (", …" if len(many) > NUMBERS else "")) for metric, many in rows.items()
    ]


def _card(
    title: str,
    where: str,
    prompt: str,
    reference: str | None,
    said: Sequence[tuple[str, str]],
    runs: Sequence[int | None],
) -> Card:
    """Return the card of answers, by heading; the words of each that differ from the first one's are marked."""
    texts = [answer[:LONGEST] for _, answer in said]
    compared = [compare_words(texts[0], text) for text in texts[1:]]
    first = (Piece(texts[0], own=False),) if len(compared) != 1 else compared[0].one
    pieces = [first, *(found.other for found in compared)]
    note = ""
    if compared and all(answer == said[0][1] for _, answer in said):
        note = "the same answer"
    elif compared and all(found.alike < ALIKE for found in compared):
        note = "hardly a word in common"
    answers = tuple(
        Said(
            heading=heading,
            run=run,
            mark="ins" if index else "del",
            text=Text(parts, max(0, len(answer) - LONGEST)),
            right=None if reference is None else answer.strip() == reference.strip(),
        )
        for index, ((heading, answer), run, parts) in enumerate(zip(said, runs, pieces, strict=True))
    )
    return Card(where, title, plain(prompt), None if reference is None else plain(reference), answers, note)


# --- while training --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rollout:
    """A completion that was sampled while training, and what it earned."""

    step: int
    where: str
    prompt: Text
    completion: Text
    reward: float
    share: float
    """Where its reward lies between the least and the most that are shown, from 0 to 1."""
    parts: tuple[tuple[str, float], ...]


def rollouts(run: Reported) -> list[Rollout]:
    """Return the best and the worst completion of the first, a middle and the last step that was read."""
    chosen = list(_chosen(run.sampled))
    least, most = (pick((one.reward for one in chosen), default=0.0) for pick in (min, max))
    return [
        Rollout(
            step=one.step,
            where=one.where,
            prompt=plain(one.prompt),
            completion=plain(one.completion),
            reward=one.reward,
            share=(one.reward - least) / (most - least) if most > least else 1.0,
            parts=tuple(one.rewards.items()) if len(one.rewards) > 1 else (),
        )
        for one in chosen
    ]


def _chosen(sampled: Sequence[Sampled]) -> Iterator[Sampled]:
    by_step: dict[int, list[Sampled]] = {}
    for one in sampled:
        by_step.setdefault(one.step, []).append(one)
    steps = sorted(by_step)
    for step in dict.fromkeys(steps[place] for place in (0, len(steps) // 2, -1)) if steps else ():
        ranked = sorted(by_step[step], key=lambda one: -one.reward)
        yield ranked[0]
        if len(ranked) > 1:
            yield ranked[-1]
