"""The rows of a recipe on a terminal, or in a pipe: there, marks stand for the colours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from llmkit.data.shapes import Shape
from llmkit.runs.spelling import Gap, Passage, Piece, places, spell, visible

if TYPE_CHECKING:
    from rich.console import Console

    from llmkit.data.ledger import Account
    from llmkit.data.lengths import Bin
    from llmkit.runs.seeing import Origin, Seen, Shown

TOKENS = 160
"""About as many tokens of a passage are printed."""

BAR = 32
"""Width of the longest bar, in characters."""

SIGNS = "↵ is a line break, · a space that could be overlooked"

EIGHTHS = " ▏▎▍▌▋▊▉█"
NAMED = 20
"""Reasons of broken rows that are printed; the run writes all of them down."""

TRAINED, AVOIDED, SPECIAL, QUIET, HEAD = "green", "red", "cyan", "dim", "bold"
LABELS = {"error": "bold red", "warning": "bold yellow", "accepted": "bold"}
MARK = re.compile("([↵·⇥⍽]+)")
OPEN, CLOSE = "⟦", "⟧"
"""What encloses trained tokens where there is no colour."""


def print_seen(seen: Seen, console: Console) -> None:
    """Print all of `seen`: sources, what is left out, lengths, padding, rows, and last what is wrong with them."""
    sections = (
        ("", [_headline(seen)]),
        ("Sources", [_sources(seen.sources), *_reasons(seen.sources)]),
        ("Left out", list(_left_out(seen))),
        ("Tokens per row", list(_lengths(seen))),
        ("Padding", list(_padding(seen))),
        ("Rows", list(_rows(seen, colour=has_colour(console)))),
        ("Findings", list(_findings(seen))),
    )
    for heading, lines in sections:
        if heading and lines:
            console.print()
            console.print(Text(heading, HEAD))
        for line in lines:
            console.print(line, highlight=False)


def has_colour(console: Console) -> bool:
    """Whether `console` shows colours: no pipe, and nobody set NO_COLOR."""
    return console.color_system is not None and not console.no_color


def _headline(seen: Seen) -> Text:
    return Text.assemble((visible(seen.title), HEAD), f"  {headline(seen)}")


def headline(seen: Seen) -> str:
    """Say how many rows there are, and who reads them."""
    rows = f"{seen.rows:,} {seen.shape} rows"
    held_out = f", {seen.held_out:,} held out" if seen.held_out else ""
    read = f"the first {rows} of a stream" if seen.streamed else rows
    return f"{read}{held_out}, as {visible(seen.model)} reads them"


# --- sources ---------------------------------------------------------------------------------------------------------


def _sources(origins: Sequence[Origin]) -> Table:
    grid = _grid("", "source", "rows kept", "of rows", "tokens", "of tokens", "trained", right=2)
    for origin in origins:
        account = origin.account
        _add(
            grid,
            origin.split,
            visible(origin.name),
            f"{account.kept:,} of {account.read:,}",
            f"{origin.row_share:.0%}",
            f"{account.tokens:,}",
            f"{origin.token_share:.0%}",
            trained_share(account),
        )
    return grid


def trained_share(account: Account) -> str:
    """Say which share of a source's tokens is trained; nothing where none can be."""
    return f"{account.trained_tokens / account.tokens:.0%}" if account.trained_tokens else ""


def _reasons(origins: Sequence[Origin]) -> Iterable[Text]:
    said: dict[str, list[str]] = {}
    for origin in origins:
        how = f"format {origin.format} ({visible(origin.reason)})" if origin.format else ""
        about = "; ".join([*([how] if how else []), *notes(origin.account)])
        said.setdefault(about, []).append(visible(origin.name))
    for about, names in said.items():
        if about:
            yield Text(f"{', '.join(names)}: {about}", QUIET)


def notes(account: Account) -> list[str]:
    """Say what else became of the rows that are kept."""
    found = [f"{account.truncated:,} truncated"] if account.truncated else []
    pieces = account.pieces - (account.kept - account.split)
    found += [f"{account.split:,} split into {pieces:,} pieces"] if account.split else []
    verdicts = account.verdicts
    return found + ([f"{verdicts['good']:,} good, {verdicts['bad']:,} bad"] if verdicts else [])


def _left_out(seen: Seen) -> Iterable[Table]:
    if not seen.lost and not seen.broken:
        return
    grid = _grid("rows", "why", "where", right=0)
    grid.columns[0].justify = "right"
    for lost in seen.lost:
        _add(grid, f"{lost.count:,}", visible(lost.reason), places(lost.places, lost.count))
    for broken in seen.broken_by_reason[:NAMED]:
        _add(grid, f"{broken.count:,}", f"broken: {visible(broken.reason)}", places(broken.places, broken.count))
    if others := sum(broken.count for broken in seen.broken_by_reason[NAMED:]):
        _add(grid, f"{others:,}", "broken as well", "")
    yield grid


# --- figures ---------------------------------------------------------------------------------------------------------


def bar(share: float, width: int = BAR) -> str:
    """Return a bar for a share of `width` characters, in eighths; no share above 0 is without one."""
    eighths = max(round(share * width * 8), int(share > 0))
    return EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _lengths(seen: Seen) -> Iterable[Table | Text]:
    most = max((bin_.count for bin_ in seen.histogram), default=0)
    ends = [_range(bin_) for bin_ in seen.histogram]
    width = max(map(len, ends), default=0)
    for bin_, end in zip(seen.histogram, ends, strict=True):
        yield Text.assemble(f"{end:>{width}}  ", (bar(bin_.count / most), QUIET), f" {bin_.count:,}")
    if seen.max_length is not None:
        limit = f"{seen.max_length:,}"
        yield Text(f"{limit:>{width}}  {'┄' * BAR} max_length", QUIET)
    yield Text()
    grid = _grid("", *seen.lengths, right=1)
    for name, values in zip(counted_as(seen), (seen.lengths, seen.trained), strict=True):
        if any(values.values()):
            _add(grid, name, *(f"{value:,}" for value in values.values()))
    yield grid


def counted_as(seen: Seen) -> tuple[str, str]:
    """Return what is counted of a row by its tokens, and by those trained: of a pair, not the same."""
    pair = seen.shape == Shape.PREFERENCE
    return ("longer sequence", "trained, both answers") if pair else ("tokens", "trained")


def _range(bin_: Bin) -> str:
    return f"{bin_.low:,}" if bin_.low == bin_.high else f"{bin_.low:,} to {bin_.high:,}"


def _padding(seen: Seen) -> Iterable[Table | Text]:
    if not seen.batchings:
        return
    grid = _grid(f"batches of {seen.batch_size}", "padding", "", "", right=0)
    for batching in seen.batchings:
        note = "this recipe" if batching.here else f"training: {{{batching.setting}}}" if batching.setting else ""
        share = f"{batching.padding:.0%}"
        bars = Text(bar(batching.padding), QUIET)
        _add(grid, batching.name, share, bars, note, style=HEAD if batching.here else "")
    grid.columns[1].justify = "right"
    yield grid


# --- rows ------------------------------------------------------------------------------------------------------------


def _rows(seen: Seen, *, colour: bool) -> Iterable[Text]:
    if not seen.shown:
        return
    yield _legend(seen, colour=colour)
    for shown in seen.shown:
        yield Text()
        yield _row_head(shown)
        for passage in shown.passages:
            if passage.title:
                yield Text(f"── {passage.title}, {token_count(passage)}", QUIET)
            yield passage_text(seen, passage, colour=colour)
        if shown.columns:
            yield Text("── for the rewards", QUIET)
        for name, value in shown.columns.items():
            yield Text.assemble((f"{name}: ", QUIET), _shortened(value))


def _legend(seen: Seen, *, colour: bool) -> Text:
    passages = [passage for shown in seen.shown for passage in shown.passages]
    trains, avoids = any(passage.trained for passage in passages), any(map(is_avoided, passages))
    signs = (f"{SIGNS}.", QUIET)
    if not trains:
        return Text.assemble(("Nothing of a row is trained: the model writes the answers itself. ", QUIET), signs)
    if not colour:
        return Text.assemble(f"{OPEN}trained{CLOSE}. ", signs)
    avoided = [("red", AVOIDED), (" is to be avoided, ", QUIET)] if avoids else []
    named = [("cyan", SPECIAL), (" is a special token. ", QUIET)]
    return Text.assemble(("green", TRAINED), (" is trained, ", QUIET), *avoided, *named, signs)


def is_avoided(passage: Passage) -> bool:
    """Whether the passage is one that the model learns to write less."""
    return passage.title == "rejected" or passage.title.endswith("(bad)")


def _row_head(shown: Shown) -> Text:
    return Text.assemble((visible(shown.row.where), HEAD), (f"  {', '.join(row_facts(shown))}", QUIET))


def row_facts(shown: Shown) -> list[str]:
    """Return what is to be said of a row beside its place."""
    facts = [shown.why]
    facts += [token_count(passage) for passage in shown.passages if not passage.title]
    facts += ["cut off at its end"] if shown.row.truncated else []
    facts += [f"piece {shown.row.part + 1} of a long row"] if shown.row.part else []
    return facts + (["held out"] if shown.split == "eval" else [])


def token_count(passage: Passage) -> str:
    """Say how many tokens a passage has, and how many of them are trained."""
    count, trained = len(passage.ids), passage.trained
    said = ", all trained" if trained == count else f", {trained:,} trained" if trained else ""
    return f"{count:,} token{'s' if count != 1 else ''}{said}"


def _shortened(text: str, most: int = 240) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def passage_text(seen: Seen, passage: Passage, *, colour: bool, most: int = TOKENS) -> Text:
    """Return a passage as text: trained tokens coloured, or enclosed by marks that also name a factor of the loss."""
    text, weight = Text(), 0.0
    for part in spell(seen.tokenizer, passage, most):
        if part.weight != weight:
            if not colour:
                text.append(CLOSE if weight else "")
                text.append(OPEN if part.weight else "")
            text.append(f"×{part.weight:g} " if part.weight not in (0, 1) else "", "yellow" if colour else "")
            weight = part.weight
        style = _style(part, is_avoided(passage)) if colour else ""
        for words in MARK.split(words_of(part)):
            text.append(words, f"{style} dim" if colour and MARK.fullmatch(words) else style)
    text.append(CLOSE if weight and not colour else "")
    text.rstrip()
    return text


def words_of(part: Piece | Gap) -> str:
    """Return the text of a piece, or what is said in place of the tokens that are left out."""
    if isinstance(part, Piece):
        return part.text
    trained = f", {part.trained:,} of them trained" if part.trained and not part.weight else ""
    return f" … {part.tokens:,} more tokens{trained} …"


def _style(part: Piece | Gap, avoided: bool) -> str:
    if isinstance(part, Gap):
        return "dim italic"
    if part.weight:
        return f"{AVOIDED if avoided else TRAINED}{' bold' if part.special else ''}"
    return SPECIAL if part.special else ""


# --- findings --------------------------------------------------------------------------------------------------------


def _findings(seen: Seen) -> Iterable[Text]:
    if not seen.findings:
        yield Text("Nothing is wrong with these rows.")
    for found in seen.findings:
        yield Text.assemble(
            (found.label, LABELS[found.label]), (f" ({found.check})", QUIET), f": {visible(found.what)}"
        )
        if found.where:
            yield Text(f"  {places(found.where, found.count)}", QUIET)
        if found.remedy:
            yield Text(f"  {visible(found.remedy)}")


def _grid(*headings: str, right: int) -> Table:
    """Return an empty table without lines; columns from `right` on hold numbers, if it is not 0."""
    grid = Table(box=None, pad_edge=False, header_style=QUIET)
    for index, heading in enumerate(headings):
        number = bool(right) and index >= right
        grid.add_column(Text(heading), justify="right" if number else "left", no_wrap=number, overflow="fold")
    return grid


def _add(grid: Table, *cells: str | Text, style: str = "") -> None:
    """Add a row of cells as they are: brackets in them are no markup."""
    grid.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), style=style)
