"""Orders at a café's counter, to be turned into JSON: a task that a 135M model learns from a few hundred rows.

    {"messages": [{"role": "system", "content": "Turn the order into JSON."},
                  {"role": "user", "content": "Clara here, two large lattes to go please."},
                  {"role": "assistant", "content": "{\"item\": \"latte\", \"size\": \"L\", ...}"}]}

A base model fails it, because the answer's keys and codes are not in the order's words.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from llmkit.errors import DataError, did_you_mean

SPLITS = ("train", "test")
SIZE = {"train": 4000, "test": 1000}
SYSTEM = "Turn the order into JSON."

_SEED = 7
_TEST_SHARE = 5  # every fifth sentence, by its checksum

_ITEMS = {
    "latte": "lattes",
    "espresso": "espressos",
    "cappuccino": "cappuccinos",
    "mocha": "mochas",
    "green tea": "green teas",
    "black tea": "black teas",
    "hot chocolate": "hot chocolates",
    "lemonade": "lemonades",
    "bagel": "bagels",
    "muffin": "muffins",
    "croissant": "croissants",
    "cheesecake": "cheesecakes",
    "brownie": "brownies",
    "sandwich": "sandwiches",
    "salad": "salads",
    "soup": "soups",
}
_COUNTS = ("one", "two", "three", "four", "five", "six")
_SIZES = ("small", "medium", "large")
_NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Iris",
    "Jack",
    "Laura",
    "Marco",
    "Nina",
    "Oscar",
    "Paul",
    "Rosa",
    "Sara",
    "Tom",
    "Vera",
    "Will",
)
_PLACES = {True: ("to go", "to take away"), False: ("to have here", "to eat in")}
_SENTENCES = (
    "Can I get {what} {where}? The name is {who}.",
    "{who} here, {what} {where} please.",
    "I'd like {what} {where} for {who}.",
    "{what} {where}, please. It's for {who}.",
    "Hello, my name is {who} and I want {what} {where}.",
    "Please make {what} {where} for {who}.",
    "Could {who} have {what} {where}?",
    "We need {what} {where}, put it under {who}.",
)

T = TypeVar("T")


def rows(split: str) -> Iterator[dict[str, Any]]:
    """Return the rows of `split`, always the same ones; no order of one split is in the other.

    Raises DataError if there is no such split.
    """
    if split not in SPLITS:
        raise DataError(
            f"no split {split!r}{did_you_mean(split, SPLITS)}",
            where="made:orders",
            remedy=f"Splits: {', '.join(SPLITS)}.",
        )
    return _rows(split)


def _rows(split: str) -> Iterator[dict[str, Any]]:
    rng = random.Random(_SEED)
    seen: set[str] = set()
    while len(seen) < SIZE[split]:
        sentence, answer = _order(rng)
        if sentence in seen or _split_of(sentence) != split:
            continue
        seen.add(sentence)
        yield {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": sentence},
                {"role": "assistant", "content": json.dumps(answer)},
            ]
        }


def _split_of(sentence: str) -> str:
    # A checksum, because Python's own hash of a string changes from run to run.
    return "train" if zlib.crc32(sentence.encode()) % _TEST_SHARE else "test"


def _order(rng: random.Random) -> tuple[str, dict[str, Any]]:
    number = _pick(rng, range(1, len(_COUNTS) + 1))
    size = _pick(rng, _SIZES)
    item = _pick(rng, tuple(_ITEMS))
    name = _pick(rng, _NAMES)
    to_go = _pick(rng, (True, False))
    what = f"{_COUNTS[number - 1]} {size} {item if number == 1 else _ITEMS[item]}"
    sentence = _pick(rng, _SENTENCES).format(what=what, where=_pick(rng, _PLACES[to_go]), who=name)
    answer = {"item": item, "size": size[0].upper(), "count": number, "to_go": to_go, "name": name}
    return sentence[0].upper() + sentence[1:], answer


def _pick(rng: random.Random, choices: Sequence[T]) -> T:
    # Only `random()` is promised to give the same numbers in every Python version.
    return choices[int(rng.random() * len(choices))]
