"""Tool calls: whether answers call the right tools with the right arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from llmkit.data.shapes import RowError
from llmkit.data.splits import Row
from llmkit.errors import DataError
from llmkit.evaluation import _metrics
from llmkit.evaluation._calls import Call, argument_validators, call_reader, reference_calls
from llmkit.evaluation._generation import Generated, row_prompts
from llmkit.evaluation._rows import Parts, scored
from llmkit.evaluation.base import Sample, Score, Subject
from llmkit.model.generation import sample


class ToolCalls(Generated):
    """Compare the tool calls of greedy answers with those of the last assistant turn of each conversation.

    Calls are read as serving engines read them: by the tokenizer's response template, by that which TRL knows for the
    chat template, else between <tool_call> marks or as bare JSON. Their order does not count. A last turn without
    calls asks for an answer without any.
    """

    type: Literal["tool_calls"]
    """Share of answers with the right tool, valid arguments, the right arguments and the right call as a whole."""

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError where jsonschema is missing, and what is raised for its own rows."""
        super().check_setup(folder)
        _metrics.require_installed("jsonschema", "jsonschema", "tool_calls")

    def check_row(self, row: Row) -> None:
        """Raise RowError where no call can be expected of the row, or a call is and no tool is offered."""
        offered = argument_validators(row.example)
        if reference_calls(row.example) and not offered:
            raise RowError("no `tools`, whose schemas say which arguments are valid")

    def score(self, subject: Subject) -> Score:
        """Return the means of what `compared` returns for each row, 0..1.

        Raises what `prepared` raises, DataError where no row holds a call, RecipeError where there is no chat template.
        """
        subject = self.prepared(subject)
        wanted = [reference_calls(row.example) for row in subject.rows]
        if not any(wanted):
            raise DataError(
                "evaluation `tool_calls` found no row whose last assistant turn has `tool_calls`",
                remedy="use `type: exact_match` or another evaluation of texts",
            )
        prompts = row_prompts(subject.tokenizer, subject.rows, evaluation=self.type)
        answers = sample(
            subject.model,
            subject.tokenizer,
            [ids for _, ids, _, _ in prompts],
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            temperature=0.0,
            on_done=subject.on_done,
        )
        read = call_reader(subject.tokenizer)
        parts: list[Parts] = []
        samples = []
        for row, calls, (where, ids, text, reference), answer in zip(
            subject.rows, wanted, prompts, answers, strict=True
        ):
            made = read(ids, answer, row.example.get("tools") or ())
            parts.append(compared(made, calls, argument_validators(row.example)))
            samples.append(Sample(where, text, _written(calls) or reference, answer.text))
        return scored(parts, tuple(samples))


def compared(made: Sequence[Call], wanted: Sequence[Call], offered: Mapping[str, Any]) -> dict[str, float]:
    """Return 1 or 0 for each metric of one answer, whose calls are `made`; `offered` has a validator for each tool.

    `right_tool`: the same tools are called, as often. `valid_arguments`: each call is of an offered tool, with
    arguments that its schema allows, and there is one if one is wanted. `right_arguments`: the same arguments, of
    whichever tools. `right_call`: the same tools with the same arguments.
    """
    valid = all(call.name in offered and _allows(offered[call.name], call.arguments) for call in made)
    return {
        "right_tool": _alike([call.name for call in made], [call.name for call in wanted]),
        "valid_arguments": float(valid and bool(made or not wanted)),
        "right_arguments": _alike([call.fields for call in made], [call.fields for call in wanted]),
        "right_call": _alike([(c.name, c.fields) for c in made], [(c.name, c.fields) for c in wanted]),
    }


def _alike(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Return 1 if both hold the same, in whatever order, else 0."""
    left = list(wanted)
    for item in found:
        if item not in left:
            return 0.0
        left.remove(item)
    return float(not left)


def _allows(validator: Any, arguments: Any) -> bool:
    try:
        return isinstance(arguments, dict) and bool(validator.is_valid(arguments))
    except (OverflowError, RecursionError):  # numbers or nesting beyond Python's limits
        return False


def _written(calls: Sequence[Call]) -> str:
    return "\n".join(json.dumps({"name": c.name, "arguments": c.arguments}, ensure_ascii=False) for c in calls)
