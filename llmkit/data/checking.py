"""What a recipe says of its data, checked before any of it is tokenized. Imports neither torch nor numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkit.data.misfits import mending
from llmkit.data.shapes import Shape
from llmkit.data.sources import check_source, common_shape, first_row, format_of, known_format
from llmkit.errors import RecipeError
from llmkit.recipe.spec import KeyPath

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Data, Recipe, Source

SEQUENCES = (Shape.CONVERSATION, Shape.TEXT, Shape.PROMPT_COMPLETION)
"""Shapes whose rows are a single sequence."""


def check_data(recipe: Recipe, *, read: bool = False) -> Shape | None:
    """Check that the sources exist, and that the method can learn from their shape.

    Without `read`, no row is read; the shape is None if it can't be known then (`format: auto`). Raises RecipeError,
    DataError or SetupError.
    """
    rows = _placed(recipe)
    benchmarks = [(("data", "audit", "benchmarks", i), s) for i, s in enumerate(recipe.data.audit.benchmarks)]
    for place, source in (*rows, *benchmarks):
        with recipe.at(*place):
            check_source(source, recipe.folder)
    sources = [source for _, source in rows]
    with recipe.at("data"):
        check_mix(recipe.data)
        check_streaming(recipe)
        shape = common_shape(sources, recipe.folder, read=False)
    if read:
        shape = common_shape(sources, recipe.folder, read=True)
    if shape is not None and shape not in recipe.method.accepts:
        raise _wrong_shape(recipe, shape)
    if shape is not None:
        _check_rules(recipe, shape)
    return shape


def _placed(recipe: Recipe) -> list[tuple[KeyPath, Source]]:
    """Return the sources of rows, each with its place in the recipe."""
    train: list[tuple[KeyPath, Source]] = [(("data", "train", i), s) for i, s in enumerate(recipe.data.train)]
    return [*train, *((("data", "eval", i), s) for i, s in enumerate(eval_sources(recipe)))]


def _check_rules(recipe: Recipe, shape: Shape) -> None:
    data = recipe.data
    if shape not in SEQUENCES and data.overflow == "split":
        raise RecipeError(
            f"`data.overflow: split` can't cut {shape} rows: their answers belong to one prompt",
            where=recipe.origin(("data", "overflow")),
            remedy="Use drop, truncate or error.",
        )
    if shape is not Shape.CONVERSATION and data.train_on != "all":
        raise RecipeError(
            f"`data.train_on: {data.train_on}` chooses among the turns of conversations, and these are {shape} rows",
            where=recipe.origin(("data", "train_on")),
            remedy="Leave it out.",
        )


def _wrong_shape(recipe: Recipe, shape: Shape) -> RecipeError:
    sources = _placed(recipe)
    # A format that the recipe names is known to be wrong without a row of it.
    place, first = next((one for one in sources if known_format(one[1]) is not None), sources[0])
    chosen = format_of(first, recipe.folder)
    auto = first.format == "auto"
    reason = f" ({chosen.reason})" if auto else ""
    row = first_row(first, recipe.folder, chosen.format) if auto else None
    return RecipeError(
        f"method {recipe.method.type!r} learns from {', '.join(sorted(recipe.method.accepts))} rows, but format "
        f"{chosen.format.name!r} gives {shape} rows{reason}",
        where=f"{recipe.origin(place)}: {first.path}",
        remedy=mending(row, chosen.format, first, recipe.method.accepts),
    )


def eval_sources(recipe: Recipe) -> tuple[Source, ...]:
    """Return the sources of held-out rows; none where they are a share of the training rows."""
    return recipe.data.eval if isinstance(recipe.data.eval, tuple) else ()


def check_mix(data: Data) -> None:
    """Raise RecipeError where weights are given to some sources only, beside a temperature, or with nothing to mix."""
    weighted = [source.path for source in data.train if source.weight is not None]
    if weighted and data.temperature is not None:
        raise RecipeError(
            "`data.temperature` and the sources' `weight` both say how sources are mixed", remedy="Keep one of them."
        )
    if weighted and len(weighted) < len(data.train):
        bare = ", ".join(source.path for source in data.train if source.weight is None)
        raise RecipeError(f"some sources have a `weight`, and {bare} has none", remedy="Give one to all, or to none.")
    if len(data.train) == 1 and (weighted or data.temperature is not None):
        key = "`weight`" if weighted else "`data.temperature`"
        raise RecipeError(f"{key} mixes several sources, and there is one", remedy="Leave it out, or add sources.")
    for source in data.eval if isinstance(data.eval, tuple) else ():
        for key, given in (("weight", source.weight is not None), ("repeat", source.repeat > 1)):
            if given:
                raise RecipeError(
                    f"held-out rows are not mixed, and {source.path} has a `{key}`", remedy="Leave it out."
                )


def check_streaming(recipe: Recipe) -> None:
    """Raise RecipeError for what a stream can't do, because it is not known how many rows it has."""
    data, training = recipe.data, recipe.training.kwargs()
    held_out = data.eval if isinstance(data.eval, tuple) else ()
    if any(source.streaming for source in held_out):
        raise RecipeError("held-out rows can't be streamed: all of them are scored", remedy="Use `max_rows`.")
    if not data.streaming:
        if "shuffle_buffer" in data.model_fields_set:
            raise RecipeError("`data.shuffle_buffer` shuffles a stream, and no source has `streaming: true`")
        return
    problems = {
        "all training sources are streamed, or none": (
            not all(source.streaming for source in data.train),
            "Give `streaming: true` to each.",
        ),
        "`data.eval` can't be a share of a stream": (isinstance(data.eval, float), "Give it sources of its own."),
        f"method {recipe.method.type!r} needs all rows at once": (recipe.method.type != "sft", "Use `method: sft`."),
        "a stream has no end that epochs could be counted by": (
            training.get("max_steps", -1) < 1,
            "Set `training.max_steps`.",
        ),
        "`data.temperature` needs to know how many rows there are": (
            data.temperature is not None,
            "Give each source a `weight`.",
        ),
        "several streams need a `weight` each": (
            len(data.train) > 1 and any(source.weight is None for source in data.train),
            "It is the share of rows that come from the source.",
        ),
        "a stream can't `repeat` its rows": (
            any(source.repeat > 1 for source in data.train),
            "Raise the source's `weight`; a stream that ends is read again until `training.max_steps`.",
        ),
        "`training.packing` and `padding_free` need the lengths of all rows": (
            bool(training.get("packing") or training.get("padding_free")),
            "Leave them out, or leave out `streaming`.",
        ),
        "processes that load batches would each read the stream": (
            training.get("dataloader_num_workers", 0) > 0,
            "Leave out `training.dataloader_num_workers`.",
        ),
    }
    for what, (applies, remedy) in problems.items():
        if applies:
            raise RecipeError(f"`streaming`: {what}", remedy=remedy)
