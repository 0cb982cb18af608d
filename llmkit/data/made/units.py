"""Questions about measures, each with an answer in metric units, preferred to one in imperial units.

    {"prompt": [{"role": "user", "content": "The rope is 2.5 m (8.2 ft) long. How long is the rope?"}],
     "chosen": [{"role": "assistant", "content": "The rope is 2.5 m long."}],
     "rejected": [{"role": "assistant", "content": "The rope is 8.2 ft long."}]}

Both answers are right and about as long, so a base model has no clear preference; a few hundred pairs teach one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from llmkit.data.made import base

SPLITS = base.SPLITS
SIZE = {"train": 2000, "test": 400}

_SEED = 11
_MEASURES = (
    # how it is said, how it is asked, metric unit, imperial unit, factor, things, largest value in metric tenths
    ("is {} long", "How long is {}?", "m", "ft", 3.281, ("rope", "bridge", "table", "fence", "cable", "ladder"), 900),
    ("weighs {}", "What does {} weigh?", "kg", "lb", 2.205, ("parcel", "suitcase", "dog", "stone", "bicycle"), 600),
    ("holds {}", "How much does {} hold?", "l", "gal", 0.264, ("bucket", "tank", "kettle", "barrel", "bottle"), 900),
    ("is {} away", "How far away is {}?", "km", "mi", 0.621, ("station", "village", "lake", "airport", "farm"), 950),
    ("is {} tall", "How tall is {}?", "cm", "in", 0.394, ("lamp", "chair", "statue", "plant", "child"), 2000),
)
_OWNERS = ("the", "my", "our", "Anna's", "Ben's", "the old", "the new", "the red", "the green", "Clara's", "their")


def rows(split: str) -> Iterator[dict[str, Any]]:
    """Return the pairs of `split`, always the same ones; no question of one split is in the other.

    Raises DataError if there is no such split.
    """
    return base.distinct(_pair, name="units", split=split, sizes=SIZE, seed=_SEED)


def _pair(rng: random.Random) -> tuple[str, dict[str, Any]]:
    said, asked, metric, imperial, factor, things, largest = base.pick(rng, _MEASURES)
    thing = f"{base.pick(rng, _OWNERS)} {base.pick(rng, things)}"
    value = base.pick(rng, range(12, largest)) / 10
    measures = [f"{value:.1f} {metric}", f"{value * factor:.1f} {imperial}"]
    first, second = measures if base.pick(rng, (True, False)) else reversed(measures)
    subject = thing[0].upper() + thing[1:]
    question = f"{subject} {said.format(f'{first} ({second})')}. {asked.format(thing)}"
    chosen, rejected = (f"{subject} {said.format(measure)}." for measure in measures)
    return question, {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
