"""A prompt with several scored answers: the best becomes the better answer of a pair, the worst the other one.

    {"prompt": "Say hi.", "completions": ["No.", "Hi there!", "Hi."], "scores": [0.1, 0.9, 0.5]}

UltraFeedback's layout, in which each answer has its score, is read as well; `prompt` may be called `instruction`, an
answer `response`, `content` or `text`, its score `overall_score` or `score`:

    {"instruction": "Say hi.", "completions": [{"response": "Hi there!", "overall_score": 8.5},
                                               {"response": "No.", "overall_score": 2.0}]}

Of answers with the same score the first counts. `margin` and `tools` are read as in `preference`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.data.formats import base
from llmkit.data.shapes import RowError, Shape, UnlearnableError

SHAPE = Shape.PREFERENCE
COLUMNS = ("completions",)
OPTIONAL = ("prompt", "instruction", "scores", "margin", "tools")

PROMPTS = ("prompt", "instruction")
ANSWERS = ("response", "content", "text")
SCORES = ("overall_score", "score")


def recognises(row: Mapping[str, Any]) -> base.Signs | None:
    """Return the signs of this format."""
    answers, known = row.get("completions"), base.present(row, *PROMPTS)
    if not known or not isinstance(answers, list | tuple) or not answers:
        return None
    if row.get("scores") is not None:
        reason = "column `completions` is a list of answers, `scores` one of their scores"
        return base.Signs(known | {"completions", "scores"}, reason)
    if not all(isinstance(answer, Mapping) and base.present(answer, *SCORES) for answer in answers):
        return None
    return base.Signs(known | {"completions"}, "column `completions` is a list of answers with their scores")


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `prompt`, `chosen` (highest score), `rejected` (lowest), and `margin` and `tools` if there are any.

    Raises UnlearnableError if no two answers have different scores or the pair teaches nothing, RowError for what is no
    such row.
    """
    prompt = base.as_prompt(_one_of(row, PROMPTS, "the row"), "prompt")
    answers, scores = _scored(row)
    if len(answers) < 2:
        raise UnlearnableError("fewer than two scored answers")
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    if best == worst:
        raise UnlearnableError("all answers have the same score")
    chosen, rejected = (base.as_answer(answers[i], f"completions[{i}]") for i in (best, worst))
    pair = base.aligned(prompt, chosen=chosen, rejected=rejected)
    return {**base.differing(pair), **base.margin_in(row), **base.tools_in(row)}


def _scored(row: Mapping[str, Any]) -> tuple[list[Any], list[float]]:
    """Return the answers and their scores, from one column of objects or from two columns."""
    answers = base.require(row, "completions")
    if not isinstance(answers, list | tuple):
        raise RowError(f"column 'completions' must be a list, not {base.kind(answers)}")
    if "scores" in row:
        scores = row["scores"]
        if not isinstance(scores, list | tuple) or len(scores) != len(answers):
            raise RowError(f"column 'scores' must be a list of {len(answers)} numbers, one for each completion")
    else:
        if not all(isinstance(answer, Mapping) for answer in answers):
            raise base.MissingColumnError("no column 'scores', and the completions are no objects with a score each")
        scores = [_one_of(answer, SCORES, f"completions[{i}]") for i, answer in enumerate(answers)]
        answers = [_one_of(answer, ANSWERS, f"completions[{i}]") for i, answer in enumerate(answers)]
    return list(answers), [base.number(score, f"score of completions[{i}]") for i, score in enumerate(scores)]


def _one_of(item: Mapping[str, Any], names: tuple[str, ...], place: str) -> Any:
    """Return the value under the first of `names` that `item` has."""
    found = next((name for name in names if name in item), None)
    if found is None:
        raise base.MissingColumnError(f"{place} has none of {', '.join(names)}; it has {', '.join(map(str, item))}")
    return item[found]
