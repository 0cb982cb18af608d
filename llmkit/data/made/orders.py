"""Orders at a café's counter, to be turned into JSON: a task that a 135M model learns from a few hundred rows.

    {"messages": [{"role": "system", "content": "Turn the order into JSON."},
                  {"role": "user", "content": "Clara here, two large lattes to go please."},
                  {"role": "assistant", "content": "{\"item\": \"latte\", \"size\": \"L\", ...}"}]}

A base model fails it, because the answer's keys and codes are not in the order's words.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from llmkit.data.made import base

SPLITS = base.SPLITS
SIZE = {"train": 4000, "test": 1000}
SYSTEM = "Turn the order into JSON."

_SEED = 7

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


def rows(split: str) -> Iterator[dict[str, Any]]:
    """Return the rows of `split`, always the same ones; no order of one split is in the other.

    Raises DataError if there is no such split.
    """
    return base.distinct(_row, name="orders", split=split, sizes=SIZE, seed=_SEED)


def _row(rng: random.Random) -> tuple[str, dict[str, Any]]:
    sentence, answer = _order(rng)
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": sentence},
        {"role": "assistant", "content": json.dumps(answer)},
    ]
    return sentence, {"messages": messages}


def _order(rng: random.Random) -> tuple[str, dict[str, Any]]:
    number = base.pick(rng, range(1, len(_COUNTS) + 1))
    size = base.pick(rng, _SIZES)
    item = base.pick(rng, tuple(_ITEMS))
    name = base.pick(rng, _NAMES)
    to_go = base.pick(rng, (True, False))
    what = f"{_COUNTS[number - 1]} {size} {item if number == 1 else _ITEMS[item]}"
    sentence = base.pick(rng, _SENTENCES).format(what=what, where=base.pick(rng, _PLACES[to_go]), who=name)
    answer = {"item": item, "size": size[0].upper(), "count": number, "to_go": to_go, "name": name}
    return sentence[0].upper() + sentence[1:], answer
