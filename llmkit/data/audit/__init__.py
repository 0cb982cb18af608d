"""What the rows themselves say against a run: defects that training would not show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkit.data.audit.findings import Finding, refuse, settled
from llmkit.data.ledger import Ledger
from llmkit.data.shapes import Shape
from llmkit.data.splits import Splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.recipe.recipe import Recipe

__all__ = ["Finding", "audit", "refuse"]


def audit(
    splits: Splits, ledger: Ledger, tokenizer: PreTrainedTokenizerBase, stops: frozenset[int], recipe: Recipe
) -> list[Finding]:
    """Return what is wrong with the rows, errors first.

    All rows' tokens are looked at, and the texts of at most `data.audit.rows` rows of each split. Raises DataError for
    a benchmark of the recipe that can't be read.
    """
    from llmkit.data.audit.columns import as_rows, once
    from llmkit.data.audit.contamination import benchmarks, contamination
    from llmkit.data.audit.near_duplicates import near_findings
    from llmkit.data.audit.rendering import rendering_findings
    from llmkit.data.audit.repeats import contradictions, duplicates, same_prompts
    from llmkit.data.audit.sequences import Ids, look, sequence_findings
    from llmkit.data.audit.texts import text_findings
    from llmkit.data.audit.words import Sample, Vocabulary, said

    limits, shape = recipe.data.audit, splits.shape
    train, held_out = once(as_rows(splits.train)), once(as_rows(splits.eval))
    ids = Ids.of(tokenizer, stops)
    longest = None
    if recipe.data.overflow == "split" and len(train):
        longest = int(max(rows.lengths.max() for rows in (train, held_out) if len(rows)))
    seen, seen_held_out = (look(rows, shape, ids, longest=longest) for rows in (train, held_out))
    some, some_held_out = Sample.of(train, limits.rows), Sample.of(held_out, limits.rows)
    vocabulary = Vocabulary()
    texts, texts_held_out = (vocabulary.texts(map(said, sample.examples)) for sample in (some, some_held_out))
    found = [
        *sequence_findings(train, seen, recipe, tokenizer, shape, "training"),
        *sequence_findings(held_out, seen_held_out, recipe, tokenizer, shape, "held-out"),
        *rendering_findings(train, seen, recipe, tokenizer, stops),
        *text_findings(some, tokenizer, shape, limits),
        *duplicates(train, limits),
        *near_findings(some, some_held_out, texts, texts_held_out, limits),
        *(same_prompts(seen, seen_held_out, held_out) if shape not in (Shape.TEXT, Shape.PROMPT) else ()),
        *contradictions(train, seen),
        *contamination(some, texts, benchmarks(recipe, some_held_out, vocabulary), recipe),
    ]
    return settled(found, limits)
