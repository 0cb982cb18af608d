"""Rows made from a model's own answers: several to each prompt, scored by the rewards, the good ones kept as JSONL.

The best answer to each prompt is what rejection sampling learns from (SFT, as in arXiv:2308.01825), the best against
the worst a pair for DPO. Prompts are answered in batches that are the same however often the command was stopped; what
is written of a batch is whole, and a ledger beside the file says how far it goes.
"""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.audit import refuse
from llmkit.data.splits import Row
from llmkit.errors import DataError, RecipeError, SetupError
from llmkit.model.sources import locate
from llmkit.recipe.recipe import Recipe
from llmkit.runs.drawing import (
    Sampled,
    draw,
    golden_level,
    make_folder,
    positions,
    require_single_answers,
    sampling_kwargs,
    score,
)
from llmkit.runs.folder import RunFolder, captured_logs, code_hashes, quiet_handler
from llmkit.runs.keeping import Keeping, Rules, Tally, choose, way
from llmkit.runs.pace import generation_batch
from llmkit.runs.prepare import plan, prepare_data, set_up_rewards
from llmkit.runs.progress import Narrator
from llmkit.runs.reopen import Reopened, open_model, recipe_of
from llmkit.runs.workbench import require_rewards, spread_out
from llmkit.runs.written import Written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GOLDEN_ROWS = 64
"""Rows whose golden answers are scored to find the threshold."""

GOLDEN, GIVEN = "golden answers", "given"


@dataclass(frozen=True)
class Sampling:
    """What was written, and what came of every prompt."""

    out: Path
    samples: int
    """Answers to each prompt."""
    pass_at: float | None
    """Reward from which an answer passes; None where nobody says one."""
    pass_at_from: str
    tally: Tally
    recipe: tuple[str, ...]
    """Lines of a recipe that trains on the file."""
    override: str
    """The file as the value of `--set`, quoted for a shell."""

    @property
    def passes(self) -> float | None:
        """Share of the answers that pass, which is pass@1."""
        return self.tally.passed / self.tally.answers if self.pass_at is not None and self.tally.answers else None


def sample(
    target: str | Path,
    overrides: Iterable[str] = (),
    *,
    samples: int = 8,
    prompts: int | None = None,
    keep: str = "best",
    threshold: float | None = None,
    margin: float = 0.0,
    temperature: float | None = None,
    batch_size: int | None = None,
    truncated: bool = False,
    out: Path | None = None,
    narrator: Narrator | None = None,
) -> Sampling:
    """Draw `samples` answers to each training prompt, score them, and write what is worth learning to `out`.

    `target` is a recipe file (its base model answers) or a run folder (its tuned model does). `prompts` of the rows are
    taken, evenly spaced; all if unset. `keep` is `best` (an answer that earns `threshold`; if unset, what golden
    answers earn), `pairs` (best against worst, at least `margin` apart) or `all`. A second call with the same `out`
    goes on where the first stopped. Raises RecipeError, DataError or SetupError before anything is sampled, SetupError
    if a batch doesn't fit in memory, RunError where a reward fails.
    """
    narrator = narrator or Narrator()
    target = Path(target)
    recipe, folder = recipe_of(target, overrides)
    keeping, out = way(keep), out or Path(f"{target.resolve().name if folder else target.stem}-{keep}.jsonl")
    require_rewards(recipe)
    require_single_answers(recipe, "sample")
    _check_wishes(keep, samples, threshold, margin, out)
    every_row = _rows(recipe, narrator)
    rows = spread_out(every_row, prompts or len(every_row))
    plain = _plain(rows)
    the_plan = plan(recipe)
    settings = sampling_kwargs(recipe, the_plan) | ({} if temperature is None else {"temperature": temperature})
    _check_temperature(settings["temperature"], samples)
    at_once = batch_size or max(1, round(generation_batch(recipe, the_plan)))
    level, level_from = (threshold, GIVEN) if threshold is not None else (_golden(recipe, rows), GOLDEN)
    rules = Rules(settings["max_new_tokens"], threshold, margin, truncated)
    if keep == "best":
        rules = replace(rules, threshold=_required(level))
    make_folder(out.parent)
    written = Written(out, _begun_with(recipe, folder, rows, samples, keep, rules, settings, at_once), len(rows))
    written.go_on(narrator)
    if written.tally.done < len(rows):
        with captured_logs(quiet_handler()):
            maker = _Maker(open_model(recipe, folder), keeping, rules, level, samples, settings, at_once)
            maker.make(rows, written, narrator)
    lines, override = _next(recipe, folder, keeping.method, keeping.text if plain else keeping.messages, out)
    return Sampling(out, samples, level, level_from, written.tally, lines, override)


# --- what is refused before anything is loaded -----------------------------------------------------------------------


def _check_wishes(keep: str, samples: int, threshold: float | None, margin: float, out: Path) -> None:
    if keep == "pairs" and samples < 2:
        raise RecipeError("--keep pairs compares answers, and takes at least two --samples of each prompt")
    if keep != "pairs" and margin:
        raise RecipeError(f"--margin is between the answers of a pair, and --keep {keep} makes none")
    if keep == "all" and threshold is not None:
        raise RecipeError("--keep all keeps every answer with its score: it has no use for a --threshold")
    if out.suffix != ".jsonl":
        raise RecipeError(f"--out {out} must end with .jsonl, or no recipe reads it")


def _check_temperature(temperature: float, samples: int) -> None:
    if temperature < 0 or (temperature == 0 and samples > 1):
        raise RecipeError(
            f"at temperature {temperature:g} there is only one answer to each prompt",
            remedy="Give a --temperature above 0, e.g. 1.0; or ask for --samples 1.",
        )


def _required(level: float | None) -> float:
    if level is None:
        raise RecipeError(
            "no reward tells a golden answer, so nobody can say what a good answer earns",
            remedy="Give the reward from which an answer is kept: --threshold X. `llmkit preflight RECIPE` shows what "
            "the model earns.",
        )
    return level


def _rows(recipe: Recipe, narrator: Narrator) -> list[Row]:
    """Return the prompts that the recipe trains on, with tokens, and set the rewards up.

    What is held out for evaluation is not among them. A row that the mix of sources repeats counts once.
    """
    data = prepare_data(recipe, narrator=narrator)
    refuse(data.findings)
    rows = list({(row.source, row.where): row for row in data.splits.train}.values())
    set_up_rewards(recipe, rows)
    return rows


def _golden(recipe: Recipe, rows: Sequence[Row]) -> float | None:
    return golden_level(recipe, spread_out(rows, GOLDEN_ROWS))


def _plain(rows: Sequence[Row]) -> bool:
    """Whether the prompts are strings; raises DataError where some are and others are messages."""
    first = isinstance(rows[0].example["prompt"], str)
    other = next((row for row in rows if isinstance(row.example["prompt"], str) != first), None)
    if other is not None:
        kinds = ("a string", "messages") if first else ("messages", "a string")
        raise DataError(
            f"this prompt is {kinds[1]}, and that of {rows[0].where} is {kinds[0]}: no format reads both from one file",
            where=other.where,
            remedy="Sample the two apart, each from a source of its own.",
        )
    return first


def _begun_with(
    recipe: Recipe,
    folder: RunFolder | None,
    rows: Sequence[Row],
    samples: int,
    keep: str,
    rules: Rules,
    settings: Mapping[str, Any],
    at_once: int,
) -> dict[str, Any]:
    """Return all that the answers and the choice among them depend on, by the names that the user knows."""
    digest = hashlib.sha256()
    for row in rows:
        # What JSON has no word for (a task's own objects) is told apart by its kind alone.
        digest.update(json.dumps([row.where, row.example], default=lambda value: type(value).__name__).encode())
    return {
        "model": recipe.model.model_dump(mode="json", exclude_unset=True),
        "quantization": recipe.quantization.model_dump(mode="json") if recipe.quantization else None,
        "weights": _weights(recipe, folder),
        "rewards": [reward.model_dump(mode="json", exclude_unset=True) for reward in recipe.rewards],
        "code": code_hashes(recipe),
        "prompts": len(rows),
        "rows": digest.hexdigest(),
        "samples": samples,
        "keep": keep,
        "threshold": rules.threshold,
        "margin": rules.margin,
        "truncated": rules.truncated,
        "batch_size": at_once,
        **settings,
    }


def _weights(recipe: Recipe, folder: RunFolder | None) -> dict[str, list[int]]:
    """Return size and time of change of each local file of weights; hashing them would take longer than it is worth."""
    source = locate(recipe.model, recipe.folder)
    places = [Path(source.path), *([source.adapter] if source.adapter else []), *([folder.model] if folder else [])]
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.glob("*.safetensors")))]
    return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


# --- sampling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Maker:
    """Answers prompts batch by batch, and makes rows of what is kept."""

    opened: Reopened
    keeping: Keeping
    rules: Rules
    level: float | None
    samples: int
    settings: Mapping[str, Any]
    at_once: int
    """Answers that are sampled at once."""

    def make(self, rows: Sequence[Row], written: Written, narrator: Narrator) -> None:
        """Answer the prompts that are left; what is done is on disk after each batch."""
        start = written.tally.done
        who = self.opened.folder.path if self.opened.folder else self.opened.recipe.model.name
        narrator.say(f"{len(rows) - start} prompts x {self.samples} answers of {who}")
        step = max(1, self.at_once // self.samples)
        with narrator.bar("sampling", (len(rows) - start) * self.samples) as bar:
            for first in range(start, len(rows), step):
                # Of the batch's place alone: a command that goes on samples what it would have sampled.
                seed = seed_at(int(self.settings["seed"]), first)
                written.add(self._batch(rows[first : first + step], seed, written.tally))
                bar.update((written.tally.done - start) * self.samples, _note(written.tally))

    def _batch(self, batch: Sequence[Row], seed: int, tally: Tally) -> list[dict[str, Any]]:
        """Return the rows that are kept of a batch of prompts, and count what became of each prompt."""
        room, limit = positions(self.opened), self.rules.limit
        rows = [row for row in batch if room is None or row.longest + limit <= room]
        for _ in range(len(batch) - len(rows)):
            tally.drop(f"the prompt leaves no room for {limit} tokens in the model's {room} positions")
        if not rows:
            return []
        answers, seconds = self._answers(rows, seed)
        tally.seconds += seconds
        made = []
        for index, row in enumerate(rows):
            group = answers[index * self.samples :][: self.samples]
            tally.sampled(group, self.level)
            chosen = choose(self.keeping, group, self.rules)
            if isinstance(chosen, str):
                tally.drop(chosen)
                continue
            tally.keep(chosen[: self.keeping.learnt])
            tally.altered += not _as_sampled(self.opened.tokenizer, row.example, chosen[0].completion)
            made.append(self.keeping.row(row.example, chosen))
        return made

    def _answers(self, rows: Sequence[Row], seed: int) -> tuple[list[Sampled], float]:
        """Return the scored answers to the prompts, and the seconds of sampling."""
        import torch

        settings, prompts = {**self.settings, "seed": seed}, [row.tokens["prompt_ids"] for row in rows]
        try:
            found, seconds = draw(self.opened, prompts, self.samples, settings, batch_size=self.at_once)
        except torch.OutOfMemoryError as error:
            what = f"{self.at_once} answers at once don't fit in memory"
            raise SetupError(
                what, remedy="Lower --batch-size; a file that was begun needs another --out then."
            ) from error
        answers, _ = score(self.opened.recipe, rows, self.samples, found)
        return answers, seconds


def seed_at(seed: int, place: int) -> int:
    """Return the seed of the batch that begins with prompt number `place`: batches share no random numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed} {place}".encode()).digest()[:4], "big")


def _note(tally: Tally) -> str:
    kept = f"{tally.kept} of {tally.done} prompts kept"
    return f"{kept} · reward {tally.mean_reward:.3f} · {tally.tokens_per_second:,.0f} tokens/s"


def _as_sampled(tokenizer: PreTrainedTokenizerBase, example: Mapping[str, Any], answer: str) -> bool:
    """Whether the conversation with `answer` is rendered as the prompt was for sampling, followed by the answer.

    Templates that begin the assistant's turn themselves, or cut reasoning out of it, render something else.
    """
    from jinja2 import TemplateError

    prompt, tools = example["prompt"], example.get("tools")
    if isinstance(prompt, str):
        return True
    whole = [*prompt, {"role": "assistant", "content": answer}]
    try:
        asked = tokenizer.apply_chat_template(prompt, tools=tools, tokenize=False, add_generation_prompt=True)
        said = tokenizer.apply_chat_template(whole, tools=tools, tokenize=False)
    except TemplateError:
        return False
    # Many templates trim what is said.
    return bool(said.startswith(asked) and said[len(asked) :].lstrip().startswith(answer.strip()))


# --- what comes next -------------------------------------------------------------------------------------------------


def _next(
    recipe: Recipe, folder: RunFolder | None, method: str, row_format: str, out: Path
) -> tuple[tuple[str, ...], str]:
    """Return the lines of a recipe that trains the model that answered on `out`, and it as `--set` takes it."""
    source = {"path": str(out.resolve()), "format": row_format}
    adapter = recipe.adapter.model_dump(mode="json", exclude_unset=True) if recipe.adapter else None
    if adapter and folder and (folder.model / "adapter_config.json").is_file():
        # Training continues from the run's adapter, whose shape is in its folder.
        adapter = {"type": adapter["type"]}
    sections = {
        "model": _model_section(recipe, folder),
        "quantization": recipe.quantization.model_dump(mode="json", exclude_unset=True)
        if recipe.quantization
        else None,
        "adapter": adapter,
        "data": {"train": [source]},
        "method": {"type": method},
        "hardware": recipe.hardware.model_dump(mode="json", exclude_unset=True),
    }
    lines = tuple(f"{name}: {_flow(section)}" for name, section in sections.items() if section)
    return lines, shlex.quote(f"data.train={_flow([source])}")


def _model_section(recipe: Recipe, folder: RunFolder | None) -> dict[str, Any]:
    """Return the recipe's `model` with paths that hold wherever the next recipe stands."""
    section: dict[str, Any] = recipe.model.model_dump(mode="json", exclude_unset=True)
    for key in {"name", "chat_template"} & section.keys():
        path = recipe.folder / Path(str(section[key])).expanduser()
        if path.exists():
            section[key] = str(path.resolve())
    return {**section, "name": str(folder.model.resolve())} if folder else section


def _flow(value: Any) -> str:
    """Return `value` on one line of YAML."""
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width, yaml.sort_base_mapping_type_on_output = True, sys.maxsize, False
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue().strip()
