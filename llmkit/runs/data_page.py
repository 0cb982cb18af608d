"""The rows of a recipe as one HTML page: no scripts, nothing fetched, and whatever the rows hold is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.runs.charts import Bar
from llmkit.runs.data_report import (
    NAMED,
    counted_as,
    headline,
    is_avoided,
    notes,
    row_facts,
    token_count,
    trained_share,
    words_of,
)
from llmkit.runs.spelling import Gap, Passage, Piece, places, spell, visible

if TYPE_CHECKING:
    from llmkit.runs.seeing import Seen, Shown

TOKENS = 800
"""About as many tokens of a passage are on the page."""

WIDTH, HEIGHT, BASE, TOP = 960, 220, 195, 34
"""The chart's size, where its bars stand, and how high they reach, in units of its view box."""


def render(seen: Seen) -> str:
    """Return the page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(visible=visible, places=places, trained_share=trained_share, notes=notes)
    passages = [passage for shown in seen.shown for passage in shown.passages]
    return environment.get_template("data_page.html").render(
        seen=seen,
        headline=headline(seen),
        chart=_chart(seen),
        rows=[_row(seen, shown) for shown in seen.shown],
        broken=seen.broken_by_reason[:NAMED],
        other_broken=sum(broken.count for broken in seen.broken_by_reason[NAMED:]),
        counted=counted_as(seen),
        trains=any(passage.trained for passage in passages),
        avoids=any(map(is_avoided, passages)),
    )


def _chart(seen: Seen) -> dict[str, Any]:
    bins = seen.histogram
    most = max((bin_.count for bin_ in bins), default=0)
    step = WIDTH / max(len(bins), 1)
    columns = []
    for index, bin_ in enumerate(bins):
        height = round((BASE - TOP) * bin_.count / most, 1)
        columns.append(
            Bar(
                x=round(index * step + 0.08 * step, 1),
                y=BASE - height,
                width=round(0.84 * step, 1),
                height=height,
                label=f"{bin_.low:,}–{bin_.high:,}" if bin_ is bins[-1] and bin_.high > bin_.low else f"{bin_.low:,}",
                count=f"{bin_.count:,}" if bin_.count else "",
                words=f"{bin_.count:,} rows of {bin_.low:,} to {bin_.high:,} tokens",
            )
        )
    # No row is longer, so the limit stands at the end; one further off than a bar is wide is not drawn.
    near = bool(bins) and seen.max_length is not None and seen.max_length <= 2 * bins[-1].high - bins[-1].low
    limit = WIDTH - 1 if near else None
    return {"columns": columns, "width": WIDTH, "height": HEIGHT, "base": BASE, "limit": limit}


def _row(seen: Seen, shown: Shown) -> dict[str, Any]:
    return {
        "where": visible(shown.row.where),
        "facts": ", ".join(row_facts(shown)),
        "columns": shown.columns,
        "passages": [
            {"title": f"{p.title}, {token_count(p)}" if p.title else "", "parts": list(_parts(seen, p))}
            for p in shown.passages
        ],
    }


def _parts(seen: Seen, passage: Passage) -> Iterable[dict[str, str]]:
    for part in spell(seen.tokenizer, passage, TOKENS):
        if isinstance(part, Gap):
            yield {"kind": "g", "words": f"{part.trained:,} of them trained", "text": words_of(part)}
        else:
            yield {"kind": _kind(part, passage), "words": _words(part), "text": part.text}


def _kind(part: Piece, passage: Passage) -> str:
    kinds = [("a" if is_avoided(passage) else "t") if part.weight else ""]
    kinds += ["s" if part.special else "", "w" if part.weight not in (0, 1) else ""]
    return " ".join(filter(None, kinds))


def _words(part: Piece) -> str:
    ids = ", ".join(map(str, part.ids))
    factor = f", loss ×{part.weight:g}" if part.weight not in (0, 1) else ""
    return f"{ids}: {'trained' if part.weight else 'not trained'}{factor}"
